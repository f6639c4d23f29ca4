//! The mesh's certificate authority in a Secret (`tls.crt`, `tls.key`), so that every replica issues with the same.
//!
//! In: the Secret's name. Out: its content as the files of the state directory. If there is no such Secret, one is made; of two
//! replicas that do so at once, one is told that it was second, and takes the other's.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::SystemTime;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::PostParams;
use kube::{Api, Client};
use tracing::info;

use super::MANAGER;
use crate::issuer::{Ca, CaError};

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const TYPE: &str = "kubernetes.io/tls";

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error("the Secret has no {0}")]
    Incomplete(&'static str),
}

/// Where it is kept.
pub struct Authority<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
    pub state_dir: &'a Path,
    pub trust_domain: &'a str,
    /// Whom a Secret that is made belongs to.
    pub owner: Option<OwnerReference>,
}

impl Authority<'_> {
    /// Takes the authority from the Secret, or makes one and puts it there.
    pub async fn open(self, client: Client, now: SystemTime) -> Result<Ca, AuthorityError> {
        let api = Api::<Secret>::namespaced(client, self.namespace);
        let secret = match api.get_opt(self.name).await? {
            Some(secret) => secret,
            None => self.make(&api, now).await?,
        };
        let data = secret.data.unwrap_or_default();
        let (certificate, key) = (text(&data, CERTIFICATE)?, text(&data, KEY)?);
        Ca::write(self.state_dir, certificate, key)?;
        Ok(Ca::open(self.state_dir, self.trust_domain, now)?)
    }

    async fn make(&self, api: &Api<Secret>, now: SystemTime) -> Result<Secret, AuthorityError> {
        let (certificate, key) = Ca::make(self.trust_domain, now)?;
        let data = [(CERTIFICATE, certificate), (KEY, key)];
        let data = data.map(|(key, pem)| (key.to_owned(), ByteString(pem.into_bytes())));
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(self.name.to_owned()),
                namespace: Some(self.namespace.to_owned()),
                owner_references: self.owner.clone().map(|owner| vec![owner]),
                ..ObjectMeta::default()
            },
            type_: Some(TYPE.to_owned()),
            data: Some(data.into()),
            ..Secret::default()
        };
        let params = PostParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PostParams::default()
        };
        match api.create(&params, &secret).await {
            Ok(created) => {
                info!(
                    name = self.name,
                    "a new certificate authority is in its Secret"
                );
                Ok(created)
            }
            // Another replica was first.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(api.get(self.name).await?),
            Err(error) => Err(error.into()),
        }
    }
}

fn text<'a>(
    data: &'a BTreeMap<String, ByteString>,
    key: &'static str,
) -> Result<&'a [u8], AuthorityError> {
    data.get(key)
        .map(|value| value.0.as_slice())
        .ok_or(AuthorityError::Incomplete(key))
}
