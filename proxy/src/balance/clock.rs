//! The clock of loads and habits.

use std::sync::LazyLock;
use std::time::Instant;

/// Nanoseconds since the first use in this process, to fit an atomic. The seam through which tests
/// choose the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nanos(pub u64);

impl Nanos {
    pub fn now() -> Self {
        Self::at(Instant::now())
    }

    pub fn at(now: Instant) -> Self {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        Self(now.duration_since(*START).as_nanos() as u64)
    }

    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}
