//! TLS 1.3 between sidecars.
//!
//! rustls performs the handshake, verifies the identities and derives every key; records are sealed
//! and opened here, where that needs no copy: straight from the sender's buffer, and straight into
//! the reader's buffer (`rustls::kernel` is made for that).
//!
//! ```text
//! handshake (rustls) ─▶ secrets ─▶ record: one record sealed or opened
//!         │                           │
//!         └─▶ KernelConnection ─▶ stream: AsyncRead and AsyncWrite over many records;
//!                                         alerts, tickets, key updates
//! ```
//!
//! A connection allocates no buffer while no data waits in it.
//!
//! # Why not tokio-rustls
//!
//! `rustls::Connection` copies each record through buffers of its own, one allocation a record, in
//! either direction. In place of this module (user and system CPU time of both ends, see
//! `tests/bench/README.md`) tokio-rustls takes 27 to 33 % more for 100 bytes each way, 18 % more
//! for 1 KiB on 16 connections, and 20 to 23 % more for bulk. An idle connection holds 5.4 KiB
//! more. In whole sidecars it executes 7 to 13 % more instructions for a request, and 20 to 25 %
//! more for an opaque connection.
//!
//! # Floors
//!
//! ```text
//! handshake
//! stream
//! record
//! ```

mod handshake;
mod record;
mod stream;

#[cfg(test)]
mod tests;

/// Entry points for the fuzz targets: only the record layer. A release has no use for them.
#[cfg(debug_assertions)]
pub mod fuzzing {
    pub use super::record::{
        HEADER, Keys, MAX_CONTENT, OVERHEAD, RecordError, inner_length, length,
    };
}

pub use handshake::{Accepted, accept, connect};
pub use stream::Stream;
