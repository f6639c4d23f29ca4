//! Counts the streams of a connection.

use std::cell::Cell;

use tokio::time::Instant;

/// Streams on one upstream connection. Also the minimum that RFC 9113 recommends a peer to allow.
pub const MAX_STREAMS: usize = 100;

/// Counts the streams of one connection.
#[derive(Debug)]
pub struct Streams {
    count: Cell<usize>,
    /// When the last stream ended.
    idle_since: Cell<Instant>,
    /// The connection accepts no new streams: those that it has no longer count against the
    /// capacity.
    pub(super) retired: Cell<bool>,
}

impl Default for Streams {
    fn default() -> Self {
        Self {
            count: Cell::new(0),
            idle_since: Cell::new(Instant::now()),
            retired: Cell::new(false),
        }
    }
}

impl Streams {
    pub fn count(&self) -> usize {
        self.count.get()
    }

    /// When the last stream ended. `None`: a stream is open.
    pub fn idle_since(&self) -> Option<Instant> {
        (self.count.get() == 0).then(|| self.idle_since.get())
    }

    /// Returns how many there were before.
    pub(super) fn begin(&self) -> usize {
        self.count.replace(self.count.get() + 1)
    }

    /// Returns how many are left.
    pub(super) fn end(&self) -> usize {
        let left = self.count.get() - 1;
        self.count.set(left);
        if left == 0 {
            self.idle_since.set(Instant::now());
        }
        left
    }
}
