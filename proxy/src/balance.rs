//! Which endpoint gets a request: power of two choices on peak EWMA latency and requests in flight; endpoints that
//! keep failing are ejected for a while.

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;

use crate::table::{Endpoint, EndpointSet};

/// What is known about an endpoint's load and health. Shared by all workers; atomics only.
#[derive(Debug, Default)]
pub struct Load {}

/// How an attempt on an endpoint ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptOutcome {
    /// A response came (5xx counts as a failure of the endpoint's).
    Response { status: u16 },
    /// Connection refused, timed out, reset.
    ConnectFailed,
    /// Somebody else is at the address: ejected at once.
    IdentityMismatch,
    /// The connection or stream broke before a response.
    Reset,
    /// The attempt was given up by us (time-out).
    TimedOut,
    /// The client gave up: says nothing about the endpoint.
    Cancelled,
}

/// An attempt in flight on an endpoint. Dropping it unfinished counts as cancelled.
#[derive(Debug)]
pub struct InFlight {
    pub endpoint: Arc<Endpoint>,
}

impl InFlight {
    /// `latency`: from the start of the attempt to the head of the response.
    pub fn finish(self, outcome: AttemptOutcome, latency: Duration) {
        let _ = (outcome, latency);
        todo!()
    }
}

/// Picks an endpoint, avoiding those already tried (by id) where there are others. `None`: there is no endpoint.
pub fn pick(set: &EndpointSet, tried: &[u64], random: &mut SmallRng) -> Option<InFlight> {
    let _ = (set, tried, random);
    todo!()
}
