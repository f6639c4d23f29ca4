//! A ConfigMap with the trust anchors in every namespace that has sidecars: a pod can mount none of
//! another namespace.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client};
use tracing::{info, warn};

use super::{MANAGER, MAX_WAITING};
use crate::inject::{ANCHORS_CONFIG_MAP, ANCHORS_KEY};

/// How long a ConfigMap that has just been written is taken to be there: a namespace cannot be
/// deleted and made again in less.
const FRESH: Duration = Duration::from_secs(5);

pub struct Anchors {
    client: Client,
    pem: String,
    written: HashMap<String, Instant>,
    /// Where writing has failed.
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

    /// Others are in force.
    pub fn change(&mut self, pem: String) {
        self.pem = pem;
        self.written.clear();
    }

    /// Makes sure that `namespace` has the anchors.
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
                // One more is named again with its next pod.
                if self.waiting.len() < MAX_WAITING {
                    self.waiting.insert(namespace);
                }
            }
        }
    }

    /// Brings the anchors up to date where there are some, and puts them back where there are none
    /// any more and pods need them.
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
            // Earlier controllers had it belong to the webhook's configuration: what is applied
            // without takes that away.
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
                // No owner: sidecars need it for as long as they run.
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([(ANCHORS_KEY.to_owned(), self.pem.clone())])),
            ..ConfigMap::default()
        };
        let api = Api::<ConfigMap>::namespaced(self.client.clone(), namespace);
        // In place of the one that wrote it before.
        let params = PatchParams::apply(MANAGER).force();
        api.patch(ANCHORS_CONFIG_MAP, &params, &Patch::Apply(&object))
            .await?;
        info!(namespace, "the trust anchors are in place");
        Ok(())
    }
}
