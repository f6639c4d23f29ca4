//! A ConfigMap with the trust anchors in every namespace with sidecars, because pods can only mount
//! ConfigMaps of their own namespace.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client};
use tracing::{info, warn};

use crate::inject::{ANCHORS_CONFIG_MAP, ANCHORS_KEY};

/// The field manager of writes.
pub const MANAGER: &str = "naru-controller";
/// Capacity of the queue of namespaces that need anchors. A dropped one is added again with its
/// next pod.
pub const MAX_WAITING: usize = 1_024;

/// How long a ConfigMap that was just written is assumed to exist: deleting and recreating a
/// namespace takes longer.
const FRESH: Duration = Duration::from_secs(5);

pub struct Anchors {
    client: Client,
    pem: String,
    written: HashMap<String, Instant>,
    /// Namespaces whose write has failed.
    waiting: BTreeSet<String>,
}

impl Anchors {
    pub fn new(client: Client, pem: String) -> Self {
        Self {
            client,
            pem,
            written: HashMap::new(),
            waiting: BTreeSet::new(),
        }
    }

    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The trust anchors in force have changed.
    pub fn change(&mut self, pem: String) {
        self.pem = pem;
        self.written.clear();
    }

    /// Ensures that `namespace` has the anchors.
    pub async fn need(&mut self, namespace: String) {
        let now = Instant::now();
        self.written.retain(|_, at| now.duration_since(*at) < FRESH);
        if self.written.contains_key(&namespace) {
            return;
        }
        match self.write(&namespace).await {
            Ok(()) => {
                self.written.insert(namespace, now);
            }
            // The namespace is being deleted, or is gone.
            Err(kube::Error::Api(status)) if [403, 404].contains(&status.code) => {
                warn!(namespace, error = %status, "the ConfigMap {ANCHORS_CONFIG_MAP} is refused");
            }
            Err(error) => {
                warn!(
                    namespace, %error,
                    "cannot write the ConfigMap {ANCHORS_CONFIG_MAP}: new pods of this \
                     namespace wait for it"
                );
                // If the set is full, the namespace's next pod adds it again.
                if self.waiting.len() < MAX_WAITING {
                    self.waiting.insert(namespace);
                }
            }
        }
    }

    /// Updates existing ConfigMaps, and restores missing ones in namespaces whose pods need them.
    pub async fn look(&mut self, mut meshed: BTreeSet<String>) {
        for namespace in std::mem::take(&mut self.waiting) {
            self.need(namespace).await;
        }
        let named = ListParams::default().fields(&format!("metadata.name={ANCHORS_CONFIG_MAP}"));
        let api = Api::<ConfigMap>::all(self.client.clone());
        let found = match api.list(&named).await {
            Ok(found) => found,
            Err(error) => {
                return warn!(%error, "cannot list the ConfigMaps {ANCHORS_CONFIG_MAP}");
            }
        };
        for found in found {
            let data = found.data.as_ref().and_then(|data| data.get(ANCHORS_KEY));
            let namespace = found.metadata.namespace.unwrap_or_default();
            meshed.remove(&namespace);
            // Earlier controllers made the webhook's configuration its owner: a server-side apply
            // without owners removes that.
            let owned = !found
                .metadata
                .owner_references
                .unwrap_or_default()
                .is_empty();
            if data == Some(&self.pem) && !owned {
                continue;
            }
            if let Err(error) = self.write(&namespace).await {
                warn!(namespace, %error, "cannot write the ConfigMap {ANCHORS_CONFIG_MAP}");
            }
        }
        for namespace in meshed {
            self.need(namespace).await;
        }
    }

    async fn write(&self, namespace: &str) -> Result<(), kube::Error> {
        let object = ConfigMap {
            metadata: ObjectMeta {
                name: Some(ANCHORS_CONFIG_MAP.to_owned()),
                // Without an owner: sidecars need it for as long as they run.
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([(ANCHORS_KEY.to_owned(), self.pem.clone())])),
            ..ConfigMap::default()
        };
        let api = Api::<ConfigMap>::namespaced(self.client.clone(), namespace);
        // Force ownership of the fields over earlier field managers.
        let params = PatchParams::apply(MANAGER).force();
        api.patch(ANCHORS_CONFIG_MAP, &params, &Patch::Apply(&object))
            .await?;
        info!(namespace, "the trust anchors are in place");
        Ok(())
    }
}
