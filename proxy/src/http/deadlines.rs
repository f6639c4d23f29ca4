//! The rule's `timeouts.request` and `timeouts.backendRequest` for one request.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use crate::observe::reason::Reason;
use crate::route::Rule;

/// How long a client's request may make no progress once the client has ended its half: the client
/// waits for its response, or is gone, and its connection does not show which.
const HALF_CLOSED: Duration = Duration::from_secs(120);

/// Both timeouts run to the end of the response (GEP-1742).
pub struct Deadlines {
    request: Option<Instant>,
    attempt: Option<Instant>,
    for_each_attempt: Option<Duration>,
    /// Until when a client that has ended its half is assumed to wait.
    half_closed: Option<Instant>,
    /// How much of the response had come when that was set.
    taken: u32,
    /// Created on first use.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Deadlines {
    pub fn new(started: Instant, rule: &Rule) -> Self {
        Self {
            // A timeout beyond the range of the clock does not apply.
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

    /// The client has ended its half: its connection no longer shows whether it is gone.
    pub fn half_closed(&mut self) {
        if self.half_closed.is_none() {
            self.half_closed = Instant::now().checked_add(HALF_CLOSED);
        }
    }

    /// `taken`: how much of the response has come. A client that reads more of it is alive.
    pub fn came(&mut self, taken: u32) {
        if self.taken != taken {
            self.taken = taken;
            self.half_closed = None;
        }
    }

    /// Ready with its reason when the next deadline has passed.
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
