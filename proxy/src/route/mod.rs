//! Routes a request: finds the rule that applies, and applies its filters.
//!
//! In: the head of a request and the [`Logical`] destination of its connection. Out: a
//! [`Decision`]. Only the original destination selects the `Logical`: the head (`Host`,
//! `:authority`) never selects another one.
//!
//! ```text
//! contract ─▶ decode ─▶ Routes ─┐
//!                               ├─▶ decide ─▶ Decision
//! head ─────────────────────────┘     │ matches: which rule;  filter: what it changes
//! ```
//!
//! [`explain`] and [`outcome`] describe the same for a hypothetical request.
//!
//! # Floors
//!
//! ```text
//! explain             the decision about a request, explained
//! logical
//! decode              from the contract's messages
//! words               matches and filters as text
//! cors filter opaque
//! matches
//! head problem
//! ```

mod cors;
mod decode;
mod explain;
mod filter;
mod head;
mod logical;
mod matches;
pub mod opaque;
mod problem;
mod words;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;

use crate::balance::{Backend, by_weight};
use crate::observe::metrics::{MirrorMetrics, RequestMetrics};
use crate::observe::reason::Reason;
use filter::Answer;

pub use cors::{Cors, Preflight};
pub use decode::{DEFAULT_BACKOFF, DecodeError, decode_routes, default_rule};
pub use explain::{Criterion, Explained, Outcome, Verdict, explain, outcome};
pub use filter::{Filter, HeaderModifier, PathModifier, Redirect, Rewrite};
pub use head::{HeaderFields, RequestHead, is_spelling};
pub use logical::{Logical, Protocol};
pub use matches::{Match, NamedMatch, PathMatch, RouteRule, Routes, Unmet, ValueMatch};
pub(crate) use matches::{query_value, split_query};
pub use words::is_credential;

/// The decision about a request.
pub enum Decision {
    /// Send it to this backend. Request filters of the rule and the backend have been applied to
    /// the head.
    Forward {
        rule: Arc<Rule>,
        /// Index into [`Rule::backends`].
        backend: usize,
        /// The origin that may read the response, by the rule's CORS filter; for
        /// [`Rule::filter_response`].
        origin: Option<Box<str>>,
    },
    /// Answer with this redirect.
    Redirect {
        rule: Arc<Rule>,
        status: u16,
        location: String,
        /// As in `Forward`.
        origin: Option<Box<str>>,
    },
    /// Answer a browser's CORS preflight request.
    Preflight { rule: Arc<Rule>, answer: Preflight },
    /// Answer with an error of this reason.
    Fail {
        rule: Option<Arc<Rule>>,
        reason: Reason,
    },
}

/// One rule of a route.
#[derive(Debug)]
pub struct Rule {
    /// `namespace/name` of the route; empty for a Service's default rule.
    pub route: Arc<str>,
    /// Name of the rule, or its index.
    pub name: Arc<str>,
    /// In the order in which they apply.
    pub filters: Vec<Filter>,
    /// Mirrors of every request to a backend, in addition to those of the backend.
    pub mirrors: Vec<Mirror>,
    pub backends: Vec<RuleBackend>,
    /// For the whole request with its retries, to the end of the response.
    pub request_timeout: Option<Duration>,
    /// For each attempt, to the end of its response.
    pub backend_request_timeout: Option<Duration>,
    pub retry: Option<RetryPolicy>,
    /// Metrics of requests that reach no backend.
    pub metrics: Arc<RequestMetrics>,
}

#[derive(Debug)]
pub struct RuleBackend {
    pub weight: u32,
    /// `Err`: why the backend is invalid.
    pub backend: Result<Arc<Backend>, Arc<str>>,
    /// Applied after those of the rule, to requests for this backend.
    pub filters: Vec<Filter>,
    pub mirrors: Vec<Mirror>,
    pub metrics: Arc<RequestMetrics>,
}

