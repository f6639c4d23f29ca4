//! The rows: what each lane sends and receives, and which carriers are compared.

use crate::carriers::Carrier;
use crate::lanes::{REQUEST_HEAD, RESPONSE_HEAD};

/// An operation: one request and its response, on one lane.
pub struct Row {
    pub name: &'static str,
    /// The first one is Naru's.
    pub carriers: &'static [Carrier],
    /// How many lanes exchange at once.
    pub lanes: u32,
    /// Operations in one measurement, of all lanes together.
    pub operations: u32,
    /// In bytes, heads included.
    pub request: usize,
    pub response: usize,
    /// The size of one write, in bytes.
    pub piece: usize,
    /// Whether the bytes are HTTP/1: each receiver parses the head.
    pub is_http: bool,
    /// Whether each operation has a lane of its own.
    pub is_new: bool,
}

const MIB: usize = 1 << 20;
const KIB_64: usize = 64 * 1024;

const HTTP: &[Carrier] = &[Carrier::Mux, Carrier::H2, Carrier::H2Raw, Carrier::Naru];
const OPAQUE: &[Carrier] = &[Carrier::Frames, Carrier::MuxCopied, Carrier::NaruCopied];
const TLS: &[Carrier] = &[Carrier::Naru, Carrier::TokioRustls];

const fn http(name: &'static str, lanes: u32, operations: u32, body: usize) -> Row {
    Row {
        name,
        carriers: HTTP,
        lanes,
        operations,
        request: REQUEST_HEAD.len() + 100,
        response: RESPONSE_HEAD.len() + body,
        piece: KIB_64,
        is_http: true,
        is_new: false,
    }
}

const fn bytes(
    name: &'static str,
    carriers: &'static [Carrier],
    lanes: u32,
    operations: u32,
    length: usize,
) -> Row {
    Row {
        name,
        carriers,
        lanes,
        operations,
        request: length,
        response: length,
        piece: KIB_64,
        is_http: false,
        is_new: false,
    }
}

/// One way: a lane sends this many bytes for each byte that it gets.
const fn bulk(name: &'static str, carriers: &'static [Carrier], piece: usize) -> Row {
    Row {
        request: 64 * MIB,
        response: 1,
        piece,
        ..bytes(name, carriers, 1, 1, 0)
    }
}

pub const ALL: &[Row] = &[
    http("http-1", 1, 10_000, 1024),
    http("http-16", 16, 32_000, 1024),
    http("http-64", 64, 64_000, 1024),
    http("http-64k", 16, 4_800, KIB_64),
    http("http-1m", 4, 240, MIB),
    Row {
        is_new: true,
        ..bytes("opaque-new", OPAQUE, 1, 2_000, 100)
    },
    bytes("opaque-1", OPAQUE, 1, 10_000, 100),
    bytes("opaque-16", OPAQUE, 16, 32_000, 100),
    bulk("opaque-bulk", OPAQUE, KIB_64),
    bytes("tls-1", TLS, 1, 10_000, 100),
    bytes("tls-16", TLS, 16, 32_000, 1024),
    bulk("tls-bulk-16k", TLS, 16 * 1024),
    bulk("tls-bulk-64k", TLS, KIB_64),
];

impl Row {
    pub fn named(name: &str) -> Option<&'static Self> {
        ALL.iter().find(|row| row.name == name)
    }
}
