//! Service-account tokens as Kubernetes projects them, signed with a key that is generated at each
//! start and never leaves this process.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use serde_json::json;

use super::objects::Pod;

/// `iss` of the tokens.
pub const ISSUER: &str = "https://naru-sandbox.invalid";
/// The audience that the controller expects.
const AUDIENCE: &str = "naru.dev";
/// How long a token is valid.
const LIFETIME: Duration = Duration::from_secs(3_600);
/// When it is replaced: well before it expires.
pub const REFRESH: Duration = Duration::from_secs(1_800);

/// Issues tokens.
pub struct TokenIssuer {
    key: EncodingKey,
    public: String,
}

impl TokenIssuer {
    pub fn new() -> anyhow::Result<Self> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
            .context("making the key that signs tokens")?;
        Ok(Self::with(&key))
    }

    fn with(key: &KeyPair) -> Self {
        Self {
            key: EncodingKey::from_ec_der(&key.serialize_der()),
            public: key.public_key_pem(),
        }
    }

    /// The public key that verifies tokens, as PEM.
    pub fn public_key(&self) -> &str {
        &self.public
    }

    /// A token for a pod.
    pub fn issue(&self, pod: &Pod) -> anyhow::Result<String> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .context("the clock is before 1970")?
            .as_secs();
        let account = &pod.template.service_account;
        let claims = json!({
            "iss": ISSUER,
            "sub": format!("system:serviceaccount:{}:{account}", pod.namespace),
            "aud": [AUDIENCE],
            "iat": now,
            "nbf": now,
            "exp": now + LIFETIME.as_secs(),
            "kubernetes.io": {
                "namespace": pod.namespace,
                "pod": { "name": pod.name, "uid": pod.uid },
                "serviceaccount": { "name": account,
                    "uid": format!("{}-{account}", pod.namespace) },
            },
        });
        jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &self.key)
            .context("signing a token")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::objects::example_pod as pod;
    use jsonwebtoken::{DecodingKey, Validation};
    use rcgen::PublicKeyData;

    #[test]
    fn a_token_names_its_pod_and_is_verified_with_the_public_key() {
        let key = || KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let (right, wrong) = (key(), key());
        let issuer = TokenIssuer::with(&right);
        assert!(
            issuer
                .public_key()
                .starts_with("-----BEGIN PUBLIC KEY-----")
        );
        let token = issuer.issue(&pod("web-1", 2, 80)).unwrap();
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_audience(&[AUDIENCE]);
        validation.set_issuer(&[ISSUER]);
        let claims = |key: &KeyPair| {
            let key = DecodingKey::from_ec_der(key.der_bytes());
            jsonwebtoken::decode::<serde_json::Value>(&token, &key, &validation)
        };
        assert!(claims(&wrong).is_err());
        let claims = claims(&right).unwrap().claims;
        assert_eq!(claims["sub"], "system:serviceaccount:shop:default");
        assert_eq!(claims["kubernetes.io"]["pod"]["name"], "web-1");
    }
}
