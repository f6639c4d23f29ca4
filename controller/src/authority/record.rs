//! The rotation record next to an authority. With it every replica, even one that has just started,
//! does the same at the same time.

use std::fmt;
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use crate::issuer::{Ca, Pair, read_certificates, to_pem};

/// Stored as JSON. It contains a private key, so its storage must be confidential.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The issuing authority.
    pub issuing: Issuing,
    /// The next issuing authority, once it has been trusted for long enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Next>,
    /// Former issuing authorities that are still trusted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retired: Vec<Retired>,
    /// The id of the authority that a controller has created, and therefore renews.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made: Option<String>,
    /// The last rotation request that was handled.
    #[serde(default, rename = "wish", skip_serializing_if = "Option::is_none")]
    pub rotation_request: Option<String>,
}

/// Certificates (issuing one first, root last) and key, in PEM.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issuing {
    pub certificates: String,
    pub key: String,
}

/// Trusted, but not issuing yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Next {
    pub id: String,
    /// The start of the trust period, in Unix seconds.
    pub since: u64,
    /// The end of the current delay for proxies that are behind, in Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_until: Option<u64>,
}

/// A root that is still trusted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retired {
    /// In PEM.
    pub root: String,
    /// In Unix seconds.
    pub until: u64,
}

impl Record {
    pub fn new(issuing: &Pair) -> Self {
        Self {
            issuing: issuing.into(),
            next: None,
            retired: Vec::new(),
            made: None,
            rotation_request: None,
        }
    }

    pub fn parse(json: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(json)
    }

    pub fn to_json(&self) -> Vec<u8> {
        // All map keys are strings, so serialization cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The roots that are still trusted.
    pub fn retired_roots(&self, now: u64) -> Vec<CertificateDer<'static>> {
        let held = self.retired.iter().filter(|retired| now < retired.until);
        held.filter_map(|retired| read_certificates(retired.root.as_bytes()).ok())
            .flatten()
            .collect()
    }

    /// Records that `root` was an issuing root until now.
    pub fn retire(&mut self, root: &CertificateDer<'static>, until: u64) {
        let root = to_pem(std::slice::from_ref(root));
        self.retired.retain(|retired| retired.root != root);
        self.retired.push(Retired { root, until });
    }
}

/// Without the key, which must not be logged.
impl fmt::Debug for Issuing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Issuing");
        shown.field("certificates", &self.certificates);
        shown.finish_non_exhaustive()
    }
}

impl Next {
    pub fn new(ca: &Ca, since: u64) -> Self {
        Self {
            id: ca.id().to_owned(),
            since,
            held_until: None,
        }
    }
}

impl From<&Pair> for Issuing {
    fn from(pair: &Pair) -> Self {
        Self {
            certificates: pair.certificates.clone(),
            key: pair.key.clone(),
        }
    }
}

pub fn unix(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_debug_form_of_a_record_has_no_key() {
        let issuing = Issuing {
            certificates: "CERTIFICATES".to_owned(),
            key: "SECRET".to_owned(),
        };
        let shown = format!("{issuing:?}");
        assert!(shown.contains("CERTIFICATES") && !shown.contains("SECRET"));
    }
}