/// A destination of copies of a share of the requests.
#[derive(Clone, Debug)]
pub struct Mirror {
    pub backend: Arc<Backend>,
    /// The numerator of the share …
    pub numerator: u32,
    /// … and its denominator: at least 1.
    pub denominator: u32,
    pub metrics: Arc<MirrorMetrics>,
}

#[derive(Clone, Debug)]
pub struct RetryPolicy {
    pub codes: Vec<u16>,
    /// Retries after the first attempt.
    pub attempts: u32,
    /// Wait before the first retry.
    pub backoff: Duration,
}

impl Rule {
    /// Applies the response filters of the rule and of the backend. An index beyond the backends
    /// (for a response of the proxy itself) applies those of the rule alone. `origin`: from the
    /// [`Decision`].
    pub fn filter_response(
        &self,
        backend: Option<usize>,
        origin: Option<&str>,
        head: &mut impl HeaderFields,
    ) {
        filter::apply_to_response(&self.filters, origin, head);
        if let Some(backend) = backend.and_then(|backend| self.backends.get(backend)) {
            filter::apply_to_response(&backend.filters, origin, head);
        }
    }

    /// The mirrors that get a copy of one request for `backend`.
    pub fn mirrors(&self, backend: usize, random: &mut SmallRng) -> impl Iterator<Item = &Mirror> {
        let of_backend = self.backends.get(backend).map(|b| b.mirrors.as_slice());
        let all = self.mirrors.iter().chain(of_backend.unwrap_or_default());
        all.filter(|mirror| {
            mirror.numerator >= mirror.denominator
                || random.random_range(0..mirror.denominator) < mirror.numerator
        })
    }

    /// Whether a request for `backend` may be mirrored.
    pub fn is_mirrored(&self, backend: usize) -> bool {
        let of_backend = |b: &RuleBackend| !b.mirrors.is_empty();
        !self.mirrors.is_empty() || self.backends.get(backend).is_some_and(of_backend)
    }

    /// The backend of that index. `None`: it is invalid.
    pub fn target(&self, backend: usize) -> Option<Arc<Backend>> {
        let backend = &self.backends.get(backend)?.backend;
        backend.as_ref().ok().cloned()
    }

    /// Picks by weight. `None`: all weights are 0.
    fn pick_backend(&self, random: &mut SmallRng) -> Option<usize> {
        by_weight(self.backends.iter().map(|backend| backend.weight), random)
    }
}

/// Finds the rule for a request and applies its request filters to the head.
pub fn decide(logical: &Logical, head: &mut impl RequestHead, random: &mut SmallRng) -> Decision {
    let (rule, matched_prefix) = match &logical.routes {
        None => (&logical.default_rule, 0),
        Some(routes) => match routes.find(head) {
            Some(found) => found,
            None => {
                return Decision::Fail {
                    rule: None,
                    reason: Reason::NoRoute,
                };
            }
        },
    };
    let fail = |reason| Decision::Fail {
        rule: Some(rule.clone()),
        reason,
    };
    let context = filter::Context {
        matched_prefix,
        port: logical.port,
    };
    let mut origin = None;
    match filter::apply_to_request(&rule.filters, context, head, &mut origin) {
        None => {}
        Some(Answer::Redirect(status, location)) => {
            return Decision::Redirect {
                rule: rule.clone(),
                status,
                location,
                origin,
            };
        }
        Some(Answer::Preflight(answer)) => {
            return Decision::Preflight {
                rule: rule.clone(),
                answer,
            };
        }
    }
    let Some(backend) = rule.pick_backend(random) else {
        return fail(Reason::NoBackend);
    };
    if rule.backends[backend].backend.is_err() {
        return fail(Reason::BackendInvalid);
    }
    // None of these filters answers: decoding ensures that.
    let filters = &rule.backends[backend].filters;
    let _ = filter::apply_to_request(filters, context, head, &mut origin);
    Decision::Forward {
        rule: rule.clone(),
        backend,
        origin,
    }
}
