//! Fuzz targets for what parses a peer's bytes.
//!
//! In: any bytes. Out: nothing; a target panics where the proxy breaks a promise. Each compares the
//! proxy with a reference (rustls, or a model in the target), or with itself over other reads.
//! `tests/fuzz.rs` runs every target for a bounded number of executions, `run` drives one by
//! libFuzzer.
//!
//! # Floors
//!
//! ```text
//! filters client_hello detect frames http1 mux mux_hostile records table tls tls_hostile
//! route
//! handshake                   a peer of rustls' own
//! wire input                  connections within the process; structured inputs
//! ```
#![forbid(unsafe_code)]

mod client_hello;
mod detect;
mod filters;
mod frames;
mod handshake;
mod http1;
mod input;
mod mux;
mod mux_hostile;
mod records;
mod route;
mod table;
mod tls;
mod tls_hostile;
mod wire;

/// Executes a target on one input.
pub type Target = fn(&[u8]);

/// Every target, by name.
pub const TARGETS: &[(&str, Target)] = &[
    ("client_hello", client_hello::one),
    ("detect", detect::one),
    ("filters", filters::one),
    ("frames", frames::one),
    ("http1", http1::one),
    ("mux", mux::one),
    ("mux_hostile", mux_hostile::one),
    ("records", records::one),
    ("route", route::one),
    ("table", table::one),
    ("tls", tls::one),
    ("tls_hostile", tls_hostile::one),
];

/// The target of this name.
pub fn target(name: &str) -> Option<Target> {
    let found = TARGETS.iter().find(|(other, _)| *other == name);
    found.map(|(_, one)| *one)
}
