//! The protocol between Naru's controller and its proxies: messages and nothing else.
//!
//! ```text
//! proxy ── Certify(CSR, token) ──────────────▶ controller      unary, server-authenticated TLS
//! proxy ◀─ certificate chain, trust anchors ── controller
//!
//! proxy ══ Sync: Hello, Subscribe, Answer ═══▶ controller      one stream, mutual TLS
//! proxy ◀═ Push (resources with versions) ════ controller
//! ```
//!
//! A proxy subscribes to the destinations that its app calls ([`Subscribe`]). The controller
//! resolves every resource that those destinations need (service, routes, endpoints), and sends
//! those that the proxy does not hold yet. A resource has a name and a version; the version is a
//! hash of the content, so it means the same on every replica and after every restart. The proxy
//! applies a [`Push`] in one step and lists rejected resources, with the reasons, in an [`Answer`];
//! for a rejected resource the last good one stays in force.
//!
//! Compatibility: a field is added under a new tag. It is not removed and keeps its meaning while
//! versions N−2 to N+2 have to work together. Unknown fields and unknown enum values never come
//! into force: a proxy rejects a resource that it does not understand by its name, rather than
//! guess its meaning.
//!
//! # Floors
//!
//! ```text
//! stream                   the messages of a stream
//! identity name resources  certificates; names of resources; their contents
//! ```
#![forbid(unsafe_code)]

mod identity;
mod name;
mod resources;
mod stream;

pub use identity::{CertifyRequest, CertifyResponse};
pub use name::{NameError, ResourceName};
pub use resources::*;
pub use stream::{
    Answer, FromProxy, Heartbeat, Held, Hello, Push, Rejection, Subscribe, ToProxy, Unsubscribe,
    from_proxy, to_proxy,
};

/// gRPC path of the unary call that turns a certificate request into a certificate.
pub const CERTIFY_PATH: &str = "/naru.v1.Controller/Certify";
/// gRPC path of the stream that carries routing tables.
pub const SYNC_PATH: &str = "/naru.v1.Controller/Sync";
/// Incremented whenever a field is added. A peer may lag or lead by [`CONTRACT_VERSION_SKEW`].
pub const CONTRACT_VERSION: u32 = 1;
/// How many contract versions apart a proxy and a controller may be.
pub const CONTRACT_VERSION_SKEW: u32 = 2;
/// A sidecar's port for metrics and probes: plaintext, and exempt from redirection.
pub const PROXY_ADMIN_PORT: u16 = 15020;
/// Audience of the service-account token in a proxy's certificate request.
pub const TOKEN_AUDIENCE: &str = "naru.dev";
/// The largest message in either direction, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 16 * 1024 * 1024;
/// The longest pause between messages of a controller on an open stream. After three times that a
/// proxy considers the controller lost.
pub const HEARTBEAT_INTERVAL: std::time::Duration = std::time::Duration::from_secs(10);
/// Maximum number of destinations that a proxy is subscribed to.
pub const MAX_SUBSCRIPTIONS: usize = 10_000;
