//! HTTP/2 with prior knowledge (RFC 9113), gRPC on top of it.
//!
//! In: the bytes of a downstream connection whose protocol and destination are known. Out: its streams, each carried to an
//! endpoint of its own over the upstream connections of the worker. One local task a stream; a body flows only as fast as
//! the side that takes it. Copies for mirrors have tasks and streams of their own.
//!
//! ```text
//!            serve          exchange          forward         pool ── connection (one task each: frames, pings, age)
//! downstream ─────▶ stream ─────────▶ decide ────────▶ attempt ────▶ upstream
//!                                 └─▶ reply      ◀── body, both ways ──▶
//! ```
//!
//! What h2 sees to itself: framing, `content-length` against the body, header fields that belong to a connection (refused), the
//! limits below. What it does not is here.

mod attempt;
mod body;
mod connection;
mod exchange;
mod forward;
mod head;
mod held;
mod inflow;
mod interim;
mod meter;
mod mirror;
mod paced;
mod reply;
mod serve;

#[cfg(test)]
pub(crate) mod tests;

use std::time::Duration;

use crate::upstream::streams::MAX_STREAMS;

pub use connection::Connection;
pub(crate) use reply::{grpc_status, is_grpc};
pub use serve::serve;

/// How much of a stream's body may be under way to us and not taken by the other side yet, in bytes. Carries 128 MiB/s over a
/// round trip of 2 ms.
const STREAM_WINDOW: u32 = 256 * 1024;
/// The same while memory is short ([`crate::memory`]).
const SMALL_WINDOW: u32 = 16 * 1024;
/// The same for all streams of a connection. So large that streams at a standstill do not stop the others: it takes more
/// than 128 of them on a downstream connection, and is never reached on an upstream one: as many full stream windows fit into it as there may
/// be streams ([`MAX_STREAMS`]), so that one client that does not read its responses takes nothing from the others who share the
/// connection. Memory is used only for what is under way.
const CONNECTION_WINDOW: u32 = 32 * 1024 * 1024;
/// The same for a client from outside that has proved no identity: sixteen streams at a standstill.
/// What it makes us hold is to be little beside what others do.
const STRANGER_WINDOW: u32 = 4 * 1024 * 1024;
/// Payload of a DATA frame that we take, in bytes. Larger than the least allowed, for fewer frames of large bodies; small enough
/// that streams take turns.
const MAX_FRAME: u32 = 32 * 1024;
/// What h2 queues for one stream beyond what is sent, in bytes.
const MAX_SEND_BUFFER: usize = 64 * 1024;
/// Streams that we have reset and still remember, so that late frames for them are no error.
const MAX_RESET_STREAMS: usize = 256;
const RESET_STREAM_MEMORY: Duration = Duration::from_secs(5);
/// Streams that a client has reset before we took notice of them: what it may say in one breath.
/// What it does on and on is slowed down once we do (CVE-2023-44487).
const MAX_PENDING_RESETS: usize = 4_096;
/// Streams that a client made us reset by breaking the protocol, in the life of a connection that
/// carries its requests alone. One that clients share is not ended for what one of them does.
const MAX_ERROR_RESETS: usize = 1_024;
/// What h2 may count for small DATA frames that lie in it, where the connection is shared: up to
/// 255 bytes for each. A stream's task takes them out at once ([`inflow`]), so this is for what
/// comes in one breath.
const SMALL_FRAMES: usize = 64 * 1024 * 1024;

const _: () = assert!(MAX_STREAMS * STREAM_WINDOW as usize <= CONNECTION_WINDOW as usize);
