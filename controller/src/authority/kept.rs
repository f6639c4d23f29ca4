//! An authority as it is kept, wherever that is.

use std::io;
use std::path::PathBuf;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use crate::issuer::Pair;

/// An authority and what belongs to it, as it is kept.
#[derive(Clone)]
pub struct Kept {
    pub certificates: Vec<u8>,
    pub key: Vec<u8>,
    pub further: Option<Vec<u8>>,
    pub record: Option<Vec<u8>>,
    pub wish: Option<String>,
    /// Of the Secret.
    pub(super) version: Option<String>,
    /// The Secret belongs to the webhook's configuration, and would be deleted with it. The owners
    /// that it is to keep.
    pub(super) owners: Option<Vec<OwnerReference>>,
}

impl Kept {
    pub fn new(pair: &Pair, record: Vec<u8>) -> Self {
        Self {
            certificates: pair.certificates.clone().into_bytes(),
            key: pair.key.clone().into_bytes(),
            further: None,
            record: Some(record),
            wish: None,
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
    /// Another was first.
    #[error("another controller wrote it at the same time")]
    Conflict,
}

impl StoreError {
    /// The API server understands what is asked of it and will not do it: to ask again is no use.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Api(kube::Error::Api(status)) => matches!(status.code, 403 | 422),
            _ => false,
        }
    }
}
