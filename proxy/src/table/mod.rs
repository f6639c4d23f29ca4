//! The routing tables in force, as domain types: the data path sees these and never the contract.
//!
//! ```text
//! original destination ─▶ DestinationCell ─▶ Logical ─▶ routes ─▶ Rule ─▶ Backend ─▶ EndpointSet ─▶ Endpoint
//!                          (swapped live)                          (concrete)  (swapped live)
//! ```
//!
//! A connection keeps its [`DestinationCell`] and loads it anew for each request, so a changed route holds for
//! the next request on a connection that is already open. What an endpoint has learned (load, ejection) lives in the
//! [`Endpoint`], which is carried over from table to table while its address and identity stay the same.

mod apply;
mod attached;
mod decode;
mod locality;
mod store;
mod tables;
mod view;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::balance::Load;
use crate::budget::RetryBudget;
use crate::metrics::TcpMetrics;
use crate::route::{Routes, Rule};
use crate::stream::StreamRoutes;

pub use attached::Attached;
pub use store::{Outbox, Store};
pub use tables::{Miss, Misses, Tables, tables};
pub use view::View;

/// What one original destination stands for at the moment.
#[derive(Debug)]
pub struct DestinationCell {
    pub address: SocketAddr,
    current: ArcSwap<Destination>,
    /// Wakes those who wait for the controller's first word.
    said: Notify,
    made: Instant,
    /// When it was last looked up, in seconds after `made`.
    used: AtomicU64,
}

impl DestinationCell {
    pub fn new(address: SocketAddr, destination: Destination) -> Self {
        Self {
            address,
            current: ArcSwap::from_pointee(destination),
            said: Notify::new(),
            made: Instant::now(),
            used: AtomicU64::new(0),
        }
    }

    /// The destination as of now. Cheap: once per request is fine.
    pub fn load(&self) -> arc_swap::Guard<Arc<Destination>> {
        self.current.load()
    }

    pub fn store(&self, destination: Destination) {
        self.current.store(Arc::new(destination));
        self.said.notify_waiters();
    }

    /// Whether the controller has said what it is.
    fn is_known(&self) -> bool {
        !matches!(**self.load(), Destination::Unknown)
    }

    /// Returns when the controller has said what it is, or `patience` after it was first asked.
    async fn known(&self, patience: Duration) {
        let said = self.said.notified();
        tokio::pin!(said);
        // Listen first, look then: a word in between is not missed.
        said.as_mut().enable();
        if !self.is_known() {
            // Out of patience: whoever asked finds it unknown.
            let _ = tokio::time::timeout_at(self.made + patience, said).await;
        }
    }

    fn touch(&self) {
        let now = self.made.elapsed().as_secs();
        // Most of the time there is nothing to write, and the cache line stays shared.
        if self.used.load(Relaxed) != now {
            self.used.store(now, Relaxed);
        }
    }

    fn last_used(&self) -> Instant {
        self.made + Duration::from_secs(self.used.load(Relaxed))
    }
}

#[derive(Clone, Debug)]
pub enum Destination {
    /// A Service port, a pod of the mesh, or (inbound) the app itself.
    Logical(Arc<Logical>),
    /// Not in the mesh's tables: connections go to the address as they are.
    Passthrough,
    /// The controller has not said anything about it, in [`crate::config::Limits::discovery_timeout`].
    Unknown,
}

