//! What the sandbox tells a person: progress as lines while it starts, and later as the last few
//! lines under the live table.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// How many of the last messages are kept for the table.
const KEPT: usize = 8;

/// Where messages go. Cheap to clone.
#[derive(Clone)]
pub struct Report {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    started: Instant,
    /// A table is on the screen: messages are shown in it.
    held: bool,
    last: VecDeque<String>,
    /// The reader has gone.
    closed: bool,
}

impl Report {
    pub fn new() -> Self {
        Self {
            inner: Arc::new(Mutex::new(Inner {
                started: Instant::now(),
                held: false,
                last: VecDeque::new(),
                closed: false,
            })),
        }
    }

    /// One line, with the time since the start.
    pub fn say(&self, text: &str) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let line = format!("{:7.1}s  {text}", inner.started.elapsed().as_secs_f64());
        if !inner.held {
            let written = writeln!(std::io::stderr().lock(), "{line}");
            inner.closed |= is_broken(&written);
        }
        if inner.last.len() == KEPT {
            inner.last.pop_front();
        }
        inner.last.push_back(line);
    }

    /// Something went wrong, with the last lines of a log.
    pub fn trouble(&self, what: &str, problem: &str, log: &[String]) {
        self.say(&format!("{what}: {problem}"));
        for line in log {
            self.say(&format!("    | {line}"));
        }
    }

    /// Writes to standard output.
    pub fn show(&self, text: &str) {
        let mut output = std::io::stdout().lock();
        let written = output.write_all(text.as_bytes());
        let written = written.and_then(|()| output.flush());
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.closed |= is_broken(&written);
    }

    /// What was said or shown went to a pipe whose reader has gone.
    pub fn closed(&self) -> bool {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.closed
    }

    /// From now on messages wait for [`Report::last`].
    pub fn hold(&self) {
        self.inner
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .held = true;
    }

    /// The last messages.
    pub fn last(&self) -> Vec<String> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.last.iter().cloned().collect()
    }
}

fn is_broken(written: &std::io::Result<()>) -> bool {
    matches!(written, Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe)
}
