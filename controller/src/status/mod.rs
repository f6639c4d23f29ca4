//! What is thought of routes, written into their status, and into that of the mesh what it
//! supports.
//!
//! ```text
//! lease (one replica holds it) ─▶ writer: catalog's verdicts
//!       ─▶ conditions (merged with what is there) ─▶ API server
//! ```
//!
//! Every replica serves proxies; only this is one replica's work. A write is made on the version of
//! the object that was read, so that two who think that they hold the lease, or another controller,
//! never undo each other's.
//!
//! # Floors
//!
//! ```text
//! mesh writer         of the mesh, and of routes
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

/// By this name a controller marks its own entries in a route's status.
pub const CONTROLLER_NAME: &str = "naru.dev/controller";
/// Owner of what is written, as the API server notes it.
const FIELD_MANAGER: &str = "naru-controller";

/// Takes part in the election and writes when elected, until `stopping`.
pub async fn run(client: Client, hub: Arc<Hub>, metrics: Metrics, stopping: watch::Receiver<bool>) {
    let (holding, held) = watch::channel(false);
    let lease = lease::Lease::new(client.clone(), lease::identity(), lease::TERMS);
    tokio::select! {
        () = lease.hold(holding, stopping) => {}
        () = writer::run(client.clone(), hub, metrics, held.clone()) => {}
        () = mesh::run(client, held, mesh::EVERY) => {}
    }
}
