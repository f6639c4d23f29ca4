//! A latency histogram on plain atomics: one addition finds the bucket's count, one the sum.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds in seconds. From half a millisecond, the time of a call within a node, to a minute,
/// which is longer than most clients wait.
pub const BUCKETS: [f64; 16] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    60.0,
];

/// [`BUCKETS`] in nanoseconds, so that observing needs no floating point.
const BOUNDS: [u64; BUCKETS.len()] = {
    let mut bounds = [0; BUCKETS.len()];
    let mut index = 0;
    while index < bounds.len() {
        bounds[index] = (BUCKETS[index] * 1e9) as u64;
        index += 1;
    }
    bounds
};

/// Counts for each bucket and beyond the last one.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    counts: [AtomicU64; BUCKETS.len() + 1],
    /// In nanoseconds: full after 584 years of waiting.
    sum: AtomicU64,
}

/// What a histogram held when it was read.
pub(super) struct Snapshot {
    /// Cumulative, in the order of [`BUCKETS`].
    pub buckets: [u64; BUCKETS.len()],
    pub count: u64,
    pub sum_seconds: f64,
}

impl Histogram {
    pub fn observe(&self, value: Duration) {
        let nanos = u64::try_from(value.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.partition_point(|bound| *bound < nanos);
        self.counts[bucket].fetch_add(1, Relaxed);
        self.sum.fetch_add(nanos, Relaxed);
    }

    pub fn snapshot(&self) -> Snapshot {
        let mut count = 0;
        let mut buckets = [0; BUCKETS.len()];
        for (bucket, counted) in buckets.iter_mut().zip(&self.counts) {
            count += counted.load(Relaxed);
            *bucket = count;
        }
        Snapshot {
            buckets,
            count: count + self.counts[BUCKETS.len()].load(Relaxed),
            sum_seconds: self.sum.load(Relaxed) as f64 / 1e9,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_bucket_counts_values_up_to_its_bound(
            millis in prop::collection::vec(0_u64..100_000, 0..50),
        ) {
            let histogram = Histogram::default();
            for value in &millis {
                histogram.observe(Duration::from_millis(*value));
            }
            let snapshot = histogram.snapshot();
            prop_assert_eq!(snapshot.count, millis.len() as u64);
            for (bound, counted) in BUCKETS.iter().zip(snapshot.buckets) {
                let expected = millis.iter().filter(|value| **value as f64 / 1e3 <= *bound).count();
                prop_assert_eq!(counted, expected as u64);
            }
            let sum: u64 = millis.iter().sum();
            prop_assert!((snapshot.sum_seconds - sum as f64 / 1e3).abs() < 1e-6);
        }
    }
}
