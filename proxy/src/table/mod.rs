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

mod store;

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::balance::Load;
use crate::budget::RetryBudget;
use crate::metrics::TcpMetrics;
use crate::route::{Routes, Rule};

pub use store::Tables;

/// What one original destination stands for at the moment.
#[derive(Debug)]
pub struct DestinationCell {
    pub address: SocketAddr,
    current: ArcSwap<Destination>,
}

impl DestinationCell {
    pub fn new(address: SocketAddr, destination: Destination) -> Self {
        Self {
            address,
            current: ArcSwap::from_pointee(destination),
        }
    }

    /// The destination as of now. Cheap: once per request is fine.
    pub fn load(&self) -> arc_swap::Guard<Arc<Destination>> {
        self.current.load()
    }

    pub fn store(&self, destination: Destination) {
        self.current.store(Arc::new(destination));
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
    pub endpoints: Vec<Arc<Endpoint>>,
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
