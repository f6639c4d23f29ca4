//! SPIFFE IDs of service accounts: made from a token's claims, and read from a certificate.

use std::fmt;
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Longest name of a namespace (RFC 1123 label).
const MAX_LABEL: usize = 63;
/// Longest name of a service account (RFC 1123 subdomain).
const MAX_SUBDOMAIN: usize = 253;
/// Longest trust domain (SPIFFE-ID, section 2.1).
const MAX_TRUST_DOMAIN: usize = 255;

/// `spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>`
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SpiffeId {
    pub trust_domain: String,
    pub namespace: String,
    pub service_account: String,
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            trust_domain,
            namespace,
            service_account,
        } = self;
        write!(
            f,
            "spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}"
        )
    }
}

impl SpiffeId {
    /// `None`: one of the names is invalid.
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Option<Self> {
        let right =
            is_trust_domain(trust_domain) && is_label(namespace) && is_subdomain(service_account);
        right.then(|| Self {
            trust_domain: trust_domain.to_owned(),
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let (trust_domain, path) = text.strip_prefix("spiffe://")?.split_once('/')?;
        let (namespace, service_account) = path.strip_prefix("ns/")?.split_once("/sa/")?;
        Self::new(trust_domain, namespace, service_account)
    }

    /// The only identity in a certificate, and the certificate's expiry. It does not verify the
    /// certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Option<(Self, SystemTime)> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let names = certificate.subject_alternative_name().ok()??;
        let mut uris = names
            .value
            .general_names
            .iter()
            .filter_map(|name| match name {
                GeneralName::URI(uri) => Some(*uri),
                _ => None,
            });
        let id = Self::parse(uris.next()?)?;
        if uris.next().is_some() {
            return None;
        }
        let expires = u64::try_from(certificate.validity().not_after.timestamp()).ok()?;
        Some((id, SystemTime::UNIX_EPOCH + Duration::from_secs(expires)))
    }
}

/// Whether a text is a valid trust domain.
pub fn is_trust_domain(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._".contains(&b);
    !text.is_empty() && text.len() <= MAX_TRUST_DOMAIN && text.bytes().all(allowed)
}

/// Whether a text is a valid namespace name.
pub fn is_label(text: &str) -> bool {
    let inside = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !text.is_empty()
        && text.len() <= MAX_LABEL
        && text.bytes().all(inside)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn is_subdomain(text: &str) -> bool {
    text.len() <= MAX_SUBDOMAIN && text.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_round_trips_through_its_text_form() {
        let id = SpiffeId::new("cluster.local", "shop", "web.v2").unwrap();
        assert_eq!(id.to_string(), "spiffe://cluster.local/ns/shop/sa/web.v2");
        assert_eq!(SpiffeId::parse(&id.to_string()), Some(id));
    }

    #[test]
    fn a_name_cannot_extend_into_another_part_of_the_id() {
        for (namespace, service_account) in [
            ("shop/sa/admin", "web"),
            ("shop", "web/ns/other"),
            ("", "web"),
            ("shop", ""),
            ("shop", ".."),
            ("shop.other", "web"),
            ("Shop", "web"),
            ("shop", "web\u{0}"),
            ("-shop", "web"),
        ] {
            assert_eq!(SpiffeId::new("td", namespace, service_account), None);
        }
    }
}
