//! TLS 1.3 between sidecars.
//!
//! rustls makes the handshake, proves the identities and derives every key; records are sealed and
//! opened here, where they can be without a copy: straight from what is to be sent, and straight to
//! where it is read (`rustls::kernel` is made for that).
//!
//! ```text
//! handshake (rustls) ─▶ secrets ─▶ record: one record sealed or opened
//!         │                           │
//!         └─▶ KernelConnection ─▶ stream: AsyncRead and AsyncWrite over many; alerts, tickets, key updates
//! ```
//!
//! A connection has no room of its own while nothing waits in it.
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
