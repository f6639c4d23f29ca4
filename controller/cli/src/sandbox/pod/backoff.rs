//! Backoff between attempts.

use std::time::{Duration, Instant};

const FIRST: Duration = Duration::from_secs(1);
/// Kubernetes waits up to five minutes, but a person is watching a sandbox.
const LONGEST: Duration = Duration::from_secs(30);
/// A run of this length resets the backoff.
const GOOD: Duration = Duration::from_secs(60);

/// Doubles, starting at one second.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
    started: Instant,
}

impl Backoff {
    pub fn new() -> Self {
        Self {
            next: FIRST,
            started: Instant::now(),
        }
    }

    /// An attempt begins.
    pub fn start(&mut self) {
        self.started = Instant::now();
    }

    /// The attempt failed. Returns the delay before the next one.
    pub fn failed(&mut self) -> Duration {
        if self.started.elapsed() >= GOOD {
            self.next = FIRST;
        }
        let wait = self.next;
        self.next = (wait * 2).min(LONGEST);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_bound() {
        let mut backoff = Backoff::new();
        let waits: Vec<u64> = (0..7).map(|_| backoff.failed().as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
    }
}
