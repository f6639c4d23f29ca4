//! Limits interim responses (1xx). Flow control does not apply to them and h2 does not report when
//! one has been written, so a server that sends them faster than its client reads would fill the
//! memory of every proxy on the way.

use http::HeaderMap;
use tokio::time::Instant;

use crate::memory;

/// Sustained rate of interim responses, in bytes per second: sixteen small ones.
const PER_SECOND: f64 = 4_096.0;
/// The cost of each in addition to its fields, in bytes.
const EACH: usize = 256;

/// How much one attempt may still send, in bytes.
#[derive(Debug)]
pub(super) struct Allowance {
    left: f64,
    most: f64,
    since: Instant,
}

impl Allowance {
    /// `most`: the size of a burst. `since`: when the attempt was sent.
    pub fn new(most: usize, since: Instant) -> Self {
        Self {
            left: most as f64,
            most: most as f64,
            since,
        }
    }

    /// Whether this one may be passed on.
    pub fn take(&mut self, head: &HeaderMap) -> bool {
        self.take_at(head, Instant::now())
    }

    fn take_at(&mut self, head: &HeaderMap, now: Instant) -> bool {
        let earned = now.duration_since(self.since).as_secs_f64() * PER_SECOND;
        self.since = now;
        self.left = (self.left + earned).min(self.most) - (EACH + memory::of_head(head)) as f64;
        self.left >= 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_burst_is_bounded_and_a_slow_sequence_goes_on() {
        let head = HeaderMap::new();
        let begin = Instant::now();
        let mut allowance = Allowance::new(64 * 1024, begin);
        let burst = (0..1_000).take_while(|_| allowance.take_at(&head, begin));
        assert_eq!(burst.count(), 256);
        let mut allowance = Allowance::new(64 * 1024, begin);
        for number in 1..1_000 {
            let now = begin + number * Duration::from_millis(100);
            assert!(allowance.take_at(&head, now));
        }
    }
}
