//! HTTP/2 with prior knowledge (RFC 9113), gRPC on top of it.
//!
//! In: the bytes of a downstream connection whose protocol and destination are known. Out: its
//! streams, each carried to an endpoint of its own over the upstream connections of the worker. One
//! local task a stream; a body flows only as fast as the side that takes it. Copies for mirrors
//! have tasks and streams of their own.
//!
//! ```text
//!            serve          exchange          forward         pool ── connection (one task each: frames, pings, age)
//! downstream ─────▶ stream ─────────▶ decide ────────▶ attempt ────▶ upstream
//!                                 └─▶ reply      ◀── body, both ways ──▶
//! ```
//!
//! What h2 sees to itself: framing, `content-length` against the body, header fields that belong to
//! a connection (refused), the limits below. What it does not is here.
//!
//! # Floors
//!
//! ```text
//! serve                       a connection, and a task for each of its streams
//! exchange                    one stream
//! forward                     sent to an endpoint
//! mirror                      copies of it
//! client                      who is answered
//! downstream attempt          the connection, as its streams see it; one try
//! held body                   what is charged; bodies
//! head inflow interim meter   heads; what is counted and bounded
//! reply                       answers of the proxy's own
//! ```

mod attempt;
mod body;
mod client;
mod downstream;
mod exchange;
mod forward;
mod head;
mod held;
mod inflow;
mod interim;
mod meter;
mod mirror;
mod reply;
mod serve;

#[cfg(test)]
pub(crate) mod tests;

pub(crate) use reply::{grpc_status, is_grpc};
pub use serve::serve;

/// [`CONNECTION_WINDOW`](crate::upstream::http2::CONNECTION_WINDOW) for a client from outside that
/// has proved no identity: sixteen streams at a standstill. What it makes us hold is to be little
/// beside what others do.
const STRANGER_WINDOW: u32 = 4 * 1024 * 1024;
/// Streams that a client has reset before we took notice of them: what it may say in one breath.
/// What it does on and on is slowed down once we do (CVE-2023-44487).
const MAX_PENDING_RESETS: usize = 4_096;
/// Streams that a client made us reset by breaking the protocol, in the life of a connection that
/// carries its requests alone. One that clients share is not ended for what one of them does.
const MAX_ERROR_RESETS: usize = 1_024;
