//! Identities: authorization of certificate requests, and the certificates themselves.
//!
//! ```text
//! token ─▶ token (who?) ──┐
//! CSR ──▶ signature, key ─┴▶ ca ─▶ certificate for spiffe://…/ns/…/sa/…
//! ```
//!
//! In: a proxy's token and signing request. Out: a certificate, or a refusal with the reason.
//! Nothing here is logged.
//!
//! # Floors
//!
//! ```text
//! token_check         checks tokens by a public key, or by TokenReview
//! review ca           TokenReview; certificates
//! identity token      SPIFFE ids; claims of a token
//! ```

mod ca;
mod identity;
mod review;
#[cfg(test)]
mod tests;
mod token;
mod token_check;

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use rcgen::{CertificateSigningRequestParams, KeyPair, PublicKeyData};
use rustls::pki_types::{
    CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer,
};
use tokio::sync::watch;

pub use ca::{Ca, CaError, LEAF_LIFETIME, Pair, read_certificates, to_pem, validity};
pub use identity::{SpiffeId, is_label, is_trust_domain};
pub use review::TokenReviewer;
pub use token::{Bearer, TokenError};
pub use token_check::{KeyError, PublicKey, TokenCheck};

/// Namespace and service account of the controller itself.
pub const CONTROLLER: (&str, &str) = ("naru-system", "naru-controller");
/// Longest certificate signing request, in bytes. One with a P-256 key has about 300.
const MAX_CSR: usize = 16 * 1024;

/// Issues certificates to holders of valid tokens.
pub struct Issuer {
    in_force: watch::Sender<Arc<InForce>>,
    trust_domain: String,
    tokens: TokenCheck,
}

/// The issuing authority and the trust anchors. Immutable, and swapped as a whole.
pub struct InForce {
    pub ca: Arc<Ca>,
    /// Sorted and deduplicated, including the root of `ca`.
    pub anchors: Vec<CertificateDer<'static>>,
}

impl InForce {
    /// `further`: trust anchors in addition to the root of `ca`.
    pub fn new(ca: Arc<Ca>, further: impl IntoIterator<Item = CertificateDer<'static>>) -> Self {
        let mut anchors = vec![ca.root().clone()];
        anchors.extend(further);
        anchors.sort_by(|a, b| a.as_ref().cmp(b.as_ref()));
        anchors.dedup();
        Self { ca, anchors }
    }

    pub fn anchors_pem(&self) -> String {
        to_pem(&self.anchors)
    }

    pub fn anchors_der(&self) -> Vec<Bytes> {
        let anchors = self.anchors.iter();
        anchors.map(|der| Bytes::copy_from_slice(der)).collect()
    }

    fn is(&self, other: &Self) -> bool {
        self.ca.id() == other.ca.id() && self.anchors == other.anchors
    }
}

/// An issued certificate.
pub struct Issued {
    pub id: SpiffeId,
    /// The pod that the token is bound to, if any.
    pub pod: Option<String>,
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    pub expires: SystemTime,
    /// The authority that has issued it, and the trust anchors.
    pub by: Arc<InForce>,
}

/// A chain, leaf first, and its key.
pub type ServerCertificate = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Why a certificate is refused.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("the token's subject has an invalid namespace or service account")]
    Name,
    #[error("the service account of the controller gets no certificate by a token")]
    Reserved,
    #[error("the signing request cannot be parsed, or is not signed with its own key")]
    Request,
    #[error("the key of the signing request is not an ECDSA key on P-256")]
    Key,
    #[error("the mesh's certificate authority has expired")]
    AuthorityExpired,
    #[error("the certificate could not be made: {0}")]
    Make(#[from] rcgen::Error),
}

