//! Objects that the controller maintains in the cluster, so that an installation needs no manual
//! steps.
//!
//! ```text
//! caBundle of the webhook ◀─┐
//! ConfigMap in a namespace ◀┴─ trust anchors, whenever they change
//! ```
//!
//! In: the API server, and namespaces with injected pods. Out: those objects, corrected when they
//! differ. They have no owner, so that garbage collection does not delete them;
//! [`crate::uninstall`] does.
//!
//! # Floors
//!
//! ```text
//! anchors webhook     trust anchors in each namespace; the webhook's configuration
//! ```

mod anchors;
#[cfg(test)]
mod tests;
mod webhook;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

use crate::issuer::InForce;
use anchors::MAX_WAITING;

/// How often the objects are compared with their desired state.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);

/// Namespaces that need trust anchors. Cheap to clone.
#[derive(Clone)]
pub struct Needed(mpsc::Sender<String>);

impl Needed {
    /// A pod of this namespace has been injected.
    pub fn in_namespace(&self, namespace: &str) {
        // If the queue is full, the next pod adds it again, and the kubelet retries.
        let _ = self.0.try_send(namespace.to_owned());
    }
}

/// The objects to maintain.
pub struct Install {
    pub client: Client,
    /// Name of the MutatingWebhookConfiguration.
    pub webhook_configuration: String,
    /// Whether the controller sets its caBundle.
    pub ca_bundle: bool,
    /// The trust anchors in force.
    pub trust: watch::Receiver<Arc<InForce>>,
    /// The namespaces that have pods with sidecars.
    pub meshed: Meshed,
}

/// Returns the namespaces that have pods with sidecars.
pub type Meshed = Box<dyn Fn() -> BTreeSet<String> + Send + Sync>;

impl Install {
    /// A handle for namespaces, and the task that maintains the objects for as long as it runs.
    pub fn start(self) -> (Needed, impl Future<Output = ()> + Send) {
        let (sender, needed) = mpsc::channel(MAX_WAITING);
        (Needed(sender), self.run(needed))
    }

    async fn run(self, mut needed: mpsc::Receiver<String>) {
        let mut look = interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut trust = self.trust.clone();
        let mut anchors = anchors::Anchors::new(self.client.clone(), pem(&mut trust));
        loop {
            tokio::select! {
                _ = look.tick() => {}
                Ok(()) = trust.changed() => anchors.change(pem(&mut trust)),
                namespace = needed.recv() => match namespace {
                    Some(namespace) => {
                        anchors.need(namespace).await;
                        continue;
                    }
                    None => return,
                },
            }
            if let Err(error) = self.look_at_webhook(anchors.pem()).await {
                warn!(
                    name = self.webhook_configuration, %error,
                    "cannot update the webhook's configuration"
                );
            }
            anchors.look((self.meshed)()).await;
        }
    }

    async fn look_at_webhook(&self, anchors_pem: &str) -> Result<(), kube::Error> {
        let name = &self.webhook_configuration;
        webhook::look(&self.client, name, self.ca_bundle, anchors_pem).await
    }
}

fn pem(trust: &mut watch::Receiver<Arc<InForce>>) -> String {
    trust.borrow_and_update().anchors_pem()
}
