//! Messages to the user: progress as lines during the start, and later as the last few lines under
//! the live table.

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
    /// The table is on the screen and shows messages.
    held: bool,
    last: VecDeque<String>,
    /// The reader of standard output is gone.
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

    /// Writes one line, with the time since the start.
    pub fn line(&self, text: &str) {
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

    /// Reports a problem, with the last lines of a log.
    pub fn trouble(&self, what: &str, problem: &str, log: &[String]) {
        self.line(&format!("{what}: {problem}"));
        for line in log {
            self.line(&format!("    | {line}"));
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

    /// Whether standard output is a pipe whose reader is gone.
    pub fn closed(&self) -> bool {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.closed
    }

    /// Holds back messages for [`Report::last`] from now on.
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
