//! The routing tables in force, as domain types: the data path sees these and never the contract.
//!
//! ```text
//! original destination ─▶ DestinationCell ─▶ Logical ─▶ routes ─▶ Rule ─▶ Backend ─┐
//!                          (swapped live)                                 (concrete)│
//!                                           Endpoint ◀─ EndpointSet (swapped live) ◀┘
//! ```
//!
//! A connection keeps its [`DestinationCell`] and loads it again for each request, so a changed
//! route applies to the next request on an open connection. The state of an endpoint (load,
//! ejection) is in the [`Endpoint`](crate::balance::Endpoint), which is carried over from table to
//! table while its address and identity stay the same.
//!
//! # Floors
//!
//! ```text
//! view attached       the tables as JSON; the routes attached to a Service
//! apply
//! store
//! decode
//! locality tables
//! ```

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

use crate::route::{Logical, Protocol};

pub use attached::Attached;
pub use store::{Outbox, Store};
pub use tables::{Miss, Misses, Tables, tables};
pub use view::View;

/// The current destination at one original destination address.
#[derive(Debug)]
pub struct DestinationCell {
    pub address: SocketAddr,
    current: ArcSwap<Destination>,
    /// Notified with the controller's first answer.
    said: Notify,
    made: Instant,
    /// Time of the last lookup, in seconds after `made`.
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

    /// The current destination. Cheap: once per request is fine.
    pub fn load(&self) -> arc_swap::Guard<Arc<Destination>> {
        self.current.load()
    }

    pub fn store(&self, destination: Destination) {
        self.current.store(Arc::new(destination));
        self.said.notify_waiters();
    }

    /// Whether the controller has resolved it.
    fn is_known(&self) -> bool {
        !matches!(**self.load(), Destination::Unknown)
    }

    /// Returns once the controller has resolved it, or `patience` after the first request.
    async fn known(&self, patience: Duration) {
        let said = self.said.notified();
        tokio::pin!(said);
        // Registers before the check, so that an answer in between is not missed.
        said.as_mut().enable();
        if !self.is_known() {
            // Timed out: the caller finds the destination unknown.
            let _ = tokio::time::timeout_at(self.made + patience, said).await;
        }
    }

    fn touch(&self) {
        let now = self.made.elapsed().as_secs();
        // Usually there is nothing to write, and the cache line stays shared.
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
    /// Not in the mesh's tables: connections go to the original address unchanged.
    Passthrough,
    /// The controller has not resolved it within [`crate::config::Limits::discovery_timeout`].
    Unknown,
}

/// The policy for connections to the proxy's own pod.
#[derive(Clone, Debug)]
pub struct Inbound {
    pub workload: Arc<str>,
    /// Reject clients without a mesh identity.
    pub strict: bool,
    /// Declared protocols. Any other port is [`Protocol::Detect`].
    pub ports: std::collections::HashMap<u16, Protocol>,
}
