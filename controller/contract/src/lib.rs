//! What Naru's controller and its proxies say to each other: messages and nothing else.
//!
//! ```text
//! proxy ── Certify(CSR, token) ──────────────▶ controller      unary, server-authenticated TLS
//! proxy ◀─ certificate chain, trust anchors ── controller
//!
//! proxy ══ Sync: Hello, Subscribe, Answer ═══▶ controller      one stream, mutual TLS
//! proxy ◀═ Push (resources with versions) ════ controller
//! ```
//!
//! A proxy says which destinations its app calls ([`Subscribe`]). The controller works out every
//! resource that those destinations need (service, routes, endpoints), and sends what the proxy
//! does not hold yet. A resource has a name and a version; the version is a hash of the content, so
//! it means the same on every replica and after every restart. The proxy applies a [`Push`] in one
//! step and says with an [`Answer`] what it rejected and why; a rejected resource leaves the last
//! good one in force.
//!
//! Compatibility: a field is added under a new tag, never removed or given a new meaning while
//! versions N−2 to N+2 have to work together. Unknown fields and unknown enum values are kept out
//! of force by name (a proxy rejects a resource whose meaning it does not know), never guessed at.
//!
//! # Floors
//!
//! ```text
//! stream                   what is sent
//! identity name resources  what it is about
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
/// Raised by one whenever a field is added. A peer may lag or lead by [`CONTRACT_VERSION_SKEW`].
pub const CONTRACT_VERSION: u32 = 1;
/// How many contract versions apart a proxy and a controller may be.
pub const CONTRACT_VERSION_SKEW: u32 = 2;
/// Port of a sidecar for metrics and probes. It is spoken to in plaintext, and never redirected.
pub const PROXY_ADMIN_PORT: u16 = 15020;
/// Audience of the service-account token that a proxy shows for a certificate.
pub const TOKEN_AUDIENCE: &str = "naru.dev";
/// The largest message that either side sends or takes, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 16 * 1024 * 1024;
/// The longest that a controller with a stream open may say nothing. After three times that a proxy
/// takes it for lost.
pub const HEARTBEAT_INTERVAL: std::time::Duration = std::time::Duration::from_secs(10);
/// How many destinations a proxy may be subscribed to at once.
pub const MAX_SUBSCRIPTIONS: usize = 10_000;
