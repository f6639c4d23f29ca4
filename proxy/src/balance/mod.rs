//! Picks an endpoint for a request: power of two choices on peak EWMA latency and requests in
//! flight; endpoints that keep failing are ejected for a while.
//!
//! In: an [`EndpointSet`] and the endpoints that this request has tried. Out: an [`InFlight`],
//! which records how the attempt ended. All workers share the observations through atomics, without
//! locks or any ordering between them: a lost update costs a slightly older estimate.
//!
//! ```text
//! available ──5 failures in a row──▶ ejected 10 s, 20 s … 300 s ─▶ one probe ─answered─▶ available
//!                                                                        ─failed───▶ for longer
//!           ──wrong identity──────▶ refused likewise, also as the last one
//!           ──connect failed──────▶ avoided for a second: taken where there is no other
//! ```
//!
//! Preferred endpoints (those of the client's zone) are the only candidates as long as one of them
//! is available and untried; otherwise all endpoints are, as if none were preferred. Ejected
//! preferred endpoints continue to be probed.
//!
//! # Floors
//!
//! ```text
//! endpoints           the endpoints of a Service, and the choice of one
//! load                latency, requests in flight, ejection
//! budget habits       the retry budget; how an app closes idle connections
//! clock outcome       the clock as a number; how attempts end
//! ```

mod budget;
mod clock;
mod endpoints;
mod habits;
mod load;
mod outcome;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;

pub use budget::RetryBudget;
use clock::Nanos;
pub use endpoints::{Backend, Endpoint, EndpointSet, Peer, by_weight, next_endpoint_id};
pub use habits::Habits;
pub use load::Load;
use load::{Admission, Standing};
pub use outcome::AttemptOutcome;

/// How often two endpoints are drawn, where those drawn can't be used, before the whole set is
/// scanned.
const DRAWS: usize = 4;

/// Rank of an endpoint in good standing.
const WELL: u8 = 0;
/// The last rank that may be picked at all.
const ANY: u8 = 5;

/// An attempt in flight on an endpoint. Dropping it without an outcome counts as cancelled.
#[derive(Debug)]
pub struct InFlight {
    pub endpoint: Arc<Endpoint>,
    admission: Admission,
    started: Nanos,
    answered: bool,
}

impl InFlight {
    /// Records the outcome as soon as it is known: with the head of the response where there is
    /// one. The attempt still counts as in flight until it is dropped. `since`: the start of the
    /// attempt on its connection. The first outcome counts.
    pub fn answered(&mut self, outcome: AttemptOutcome, since: tokio::time::Instant) {
        let now = tokio::time::Instant::now();
        let latency = now.duration_since(since);
        self.answered_at(outcome, latency, Nanos::at(now.into_std()));
    }

    /// [`Self::answered`], and the attempt is no longer in flight.
    pub fn finish(mut self, outcome: AttemptOutcome, since: tokio::time::Instant) {
        self.answered(outcome, since);
    }

    fn answered_at(&mut self, outcome: AttemptOutcome, latency: Duration, now: Nanos) {
        if !std::mem::replace(&mut self.answered, true) {
            self.endpoint
                .load
                .answered(outcome, latency, self.admission, now);
        }
    }

