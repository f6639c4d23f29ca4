//! Which tests of one cluster run side by side: those that only use their own namespaces run at the
//! same time. Those that stop or change a shared part of the cluster, count what happens everywhere
//! in it, or load it with hundreds of requests a second run alone in it.

use std::io::Write;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// How many run at the same time: mostly, each waits for pods.
const AT_ONCE: usize = 4;

struct Running {
    /// Tests that may have others beside them, and those of them that wait.
    together: usize,
    waiting: usize,
    alone: bool,
}

static RUNNING: Mutex<Running> = Mutex::new(Running {
    together: 0,
    waiting: 0,
    alone: false,
});
static CHANGED: Condvar = Condvar::new();

fn running() -> MutexGuard<'static, Running> {
    // A test that fails gives its turn back as well.
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wait_while(
    running: MutexGuard<'static, Running>,
    condition: impl FnMut(&mut Running) -> bool,
) -> MutexGuard<'static, Running> {
    CHANGED
        .wait_while(running, condition)
        .unwrap_or_else(PoisonError::into_inner)
}

/// A test's turn, until the end of the test: it has to be the first of its variables.
#[must_use]
pub struct Turn {
    alone: bool,
    since: Instant,
}

/// Waits for a turn next to other tests.
pub fn beside_others() -> Turn {
    let mut running = running();
    running.waiting += 1;
    let mut running = wait_while(running, |running| {
        running.alone || running.together == AT_ONCE
    });
    running.waiting -= 1;
    running.together += 1;
    Turn::begins(false)
}

/// Waits for a turn without any other test. Those that may run side by side come first, so that
/// none of them is on its own.
pub fn alone() -> Turn {
    let mut running = wait_while(running(), |running| {
        running.alone || running.together > 0 || running.waiting > 0
    });
    running.alone = true;
    Turn::begins(true)
}

/// Whether any test has its turn: the cluster's scripts ask, so that no test goes without.
pub fn taken() -> bool {
    let running = running();
    running.alone || running.together > 0
}

impl Turn {
    fn begins(alone: bool) -> Self {
        let since = Instant::now();
        Self { alone, since }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut running = running();
        match self.alone {
            true => running.alone = false,
            false => running.together -= 1,
        }
        drop(running);
        CHANGED.notify_all();
        // To the stream itself, because the output of a test that passes is not shown.
        let thread = std::thread::current();
        let _not_needed = writeln!(
            std::io::stderr(),
            "{:4} s {} {}",
            self.since.elapsed().as_secs(),
            if self.alone {
                "alone    "
            } else {
                "in a group"
            },
            thread.name().unwrap_or_default(),
        );
    }
}
