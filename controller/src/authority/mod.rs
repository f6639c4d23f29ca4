//! The mesh's certificate authority: its store, and its rotation without an interruption.
//!
//! ```text
//! store (Secret or directory) ─▶ plan ─┬─▶ in force (issuer, anchors)
//!           ▲                          └─▶ change ─┐
//!           └──────── on what was read ────────────┘
//! ```
//!
//! In: the store's content, from any writer. Out: the issuing authority and the trust anchors, and
//! the rotation record. The store is the only source of truth. Every replica derives its state from
//! it, and the first replica writes the next step. Invalid content changes nothing: the last good
//! authority stays in force.
//!
//! # Floors
//!
//! ```text
//! trusted             whether a new authority may be created
//! store               a Secret, or a directory
//! files               the directory
//! plan                the next step of a rotation, as a pure function
//! kept record         the stored certificates and keys; the state of a rotation
//! ```

mod files;
mod kept;
mod plan;
mod record;
mod store;
mod trusted;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::issuer::{Ca, CaError, InForce, Issuer};
use crate::metrics::{AuthorityState, Metrics};
pub use kept::{Kept, StoreError};
pub use plan::Terms;
use plan::{Change, Phase, Read, View};
use record::Record;
pub use store::{SecretStore, Store};
pub use trusted::{Make, MakeError, remove};

