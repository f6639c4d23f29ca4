//! The attempts of a request, whatever its protocol: one endpoint after the other until a response
//! is passed on, or all options are exhausted.
//!
//! In: the backend, the rule's timeouts and retries, and how each attempt ended. Out: the endpoint
//! to try next and the wait before it, and the final outcome. [`Transport`] is the part that HTTP/1
//! and HTTP/2 implement themselves: they send, wait and read.

use std::time::Duration;

use rand::rngs::SmallRng;

use crate::balance::{self, AttemptOutcome, Backend, InFlight, Peer, RetryBudget};
use crate::http::deadlines::Deadlines;
use crate::http::exchange::Exchange;
use crate::http::retry::{Failure, Retries};
use crate::observe::reason::Reason;
use crate::route::RetryPolicy;
use crate::socket::Direction;
use crate::upstream::streams::Refusal;

#[cfg(test)]
mod tests;

/// Why an attempt failed.
#[derive(Clone, Copy, Debug)]
pub struct Failed {
    pub failure: Failure,
    /// The reason for the client, if this was the last attempt.
    pub reason: Reason,
    /// The code of the upstream's RST_STREAM, which the client gets instead of a response.
    pub reset: Option<h2::Reason>,
    /// How it counts for the endpoint.
    pub outcome: AttemptOutcome,
}

impl Failed {
    pub fn new(failure: Failure, reason: Reason, outcome: AttemptOutcome) -> Self {
        Self {
            failure,
            reason,
            reset: None,
            outcome,
        }
    }

    /// No connection or stream is available.
    pub fn no_connection(refusal: Refusal) -> Self {
        Self::new((&refusal).into(), refusal.reason, refusal.outcome())
    }

    /// The connection broke after something was sent and before a response.
    pub fn reset(reason: Reason) -> Self {
        Self::new(Failure::Reset, reason, AttemptOutcome::Reset)
    }

    /// Sent data has not been acknowledged.
    pub fn out_of_reach() -> Self {
        let timed_out = AttemptOutcome::TimedOut;
        Self::new(Failure::Reset, Reason::UpstreamReset, timed_out)
    }

    /// The memory budget has no room for the waiting data. The endpoint may have started
    /// processing.
    pub fn no_memory(outcome: AttemptOutcome) -> Self {
        Self::new(Failure::Reset, Reason::MemoryExhausted, outcome)
    }

    /// `timeouts.backendRequest` ran out.
    pub fn timed_out() -> Self {
        let timed_out = AttemptOutcome::TimedOut;
        Self::new(Failure::TimedOut, Reason::BackendRequestTimeout, timed_out)
    }

    /// The endpoint has answered with a status that is retried.
    fn status(failure: Failure) -> Self {
        Self::new(failure, Reason::NoEndpoint, AttemptOutcome::Reset)
    }
}

/// Why an attempt has no response. `I`: the interruptions of a protocol.
pub enum Unanswered<I> {
    /// Another attempt may follow.
    Failed(Failed),
    /// No other attempt follows.
    Interrupted(I),
}

/// The parts of a response that decide on another attempt.
pub struct Answer<'a> {
    pub status: u16,
    /// The reason code that it carries.
    pub reason: Option<&'a [u8]>,
    /// The peer that sent it.
    pub peer: &'a Peer,
}

/// Sending and reading in HTTP/1 or HTTP/2.
pub trait Transport {
    /// The head of a response, and the connection that it came on.
    type Answered;
    /// Why the request is abandoned.
    type Interrupt;

    /// The endpoint that the client's connection is bound to.
    fn bound(&self) -> Option<u64>;
    fn deadlines(&mut self) -> &mut Deadlines;
    /// The request can be sent again from its start.
    fn is_replayable(&self) -> bool;
    /// Sends the request to an endpoint, and reads the head of its response.
    async fn attempt(
        &mut self,
        in_flight: InFlight,
    ) -> Result<Self::Answered, Unanswered<Self::Interrupt>>;
    fn answer<'a>(&'a self, answered: &'a Self::Answered) -> Answer<'a>;
    /// Drops a response that is replaced by another attempt.
    fn discard(&mut self, answered: Self::Answered);
    /// Prepares for another attempt.
    fn rewind(&mut self);
    /// Waits between two attempts.
    async fn wait(&mut self, time: Duration) -> Result<(), Self::Interrupt>;
}

