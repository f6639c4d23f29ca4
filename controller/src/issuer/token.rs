//! The identity of a token's bearer, and the reasons why a token is invalid.

use naru_contract::TOKEN_AUDIENCE;

/// Longest token, in bytes. Kubernetes' tokens have about 1,000.
pub(super) const MAX_TOKEN: usize = 16 * 1024;
const SUBJECT_PREFIX: &str = "system:serviceaccount:";

/// The service account of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bearer {
    pub namespace: String,
    pub service_account: String,
    /// The pod that the token is bound to.
    pub pod: Option<String>,
}

/// Why a token is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("the token is longer than {MAX_TOKEN} bytes")]
    TooLong,
    #[error("the token is not a JWT signed with ES256")]
    Malformed,
    #[error("the token's signature is not of the token issuer's key")]
    Signature,
    #[error("the token has expired (or a clock is off)")]
    Expired,
    #[error("the token is not valid yet (or a clock is off)")]
    NotYet,
    #[error("the token has another issuer (iss)")]
    Issuer,
    #[error("the token is not for the audience {TOKEN_AUDIENCE} (aud)")]
    Audience,
    #[error("the token lacks the claim {0}")]
    Missing(String),
    #[error("the token's subject is not system:serviceaccount:NAMESPACE:NAME (sub)")]
    Subject,
    #[error("the token's claim kubernetes.io.{0} contradicts its subject")]
    Contradiction(&'static str),
    #[error("the API server rejected the token: {0}")]
    NotAccepted(String),
    #[error("the token is not bound to a pod: it has to be a projected one")]
    Unbound,
    #[error("the API server could not be asked about the token: {0}")]
    Review(String),
    #[error("the API server did not answer in time about the token")]
    ReviewTime,
}

/// Namespace and name of the service account in a subject (or a user's name).
pub(super) fn service_account(subject: &str) -> Result<(&str, &str), TokenError> {
    subject
        .strip_prefix(SUBJECT_PREFIX)
        .and_then(|rest| rest.split_once(':'))
        .filter(|(_, name)| !name.contains(':'))
        .ok_or(TokenError::Subject)
}
