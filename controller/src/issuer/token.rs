//! Who a token proves its bearer to be. How tokens are checked is a seam: by the public key of
//! whoever signs them, here, or by the Kubernetes API server.

use std::path::{Path, PathBuf};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use naru_contract::TOKEN_AUDIENCE;
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY};
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::review::TokenReviewer;

/// Longest token, in bytes. Kubernetes' are about 1,000.
const MAX_TOKEN: usize = 16 * 1024;
/// How far the clocks of the issuer of tokens and the controller may be apart, in seconds.
const LEEWAY_SECONDS: u64 = 10;
const SUBJECT_PREFIX: &str = "system:serviceaccount:";

/// How tokens are checked.
pub enum TokenCheck {
    /// ES256 by a fixed public key.
    PublicKey(PublicKey),
    /// By asking the Kubernetes API server.
    Review(TokenReviewer),
}

/// The service account that a token is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bearer {
    pub namespace: String,
    pub service_account: String,
    /// The pod that the token was made for.
    pub pod: Option<String>,
}

/// Why a token proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("the token is longer than {MAX_TOKEN} bytes")]
    TooLong,
    #[error("the token is no JWT signed with ES256")]
    Malformed,
    #[error("the token's signature is not of the token issuer's key")]
    Signature,
    #[error("the token has expired (or a clock is off)")]
    Expired,
    #[error("the token does not hold yet (or a clock is off)")]
    NotYet,
    #[error("the token is of another issuer (iss)")]
    Issuer,
    #[error("the token is not for the audience {TOKEN_AUDIENCE} (aud)")]
    Audience,
    #[error("the token lacks the claim {0}")]
    Missing(String),
    #[error("the token's subject is not system:serviceaccount:NAMESPACE:NAME (sub)")]
    Subject,
    #[error("the token's claim kubernetes.io.{0} contradicts its subject")]
    Contradiction(&'static str),
    #[error("the API server does not accept the token: {0}")]
    NotAccepted(String),
    #[error("the token is not bound to a pod: it has to be a projected one")]
    Unbound,
    #[error("the API server could not be asked about the token: {0}")]
    Review(String),
    #[error("the API server did not answer in time about the token")]
    ReviewTime,
}

impl TokenCheck {
    /// The bearer, if the token is good now.
    pub async fn check(&self, token: &str) -> Result<Bearer, TokenError> {
        if token.len() > MAX_TOKEN {
            return Err(TokenError::TooLong);
        }
        match self {
            Self::PublicKey(key) => key.check(token),
            Self::Review(reviewer) => reviewer.check(token).await,
        }
    }
}

/// Why there is no key to check tokens with.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("{path}: {source}")]
    File {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{0}: holds no public key in PEM (BEGIN PUBLIC KEY, ECDSA P-256)")]
    Format(PathBuf),
}

/// Checks that tokens are signed with the private half of a key.
pub struct PublicKey {
    key: DecodingKey,
    validation: Validation,
}

impl PublicKey {
    /// Reads the key from a PEM file.
    pub fn read(path: &Path, issuer: &str) -> Result<Self, KeyError> {
        let pem = std::fs::read(path).map_err(|source| KeyError::File {
            path: path.to_owned(),
            source,
        })?;
        Self::from_pem(&pem, issuer).ok_or_else(|| KeyError::Format(path.to_owned()))
    }

    /// `None`: it is no ECDSA P-256 key.
    pub fn from_pem(pem: &[u8], issuer: &str) -> Option<Self> {
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem).ok()?;
        let (_, info) = SubjectPublicKeyInfo::from_der(&der).ok()?;
        let curve = info.algorithm.parameters.as_ref()?.as_oid().ok()?;
        if info.algorithm.algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY || curve != OID_EC_P256 {
            return None;
        }
        let mut validation = Validation::new(Algorithm::ES256);
        validation.leeway = LEEWAY_SECONDS;
        validation.validate_nbf = true;
        validation.set_audience(&[TOKEN_AUDIENCE]);
        validation.set_issuer(&[issuer]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        Some(Self {
            key: DecodingKey::from_ec_der(&info.subject_public_key.data),
            validation,
        })
    }

    fn check(&self, token: &str) -> Result<Bearer, TokenError> {
        let claims = jsonwebtoken::decode::<Claims>(token, &self.key, &self.validation)
            .map_err(|error| match error.into_kind() {
                ErrorKind::InvalidSignature => TokenError::Signature,
                ErrorKind::ExpiredSignature => TokenError::Expired,
                ErrorKind::ImmatureSignature => TokenError::NotYet,
                ErrorKind::InvalidIssuer => TokenError::Issuer,
                ErrorKind::InvalidAudience => TokenError::Audience,
                ErrorKind::MissingRequiredClaim(claim) => TokenError::Missing(claim),
                _ => TokenError::Malformed,
            })?
            .claims;
        claims.bearer()
    }
}

/// Namespace and name of the service account that a subject (or a user's name) stands for.
pub(super) fn service_account(subject: &str) -> Result<(&str, &str), TokenError> {
    subject
        .strip_prefix(SUBJECT_PREFIX)
        .and_then(|rest| rest.split_once(':'))
        .filter(|(_, name)| !name.contains(':'))
        .ok_or(TokenError::Subject)
}

/// Claims of a service-account token, as Kubernetes makes them.
#[derive(Deserialize)]
struct Claims {
    sub: Option<String>,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Option<KubernetesClaims>,
}

#[derive(Deserialize)]
struct KubernetesClaims {
    namespace: String,
    serviceaccount: Option<Named>,
    pod: Option<Named>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

impl Claims {
    fn bearer(self) -> Result<Bearer, TokenError> {
        let subject = self
            .sub
            .ok_or_else(|| TokenError::Missing("sub".to_owned()))?;
        let (namespace, service_account) = service_account(&subject)?;
        let kubernetes = self
            .kubernetes
            .ok_or_else(|| TokenError::Missing("kubernetes.io".to_owned()))?;
        if kubernetes.namespace != namespace {
            return Err(TokenError::Contradiction("namespace"));
        }
        match kubernetes.serviceaccount {
            Some(named) if named.name != service_account => {
                return Err(TokenError::Contradiction("serviceaccount"));
            }
            _ => {}
        }
        Ok(Bearer {
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            pod: kubernetes.pod.map(|pod| pod.name),
        })
    }
}
