//! From a request to the rule that takes it, and what the rule changes on the way.

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;

use crate::metrics::RequestMetrics;
use crate::reason::Reason;
use crate::table::{Backend, Logical};

/// The head of a request, whichever HTTP version carried it. Two implementations: [`crate::http1`]'s head and
/// [`http::request::Parts`].
pub trait RequestHead: HeaderFields {
    fn method(&self) -> &str;
    /// Path with query, as sent. Empty for CONNECT, `*` for OPTIONS of the whole server.
    fn path_and_query(&self) -> &str;
    /// `Host` or `:authority` or the authority of an absolute target.
    fn authority(&self) -> Option<&str>;
    fn set_path_and_query(&mut self, path_and_query: &str);
    fn set_authority(&mut self, authority: &str);
}

/// Header fields of a request or response. Names are matched without regard to case.
pub trait HeaderFields {
    /// Calls `each` with every value under `name`, in order, until it returns false.
    fn for_each_value(&self, name: &str, each: &mut dyn FnMut(&[u8]) -> bool);
    /// Puts one field in the place of all of that name.
    fn set_field(&mut self, name: &str, value: &str);
    fn add_field(&mut self, name: &str, value: &str);
    fn remove_field(&mut self, name: &str);
}

/// The rules of all routes of a Service, in order of precedence.
#[derive(Debug)]
pub struct Routes {}

/// What is to become of a request.
pub enum Decision {
    /// Send it to this backend. Request filters of the rule and the backend have been applied to the head.
    Forward {
        rule: Arc<Rule>,
        /// Index into [`Rule::backends`].
        backend: usize,
    },
    /// Answer with this redirect.
    Redirect {
        rule: Arc<Rule>,
        status: u16,
        location: String,
    },
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
    pub backends: Vec<RuleBackend>,
    /// For the whole request with its retries.
    pub request_timeout: Option<Duration>,
    /// For each attempt.
    pub backend_request_timeout: Option<Duration>,
    pub retry: Option<RetryPolicy>,
    /// For requests that reach no backend.
    pub metrics: Arc<RequestMetrics>,
}

#[derive(Debug)]
pub struct RuleBackend {
    pub weight: u32,
    /// `Err`: why it can't be used.
    pub backend: Result<Arc<Backend>, Arc<str>>,
    pub metrics: Arc<RequestMetrics>,
}

#[derive(Clone, Debug)]
pub struct RetryPolicy {
    pub codes: Vec<u16>,
    pub attempts: u32,
    pub backoff: Duration,
}

impl Rule {
    /// Applies the response filters of the rule and of the backend.
    pub fn filter_response(&self, backend: usize, head: &mut impl HeaderFields) {
        let _ = (backend, head);
        todo!()
    }
}

/// Finds the rule for a request and applies its request filters to the head.
pub fn decide(logical: &Logical, head: &mut impl RequestHead, random: &mut SmallRng) -> Decision {
    let _ = (logical, head, random);
    todo!()
}
