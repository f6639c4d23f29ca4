//! Whether a client still reads its response. One that does not holds a stream or connection to the
//! endpoint, of which there are only so many for all clients.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// Watches over the reader of one response.
#[derive(Debug)]
pub struct Reader {
    /// How long it may read nothing.
    patience: Duration,
    /// Since when there has been no room for what waits for it.
    stopped: Option<Instant>,
    /// What waits for it, as last seen over HTTP/1.1.
    unsent: usize,
    /// Made when it is first needed, and left where it is while that is early enough.
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

    /// It has taken something, or there is nothing for it.
    pub fn reads(&mut self) {
        self.stopped = None;
    }

    /// `unsent` bytes wait for its connection to take them. Ready when it has taken none for too
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

    /// It has no room for what there is. Ready when that has been so for too long.
    pub fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let since = *self.stopped.get_or_insert_with(Instant::now);
        // What the clock can't tell never comes.
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
    async fn one_that_takes_something_now_and_then_is_waited_for() {
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
