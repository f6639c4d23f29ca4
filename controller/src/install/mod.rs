//! What the controller keeps in the cluster, so that an installation is complete without anybody's
//! hands.
//!
//! ```text
//! caBundle of the webhook ◀─┐
//! ConfigMap in a namespace ◀┴─ trust anchors, whenever they change
//! ```
//!
//! In: the API server, and namespaces that were injected into. Out: those objects, put right again
//! when they differ. They belong to no other object, so that none takes them along when it is
//! deleted; [`crate::uninstall`] removes them.
//!
//! # Floors
//!
//! ```text
//! anchors webhook     the two kinds of objects
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

/// In whose name fields are written.
const MANAGER: &str = "naru-controller";
/// How often what there is is compared with what there should be.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);
/// Namespaces that wait to be given anchors. One that finds no place is named again with its next
/// pod.
const MAX_WAITING: usize = 1_024;

/// Namespaces that need trust anchors. Cheap to clone.
#[derive(Clone)]
pub struct Needed(mpsc::Sender<String>);

impl Needed {
    /// A pod of this namespace has been given a sidecar.
    pub fn in_namespace(&self, namespace: &str) {
        // Full: the next pod asks again, and the kubelet waits.
        let _ = self.0.try_send(namespace.to_owned());
    }
}

/// What is kept right.
pub struct Install {
    pub client: Client,
    /// Name of the MutatingWebhookConfiguration.
    pub webhook_configuration: String,
    /// Whether its caBundle is ours to fill.
    pub ca_bundle: bool,
    /// The trust anchors in force.
    pub trust: watch::Receiver<Arc<InForce>>,
    /// The namespaces that have pods with sidecars.
    pub meshed: Meshed,
}

/// Tells the namespaces that have pods with sidecars.
pub type Meshed = Box<dyn Fn() -> BTreeSet<String> + Send + Sync>;

impl Install {
    /// What tells of namespaces, and the task that keeps everything right for as long as it runs.
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
            if let Err(error) = webhook::look(&self, anchors.pem()).await {
                warn!(
                    name = self.webhook_configuration, %error,
                    "cannot update the webhook's configuration"
                );
            }
            anchors.look((self.meshed)()).await;
        }
    }
}

fn pem(trust: &mut watch::Receiver<Arc<InForce>>) -> String {
    trust.borrow_and_update().anchors_pem()
}