/// Delay before a missing authority is restored. It covers a replacement by delete and create, and
/// an uninstallation.
const RESTORE_AFTER: Duration = Duration::from_secs(30);
/// Retries after conflicting writes of other replicas.
const MAX_TRIES: usize = 10;
/// Checks within the shortest of the terms, which bounds how late a step is.
const LOOKS_PER_TERM: u32 = 4;
/// The minimum interval between checks.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error("the record of the rotation cannot be parsed: {0}")]
    Record(#[from] serde_json::Error),
    #[error(transparent)]
    Make(#[from] MakeError),
}

/// Maintains the authority in force.
pub struct Keeper {
    store: Store,
    terms: Terms,
    trust_domain: String,
    /// The last good content of the store.
    kept: Kept,
    read: Read,
    record: Option<Record>,
    phase: Phase,
    missing_since: Option<Instant>,
    /// The last problem that was logged.
    logged: Option<String>,
    /// The API server refuses to remove the Secret's owner.
    owned: bool,
}

impl Keeper {
    /// Loads the authority from its store, or creates one there if that is allowed.
    pub async fn open(
        store: Store,
        terms: Terms,
        trust_domain: &str,
        may_make: &Make,
    ) -> Result<Self, AuthorityError> {
        let now = SystemTime::now();
        let kept = match store.read().await? {
            Some(kept) => kept,
            None => {
                may_make.check().await?;
                make(&store, trust_domain, now).await?
            }
        };
        let record = kept.record.as_deref().map(Record::parse).transpose();
        let read = match (Read::new(&kept, trust_domain, now), &record) {
            (Ok(read), _) => read,
            // The given authority is invalid, but the former issuing authority is valid.
            (Err(_), Ok(Some(record))) => Read::of(record, trust_domain, now)?,
            (Err(error), _) => return Err(error.into()),
        };
        let mut keeper = Self {
            store,
            terms,
            trust_domain: trust_domain.to_owned(),
            kept,
            read,
            record: record.unwrap_or_default(),
            phase: Phase::Steady,
            missing_since: None,
            logged: None,
            owned: false,
        };
        keeper.look(now, false).await;
        Ok(keeper)
    }

    /// The issuing authority and the trust anchors at this time.
    pub fn in_force(&self) -> InForce {
        self.view(SystemTime::now(), false).in_force()
    }

    /// Applies the store's content, for ever. `behind`: how many proxies do not have the anchors in
    /// force.
    pub async fn run(
        mut self,
        issuer: Arc<Issuer>,
        behind: impl Fn() -> usize + Send,
        metrics: Metrics,
    ) {
        let mut changes = self.store.changes();
        let shortest = self.terms.trust_for.min(self.terms.retire_for) / LOOKS_PER_TERM;
        let interval = (self.store.interval()).min(shortest.max(SHORTEST_INTERVAL));
        loop {
            let behind = behind();
            let state = self.look(SystemTime::now(), behind > 0).await;
            issuer.take_over(self.in_force());
            metrics.authority(state, &issuer.in_force(), behind);
            tokio::select! {
                _ = changes.recv() => {}
                () = sleep(interval) => {}
            }
        }
    }

    /// Reads the store and takes the steps that are due.
    async fn look(&mut self, now: SystemTime, behind: bool) -> AuthorityState {
        for _ in 0..MAX_TRIES {
            match self.step(now, behind).await {
                Ok(true) | Err(AuthorityError::Store(StoreError::Conflict)) => {}
                Ok(false) => {
                    if let Some(problem) = self.logged.take() {
                        info!(problem, "the authority's problem is gone");
                    }
                    break;
                }
                Err(error) => {
                    self.log_once(error.to_string());
                    // An unreachable API server does not make the authority invalid.
                    if !matches!(error, AuthorityError::Store(StoreError::Api(_))) {
                        return AuthorityState::Invalid;
                    }
                    break;
                }
            }
        }
        match self.missing_since {
            Some(_) => AuthorityState::Missing,
            None => self.phase.into(),
        }
    }

    /// True: a change was written, and has to be read back.
    async fn step(&mut self, now: SystemTime, behind: bool) -> Result<bool, AuthorityError> {
        let Some(kept) = self.store.read().await? else {
            return self.restore().await;
        };
        self.missing_since = None;
        if kept.owners.is_some() && !self.owned {
            match self.store.disown(&kept).await {
                Ok(()) => return Ok(true),
                Err(error) if !error.is_refusal() => return Err(error.into()),
                Err(error) => {
                    self.owned = true;
                    warn!(
                        %error,
                        "the authority's Secret belongs to the webhook's configuration, and would \
                         be deleted with it: remove its metadata.ownerReferences"
                    );
                }
            }
        }
        let stored = kept.record.as_deref().map(Record::parse).transpose();
        // Replacing the whole Secret drops the record as well: restore it from memory.
        let record = match &stored {
            Ok(Some(record)) => Some(record.clone()),
            _ => self.record.clone(),
        };
        self.record = record;
        self.read = Read::new(&kept, &self.trust_domain, now)?;
        self.kept = kept;
        let view = self.view(now, behind);
        let (phase, anchors, next) = (view.phase(), view.in_force().anchors_pem(), view.next()?);
        self.phase = phase;
        // Publish the new anchors before any certificate depends on them.
        self.store.publish(&anchors)?;
        let change = match (next, &self.record) {
            (Some(change), _) => change,
            (None, Some(record)) if !matches!(stored, Ok(Some(_))) => Change {
                record: record.clone(),
                made: None,
                why: "what was remembered is put back",
            },
            (None, _) => return Ok(false),
        };
        self.store.write(&self.kept, &change).await?;
        info!(authority = self.read.given.id(), "{}", change.why);
        stored?;
        Ok(true)
    }

    /// Handles a missing authority.
    async fn restore(&mut self) -> Result<bool, AuthorityError> {
        let since = *self.missing_since.get_or_insert_with(|| {
            warn!("the stored certificate authority is gone; keeping the one in force");
            Instant::now()
        });
        if since.elapsed() < RESTORE_AFTER {
            return Ok(false);
        }
        let mut kept = self.kept.clone();
        kept.record = self.record.as_ref().map(Record::to_json);
        self.store.create(&kept).await?;
        info!("the authority is put back where it is kept");
        Ok(true)
    }

    fn view(&self, now: SystemTime, behind: bool) -> View<'_> {
        View {
            read: &self.read,
            record: self.record.as_ref(),
            rotation_request: self.kept.rotation_request.as_deref(),
            terms: &self.terms,
            trust_domain: &self.trust_domain,
            now,
            behind,
        }
    }

    /// Logs each problem once, rather than at each check.
    fn log_once(&mut self, problem: String) {
        if self.logged.as_ref() != Some(&problem) {
            warn!(
                problem,
                "cannot update the certificate authority; keeping the last good one"
            );
            self.logged = Some(problem);
        }
    }
}

impl From<Phase> for AuthorityState {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Steady => Self::Steady,
            Phase::Trusting => Self::Trusting,
            Phase::Retiring => Self::Retiring,
        }
    }
}

/// Creates an authority, unless another replica is first.
async fn make(store: &Store, trust_domain: &str, now: SystemTime) -> Result<Kept, AuthorityError> {
    let pair = Ca::make(trust_domain, now)?;
    let (certificates, key) = (pair.certificates.as_bytes(), pair.key.as_bytes());
    let ca = Ca::from_pem(certificates, &[], key, trust_domain, now)?;
    let mut record = Record::new(&pair);
    record.made = Some(ca.id().to_owned());
    match store.create(&Kept::new(&pair, record.to_json())).await {
        Ok(()) => info!(authority = ca.id(), "a new certificate authority is made"),
        Err(StoreError::Conflict) => {}
        Err(error) => return Err(error.into()),
    }
    let kept = store.read().await?;
    // Deleted again: the next start of this controller begins from nothing.
    Ok(kept.ok_or(StoreError::Conflict)?)
}
