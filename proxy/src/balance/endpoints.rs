//! The candidates: the endpoints of a backend, and their properties.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arc_swap::ArcSwap;
use rand::RngExt;
use rand::rngs::SmallRng;

use super::Load;
use crate::identity::SpiffeId;

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
    /// The length of the preferred prefix, which is used while any of it is available. 0: all
    /// endpoints are equal.
    preferred: usize,
}

impl EndpointSet {
    /// Endpoints without a preference.
    pub fn new(endpoints: Vec<Arc<Endpoint>>) -> Self {
        Self {
            endpoints,
            preferred: 0,
        }
    }

    /// `fallback` is used when no endpoint of `preferred` is available.
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

    /// The preferred endpoints, used while any of them is available. Empty: all endpoints are
    /// equal.
    pub fn preferred(&self) -> &[Arc<Endpoint>] {
        // Endpoints may have been removed since.
        &self.endpoints[..self.preferred.min(self.endpoints.len())]
    }
}

/// An endpoint id unique in this process.
pub fn next_endpoint_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Relaxed)
}

/// One pod address.
#[derive(Debug)]
pub struct Endpoint {
    /// Unique among all endpoints that this process has ever made: the key of pools.
    pub id: u64,
    pub address: SocketAddr,
    pub peer: Peer,
    pub pod: Arc<str>,
    pub workload: Arc<str>,
    pub zone: Arc<str>,
    pub load: Load,
}

/// The protocol to an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    /// A sidecar which must prove this SPIFFE ID. Plaintext is never used.
    Mesh(SpiffeId),
    /// No sidecar: plaintext.
    Plain,
    /// The app in the proxy's own pod: plaintext, from the address that the redirect rules let
    /// through.
    App,
}

/// Draws an index in proportion to the weights. `None`: no weight is above 0.
pub fn by_weight(
    weights: impl ExactSizeIterator<Item = u32> + Clone,
    random: &mut SmallRng,
) -> Option<usize> {
    let total: u64 = weights.clone().map(u64::from).sum();
    if total == 0 {
        return None;
    }
    if weights.len() == 1 {
        return Some(0);
    }
    let mut point = random.random_range(0..total);
    let mut weights = weights;
    weights.position(|weight| {
        let hit = point < u64::from(weight);
        point = point.saturating_sub(u64::from(weight));
        hit
    })
}
