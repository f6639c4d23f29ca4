//! The routing tables in force, as domain types: the data path sees these and never the contract.
//!
//! ```text
//! original destination ─▶ DestinationCell ─▶ Logical ─▶ routes ─▶ Rule ─▶ Backend ─▶ EndpointSet ─▶ Endpoint
//!                          (swapped live)                          (concrete)  (swapped live)
//! ```
//!
//! A connection keeps its [`DestinationCell`] and loads it anew for each request, so a changed
//! route holds for the next request on a connection that is already open. What an endpoint has
//! learned (load, ejection) lives in the [`Endpoint`](crate::balance::Endpoint), which is carried
//! over from table to table while its address and identity stay the same.
//!
//! # Floors
//!
//! ```text
//! view attached       for people
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
    /// The controller has not said anything about it, in
    /// [`crate::config::Limits::discovery_timeout`].
    Unknown,
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
