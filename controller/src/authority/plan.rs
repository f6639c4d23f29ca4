//! Derives from the store's content the authority in force and the next step. Pure: no clock, no
//! store.
//!
//! ```text
//! kept ─▶ in force  = issue with `issuing`; trust its root, the root of the given authority,
//!      │              further ones, retired ones
//!      └▶ next      = given ≠ issuing: trust it, wait, issue with it, retire the old root,
//!                     wait, forget that
//! ```
//!
//! A decision comes into force only after it was written. Two replicas read the same content, and
//! therefore act alike.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;

use super::kept::Kept;
use super::record::{Issuing, Next, Record, unix};
use crate::issuer::{Ca, CaError, InForce, LEAF_LIFETIME, Pair, read_certificates, validity};

/// Bound on retired roots. Proxies accept 64 anchors in total; more frequent rotations wait until
/// one expires.
const MAX_RETIRED: usize = 16;
/// The fraction of its lifetime after which an authority that a controller has created is replaced.
const RENEW_AFTER: f64 = 2.0 / 3.0;
/// How long, in seconds, a replica with proxies that are behind delays the next step, each time.
const HOLD: u64 = 60;

/// The durations of a rotation's steps.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// How long an authority is trusted before it issues certificates.
    pub trust_for: Duration,
    /// How long the root of a replaced authority stays trusted.
    pub retire_for: Duration,
}

/// The validated content of the store.
pub struct Read {
    /// The given authority, which should issue certificates.
    pub given: Arc<Ca>,
    /// Additional trust anchors.
    pub further: Vec<CertificateDer<'static>>,
}

/// The inputs of a decision.
pub struct View<'a> {
    pub read: &'a Read,
    /// The stored record. `None`: there is no record.
    pub record: Option<&'a Record>,
    /// The rotation request, if there is one.
    pub rotation_request: Option<&'a str>,
    pub terms: &'a Terms,
    pub trust_domain: &'a str,
    pub now: SystemTime,
    /// Some proxies of this replica do not have the anchors in force.
    pub behind: bool,
}

/// A change to write.
pub struct Change {
    pub record: Record,
    /// A new authority that replaces the given one.
    pub made: Option<Pair>,
    /// For the log.
    pub why: &'static str,
}

/// The phase of a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// One authority.
    Steady,
    /// The next authority is trusted, and does not issue yet.
    Trusting,
    /// The last authority is still trusted.
    Retiring,
}

impl Read {
    /// The content according to the record alone.
    pub fn of(record: &Record, trust_domain: &str, now: SystemTime) -> Result<Self, CaError> {
        let (certificates, key) = (&record.issuing.certificates, &record.issuing.key);
        let (certificates, key) = (certificates.as_bytes(), key.as_bytes());
        Ok(Self {
            given: Arc::new(Ca::from_pem(certificates, &[], key, trust_domain, now)?),
            further: Vec::new(),
        })
    }

    pub fn new(kept: &Kept, trust_domain: &str, now: SystemTime) -> Result<Self, CaError> {
        let further = match &kept.further {
            Some(pem) => read_certificates(pem)?,
            None => Vec::new(),
        };
        let (certificates, key) = (&kept.certificates, &kept.key);
        let given = Ca::from_pem(certificates, &further, key, trust_domain, now)?;
        Ok(Self {
            given: Arc::new(given),
            further,
        })
    }
}

