//! The retry budget (GEP-3388): retries are bounded to a share of the requests, so that they do not
//! finish off an overloaded Service.
//!
//! In: a deposit for each request, a withdrawal before each retry. Out: whether the retry is
//! allowed. Time is divided into slices; events of the last `SLICES` of them count. No lock: a
//! slice is one atomic that carries its own number, and the first event in a new slice resets its
//! count.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::observe::metrics::Allowance;

/// Number of slices in an interval: the budget recovers a tenth at a time.
const SLICES: usize = 10;
const DEFAULT_PERCENT: u32 = 20;
const DEFAULT_INTERVAL: Duration = Duration::from_secs(10);
const DEFAULT_MIN_PER_SECOND: f64 = 10.0;
/// Shortest interval, so that a slice is never shorter than the resolution of a clock.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// One for each Service port, shared by all workers.
#[derive(Debug)]
pub struct RetryBudget {
    percent: u64,
    /// Retries allowed in an interval regardless of the number of requests.
    reserve: u64,
    /// In nanoseconds.
    slice: u64,
    requests: Window,
    retries: Window,
}

impl RetryBudget {
    /// `percent` of the requests of the last `interval`, plus `min_per_second`.
    pub fn new(percent: u32, interval: Duration, min_per_second: f64) -> Self {
        let interval = interval.max(MIN_INTERVAL);
        Self {
            percent: u64::from(percent.min(100)),
            reserve: (min_per_second.max(0.0) * interval.as_secs_f64()).round() as u64,
            slice: (interval / SLICES as u32).as_nanos() as u64,
            requests: Window::default(),
            retries: Window::default(),
        }
    }

    /// Counts a request at `now`.
    pub fn deposit(&self, now: Instant) {
        self.requests.add(self.slice_at(now));
    }

    /// Takes one retry out of the budget. False: the budget is exhausted.
    pub fn withdraw(&self) -> bool {
        self.withdraw_at(self.slice_at(Instant::now()))
    }

    fn withdraw_at(&self, now: u32) -> bool {
        // Counted before it is allowed, so that two workers do not both take the last one.
        self.retries.add(now);
        if self.retries.sum(now) <= self.allowed(now) {
            return true;
        }
        self.retries.take_back(now);
        false
    }

    fn allowed(&self, now: u32) -> u64 {
        self.requests.sum(now) * self.percent / 100 + self.reserve
    }

    /// The number of the current slice. The first is 1, so that a zeroed cell matches no slice.
    fn slice_at(&self, now: Instant) -> u32 {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        let elapsed = now.duration_since(*START).as_nanos() as u64 / self.slice;
        (elapsed as u32).wrapping_add(1)
    }
}

/// 20 % and 10 a second, over 10 s.
impl Allowance for RetryBudget {
    fn available(&self) -> u64 {
        let now = self.slice_at(Instant::now());
        self.allowed(now).saturating_sub(self.retries.sum(now))
    }
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self::new(DEFAULT_PERCENT, DEFAULT_INTERVAL, DEFAULT_MIN_PER_SECOND)
    }
}

/// Events of the last `SLICES` slices. Each cell has the number of its slice in the upper half and
/// the count in the lower.
#[derive(Debug, Default)]
struct Window([AtomicU64; SLICES]);

impl Window {
    fn add(&self, now: u32) {
        let cell = &self.0[now as usize % SLICES];
        let mut seen = cell.load(Relaxed);
        loop {
            if number_of(seen) == now {
                cell.fetch_add(1, Relaxed);
                return;
            }
            let first = u64::from(now) << 32 | 1;
            match cell.compare_exchange_weak(seen, first, Relaxed, Relaxed) {
                Ok(_) => return,
                Err(other) => seen = other,
            }
        }
    }

    fn take_back(&self, now: u32) {
        let cell = &self.0[now as usize % SLICES];
        // A failed update means that the slice is over, or empty.
        let _ = cell.fetch_update(Relaxed, Relaxed, |seen| {
            (number_of(seen) == now && count_of(seen) > 0).then(|| seen - 1)
        });
    }

    fn sum(&self, now: u32) -> u64 {
        self.0
            .iter()
            .map(|cell| cell.load(Relaxed))
            .filter(|seen| now.wrapping_sub(number_of(*seen)) < SLICES as u32)
            .map(count_of)
            .sum()
    }
}

fn number_of(cell: u64) -> u32 {
    (cell >> 32) as u32
}

fn count_of(cell: u64) -> u64 {
    cell & u64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_share_of_the_requests_may_be_retried() {
        let budget = RetryBudget::new(20, Duration::from_secs(3_600), 0.0);
        assert!(!budget.withdraw());
        for _ in 0..100 {
            budget.deposit(Instant::now());
        }
        assert_eq!(budget.available(), 20);
        assert_eq!((0..100).filter(|_| budget.withdraw()).count(), 20);
        assert_eq!(budget.available(), 0);
    }

    #[test]
    fn without_requests_the_reserve_is_available() {
        let budget = RetryBudget::default();
        assert_eq!((0..1_000).filter(|_| budget.withdraw_at(1)).count(), 100);
    }

    #[test]
    fn events_older_than_the_interval_no_longer_count() {
        let budget = RetryBudget::new(50, Duration::from_secs(10), 0.0);
        for _ in 0..10 {
            budget.requests.add(1);
        }
        assert_eq!((0..10).filter(|_| budget.withdraw_at(10)).count(), 5);
        assert!(!budget.withdraw_at(11));
        for _ in 0..10 {
            budget.requests.add(11);
        }
        // The five retries of slice 10 count against the new requests until slice 20.
        assert!(!budget.withdraw_at(19));
        assert!(budget.withdraw_at(20));
    }

    #[test]
    fn workers_share_one_budget() {
        let budget = RetryBudget::new(10, Duration::from_secs(3_600), 0.0);
        let taken: usize = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        for _ in 0..1_000 {
                            budget.deposit(Instant::now());
                        }
                        (0..1_000).filter(|_| budget.withdraw()).count()
                    })
                })
                .collect();
            workers
                .into_iter()
                .map(|w| w.join().expect("a worker"))
                .sum()
        });
        assert!(taken <= 400, "{taken}");
        assert_eq!(budget.available() + taken as u64, 400);
    }

    proptest! {
        #[test]
        fn retries_never_exceed_share_and_reserve(
            percent in 0..=100_u32,
            reserve in 0..50_u32,
            steps in prop::collection::vec((0..3_u32, 0..20_u32, 0..20_u32), 1..60),
        ) {
            let budget = RetryBudget::new(percent, Duration::from_secs(1), f64::from(reserve));
            let mut now = 1;
            let mut requests = Vec::new();
            let mut retries = Vec::new();
            for (wait, sent, asked) in steps {
                now += wait;
                for _ in 0..sent {
                    budget.requests.add(now);
                    requests.push(now);
                }
                for _ in 0..asked {
                    let recent = |all: &[u32]| {
                        all.iter().filter(|at| now - **at < SLICES as u32).count() as u64
                    };
                    let allowed = recent(&requests) * u64::from(percent) / 100 + u64::from(reserve);
                    let expected = recent(&retries) < allowed;
                    prop_assert_eq!(budget.withdraw_at(now), expected);
                    if expected {
                        retries.push(now);
                    }
                }
            }
        }
    }
}
