//! Whether a failed attempt is followed by another.

use std::time::Duration;

use crate::budget::RetryBudget;
use crate::route::RetryPolicy;

/// How an attempt failed, as far as trying again goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Provably nothing of the request reached an application: tried elsewhere in any case, whatever the method.
    NeverSent,
    /// The connection broke after something was sent and before a response. Retried where the rule has a `retry` stanza and the request may be replayed.
    Reset,
    /// `timeouts.backendRequest` ran out.
    TimedOut,
    /// A response with this status came.
    Status(u16),
}

/// Decides over the attempts of one request.
#[derive(Debug)]
pub struct Retries<'a> {
    _policy: Option<&'a RetryPolicy>,
    _budget: &'a RetryBudget,
}

/// What comes after a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Try again after this long.
    Retry(Duration),
    /// Answer the client with what there is.
    GiveUp,
}

impl<'a> Retries<'a> {
    pub fn new(policy: Option<&'a RetryPolicy>, budget: &'a RetryBudget) -> Self {
        Self {
            _policy: policy,
            _budget: budget,
        }
    }

    /// `replayable`: the request can be sent again from its start.
    pub fn next(&mut self, failure: Failure, replayable: bool) -> Next {
        let _ = (failure, replayable);
        todo!()
    }
}
