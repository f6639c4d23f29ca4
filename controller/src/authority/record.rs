//! What is remembered beside an authority, so that every replica, also one that has just started,
//! does the same at the same time.

use std::fmt;
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use crate::issuer::{Ca, Pair, read_certificates, to_pem};

/// Kept as JSON. It holds a private key, and belongs where that is safe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// With what certificates are issued.
    pub issuing: Issuing,
    /// What will be issued with once it has been trusted for long enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Next>,
    /// What was issued with before, and is trusted for a while yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retired: Vec<Retired>,
    /// The authority that a controller has made itself, by its id: that one it also renews.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made: Option<String>,
    /// The last wish to rotate that was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wish: Option<String>,
}

/// Certificates (issuing one first, root last) and key, in PEM.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issuing {
    pub certificates: String,
    pub key: String,
}

/// Trusted, and not issued with yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Next {
    pub id: String,
    /// Since when it is trusted, in Unix seconds.
    pub since: u64,
    /// Until when some proxies have been waited for, in Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_until: Option<u64>,
}

/// Trusted still.
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
            wish: None,
        }
    }

    pub fn parse(json: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(json)
    }

    pub fn to_json(&self) -> Vec<u8> {
        // Maps with keys of text alone: nothing that JSON could not say.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The roots that are trusted still.
    pub fn retired_roots(&self, now: u64) -> Vec<CertificateDer<'static>> {
        let held = self.retired.iter().filter(|retired| now < retired.until);
        held.filter_map(|retired| read_certificates(retired.root.as_bytes()).ok())
            .flatten()
            .collect()
    }

    /// Takes note that `root` was issued under until now.
    pub fn retire(&mut self, root: &CertificateDer<'static>, until: u64) {
        let root = to_pem(std::slice::from_ref(root));
        self.retired.retain(|retired| retired.root != root);
        self.retired.push(Retired { root, until });
    }
}

/// Without the key, which belongs into no log.
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
    fn what_is_shown_of_a_record_has_no_key() {
        let issuing = Issuing {
            certificates: "CERTIFICATES".to_owned(),
            key: "SECRET".to_owned(),
        };
        let shown = format!("{issuing:?}");
        assert!(shown.contains("CERTIFICATES") && !shown.contains("SECRET"));
    }
}
