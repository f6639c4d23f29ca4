//! Counters of requests and of connections that are not HTTP.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::histogram::Histogram;
use super::series::Handle;
use crate::observe::reason::Reason;

/// Outcomes (status and reason) counted without a lock. More than an application usually has on one
/// route.
const FAST_OUTCOMES: usize = 16;
/// Bound on the outcomes of one label set: an upstream that invents statuses gets no further
/// series.
const MAX_OUTCOMES: usize = 100;

/// The status in an outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Status {
    /// There was no response.
    None,
    Of(u16),
    /// Any of those beyond [`MAX_OUTCOMES`].
    Other,
}

/// The HTTP version of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HttpVersion {
    Http1,
    Http2,
}

impl HttpVersion {
    pub const ALL: [Self; 2] = [Self::Http1, Self::Http2];

    /// The value in metrics and the access log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http1 => "http/1.1",
            Self::Http2 => "http/2",
        }
    }
}

/// The outcome of a possible retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RetryOutcome {
    Sent,
    BudgetExhausted,
    LimitReached,
    BodyTooLarge,
}

impl RetryOutcome {
    pub const ALL: [Self; 4] = [
        Self::Sent,
        Self::BudgetExhausted,
        Self::LimitReached,
        Self::BodyTooLarge,
    ];

    /// The label value in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::BudgetExhausted => "budget",
            Self::LimitReached => "limit",
            Self::BodyTooLarge => "body_too_large",
        }
    }
}

/// Requests under one label set.
#[derive(Debug)]
pub struct RequestMetrics {
    begun: [AtomicU64; HttpVersion::ALL.len()],
    outcomes: Outcomes,
    pub(super) duration: Histogram,
    retries: Arc<RetryMetrics>,
}

impl RequestMetrics {
    pub(super) fn new(retries: Arc<RetryMetrics>) -> Self {
        Self {
            begun: Default::default(),
            outcomes: Outcomes::default(),
            duration: Histogram::default(),
            retries,
        }
    }

    /// Counts the start of a request.
    pub fn begin(&self, version: HttpVersion) {
        self.begun[version as usize].fetch_add(1, Relaxed);
    }

    /// Counts the end of a request. `status`: of the response, if there was one; `reason`: if the
    /// proxy answered or aborted it.
    pub fn end(&self, status: Option<u16>, reason: Option<Reason>, elapsed: Duration) {
        self.outcomes.count(status, reason);
        self.duration.observe(elapsed);
    }

    /// Counts a failed attempt, with or without a retry.
    pub fn retry(&self, outcome: RetryOutcome) {
        self.retries.outcomes[outcome as usize].fetch_add(1, Relaxed);
    }

    pub(super) fn begun(&self, version: HttpVersion) -> u64 {
        self.begun[version as usize].load(Relaxed)
    }

    pub(super) fn outcomes(&self) -> Vec<(Status, Option<Reason>, u64)> {
        self.outcomes.all()
    }
}

impl Handle for RequestMetrics {
    fn uses(&self) -> u64 {
        let begun: u64 = self.begun.iter().map(|count| count.load(Relaxed)).sum();
        begun + self.duration.snapshot().count
    }
}

/// Retries of one route of a Service.
#[derive(Debug, Default)]
pub(super) struct RetryMetrics {
    outcomes: [AtomicU64; RetryOutcome::ALL.len()],
}

impl RetryMetrics {
    pub fn count(&self, outcome: RetryOutcome) -> u64 {
        self.outcomes[outcome as usize].load(Relaxed)
    }
}

impl Handle for RetryMetrics {
    fn uses(&self) -> u64 {
        self.outcomes.iter().map(|count| count.load(Relaxed)).sum()
    }
}

/// Counts by status and reason. Few of the possible outcomes occur, so slots are allocated as they
/// appear: a slot's key is set once, and matching outcomes count in it.
#[derive(Debug, Default)]
struct Outcomes {
    keys: [AtomicU32; FAST_OUTCOMES],
    counts: [AtomicU64; FAST_OUTCOMES],
    more: Mutex<HashMap<u32, u64>>,
}

impl Outcomes {
    fn count(&self, status: Option<u16>, reason: Option<Reason>) {
        let status = status.map_or(Status::None, Status::Of);
        let key = outcome_key(status, reason);
        for (slot, count) in self.keys.iter().zip(&self.counts) {
            let mut found = slot.load(Relaxed);
            if found == 0 {
                found = match slot.compare_exchange(0, key, Relaxed, Relaxed) {
                    Ok(_) => key,
                    Err(other) => other,
                };
            }
            if found == key {
                count.fetch_add(1, Relaxed);
                return;
            }
        }
        let mut more = self.more.lock().unwrap_or_else(PoisonError::into_inner);
        let key = if more.len() < MAX_OUTCOMES - FAST_OUTCOMES || more.contains_key(&key) {
            key
        } else {
            outcome_key(Status::Other, reason)
        };
        *more.entry(key).or_default() += 1;
    }

    fn all(&self) -> Vec<(Status, Option<Reason>, u64)> {
        let mut all = Vec::new();
        for (slot, count) in self.keys.iter().zip(&self.counts) {
            match (slot.load(Relaxed), count.load(Relaxed)) {
                (0, _) | (_, 0) => {}
                (key, count) => all.push((key, count)),
            }
        }
        let more = self.more.lock().unwrap_or_else(PoisonError::into_inner);
        all.extend(more.iter().map(|(key, count)| (*key, *count)));
        all.into_iter()
            .map(|(key, count)| {
                let (status, reason) = outcome_of(key);
                (status, reason, count)
            })
            .collect()
    }
}