/// A Service port with its routes. A pod that is dialled by its own address, and the app behind an inbound
/// port, are one as well: no routes, one backend with one endpoint.
#[derive(Debug)]
pub struct Logical {
    /// Namespace of the Service or pod.
    pub namespace: Arc<str>,
    /// Name of the Service; empty where there is none.
    pub service: Arc<str>,
    pub port: u16,
    pub protocol: Protocol,
    /// Rules in order of precedence. `None`: no route is attached, and `default_rule` takes every request.
    pub routes: Option<Routes>,
    /// Routes for connections, which are not looked into then. `None`: none is attached.
    pub stream_routes: Option<StreamRoutes>,
    /// No matches, no filters, the Service's own pods.
    pub default_rule: Arc<Rule>,
    pub budget: Arc<RetryBudget>,
    /// For connections that are not HTTP.
    pub tcp: Arc<TcpMetrics>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Told by the first bytes.
    Detect,
    /// HTTP, its version told by whether the client sends the HTTP/2 preface.
    Http,
    /// HTTP/2 with prior knowledge.
    Http2,
    Tcp,
}

impl Protocol {
    /// The word for people and programs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Detect => "detect",
            Self::Http => "http",
            Self::Http2 => "http2",
            Self::Tcp => "tcp",
        }
    }
}

/// A concrete backend: the pods of one Service port. Lives as long as some rule refers to it.
#[derive(Debug)]
pub struct Backend {
    pub namespace: Arc<str>,
    pub service: Arc<str>,
    pub port: u16,
    endpoints: ArcSwap<EndpointSet>,
}

impl Backend {
    pub fn new(namespace: Arc<str>, service: Arc<str>, port: u16, endpoints: EndpointSet) -> Self {
        Self {
            namespace,
            service,
            port,
            endpoints: ArcSwap::from_pointee(endpoints),
        }
    }

    pub fn endpoints(&self) -> arc_swap::Guard<Arc<EndpointSet>> {
        self.endpoints.load()
    }

    pub fn set_endpoints(&self, endpoints: EndpointSet) {
        self.endpoints.store(Arc::new(endpoints));
    }
}

/// The endpoints of a backend at one moment.
#[derive(Clone, Debug, Default)]
pub struct EndpointSet {
    /// The preferred ones first.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// How many of the first are to be used as long as they are well. 0: none is better than another.
    preferred: usize,
}

impl EndpointSet {
    /// Endpoints of which none is better than another.
    pub fn new(endpoints: Vec<Arc<Endpoint>>) -> Self {
        Self {
            endpoints,
            preferred: 0,
        }
    }

    /// `fallback` is for when none of `preferred` is well.
    pub fn preferring(preferred: Vec<Arc<Endpoint>>, fallback: Vec<Arc<Endpoint>>) -> Self {
        let first = match fallback.is_empty() {
            true => 0,
            false => preferred.len(),
        };
        let mut endpoints = preferred;
        endpoints.extend(fallback);
        Self {
            endpoints,
            preferred: first,
        }
    }

    /// Those to be used as long as they are well. Empty: none is better than another.
    pub fn preferred(&self) -> &[Arc<Endpoint>] {
        // Endpoints may have been taken out since.
        &self.endpoints[..self.preferred.min(self.endpoints.len())]
    }
}

/// A number that no endpoint of this process has had.
pub fn next_endpoint_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Relaxed)
}

/// One pod address.
#[derive(Debug)]
pub struct Endpoint {
    /// Different for every endpoint that this process has ever made: the key of pools.
    pub id: u64,
    pub address: SocketAddr,
    pub peer: Peer,
    pub pod: Arc<str>,
    pub workload: Arc<str>,
    pub zone: Arc<str>,
    pub load: Load,
}

/// How an endpoint is spoken to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    /// A sidecar which must prove this SPIFFE ID. Never spoken to in plaintext.
    Mesh(Arc<str>),
    /// No sidecar: plaintext.
    Plain,
    /// The app in the proxy's own pod: plaintext, from the address that the redirect rules let through.
    App,
}

/// How the proxy's own pod is to be reached.
#[derive(Clone, Debug)]
pub struct Inbound {
    pub workload: Arc<str>,
    /// Refuse clients that have no mesh identity.
    pub strict: bool,
    /// Declared protocols. Any other port is [`Protocol::Detect`].
    pub ports: std::collections::HashMap<u16, Protocol>,
}
