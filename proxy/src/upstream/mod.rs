//! Connections to endpoints: opened, pooled, shared and closed.
//!
//! In: an endpoint that was picked. Out: a connection to it, or a stream on one, for exclusive use.
//!
//! ```text
//! HTTP/1 and bytes   pool ─ take, connect ──────▶ dialer ─▶ socket, tls, identity
//! HTTP/1 to sidecars pool ─▶ streams ─▶ sidecar ▶ dialer     streams of mux
//! HTTP/2             streams ─────────▶ http2 ──▶ dialer     streams of h2
//! ```
//!
//! # Floors
//!
//! ```text
//! pool                        connections that carry one exchange at a time
//! sidecar http2               the ends of shared connections that open streams
//! streams                     shared connections: room, shares, waiting
//! waiting                     the queue for a stream
//! share                       the number of streams that a client may hold
//! dialer                      TCP, then TLS with the endpoint's identity pinned
//! mux                         many byte streams on one connection between sidecars
//! client_address count        the client's address as the app sees it; streams of a connection
//! ```

pub mod client_address;
pub mod count;
pub mod dialer;
pub mod http2;
pub mod mux;
pub mod pool;
pub mod share;
mod sidecar;
pub mod streams;
mod waiting;

use std::sync::Arc;

use client_address::SourceAddress;
pub use dialer::{ConnectError, Dialer, Stream};
use share::DownstreamId;

/// The caller of an upstream connection. Equal callers share connections to an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Caller {
    /// The source that the app sees. `None` to other pods, and if all clients appear as the pod
    /// itself. Shared with the connections in pools.
    pub source: Option<Arc<SourceAddress>>,
    /// The downstream HTTP/2 connection whose client has authenticated its connection by a login
    /// ([`crate::http::login`]), if there is a login.
    pub login: Option<DownstreamId>,
}

impl Caller {
    /// The same caller, but only for the downstream connection `id`.
    pub fn alone(&self, id: DownstreamId) -> Self {
        Self {
            source: self.source.clone(),
            login: self.login.or(Some(id)),
        }
    }

    pub fn source(&self) -> SourceAddress {
        self.source.as_deref().copied().unwrap_or_default()
    }
}