impl Refusal {
    /// The reason as a metric label, from a closed set.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Token(TokenError::Expired | TokenError::NotYet) => "token_time",
            Self::Token(TokenError::Signature) => "token_signature",
            Self::Token(TokenError::Issuer) => "token_issuer",
            Self::Token(TokenError::Audience) => "token_audience",
            Self::Token(TokenError::NotAccepted(_)) => "token_not_accepted",
            Self::Token(TokenError::Unbound) => "token_unbound",
            Self::Token(TokenError::Review(_) | TokenError::ReviewTime) => "token_review",
            Self::Token(_) => "token_malformed",
            Self::Name => "name",
            Self::Reserved => "reserved",
            Self::Request => "request",
            Self::Key => "key",
            Self::AuthorityExpired => "authority_expired",
            Self::Make(_) => "internal",
        }
    }
}

impl Issuer {
    pub fn new(in_force: InForce, trust_domain: &str, tokens: TokenCheck) -> Self {
        Self {
            in_force: watch::Sender::new(Arc::new(in_force)),
            trust_domain: trust_domain.to_owned(),
            tokens,
        }
    }

    /// A certificate for the service account of `token`, with the key of the request. All other
    /// fields of the request are ignored.
    pub async fn certify(
        &self,
        request: &[u8],
        token: &str,
        now: SystemTime,
    ) -> Result<Issued, Refusal> {
        let bearer = self.tokens.check(token).await?;
        if (&*bearer.namespace, &*bearer.service_account) == CONTROLLER {
            return Err(Refusal::Reserved);
        }
        let id = SpiffeId::new(
            &self.trust_domain,
            &bearer.namespace,
            &bearer.service_account,
        )
        .ok_or(Refusal::Name)?;
        if request.len() > MAX_CSR {
            return Err(Refusal::Request);
        }
        // Verifies the signature as well.
        let request =
            CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request))
                .map_err(|_| Refusal::Request)?;
        let key = &request.public_key;
        // An uncompressed point: a byte and two coordinates of 32 bytes.
        if key.algorithm() != &rcgen::PKCS_ECDSA_P256_SHA256 || key.der_bytes().len() != 65 {
            return Err(Refusal::Key);
        }
        let by = self.in_force();
        let issued = by.ca.issue(&id, key, now)?;
        let (chain, expires) = issued.ok_or(Refusal::AuthorityExpired)?;
        Ok(Issued {
            id,
            pod: bearer.pod,
            chain,
            expires,
            by,
        })
    }

    /// The controller's identity.
    pub fn controller(&self) -> SpiffeId {
        SpiffeId {
            trust_domain: self.trust_domain.clone(),
            namespace: CONTROLLER.0.to_owned(),
            service_account: CONTROLLER.1.to_owned(),
        }
    }

    /// The controller's own certificate, with a new key.
    pub fn own(&self, now: SystemTime) -> Result<(Issued, PrivateKeyDer<'static>), Refusal> {
        let id = self.controller();
        let key = KeyPair::generate()?;
        let by = self.in_force();
        let issued = by.ca.issue(&id, &key, now)?;
        let (chain, expires) = issued.ok_or(Refusal::AuthorityExpired)?;
        let issued = Issued {
            id,
            pod: None,
            chain,
            expires,
            by,
        };
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        Ok((issued, PrivateKeyDer::Pkcs8(key)))
    }

    /// A certificate for one of the controller's servers with a DNS name, with a new key.
    pub fn server(&self, name: &str, now: SystemTime) -> Result<ServerCertificate, Refusal> {
        let key = KeyPair::generate()?;
        let issued = self.in_force().ca.issue_server(name, &key, now)?;
        let (chain, _) = issued.ok_or(Refusal::AuthorityExpired)?;
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        Ok((chain, PrivateKeyDer::Pkcs8(key)))
    }

    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// The current authority and anchors.
    pub fn in_force(&self) -> Arc<InForce> {
        self.in_force.borrow().clone()
    }

    /// Replaces the authority and the anchors, if they differ.
    pub fn take_over(&self, in_force: InForce) {
        self.in_force.send_if_modified(|current| {
            let differs = !current.is(&in_force);
            if differs {
                *current = Arc::new(in_force);
            }
            differs
        });
    }

    /// Notifies of changes of the authority or the anchors.
    pub fn changes(&self) -> watch::Receiver<Arc<InForce>> {
        self.in_force.subscribe()
    }
}
