//! What a stream makes the process hold, as the budget of memory knows it: its head from its start,
//! and bodies whose reader has stopped, as long as it has.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

use super::{MAX_FRAME, STREAM_WINDOW};
use crate::memory::{Charge, Use};

/// Up to this is little. The small window fits in, so that what goes on while memory is short does.
const LITTLE: usize = 2 * super::SMALL_WINDOW as usize;
/// Beyond this a window is full, and no more comes.
const FULL: usize = (STREAM_WINDOW - MAX_FRAME) as usize;
/// More arrives for a reader that has stopped without waking its task, so that it is looked at
/// again after this long …
const FIRST_LOOK: Duration = Duration::from_millis(10);
/// … and each time after twice as long, up to this.
const LAST_LOOK: Duration = Duration::from_millis(80);

/// The charge of one stream.
#[derive(Debug)]
pub(super) struct Held {
    charge: Charge,
    /// What the stream is charged for without any body.
    head: usize,
    look: Option<Pin<Box<Sleep>>>,
    wait: Duration,
}

impl Held {
    pub fn new(charge: Charge) -> Self {
        Self {
            head: charge.bytes(),
            charge,
            look: None,
            wait: FIRST_LOOK,
        }
    }

    /// Charges `waiting` bytes. Ready: there is no room for them.
    pub fn poll(&mut self, cx: &mut Context<'_>, waiting: usize) -> Poll<()> {
        let what = match waiting <= LITTLE {
            true => Use::SmallBody,
            false => Use::Body,
        };
        if !self.charge.follow(what, self.head, waiting) {
            return Poll::Ready(());
        }
        if (1..FULL).contains(&waiting) {
            self.look_again(cx);
        }
        Poll::Pending
    }

    fn look_again(&mut self, cx: &mut Context<'_>) {
        let wait = self.wait;
        let look = self.look.get_or_insert_with(|| Box::pin(sleep(wait)));
        while look.as_mut().poll(cx).is_ready() {
            self.wait = (self.wait * 2).min(LAST_LOOK);
            look.as_mut().reset(Instant::now() + self.wait);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Budget;
    use std::future::poll_fn;

    #[tokio::test]
    async fn a_body_is_charged_while_it_waits_and_looked_at_again() {
        let budget = Budget::new(1 << 20);
        let charge = budget.charge(Use::Stream, 1_000).expect("room");
        let mut held = Held::new(charge);
        let mut waiting = [0, 100, 5_000, 60_000, 20_000, 0].into_iter();
        let mut charged = Vec::new();
        poll_fn(|cx| {
            let Some(bytes) = waiting.next() else {
                return Poll::Ready(());
            };
            assert!(held.poll(cx, bytes).is_pending());
            charged.push(budget.charged());
            // Where bytes wait the task is woken by itself.
            if bytes == 0 {
                cx.waker().wake_by_ref();
            }
            Poll::Pending
        })
        .await;
        assert_eq!(charged, [1_000, 1_000, 6_000, 61_000, 21_000, 1_000]);
        let refused = poll_fn(|cx| Poll::Ready(held.poll(cx, 1 << 20).is_ready()));
        assert!(refused.await);
        drop(held);
        assert_eq!(budget.charged(), 0);
    }
}
