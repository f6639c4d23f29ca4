//! How many mirrored requests are in progress on one worker, and their memory.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

/// Limit on copies in progress on one worker. More would only wait for the same mirrors.
const MAX_RUNNING: usize = 256;
/// How long a copy may take, from its start to the end of its response.
const MAX_TIME: Duration = Duration::from_secs(15);

/// The mirrored requests of one worker.
#[derive(Debug)]
pub struct Mirroring {
    running: Cell<usize>,
    pub queued: Cell<usize>,
    pub max_time: Duration,
}

/// Counts a copy for as long as it is in progress.
pub struct Running(Rc<Mirroring>);

impl Default for Mirroring {
    fn default() -> Self {
        Self::within(MAX_TIME)
    }
}

impl Mirroring {
    /// `max_time`: how long a copy may take.
    pub fn within(max_time: Duration) -> Self {
        Self {
            running: Cell::new(0),
            queued: Cell::new(0),
            max_time,
        }
    }

    pub fn dequeued(&self, bytes: usize) {
        self.queued.set(self.queued.get() - bytes);
    }
}

impl Running {
    pub fn new(mirroring: &Rc<Mirroring>) -> Option<Self> {
        let running = mirroring.running.get();
        (running < MAX_RUNNING).then(|| {
            mirroring.running.set(running + 1);
            Self(mirroring.clone())
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let running = &self.0.running;
        running.set(running.get() - 1);
    }
}