impl View<'_> {
    /// The issuing authority and the trust anchors now.
    pub fn in_force(&self) -> InForce {
        let holds = |certificate: &&CertificateDer<'static>| {
            validity(certificate).is_ok_and(|(_, expires)| self.now < expires)
        };
        let further = self.read.further.iter().filter(holds);
        let mut anchors: Vec<_> = further.cloned().collect();
        anchors.push(self.read.given.root().clone());
        if let Some(record) = self.record {
            anchors.extend(record.retired_roots(unix(self.now)));
        }
        InForce::new(self.issuing(), anchors)
    }

    pub fn phase(&self) -> Phase {
        match self.record {
            Some(record) if record.next.is_some() => Phase::Trusting,
            Some(record) if !record.retired.is_empty() => Phase::Retiring,
            _ => Phase::Steady,
        }
    }

    /// The issuing authority. If it can no longer issue, the given one replaces it.
    fn issuing(&self) -> Arc<Ca> {
        let given = &self.read.given;
        let Some(record) = self.record else {
            return given.clone();
        };
        let Issuing { certificates, key } = &record.issuing;
        if *certificates == given.pems().certificates {
            return given.clone();
        }
        let (certificates, key) = (certificates.as_bytes(), key.as_bytes());
        match Ca::from_pem(certificates, &[], key, self.trust_domain, self.now) {
            Ok(ca) => Arc::new(ca),
            Err(_) => given.clone(),
        }
    }

    /// The change to write now, if any.
    pub fn next(&self) -> Result<Option<Change>, CaError> {
        let given = &self.read.given;
        let now = unix(self.now);
        let Some(before) = self.record else {
            let mut record = Record::new(given.pems());
            record.rotation_request = self.rotation_request.map(str::to_owned);
            let why = "with what certificates are issued is remembered from now on";
            return Ok(Some(Change::of(record, why)));
        };
        let mut record = before.clone();
        record.retired.retain(|retired| now < retired.until);
        let issuing = self.issuing();
        let why = if issuing.id() == given.id() {
            if let Some(change) = self.renewal(&record)? {
                return Ok(Some(change));
            }
            record.issuing = given.pems().into();
            record.next = None;
            "an authority that was replaced is trusted no more"
        } else {
            self.step(&mut record, &issuing, now)
        };
        Ok((record != *before).then(|| Change::of(record, why)))
    }

    /// The next step from the issuing authority to the given one.
    fn step(&self, record: &mut Record, issuing: &Ca, now: u64) -> &'static str {
        let given = &self.read.given;
        let trusted = record.next.as_ref().filter(|next| next.id == given.id());
        let Some(next) = trusted else {
            record.next = Some(Next::new(given, now));
            return "another authority is trusted, and will be issued with";
        };
        let due = next.since.saturating_add(self.terms.trust_for.as_secs());
        let due = due.max(next.held_until.unwrap_or(0));
        let ends = unix(issuing.expires()).saturating_sub(now) < LEAF_LIFETIME.as_secs();
        if self.behind && !ends && now + HOLD / 2 >= due {
            record.next = Some(Next {
                held_until: Some(now + HOLD),
                ..next.clone()
            });
            return "the new authority is not issued with yet: some proxies do not trust it";
        }
        if now >= due && record.retired.len() < MAX_RETIRED {
            if issuing.root() != given.root() {
                let until = unix(self.now + self.terms.retire_for);
                record.retire(issuing.root(), until);
            }
            record.issuing = given.pems().into();
            record.next = None;
            return "certificates are issued with the new authority from now on";
        }
        "an authority that was replaced is trusted no more"
    }

    /// Replaces an authority that a controller has created, when it is due or requested.
    fn renewal(&self, record: &Record) -> Result<Option<Change>, CaError> {
        let given = &self.read.given;
        let mut record = record.clone();
        let request = self.rotation_request;
        let is_requested = request.is_some() && request != record.rotation_request.as_deref();
        if is_requested {
            record.rotation_request = request.map(str::to_owned);
        }
        if record.made.as_deref() != Some(given.id()) {
            let why = "a wish to rotate is not for the controller: the authority is renewed where \
                it comes from";
            return Ok(is_requested.then(|| Change::of(record, why)));
        }
        let life = given.expires().duration_since(given.begins());
        let life = life.unwrap_or(Duration::ZERO);
        if !is_requested && self.now < given.begins() + life.mul_f64(RENEW_AFTER) {
            return Ok(None);
        }
        let made = Ca::make(self.trust_domain, self.now)?;
        let (certificates, key) = (made.certificates.as_bytes(), made.key.as_bytes());
        let next = Ca::from_pem(certificates, &[], key, self.trust_domain, self.now)?;
        record.made = Some(next.id().to_owned());
        record.next = Some(Next::new(&next, unix(self.now)));
        Ok(Some(Change {
            record,
            made: Some(made),
            why: "a new authority is made and trusted, and will be issued with",
        }))
    }
}

impl Change {
    fn of(record: Record, why: &'static str) -> Self {
        Self {
            record,
            made: None,
            why,
        }
    }
}
