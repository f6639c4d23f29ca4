//! A table of handles by label set. Label sets are compared whole, so two of them never share a
//! handle.
//!
//! In: a label set, when a source, destination or route is resolved. Out: the one handle for it,
//! which is then used without the table. The table is bounded: label sets beyond the bound share an
//! overflow handle.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a series without an owner is kept after its last traffic: longer than two intervals of
/// any usual scraper.
const KEPT_UNUSED: Duration = Duration::from_secs(600);

/// A set of counters under one label set.
pub(super) trait Handle {
    /// Grows with every use.
    fn uses(&self) -> u64;
}

#[derive(Debug)]
pub(super) struct Series<K, H> {
    slots: Mutex<HashMap<K, Slot<H>>>,
    cap: usize,
    refused: AtomicU64,
}

#[derive(Debug)]
struct Slot<H> {
    handle: Arc<H>,
    uses: u64,
    /// When `uses` was last seen to have changed, or the handle to have an owner.
    used: Instant,
}

impl<K: Eq + Hash + Clone, H: Handle> Series<K, H> {
    pub fn new(cap: usize) -> Self {
        Self {
            slots: Mutex::default(),
            cap,
            refused: AtomicU64::new(0),
        }
    }

    /// The handle for `key`; that of `overflow(key)` where the table is full.
    pub fn resolve(
        &self,
        key: K,
        overflow: impl FnOnce(&K) -> K,
        make: impl FnOnce(&K) -> H,
    ) -> Arc<H> {
        let mut slots = self.lock();
        if let Some(slot) = slots.get(&key) {
            return slot.handle.clone();
        }
        let key = if slots.len() < self.cap {
            key
        } else {
            self.refused.fetch_add(1, Relaxed);
            overflow(&key)
        };
        let slot = slots.entry(key.clone()).or_insert_with(|| Slot {
            handle: Arc::new(make(&key)),
            uses: 0,
            used: Instant::now(),
        });
        slot.handle.clone()
    }

    /// Removes handles without an owner and without traffic for [`KEPT_UNUSED`].
    pub fn sweep(&self, now: Instant) {
        self.lock().retain(|_, slot| {
            let uses = slot.handle.uses();
            if uses != slot.uses || Arc::strong_count(&slot.handle) > 1 {
                slot.uses = uses;
                slot.used = now;
            }
            now.saturating_duration_since(slot.used) < KEPT_UNUSED
        });
    }

    /// Every label set with traffic.
    pub fn used(&self) -> Vec<(K, Arc<H>)> {
        self.lock()
            .iter()
            .filter(|(_, slot)| slot.handle.uses() > 0)
            .map(|(key, slot)| (key.clone(), slot.handle.clone()))
            .collect()
    }

    /// How many label sets were given the overflow handle.
    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Slot<H>>> {
        // No code panics while it holds this lock in the middle of a change.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Count(AtomicU64);

    impl Handle for Count {
        fn uses(&self) -> u64 {
            self.0.load(Relaxed)
        }
    }

    fn resolve(series: &Series<(String, String), Count>, first: &str, second: &str) -> Arc<Count> {
        series.resolve(
            (first.to_owned(), second.to_owned()),
            |_| ("overflow".to_owned(), "overflow".to_owned()),
            |_| Count::default(),
        )
    }

    #[test]
    fn similar_label_sets_are_distinguished() {
        let series = Series::new(10);
        let one = resolve(&series, "ab", "c");
        assert!(!Arc::ptr_eq(&one, &resolve(&series, "a", "bc")));
        assert!(Arc::ptr_eq(&one, &resolve(&series, "ab", "c")));
    }

    #[test]
    fn beyond_the_bound_label_sets_share_an_overflow_handle() {
        let series = Series::new(2);
        let first = resolve(&series, "a", "");
        resolve(&series, "b", "");
        let third = resolve(&series, "c", "");
        assert!(Arc::ptr_eq(&third, &resolve(&series, "d", "")));
        assert!(Arc::ptr_eq(&first, &resolve(&series, "a", "")));
        assert_eq!(series.refused(), 2);
    }

    #[test]
    fn a_series_is_removed_without_an_owner_and_traffic() {
        let series = Series::new(10);
        let start = Instant::now();
        let owned = resolve(&series, "owned", "");
        owned.0.fetch_add(1, Relaxed);
        resolve(&series, "used", "").0.fetch_add(1, Relaxed);
        series.sweep(start);
        assert_eq!(series.used().len(), 2);
        series.sweep(start + KEPT_UNUSED);
        assert_eq!(series.used().len(), 1);
        drop(owned);
        series.sweep(start + KEPT_UNUSED + Duration::from_secs(1));
        assert_eq!(series.used().len(), 1);
        series.sweep(start + KEPT_UNUSED * 2 + Duration::from_secs(1));
        assert_eq!(series.used().len(), 0);
    }
}
