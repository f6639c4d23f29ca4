//! `timeouts.request` and `timeouts.backendRequest` of a rule, while one request is carried.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use crate::observe::reason::Reason;
use crate::route::Rule;

/// How long nothing may come of a client's request once the client has ended its half: it waits for
/// its answer, or it is gone, and its connection does not tell which.
const HALF_CLOSED: Duration = Duration::from_secs(120);

/// Both time-outs run to the end of the response (GEP-1742).
pub struct Deadlines {
    request: Option<Instant>,
    attempt: Option<Instant>,
    for_each_attempt: Option<Duration>,
    /// How long a client is still taken to wait that has ended its half.
    half_closed: Option<Instant>,
    /// How much of the response had come when that was set.
    taken: u32,
    /// Made when it is first needed.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Deadlines {
    pub fn new(started: Instant, rule: &Rule) -> Self {
        Self {
            // A time-out beyond what the clock can tell is none.
            request: rule.request_timeout.and_then(|t| started.checked_add(t)),
            attempt: None,
            for_each_attempt: rule.backend_request_timeout,
            half_closed: None,
            taken: 0,
            timer: None,
        }
    }

    pub fn begin_attempt(&mut self) {
        self.attempt = self
            .for_each_attempt
            .and_then(|timeout| Instant::now().checked_add(timeout));
    }

    pub fn end_attempt(&mut self) {
        self.attempt = None;
    }

    /// The client has ended its half, and may be gone: that is not told by its connection any more.
    pub fn half_closed(&mut self) {
        if self.half_closed.is_none() {
            self.half_closed = Instant::now().checked_add(HALF_CLOSED);
        }
    }

    /// So much of the response has come: a client that takes it is there.
    pub fn came(&mut self, taken: u32) {
        if self.taken != taken {
            self.taken = taken;
            self.half_closed = None;
        }
    }

    /// Ready when the next one has run out, with what it is called.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Reason> {
        if (self.request, self.attempt, self.half_closed) == (None, None, None) {
            return Poll::Pending;
        }
        let all = [
            (self.request, Reason::RequestTimeout),
            (self.attempt, Reason::BackendRequestTimeout),
            (self.half_closed, Reason::ClientGone),
        ];
        let next = all
            .iter()
            .filter_map(|(due, reason)| Some(((*due)?, *reason)))
            .min_by_key(|(due, _)| *due);
        let Some((due, reason)) = next else {
            return Poll::Pending;
        };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
        if timer.deadline() != due {
            timer.as_mut().reset(due);
        }
        timer.as_mut().poll(cx).map(|()| reason)
    }
}
