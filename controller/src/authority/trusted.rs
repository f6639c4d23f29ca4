//! Whether an authority may be created or removed: never while sidecars trust one that would be
//! lost.

use kube::Client;
use tracing::{info, warn};

use super::kept::StoreError;
use super::plan::Read;
use super::record::Record;
use super::store::SecretStore;
use super::{AuthorityError, SystemTime};
use crate::kubernetes::sidecars;

/// When a missing authority may be created.
pub enum Make {
    /// In any case: there is no cluster, or it was requested.
    Always,
    /// While no pod of the cluster has a sidecar. Every sidecar trusts an authority that existed
    /// before.
    WithoutSidecars(Client),
}

/// Why no authority is created.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    #[error(
        "there is no certificate authority, and {count} pods have sidecars that trust the one that \
         is lost ({some}): another one is not made, as it would cut them off. Put the Secret back \
         from a backup, and restart the controller; or, where the authority is lost for good, have \
         another one made with --ca-replace-lost (identity.replaceLost=true in the chart's \
         values): sidecars then take it by their tokens, once the kubelets have brought them its \
         root"
    )]
    Sidecars { count: usize, some: String },
    #[error(transparent)]
    Api(#[from] kube::Error),
}

impl Make {
    pub(super) async fn check(&self) -> Result<(), AuthorityError> {
        let Self::WithoutSidecars(client) = self else {
            return Ok(());
        };
        let pods = sidecars::pods(client).await.map_err(StoreError::from)?;
        match pods.is_empty() {
            true => Ok(()),
            false => Err(MakeError::Sidecars {
                count: pods.len(),
                some: sidecars::some(&pods),
            }
            .into()),
        }
    }
}

/// Deletes the authority if a controller has created it. A given one stays.
pub async fn remove(store: &SecretStore, trust_domain: &str) -> Result<(), AuthorityError> {
    let name = &store.name;
    let Some(kept) = store.read().await? else {
        info!("there is no Secret {name}");
        return Ok(());
    };
    let record = kept.record.as_deref().map(Record::parse).transpose()?;
    let made = record.and_then(|record| record.made);
    let given = Read::new(&kept, trust_domain, SystemTime::now());
    if made.is_none() || given.ok().map(|read| read.given.id().to_owned()) != made {
        warn!("the Secret {name} stays: its authority was not made by a controller");
        return Ok(());
    }
    store.delete(&kept).await?;
    info!("the Secret {name} is deleted, and with it the certificate authority");
    Ok(())
}
