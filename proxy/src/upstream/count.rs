//! How many streams are on a connection.

use std::cell::Cell;

use tokio::time::Instant;

/// Streams on one upstream connection. Also what RFC 9113 recommends as the least that a peer
/// should allow.
pub const MAX_STREAMS: usize = 100;

/// Counts the streams of one connection.
#[derive(Debug)]
pub struct Streams {
    count: Cell<usize>,
    /// Since when there has been none.
    idle_since: Cell<Instant>,
    /// The connection takes no new ones: what it has takes nothing from what there is room for.
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

    /// Since when there has been none. `None`: there is one.
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
