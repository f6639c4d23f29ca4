//! Verifies a peer: a chain to the mesh's anchors, within its validity, and the expected SPIFFE ID.
//!
//! DNS names are irrelevant: server names are addresses, and an address proves nothing.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore,
    SignatureScheme,
};

use super::spiffe::{ClaimsError, SpiffeId, claims};

/// Why a peer with a certificate of the mesh is not the expected one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    #[error("expected {expected}, but the peer is {found}")]
    Mismatch { expected: SpiffeId, found: SpiffeId },
    #[error("{0} is not in the trust domain {1}")]
    ForeignTrustDomain(SpiffeId, String),
    #[error(transparent)]
    NoIdentity(#[from] ClaimsError),
}

impl IdentityError {
    /// The identity error in a failed handshake, if that was the cause.
    pub fn find(error: &rustls::Error) -> Option<&Self> {
        match error {
            rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(source))) => {
                source.downcast_ref()
            }
            _ => None,
        }
    }
}

impl From<IdentityError> for rustls::Error {
    fn from(error: IdentityError) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
    }
}

/// Verifies that a server is `expected`.
#[derive(Debug)]
pub(super) struct PinnedServer {
    expected: SpiffeId,
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl PinnedServer {
    pub fn new(expected: SpiffeId, roots: Arc<RootCertStore>, provider: &CryptoProvider) -> Self {
        Self {
            expected,
            roots,
            algorithms: provider.signature_verification_algorithms,
        }
    }
}

impl ServerCertVerifier for PinnedServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &rustls::server::ParsedCertificate::try_from(end_entity)?,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        let found = claims(end_entity).map_err(IdentityError::from)?.id;
        if found != self.expected {
            return Err(IdentityError::Mismatch {
                expected: self.expected.clone(),
                found,
            }
            .into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Verifies that a client is a member of our trust domain.
#[derive(Debug)]
pub(super) struct MeshClient {
    trust_domain: Arc<str>,
    chain: Arc<dyn ClientCertVerifier>,
}

impl MeshClient {
    pub fn new(
        trust_domain: Arc<str>,
        roots: Arc<RootCertStore>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, rustls::client::VerifierBuilderError> {
        // No hints: a mesh peer has one certificate, and the names of the anchors would cost bytes
        // in every handshake.
        let chain = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
            .clear_root_hint_subjects()
            .build()?;
        Ok(Self {
            trust_domain,
            chain,
        })
    }
}

impl ClientCertVerifier for MeshClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self
            .chain
            .verify_client_cert(end_entity, intermediates, now)?;
        let found = claims(end_entity).map_err(IdentityError::from)?.id;
        if found.trust_domain() != &*self.trust_domain {
            let expected = self.trust_domain.to_string();
            return Err(IdentityError::ForeignTrustDomain(found, expected).into());
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
