//! The store of an authority: a Secret that all replicas share, or a directory of a single
//! controller.
//!
//! ```text
//! Secret                directory        content
//! tls.crt, tls.key      ca.crt, ca.key   the given authority
//! ca.crt                                 additional trust anchors
//! naru-rotation.json    rotation.json    the rotation record
//! naru.dev/rotate       rotate           any new text requests a rotation
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::StreamExt;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::files;
use super::kept::{Kept, StoreError};
use super::plan::Change;

const CERTIFICATES: &str = "tls.crt";
const KEY: &str = "tls.key";
/// cert-manager's key for the root above an authority.
const FURTHER: &str = "ca.crt";
const RECORD: &str = "naru-rotation.json";
const ROTATE: &str = "naru.dev/rotate";
const TYPE: &str = "kubernetes.io/tls";
/// Earlier controllers made the webhook's configuration the Secret's owner.
const FORMER_OWNER: &str = "MutatingWebhookConfiguration";
/// The field manager of writes.
const MANAGER: &str = "naru-controller";
/// Duration of one watch before it is resumed, in seconds.
const WATCH_SECONDS: u32 = 60;
/// How often the Secret is read in addition to the watch.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);
/// How often the directory is read.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Where an authority is kept.
pub enum Store {
    Secret(Box<SecretStore>),
    Directory(PathBuf),
}

/// A Secret.
pub struct SecretStore {
    pub client: Client,
    pub namespace: String,
    pub name: String,
}

impl Store {
    /// `None`: nothing is stored.
    pub async fn read(&self) -> Result<Option<Kept>, StoreError> {
        match self {
            Self::Secret(store) => store.read().await,
            Self::Directory(directory) => files::read(directory),
        }
    }

    /// Writes if nothing is stored.
    pub async fn create(&self, kept: &Kept) -> Result<(), StoreError> {
        match self {
            Self::Secret(store) => store.create(kept).await,
            Self::Directory(directory) => files::create(directory, kept),
        }
    }

    /// Writes a change on top of what was read. Fails if that has changed since.
    pub async fn write(&self, read: &Kept, change: &Change) -> Result<(), StoreError> {
        match self {
            Self::Secret(store) => store.write(read, change).await,
            Self::Directory(directory) => files::write(directory, change),
        }
    }

    /// Removes the Secret's owner, whose deletion would delete it.
    pub async fn disown(&self, read: &Kept) -> Result<(), StoreError> {
        match self {
            Self::Secret(store) => store.disown(read).await,
            Self::Directory(_) => Ok(()),
        }
    }

    /// Publishes the trust anchors to readers without another source.
    pub fn publish(&self, anchors_pem: &str) -> Result<(), StoreError> {
        match self {
            Self::Secret(_) => Ok(()),
            Self::Directory(directory) => files::publish(directory, anchors_pem),
        }
    }

    /// The polling interval.
    pub fn interval(&self) -> Duration {
        match self {
            Self::Secret(_) => LOOK_INTERVAL,
            Self::Directory(_) => POLL_INTERVAL,
        }
    }

    /// Notifies of possible changes. Never ends.
    pub fn changes(&self) -> mpsc::Receiver<()> {
        let (sender, receiver) = mpsc::channel(1);
        match self {
            Self::Secret(store) => {
                tokio::spawn(store.watch(sender));
            }
            // A directory has no notifications. The sender must stay alive, because closing would
            // be one.
            Self::Directory(_) => {
                tokio::spawn(async move { sender.closed().await });
            }
        }
        receiver
    }
}

