//! Load and health of one endpoint: its latency, its requests in flight, and whether it is ejected.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;

use super::clock::Nanos;
use super::habits::Habits;
use super::outcome::AttemptOutcome;
use crate::observe::metrics::{EjectionCounter, EjectionReason};

/// Time in which an observation loses all but 1/e of its weight, in nanoseconds. Long enough to
/// outlast a garbage collection, short enough to discover a pod that was scaled up or has
/// recovered.
const DECAY: f64 = 10e9;
/// Minimum weight of an observation that lowers the estimate: a client with few requests learns
/// from them, and not from time alone, that an endpoint has recovered.
const LEAST_WEIGHT: f64 = 0.4;
/// Lower latencies are rounded up to this one, in nanoseconds: smaller differences are scheduling
/// noise.
const LATENCY_FLOOR: f64 = 5e6;
/// Responses before an endpoint's latency is used; the best of them counts. The first request pays
/// for the handshake, and often for an app that is warming up. Until then the requests in flight
/// decide.
const WARM_UP: u32 = 3;
/// One observation raises the estimate to at most this many times its value, so that single
/// outliers do not make an endpoint look slow. Lasting slowness raises it with the next
/// observations.
const PEAK_RISE: f64 = 1.3;
/// Endpoints whose estimates differ by less than this factor count as equally fast, and the
/// requests in flight decide.
const SAME_SPEED: f64 = 3.0;
/// Failures in a row after which an endpoint is ejected. With one request in two failing it takes
/// about 60 requests.
const FAILURES_TO_EJECT: u32 = 5;
/// Length of the first ejection; doubles with each further one.
const BASE_EJECTION: Duration = Duration::from_secs(10);
const MAX_EJECTION: Duration = Duration::from_secs(300);
/// An endpoint in good standing for this long starts over at [`BASE_EJECTION`].
const FORGIVEN_AFTER: Duration = MAX_EJECTION;
/// How long an endpoint that did not accept a connection is avoided where there are others.
const AVOIDED_FOR: Duration = Duration::from_secs(1);

/// Load and health of an endpoint. Shared by all workers; atomics only.
#[derive(Debug, Default)]
pub struct Load {
    /// How it treats its connections, as observed by pools.
    pub habits: Habits,
    in_flight: AtomicU32,
    /// Time of the last pick.
    picked: AtomicU64,
    /// Bits of an `f64`: peak EWMA of the latency in nanoseconds as of `observed`.
    latency: AtomicU64,
    observed: AtomicU64,
    /// Up to [`WARM_UP`].
    observations: AtomicU32,
    /// Failures in a row.
    failures: AtomicU32,
    avoided_until: AtomicU64,
    /// 0: not ejected. Otherwise ejected until this time, and after it until a probe succeeds.
    ejected_until: AtomicU64,
    /// Ejections without [`FORGIVEN_AFTER`] of good standing between them.
    ejections: AtomicU32,
    /// Ejected because another identity answers at the address: only probes go there, even if all
    /// other endpoints are ejected.
    refused: AtomicBool,
    /// When earlier ejections no longer count.
    forgiven_at: AtomicU64,
    probing: AtomicBool,
    counter: Option<Arc<EjectionCounter>>,
}

/// Why an attempt was admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Regular,
    /// The single request that probes whether an ejected endpoint has recovered.
    Probe,
    /// Ejected, but too many endpoints are, so ejection is ignored.
    Panic,
}

/// Whether an endpoint may be picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Available,
    /// Only where there is no other endpoint.
    Avoided,
    /// Only where most other endpoints are ejected as well.
    Ejected,
    /// The ejection is over: one request may probe.
    Probeable,
    /// Never.
    Refused,
}

