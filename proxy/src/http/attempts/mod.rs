//! The attempts of a request, whatever its protocol: one endpoint after the other until a response
//! is passed on, or there is nothing left to try.
//!
//! In: the backend, the rule's time-outs and retries, and how each attempt ended. Out: which
//! endpoint is tried next and after what wait, and how it all ended. [`Transport`] is what the two
//! HTTPs do themselves: they send, wait and read.

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

/// Why an attempt came to nothing.
#[derive(Clone, Copy, Debug)]
pub struct Failed {
    pub failure: Failure,
    /// What the client is told, if this was the last attempt.
    pub reason: Reason,
    /// The code of the upstream's RST_STREAM, which the client is sent in place of a response.
    pub reset: Option<h2::Reason>,
    /// What it says about the endpoint.
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

    /// There is no connection or stream.
    pub fn no_connection(refusal: Refusal) -> Self {
        Self::new((&refusal).into(), refusal.reason, refusal.outcome())
    }

    /// The connection broke after something was sent and before a response.
    pub fn reset(reason: Reason) -> Self {
        Self::new(Failure::Reset, reason, AttemptOutcome::Reset)
    }

    /// What was sent has not been acknowledged.
    pub fn out_of_reach() -> Self {
        let timed_out = AttemptOutcome::TimedOut;
        Self::new(Failure::Reset, Reason::UpstreamReset, timed_out)
    }

    /// The budget of memory has no room for what waits. The endpoint may have begun with it.
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

/// Why an attempt has no response. `I`: what a protocol is interrupted by.
pub enum Unanswered<I> {
    /// Another attempt may follow.
    Failed(Failed),
    /// None does.
    Interrupted(I),
}

/// What of a response decides on another attempt.
pub struct Answer<'a> {
    pub status: u16,
    /// The reason that it carries.
    pub reason: Option<&'a [u8]>,
    /// Where it comes from.
    pub peer: &'a Peer,
}

/// The sending and reading of one of the HTTPs.
pub trait Transport {
    /// The head of a response, and the connection that it came by.
    type Answered;
    /// Why the request is given up.
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
    /// Drops a response that another attempt takes the place of.
    fn discard(&mut self, answered: Self::Answered);
    /// Makes ready for another attempt.
    fn rewind(&mut self);
    /// Waits between two attempts.
    async fn wait(&mut self, time: Duration) -> Result<(), Self::Interrupt>;
}

/// How the attempts ended.
pub enum Outcome<T: Transport> {
    /// This response is passed on.
    Answered(T::Answered),
    /// Nothing is left to try: the last attempt's failure, or that there was no endpoint.
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

    /// Tries endpoints until there is something to tell the client.
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

    /// The endpoint that is tried next: the one that the client's connection is bound to, or the
    /// one that balancing picks.
    fn next(&self, bound: Option<u64>, random: &mut SmallRng) -> Result<InFlight, Failed> {
        let endpoints = self.backend.endpoints();
        let bound = bound.and_then(|id| balance::stay(&endpoints, id));
        bound
            .or_else(|| balance::pick(&endpoints, &self.tried, random))
            // The last attempt's failure says more than that nothing is left.
            .ok_or_else(|| self.last.unwrap_or_else(no_endpoint))
    }

    /// How long to wait for another attempt. `None`: there is none.
    fn wait<T: Transport>(
        &mut self,
        failed: &Failed,
        exchange: &Exchange<'_>,
        transport: &T,
    ) -> Option<Duration> {
        // Without a certificate of this pod's own, no other endpoint would do.
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
