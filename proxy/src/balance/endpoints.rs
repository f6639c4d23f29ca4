//! Who can be picked: the endpoints of a backend, and what each of them is.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arc_swap::ArcSwap;
use rand::RngExt;
use rand::rngs::SmallRng;

use super::Load;

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
    /// How many of the first are to be used as long as they are well. 0: none is better than
    /// another.
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
    /// The app in the proxy's own pod: plaintext, from the address that the redirect rules let
    /// through.
    App,
}

/// Draws the place of one of the weights. `None`: none is over 0.
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