impl Load {
    /// Ejections are counted in `counter`.
    pub fn new(counter: Arc<EjectionCounter>) -> Self {
        Self {
            counter: Some(counter),
            ..Self::default()
        }
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// Whether the endpoint is ejected, for whatever reason.
    pub fn is_ejected(&self) -> bool {
        self.is_unwell()
    }

    pub(super) fn started(&self, now: Nanos) {
        self.picked.store(now.0, Relaxed);
        self.in_flight.fetch_add(1, Relaxed);
    }

    pub(super) fn ended(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
    }

    pub(super) fn answered(
        &self,
        outcome: AttemptOutcome,
        latency: Duration,
        admission: Admission,
        now: Nanos,
    ) {
        match outcome {
            AttemptOutcome::Response { status: 502..=504 }
            | AttemptOutcome::Reset
            | AttemptOutcome::TimedOut => {
                self.observe(latency, now, true);
                self.failed(admission, now);
            }
            AttemptOutcome::Response { .. } => {
                self.observe(latency, now, false);
                self.succeeded(admission);
            }
            AttemptOutcome::ConnectFailed => {
                let until = now.0 + AVOIDED_FOR.as_nanos() as u64;
                self.avoided_until.store(until, Relaxed);
                self.failed(admission, now);
            }
            AttemptOutcome::IdentityMismatch => {
                self.eject(EjectionReason::IdentityMismatch, now);
            }
            // The latency is at least as long as the client has waited.
            AttemptOutcome::Cancelled => self.observe(latency, now, true),
        }
        if admission == Admission::Probe {
            self.probing.store(false, Relaxed);
        }
    }

    /// Whether the standing must be checked before the endpoint is used: the common case is one
    /// load.
    pub(super) fn is_unwell(&self) -> bool {
        self.ejected_until.load(Relaxed) != 0
    }

    pub(super) fn is_refused(&self) -> bool {
        self.refused.load(Relaxed)
    }

    pub(super) fn standing(&self, now: Nanos) -> Standing {
        let until = self.ejected_until.load(Relaxed);
        if until == 0 {
            return if self.avoided_until.load(Relaxed) > now.0 {
                Standing::Avoided
            } else {
                Standing::Available
            };
        }
        if until <= now.0 && !self.probing.load(Relaxed) {
            Standing::Probeable
        } else if self.is_refused() {
            Standing::Refused
        } else {
            Standing::Ejected
        }
    }

    /// Claims the single probe of an endpoint whose ejection is over.
    pub(super) fn take_probe(&self, now: Nanos) -> bool {
        let until = self.ejected_until.load(Relaxed);
        until != 0 && until <= now.0 && !self.probing.swap(true, Relaxed)
    }

    /// Whether this is picked rather than `other`. The slower of the two gets a share that falls
    /// with the square of the cost of waiting for it: enough to notice its recovery, and too little
    /// to matter to clients.
    pub(super) fn wins(&self, other: &Self, now: Nanos, random: &mut SmallRng) -> bool {
        match self.costs(other, now) {
            Some((mine, theirs)) => {
                let (mine, theirs) = (mine * mine, theirs * theirs);
                random.random_range(0.0..mine + theirs) >= mine
            }
            None => self.has_less_to_do(other),
        }
    }

    /// Whether this is a better choice than `other`, without randomness.
    pub(super) fn is_better(&self, other: &Self, now: Nanos) -> bool {
        match self.costs(other, now) {
            Some((mine, theirs)) => mine < theirs,
            None => self.has_less_to_do(other),
        }
    }

    /// The cost of waiting for this and for `other`. `None`: they are equally fast, or one is new.
    /// A new endpoint counts as equally fast until it has answered, so it gets a share by the
    /// requests in flight, without a stampede.
    fn costs(&self, other: &Self, now: Nanos) -> Option<(f64, f64)> {
        let (mine, theirs) = (self.latency(now)?, other.latency(now)?);
        let in_flight = |load: &Self| f64::from(load.in_flight.load(Relaxed)) + 1.0;
        (mine > theirs * SAME_SPEED || theirs > mine * SAME_SPEED)
            .then(|| (mine * in_flight(self), theirs * in_flight(other)))
    }

    /// Fewer requests in flight or, with equally many, the earlier last pick: an idle client's
    /// requests alternate.
    fn has_less_to_do(&self, other: &Self) -> bool {
        let load = |load: &Self| (load.in_flight.load(Relaxed), load.picked.load(Relaxed));
        load(self) < load(other)
    }

    /// Decays without observations, so that a slow endpoint is tried again eventually. `None`: not
    /// known yet.
    pub(super) fn latency(&self, now: Nanos) -> Option<f64> {
        if self.observations.load(Relaxed) < WARM_UP {
            return None;
        }
        let bits = self.latency.load(Relaxed);
        let age = now.since(Nanos(self.observed.load(Relaxed)));
        Some((f64::from_bits(bits) * (-(age as f64) / DECAY).exp()).max(LATENCY_FLOOR))
    }

    /// `at_least`: the latency is a lower bound (a fast failure must not improve the estimate).
    fn observe(&self, latency: Duration, now: Nanos, at_least: bool) {
        let seen = (latency.as_nanos() as f64).max(LATENCY_FLOOR);
        let old = f64::from_bits(self.latency.load(Relaxed));
        let known = self.observations.load(Relaxed);
        let new = if known < WARM_UP {
            if at_least {
                return;
            }
            self.observations.store(known + 1, Relaxed);
            if known == 0 { seen } else { seen.min(old) }
        } else if seen > old {
            seen.min(old * PEAK_RISE)
        } else if at_least {
            return;
        } else {
            let age = now.since(Nanos(self.observed.load(Relaxed)));
            let weight = (-(age as f64) / DECAY).exp().min(1.0 - LEAST_WEIGHT);
            old * weight + seen * (1.0 - weight)
        };
        self.latency.store(new.to_bits(), Relaxed);
        self.observed.store(now.0, Relaxed);
    }

    fn succeeded(&self, admission: Admission) {
        if self.failures.load(Relaxed) != 0 {
            self.failures.store(0, Relaxed);
        }
        // A regular request was sent before the ejection, so it is not proof of recovery.
        if admission != Admission::Regular {
            self.refused.store(false, Relaxed);
            self.ejected_until.store(0, Relaxed);
        }
    }

    fn failed(&self, admission: Admission, now: Nanos) {
        let failures = self.failures.fetch_add(1, Relaxed).saturating_add(1);
        if admission == Admission::Probe || (failures >= FAILURES_TO_EJECT && !self.is_unwell()) {
            self.eject(EjectionReason::ConsecutiveFailures, now);
        }
    }

    fn eject(&self, reason: EjectionReason, now: Nanos) {
        let last = self.ejected_until.load(Relaxed);
        // Requests that were in flight together fail together, which counts as one ejection.
        let standing = last == 0 || last <= now.0;
        if reason == EjectionReason::IdentityMismatch {
            let already = self.refused.swap(true, Relaxed);
            if already && !standing {
                return;
            }
        } else if !standing {
            return;
        }
        let before = self.ejections.load(Relaxed);
        let number = if self.is_forgiven(now) { 0 } else { before };
        self.ejections.store(number.saturating_add(1), Relaxed);
        let length = BASE_EJECTION
            .saturating_mul(1_u32.checked_shl(number).unwrap_or(u32::MAX))
            .min(MAX_EJECTION);
        let until = now.0 + length.as_nanos() as u64;
        self.ejected_until.store(until, Relaxed);
        self.forgiven_at
            .store(until + FORGIVEN_AFTER.as_nanos() as u64, Relaxed);
        self.failures.store(0, Relaxed);
        if let Some(counter) = &self.counter {
            counter.count(reason);
        }
    }

    fn is_forgiven(&self, now: Nanos) -> bool {
        self.forgiven_at.load(Relaxed) <= now.0
    }
}
