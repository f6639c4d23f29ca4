//! The mesh's trust anchors, and the verifiers made of one set of them.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::{ProducesTickets, danger::ClientCertVerifier};

use super::verify::MeshClient;

/// Most anchors at once. Two overlap in a rotation; more are for federated meshes.
const MAX_ANCHORS: usize = 64;

/// Why a set of anchors is rejected.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error("it contains no certificate")]
    Empty,
    #[error("it contains {0} certificates; the limit is {MAX_ANCHORS}")]
    TooMany(usize),
    #[error("certificate {index}: {source}")]
    Certificate { index: usize, source: rustls::Error },
    #[error(transparent)]
    Verifier(#[from] rustls::client::VerifierBuilderError),
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    #[error(transparent)]
    Pem(#[from] rustls::pki_types::pem::Error),
}

/// One set of anchors.
#[derive(Debug)]
pub(super) struct Trust {
    /// Sorted, each once.
    anchors: Vec<CertificateDer<'static>>,
    pub roots: Arc<RootCertStore>,
    pub client_verifier: Arc<dyn ClientCertVerifier>,
    /// Keys of session tickets. They are replaced with the anchors: a session whose client was
    /// verified against a removed anchor is not resumed.
    pub ticketer: Arc<dyn ProducesTickets>,
}

impl Trust {
    pub fn new(
        trust_domain: &Arc<str>,
        mut anchors: Vec<CertificateDer<'static>>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, TrustError> {
        anchors.sort_by(|a, b| a.as_ref().cmp(b.as_ref()));
        anchors.dedup();
        let roots = Arc::new(root_store(&anchors)?);
        Ok(Self {
            anchors,
            client_verifier: Arc::new(MeshClient::new(
                trust_domain.clone(),
                roots.clone(),
                provider,
            )?),
            roots,
            ticketer: rustls::crypto::aws_lc_rs::Ticketer::new()?,
        })
    }

    pub fn anchors(&self) -> &[CertificateDer<'static>] {
        &self.anchors
    }

    /// Whether these are `anchors`, in any order.
    pub fn is(&self, anchors: &[CertificateDer<'_>]) -> bool {
        anchors.iter().all(|anchor| self.anchors.contains(anchor))
            && self.anchors.iter().all(|anchor| anchors.contains(anchor))
    }

    /// The anchors and `more`.
    pub fn with(&self, more: &[CertificateDer<'static>]) -> Result<RootCertStore, TrustError> {
        let mut anchors = self.anchors.clone();
        anchors.extend_from_slice(more);
        anchors.sort_by(|a, b| a.as_ref().cmp(b.as_ref()));
        anchors.dedup();
        root_store(&anchors)
    }
}

fn root_store(anchors: &[CertificateDer<'static>]) -> Result<RootCertStore, TrustError> {
    match anchors.len() {
        0 => return Err(TrustError::Empty),
        1..=MAX_ANCHORS => {}
        many => return Err(TrustError::TooMany(many)),
    }
    let mut roots = RootCertStore::empty();
    for (index, anchor) in anchors.iter().enumerate() {
        roots
            .add(anchor.clone())
            .map_err(|source| TrustError::Certificate { index, source })?;
    }
    Ok(roots)
}

/// The certificates in a PEM file.
pub fn read_anchors(path: &std::path::Path) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let anchors: Vec<_> = CertificateDer::pem_file_iter(path)?.collect::<Result<_, _>>()?;
    if anchors.is_empty() {
        return Err(TrustError::Empty);
    }
    Ok(anchors)
}
