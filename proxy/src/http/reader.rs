//! Detects a client that has stopped reading its response. Such a client holds a stream or
//! connection to the endpoint, and their number is limited for all clients together.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// Monitors the reader of one response.
#[derive(Debug)]
pub struct Reader {
    /// How long it may read nothing.
    patience: Duration,
    /// Since when the waiting data has had no room.
    stopped: Option<Instant>,
    /// Unsent bytes as last seen over HTTP/1.1.
    unsent: usize,
    /// Created on first use, and left unchanged while it is early enough.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Reader {
    pub fn new(patience: Duration) -> Self {
        Self {
            patience,
            stopped: None,
            unsent: 0,
            timer: None,
        }
    }

    /// It has read something, or nothing waits for it.
    pub fn reads(&mut self) {
        self.stopped = None;
    }

    /// `unsent` bytes wait for its connection. Ready when it has accepted none of them for too
    /// long.
    pub fn poll_unsent(&mut self, cx: &mut Context<'_>, unsent: usize) -> Poll<()> {
        let before = std::mem::replace(&mut self.unsent, unsent);
        if unsent == 0 || unsent != before {
            self.reads();
        }
        match unsent {
            0 => Poll::Pending,
            _ => self.poll_stopped(cx),
        }
    }

    /// It has no room for the waiting data. Ready when that has lasted too long.
    pub fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let since = *self.stopped.get_or_insert_with(Instant::now);
        // A time beyond the range of the clock never comes.
        let Some(due) = since.checked_add(self.patience) else {
            return Poll::Pending;
        };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
        loop {
            ready!(timer.as_mut().poll(cx));
            if timer.deadline() >= due {
                return Poll::Ready(());
            }
            timer.as_mut().reset(due);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::time::sleep;

    #[tokio::test]
    async fn a_slow_reader_is_waited_for() {
        const PATIENCE: Duration = Duration::from_millis(10);
        let mut reader = Reader::new(PATIENCE);
        for unsent in [5, 4, 3, 0, 2] {
            sleep(PATIENCE).await;
            let stopped = poll_fn(|cx| Poll::Ready(reader.poll_unsent(cx, unsent).is_ready()));
            assert!(!stopped.await, "{unsent}");
        }
        poll_fn(|cx| reader.poll_unsent(cx, 2)).await;
    }
}
