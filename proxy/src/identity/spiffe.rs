//! SPIFFE IDs, and parsing them from certificates.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Longest SPIFFE ID, in bytes (SPIFFE-ID, section 2.3).
const MAX_LENGTH: usize = 2_048;
const SCHEME: &str = "spiffe://";

/// A SPIFFE ID: `spiffe://<trust-domain>/<path>`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SpiffeId(Arc<str>);

/// A text that is not a SPIFFE ID.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a SPIFFE ID: expected spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT")]
pub struct SpiffeIdError(String);

impl SpiffeId {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The ID as a shared text.
    pub fn text(&self) -> Arc<str> {
        self.0.clone()
    }

    pub fn trust_domain(&self) -> &str {
        let rest = &self.0[SCHEME.len()..];
        rest.split_once('/').map_or(rest, |(domain, _)| domain)
    }

    /// Whether this is the only copy of the ID.
    pub(super) fn is_last(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, SpiffeIdError> {
        let wrong = || SpiffeIdError(text.chars().take(256).collect());
        let rest = text.strip_prefix(SCHEME).ok_or_else(wrong)?;
        let (domain, path) = rest.split_once('/').ok_or_else(wrong)?;
        let in_domain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._".contains(&b);
        let in_path = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
        let is_segment =
            |segment: &str| !matches!(segment, "" | "." | "..") && segment.bytes().all(in_path);
        if text.len() > MAX_LENGTH
            || domain.is_empty()
            || !domain.bytes().all(in_domain)
            || !path.split('/').all(is_segment)
        {
            return Err(wrong());
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The claims of a certificate. They prove nothing by themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claims {
    pub id: SpiffeId,
    /// In Unix seconds.
    pub not_before: i64,
    /// In Unix seconds.
    pub not_after: i64,
}

/// Why a certificate has no identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimsError {
    #[error("the certificate cannot be parsed")]
    Malformed,
    /// An X.509-SVID has exactly one URI name.
    #[error("the certificate has {0} URI names; a mesh identity has exactly one")]
    UriNames(usize),
    #[error(transparent)]
    Id(#[from] SpiffeIdError),
}

/// Reads the claims of a certificate.
pub(super) fn claims(certificate: &CertificateDer<'_>) -> Result<Claims, ClaimsError> {
    let (_, certificate) =
        X509Certificate::from_der(certificate).map_err(|_| ClaimsError::Malformed)?;
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| ClaimsError::Malformed)?;
    let uris: Vec<&str> = names
        .iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    let [uri] = uris.as_slice() else {
        return Err(ClaimsError::UriNames(uris.len()));
    };
    Ok(Claims {
        id: uri.parse()?,
        not_before: certificate.validity().not_before.timestamp(),
        not_after: certificate.validity().not_after.timestamp(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_id_is_split_into_its_parts() {
        let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
        assert_eq!(id.trust_domain(), "cluster.local");
        assert_eq!(id.as_str(), "spiffe://cluster.local/ns/shop/sa/web");
    }

    #[test]
    fn an_invalid_id_is_rejected() {
        for wrong in [
            "",
            "spiffe://",
            "spiffe://td",
            "spiffe://td/",
            "spiffe:///ns/a",
            "spiffe://TD/ns/a",
            "spiffe://td/ns//a",
            "spiffe://td/ns/../a",
            "spiffe://td/ns/a?b",
            "spiffe://td/ns/a%20",
            "spiffe://td:80/a",
            "spiffe://user@td/a",
            "https://td/a",
        ] {
            assert!(wrong.parse::<SpiffeId>().is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_certificate_or_an_error(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let _ = claims(&CertificateDer::from(bytes));
        }

        #[test]
        fn any_text_is_an_id_or_an_error(text in "(spiffe://)?.{0,60}") {
            if let Ok(id) = text.parse::<SpiffeId>() {
                prop_assert_eq!(id.as_str(), text);
            }
        }
    }
}
