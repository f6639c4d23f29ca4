//! An authority as it is stored, in either store.

use std::io;
use std::path::PathBuf;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use crate::issuer::Pair;

/// A stored authority and its rotation record.
#[derive(Clone)]
pub struct Kept {
    pub certificates: Vec<u8>,
    pub key: Vec<u8>,
    pub further: Option<Vec<u8>>,
    pub record: Option<Vec<u8>>,
    pub rotation_request: Option<String>,
    /// The Secret's resourceVersion.
    pub(super) version: Option<String>,
    /// The Secret has the webhook's configuration as an owner, and would be garbage-collected with
    /// it. The owners that it should keep.
    pub(super) owners: Option<Vec<OwnerReference>>,
}

impl Kept {
    pub fn new(pair: &Pair, record: Vec<u8>) -> Self {
        Self {
            certificates: pair.certificates.clone().into_bytes(),
            key: pair.key.clone().into_bytes(),
            further: None,
            record: Some(record),
            rotation_request: None,
            version: None,
            owners: None,
        }
    }
}

/// Why an authority cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("it has no {0}")]
    Incomplete(&'static str),
    /// Another writer was first.
    #[error("another controller wrote it at the same time")]
    Conflict,
}

impl StoreError {
    /// The API server understood the request and refuses it, so a retry is pointless.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Api(kube::Error::Api(status)) => matches!(status.code, 403 | 422),
            _ => false,
        }
    }
}