impl SecretStore {
    fn api(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub(super) async fn read(&self) -> Result<Option<Kept>, StoreError> {
        let Some(secret) = self.api().get_opt(&self.name).await? else {
            return Ok(None);
        };
        let owners = secret.metadata.owner_references.unwrap_or_default();
        let (ours, others): (Vec<_>, Vec<_>) =
            (owners.into_iter()).partition(|owner| owner.kind == FORMER_OWNER);
        let mut data = secret.data.unwrap_or_default();
        let mut take = |key: &str| data.remove(key).map(|value| value.0);
        let annotations = secret.metadata.annotations.unwrap_or_default();
        Ok(Some(Kept {
            certificates: take(CERTIFICATES).ok_or(StoreError::Incomplete(CERTIFICATES))?,
            key: take(KEY).ok_or(StoreError::Incomplete(KEY))?,
            // cert-manager leaves it empty if it does not know the root.
            further: take(FURTHER).filter(|pem| !pem.is_empty()),
            record: take(RECORD),
            rotation_request: annotations.get(ROTATE).cloned(),
            version: secret.metadata.resource_version,
            owners: (!ours.is_empty()).then_some(others),
        }))
    }

    async fn disown(&self, read: &Kept) -> Result<(), StoreError> {
        let patch = json!({ "metadata": {
            "resourceVersion": read.version, "ownerReferences": read.owners,
        } });
        let api = self.api();
        taken(api.patch(&self.name, &params(), &Patch::Merge(patch)).await)
    }

    /// Deletes what was read. Fails if that has changed since.
    pub(super) async fn delete(&self, read: &Kept) -> Result<(), StoreError> {
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                resource_version: read.version.clone(),
                uid: None,
            }),
            ..DeleteParams::default()
        };
        match self.api().delete(&self.name, &params).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 409 => Err(StoreError::Conflict),
            Err(error) => Err(error.into()),
        }
    }

    async fn create(&self, kept: &Kept) -> Result<(), StoreError> {
        let given = [
            (CERTIFICATES, Some(&kept.certificates)),
            (KEY, Some(&kept.key)),
            (FURTHER, kept.further.as_ref()),
            (RECORD, kept.record.as_ref()),
        ];
        let data: BTreeMap<_, _> = given
            .into_iter()
            .filter_map(|(key, value)| Some((key.to_owned(), ByteString(value?.clone()))))
            .collect();
        let annotations = kept
            .rotation_request
            .clone()
            .map(|request| (ROTATE.to_owned(), request));
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                namespace: Some(self.namespace.clone()),
                annotations: annotations.map(|request| BTreeMap::from([request])),
                // Without an owner: garbage collection would delete the key's only copy.
                ..ObjectMeta::default()
            },
            type_: Some(TYPE.to_owned()),
            data: Some(data),
            ..Secret::default()
        };
        let params = PostParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PostParams::default()
        };
        taken(self.api().create(&params, &secret).await)
    }

    async fn write(&self, read: &Kept, change: &Change) -> Result<(), StoreError> {
        let mut data = BTreeMap::from([(RECORD, bytes(&change.record.to_json()))]);
        if let Some(made) = &change.made {
            data.insert(CERTIFICATES, bytes(made.certificates.as_bytes()));
            data.insert(KEY, bytes(made.key.as_bytes()));
        }
        // With the resourceVersion the API server rejects writes on top of a stale read.
        let patch = json!({ "metadata": { "resourceVersion": read.version }, "data": data });
        let api = self.api();
        taken(api.patch(&self.name, &params(), &Patch::Merge(patch)).await)
    }

    fn watch(&self, changed: mpsc::Sender<()>) -> impl Future<Output = ()> + Send + use<> {
        let config = watcher::Config::default()
            .fields(&format!("metadata.name={}", self.name))
            .timeout(WATCH_SECONDS);
        let mut events = Box::pin(watcher(self.api(), config).default_backoff());
        async move {
            while let Some(event) = events.next().await {
                match event {
                    // One pending notification is enough.
                    Ok(_) => drop(changed.try_send(())),
                    Err(error) => tracing::debug!(%error, "watching the authority's Secret"),
                }
                if changed.is_closed() {
                    return;
                }
            }
        }
    }
}

/// Maps the API server's response to a write.
fn taken(answer: Result<Secret, kube::Error>) -> Result<(), StoreError> {
    match answer {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => Err(StoreError::Conflict),
        Err(error) => Err(error.into()),
    }
}

fn params() -> PatchParams {
    PatchParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PatchParams::default()
    }
}

fn bytes(bytes: &[u8]) -> Value {
    json!(ByteString(bytes.to_vec()))
}
