//! Validation of tokens, as a seam: here with the signer's public key, or by the Kubernetes API
//! server.

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
use super::token::{Bearer, MAX_TOKEN, TokenError, service_account};

/// Tolerated clock skew between the issuer of tokens and the controller, in seconds.
const LEEWAY_SECONDS: u64 = 10;

/// How tokens are validated.
pub enum TokenCheck {
    /// ES256 with a fixed public key.
    PublicKey(PublicKey),
    /// With a TokenReview of the Kubernetes API server.
    Review(TokenReviewer),
}

impl TokenCheck {
    /// The bearer, if the token is valid now.
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

/// Why the public key cannot be used.
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

/// Verifies that tokens are signed with the key's private half.
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

    /// `None`: not an ECDSA P-256 key.
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

/// Claims of Kubernetes' service-account tokens.
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
