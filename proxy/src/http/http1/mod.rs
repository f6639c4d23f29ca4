//! HTTP/1.0 and HTTP/1.1 (RFC 9112).
//!
//! In: the bytes of a downstream connection whose protocol and destination are known. Out: its
//! requests, each carried to its own endpoint over an upstream connection, or a stream of one
//! ([`crate::upstream::mux`]), for exclusive use. Each connection has one task; a body flows only
//! as fast as its receiver reads it, and is passed on unchanged. Copies for mirrors have separate
//! tasks and connections.
//!
//! ```text
//!            serve            request          forward          pool
//! downstream ─────▶ head ───────────▶ decide ────────▶ attempt ────▶ upstream
//!                    │ framing   └─▶ reply     ◀── body, both ways ──▶
//!                    ▼
//!               one request, read in one way only       after 101: opaque
//! ```
//!
//! # Floors
//!
//! ```text
//! serve                       a connection: one request after another
//! request                     one request, from its head to the end of its response
//! forward                     sends the request to an endpoint
//! mirror pass_on              copies for mirrors; passes the response on
//! untimely interrupt          responses that come too early; what ends a wait early
//! client                      the downstream connection, and responses to it
//! attempt                     one attempt at an endpoint
//! body reply                  bodies; responses that the proxy generates
//! chunked framing             where a body ends
//! head                        parses and writes heads
//! ```

mod attempt;
mod body;
mod chunked;
mod client;
mod forward;
mod framing;
mod head;
mod interrupt;
mod mirror;
mod pass_on;
mod reply;
mod request;
mod serve;
mod untimely;

#[cfg(test)]
mod tests;

/// Entry points for the fuzz targets: only the parsers. A release has no use for them.
#[cfg(debug_assertions)]
pub mod fuzzing {
    pub use super::chunked::{ChunkError, Chunked, Segment};
    pub use super::framing::{Framing, request as request_framing, response as response_framing};
    pub use super::head::{HeadError, Request, Response, Version, find_end};
}

pub use request::turn_away;
pub use serve::{LEAVING, refuse, serve};
