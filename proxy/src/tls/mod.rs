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

pub use handshake::{Accepted, accept, connect};
pub use stream::Stream;
