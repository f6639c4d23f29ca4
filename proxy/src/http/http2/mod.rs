//! HTTP/2 with prior knowledge (RFC 9113), including gRPC.
//!
//! In: the bytes of a downstream connection whose protocol and destination are known. Out: its
//! streams, each carried to its own endpoint over the upstream connections of the worker. Each
//! stream has one local task; a body flows only as fast as its receiver reads it. Copies for
//! mirrors have separate tasks and streams.
//!
//! ```text
//!            serve           request          forward         pool ── connection
//! downstream ─────▶ stream ─────────▶ decide ────────▶ attempt ────▶ upstream
//!                                 └─▶ reply      ◀── body, both ways ──▶
//! ```
//!
//! Each upstream connection has one task, for its frames, pings and age.
//!
//! h2 handles framing, `content-length` against the body, connection-level fields (rejected) and
//! the limits below. The rest is here.
//!
//! # Floors
//!
//! ```text
//! serve                       a connection, and a task for each of its streams
//! request                     one request, from its head to the end of its response
//! forward                     sends the request to an endpoint
//! mirror                      copies for mirrors
//! client                      the downstream stream, and responses to it
//! downstream attempt          the connection, as its streams see it; one attempt
//! held body                   what is charged to the budget; bodies
//! head inflow interim meter   heads, incoming bodies, 1xx responses, frame limits
//! reply                       responses that the proxy generates
//! ```

mod attempt;
mod body;
mod client;
mod downstream;
mod forward;
mod head;
mod held;
mod inflow;
mod interim;
mod meter;
mod mirror;
mod reply;
mod request;
mod serve;

#[cfg(test)]
pub(crate) mod tests;

pub(crate) use reply::{grpc_status, is_grpc};
pub use serve::serve;

/// [`CONNECTION_WINDOW`](crate::upstream::http2::CONNECTION_WINDOW) for an inbound client that has
/// proved no identity: sixteen stalled streams. The memory that it can make the proxy hold must be
/// small compared with that of others.
const STRANGER_WINDOW: u32 = 4 * 1024 * 1024;
/// Streams that a client has reset before the proxy processed them: as many as may come in one
/// burst. A continuous flood is slowed down after that (CVE-2023-44487).
const MAX_PENDING_RESETS: usize = 4_096;
/// Streams that the proxy reset for a client's protocol errors, over the life of a connection that
/// carries only its requests. A shared connection is not closed for one client's errors.
const MAX_ERROR_RESETS: usize = 1_024;