    fn new(endpoint: &Arc<Endpoint>, admission: Admission, now: Nanos) -> Self {
        endpoint.load.started(now);
        Self {
            endpoint: endpoint.clone(),
            admission,
            started: now,
            answered: false,
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if !self.answered {
            let now = Nanos::now();
            let waited = Duration::from_nanos(now.since(self.started));
            self.answered_at(AttemptOutcome::Cancelled, waited, now);
        }
        self.endpoint.load.ended();
    }
}

/// Picks an endpoint, avoiding those already tried (by id) where there are others. `None`: no
/// endpoint may be picked.
pub fn pick(set: &EndpointSet, tried: &[u64], random: &mut SmallRng) -> Option<InFlight> {
    pick_at(set, tried, random, Nanos::now())
}

/// The endpoint with this id, regardless of its standing: for a client that is bound to it.
pub fn stay(set: &EndpointSet, id: u64) -> Option<InFlight> {
    let endpoint = set.endpoints.iter().find(|other| other.id == id)?;
    Some(InFlight::new(endpoint, Admission::Regular, Nanos::now()))
}

/// Whether [`pick`] would find an untried endpoint, without picking it.
pub fn is_usable(set: &EndpointSet) -> bool {
    let now = Nanos::now();
    // If all are ejected, ejection is ignored, except for refused ones (another identity).
    set.endpoints
        .iter()
        .any(|endpoint| endpoint.load.standing(now) != Standing::Refused)
}

fn pick_at(
    set: &EndpointSet,
    tried: &[u64],
    random: &mut SmallRng,
    now: Nanos,
) -> Option<InFlight> {
    let preferred = set.preferred();
    if !preferred.is_empty() {
        let picked = draw(preferred, tried, random, now)
            .or_else(|| pick_by_rank(preferred, tried, random, now, WELL));
        if picked.is_some() {
            return picked;
        }
    }
    let endpoints = set.endpoints.as_slice();
    if let [only] = endpoints {
        // The only endpoint is used even if it was tried, however often it failed.
        return admit_any(only, now);
    }
    draw(endpoints, tried, random, now).or_else(|| pick_by_rank(endpoints, tried, random, now, ANY))
}

/// The fast path: the better of two. `None`: none of those drawn could be used.
fn draw(
    endpoints: &[Arc<Endpoint>],
    tried: &[u64],
    random: &mut SmallRng,
    now: Nanos,
) -> Option<InFlight> {
    if endpoints.len() < 2 {
        return None;
    }
    for _ in 0..DRAWS {
        let first = random.random_range(0..endpoints.len());
        let second = random.random_range(0..endpoints.len() - 1);
        let second = second + usize::from(second >= first);
        let (first, second) = (&endpoints[first], &endpoints[second]);
        // An endpoint whose ejection is over is probed when drawn; otherwise it would never return.
        for endpoint in [first, second] {
            if endpoint.load.is_unwell()
                && !tried.contains(&endpoint.id)
                && endpoint.load.take_probe(now)
            {
                return Some(InFlight::new(endpoint, Admission::Probe, now));
            }
        }
        let usable = |endpoint: &Endpoint| {
            endpoint.load.standing(now) == Standing::Available && !tried.contains(&endpoint.id)
        };
        let chosen = match (usable(first), usable(second)) {
            (true, true) if second.load.wins(&first.load, now, random) => second,
            (true, _) => first,
            (false, true) => second,
            (false, false) => continue,
        };
        return Some(InFlight::new(chosen, Admission::Regular, now));
    }
    None
}

fn admit_any(endpoint: &Arc<Endpoint>, now: Nanos) -> Option<InFlight> {
    let admission = match endpoint.load.standing(now) {
        Standing::Available | Standing::Avoided => Admission::Regular,
        _ if endpoint.load.take_probe(now) => Admission::Probe,
        _ if endpoint.load.is_refused() => return None,
        _ => Admission::Panic,
    };
    Some(InFlight::new(endpoint, admission, now))
}

/// The slow path: scans every endpoint and takes the best one, up to rank `worst`.
fn pick_by_rank(
    endpoints: &[Arc<Endpoint>],
    tried: &[u64],
    random: &mut SmallRng,
    now: Nanos,
    worst: u8,
) -> Option<InFlight> {
    let out = endpoints
        .iter()
        .filter(|endpoint| {
            matches!(
                endpoint.load.standing(now),
                Standing::Ejected | Standing::Probeable | Standing::Refused
            )
        })
        .count();
    // With more than half of the endpoints ejected, another cause is more likely, and the remaining
    // ones would be overloaded.
    let panic = out * 2 > endpoints.len();
    let rank = |endpoint: &Endpoint| {
        let tried = tried.contains(&endpoint.id);
        match endpoint.load.standing(now) {
            Standing::Available if !tried => Some(WELL),
            Standing::Avoided if !tried => Some(1),
            Standing::Ejected | Standing::Probeable
                if panic && !tried && !endpoint.load.is_refused() =>
            {
                Some(2)
            }
            Standing::Available => Some(3),
            Standing::Avoided => Some(4),
            Standing::Ejected | Standing::Probeable if panic && !endpoint.load.is_refused() => {
                Some(ANY)
            }
            _ => None,
        }
    };
    // A random start distributes equal endpoints evenly.
    let start = random.random_range(0..endpoints.len().max(1));
    let (before, after) = endpoints.split_at(start.min(endpoints.len()));
    let mut best: Option<(u8, &Arc<Endpoint>)> = None;
    for endpoint in after.iter().chain(before) {
        let Some(rank) = rank(endpoint).filter(|rank| *rank <= worst) else {
            continue;
        };
        let better = match best {
            None => true,
            Some((other, current)) => {
                rank < other || (rank == other && endpoint.load.is_better(&current.load, now))
            }
        };
        if better {
            best = Some((rank, endpoint));
        }
    }
    match best {
        Some((_, endpoint)) => {
            let admission = match endpoint.load.standing(now) {
                Standing::Available | Standing::Avoided => Admission::Regular,
                _ => Admission::Panic,
            };
            Some(InFlight::new(endpoint, admission, now))
        }
        // Only refused endpoints are left, or all others are being probed.
        None => endpoints
            .iter()
            .find(|endpoint| endpoint.load.take_probe(now))
            .map(|endpoint| InFlight::new(endpoint, Admission::Probe, now)),
    }
}