/// Status and reason in one number that is never 0. No status is 0 or the greatest number.
fn outcome_key(status: Status, reason: Option<Reason>) -> u32 {
    let reason = reason.map_or(1, |reason| reason as u32 + 2);
    let status = match status {
        Status::None => 0,
        Status::Of(status) => status,
        Status::Other => u16::MAX,
    };
    u32::from(status) << 16 | reason
}

fn outcome_of(key: u32) -> (Status, Option<Reason>) {
    let status = match (key >> 16) as u16 {
        0 => Status::None,
        u16::MAX => Status::Other,
        status => Status::Of(status),
    };
    let reason = (key & 0xffff).checked_sub(2);
    (
        status,
        reason.and_then(|index| Reason::ALL.get(index as usize).copied()),
    )
}

/// The labels `status` and `class` of an outcome.
pub(super) fn status_labels(status: Status) -> (String, String) {
    match status {
        Status::None => (String::new(), String::new()),
        Status::Other => ("other".to_owned(), "other".to_owned()),
        Status::Of(status) => (status.to_string(), format!("{}xx", status / 100)),
    }
}

/// Connections that are not HTTP, under one label set.
#[derive(Debug, Default)]
pub struct TcpMetrics {
    pub(super) connections: AtomicU64,
    pub(super) open: AtomicI64,
    pub(super) sent: AtomicU64,
    pub(super) received: AtomicU64,
    /// First the connections that ended in order, then those with each reason.
    closed: [AtomicU64; Reason::ALL.len() + 1],
}

impl TcpMetrics {
    /// Counts an accepted connection.
    pub fn opened(&self) {
        self.connections.fetch_add(1, Relaxed);
        self.open.fetch_add(1, Relaxed);
    }

    /// Counts a closed connection. `reason`: `None` where both sides ended it in order.
    pub fn closed(&self, reason: Option<Reason>) {
        self.open.fetch_sub(1, Relaxed);
        self.closed[reason_index(reason)].fetch_add(1, Relaxed);
    }

    /// Counts bytes from the downstream to the upstream.
    pub fn sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Relaxed);
    }

    /// Counts bytes from the upstream to the downstream.
    pub fn received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Relaxed);
    }

    pub(super) fn closed_by_reason(&self) -> impl Iterator<Item = (Option<Reason>, u64)> + '_ {
        by_reason(&self.closed)
    }
}

impl Handle for TcpMetrics {
    fn uses(&self) -> u64 {
        self.connections.load(Relaxed)
            + self.sent.load(Relaxed)
            + self.received.load(Relaxed)
            + by_reason(&self.closed).map(|(_, count)| count).sum::<u64>()
    }
}

/// Counters for no reason and for each reason.
pub(super) type ByReason = [AtomicU64; Reason::ALL.len() + 1];

pub(super) fn reason_index(reason: Option<Reason>) -> usize {
    reason.map_or(0, |reason| reason as usize + 1)
}

/// The counters above zero.
pub(super) fn by_reason(counters: &ByReason) -> impl Iterator<Item = (Option<Reason>, u64)> + '_ {
    std::iter::once(None)
        .chain(Reason::ALL.iter().copied().map(Some))
        .zip(counters)
        .map(|(reason, count)| (reason, count.load(Relaxed)))
        .filter(|(_, count)| *count > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_counted_by_status_and_reason() {
        let outcomes = Outcomes::default();
        outcomes.count(Some(200), None);
        outcomes.count(Some(200), None);
        outcomes.count(Some(503), Some(Reason::NoEndpoint));
        outcomes.count(None, Some(Reason::ClientGone));
        let mut all = outcomes.all();
        all.sort_by_key(|(status, ..)| *status);
        assert_eq!(
            all,
            [
                (Status::None, Some(Reason::ClientGone), 1),
                (Status::Of(200), None, 2),
                (Status::Of(503), Some(Reason::NoEndpoint), 1),
            ]
        );
    }

    #[test]
    fn invented_statuses_make_a_bounded_number_of_series() {
        let outcomes = Outcomes::default();
        for _ in 0..2 {
            for status in 100..1_000 {
                outcomes.count(Some(status), None);
            }
        }
        let all = outcomes.all();
        assert!(all.len() <= MAX_OUTCOMES + 1, "{}", all.len());
        assert_eq!(all.iter().map(|(.., count)| count).sum::<u64>(), 1_800);
        assert!(all.iter().any(|(status, ..)| *status == Status::Other));
    }

    #[test]
    fn every_reason_is_recovered_from_its_number() {
        for reason in Reason::ALL.iter().copied() {
            let key = outcome_key(Status::None, Some(reason));
            assert_eq!(outcome_of(key), (Status::None, Some(reason)));
        }
        assert_ne!(outcome_key(Status::None, None), 0);
    }

    #[test]
    fn concurrent_outcomes_are_each_counted_once() {
        let outcomes = Outcomes::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for index in 0..10_000_u16 {
                        outcomes.count(Some(200 + index % 20), None);
                    }
                });
            }
        });
        let all = outcomes.all();
        assert_eq!(all.len(), 20);
        assert!(all.iter().all(|(.., count)| *count == 2_000));
    }
}
