//! Writes the status of routes, and the supported features into the status of the mesh.
//!
//! ```text
//! lease (one replica holds it) ─▶ writer: catalog's verdicts
//!       ─▶ conditions (merged with what is there) ─▶ API server
//! ```
//!
//! Every replica serves proxies; only the status is written by a single replica. Each write is
//! conditional on the version that was read, so that two replicas that both believe they hold the
//! lease, or another controller, never overwrite each other.
//!
//! # Floors
//!
//! ```text
//! mesh writer         the statuses of the mesh and of routes
//! conditions lease
//! ```

mod conditions;
mod lease;
mod mesh;
mod writer;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use kube::Client;
use tokio::sync::watch;

use crate::metrics::Metrics;
use crate::serve::Hub;
pub use conditions::CONTROLLER_NAME;

/// Joins the leader election and writes while elected, until `stopping`.
pub async fn run(client: Client, hub: Arc<Hub>, metrics: Metrics, stopping: watch::Receiver<bool>) {
    let (holding, held) = watch::channel(false);
    let lease = lease::Lease::new(client.clone(), lease::identity(), lease::TERMS);
    tokio::select! {
        () = lease.hold(holding, stopping) => {}
        () = writer::run(client.clone(), hub, metrics, held.clone()) => {}
        () = mesh::run(client, held, mesh::EVERY) => {}
    }
}