/// How the attempts ended.
pub enum Outcome<T: Transport> {
    /// This response is passed on.
    Answered(T::Answered),
    /// All options are exhausted: the last attempt's failure, or that there was no endpoint.
    Failed(Failed),
    Interrupted(T::Interrupt),
}

/// The attempts of one request.
pub struct Attempts<'a> {
    backend: &'a Backend,
    retries: Retries<'a>,
    /// By number of the endpoint.
    tried: Vec<u64>,
    last: Option<Failed>,
}

impl<'a> Attempts<'a> {
    pub fn new(
        direction: Direction,
        backend: &'a Backend,
        policy: Option<&'a RetryPolicy>,
        budget: &'a RetryBudget,
    ) -> Self {
        Self {
            backend,
            retries: Retries::new(direction, policy, budget),
            tried: Vec::new(),
            last: None,
        }
    }

    /// Tries endpoints until there is a response or a final failure.
    pub async fn run<T: Transport>(
        &mut self,
        exchange: &mut Exchange<'_>,
        transport: &mut T,
    ) -> Outcome<T> {
        loop {
            let next = self.next(transport.bound(), &mut exchange.random().borrow_mut());
            let in_flight = match next {
                Ok(in_flight) => in_flight,
                Err(failed) => return Outcome::Failed(failed),
            };
            let id = in_flight.endpoint.id;
            exchange.attempted(in_flight.endpoint.address);
            transport.deadlines().begin_attempt();
            let (failed, wait) = match transport.attempt(in_flight).await {
                Ok(answered) => {
                    let answer = transport.answer(&answered);
                    let failure =
                        self.retries
                            .failure_of(answer.status, answer.reason, answer.peer);
                    let failed = failure.map(Failed::status);
                    let wait = failed.and_then(|failed| self.wait(&failed, exchange, transport));
                    let (Some(failed), Some(wait)) = (failed, wait) else {
                        return Outcome::Answered(answered);
                    };
                    transport.discard(answered);
                    (failed, wait)
                }
                Err(Unanswered::Failed(failed)) => match self.wait(&failed, exchange, transport) {
                    Some(wait) => (failed, wait),
                    None => return Outcome::Failed(failed),
                },
                Err(Unanswered::Interrupted(interrupt)) => return Outcome::Interrupted(interrupt),
            };
            self.last = Some(failed);
            if !self.tried.contains(&id) {
                self.tried.push(id);
            }
            transport.rewind();
            transport.deadlines().end_attempt();
            if !wait.is_zero()
                && let Err(interrupt) = transport.wait(wait).await
            {
                return Outcome::Interrupted(interrupt);
            }
        }
    }

    /// The endpoint to try next: the one that the client's connection is bound to, or the one that
    /// balancing picks.
    fn next(&self, bound: Option<u64>, random: &mut SmallRng) -> Result<InFlight, Failed> {
        let endpoints = self.backend.endpoints();
        let bound = bound.and_then(|id| balance::stay(&endpoints, id));
        bound
            .or_else(|| balance::pick(&endpoints, &self.tried, random))
            // Report the last attempt's failure rather than no-endpoint.
            .ok_or_else(|| self.last.unwrap_or_else(no_endpoint))
    }

    /// How long to wait before the next attempt. `None`: no other attempt follows.
    fn wait<T: Transport>(
        &mut self,
        failed: &Failed,
        exchange: &Exchange<'_>,
        transport: &T,
    ) -> Option<Duration> {
        // Without a certificate for this pod, every endpoint would fail.
        if failed.reason == Reason::NoCertificate {
            return None;
        }
        let replayable = transport.is_replayable();
        self.retries
            .wait(failed.failure, replayable, exchange.metrics()?)
    }
}

fn no_endpoint() -> Failed {
    let cancelled = AttemptOutcome::Cancelled;
    Failed::new(Failure::NeverSent, Reason::NoEndpoint, cancelled)
}
