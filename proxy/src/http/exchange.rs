//! A request from its head to its end, whatever its protocol: decided, counted and logged.
//!
//! In: a head, and at the end the result of the request. Out: a [`Plan`], which the protocol
//! carries out.
//!
//! A policy for requests is written once, at one of these places, and applies to HTTP/1.1, HTTP/2
//! and gRPC in both directions:
//!
//! ```text
//! Exchange::begin     the request as received, for the access log
//! Exchange::decide    whether it is admitted; which rule, backend and changes
//! Attempts            endpoint, retries, timeouts (crate::http::attempts)
//! Exchange::end       metrics and the access log
//! ```

use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;
use tokio::time::Instant;

use crate::observe::access_log::Entry;
use crate::observe::metrics::{HttpVersion, RequestMetrics};
use crate::observe::reason::Reason;
use crate::route::{self, Decision, Logical, Preflight, RequestHead, Rule};
use crate::session::Session;
use crate::table::Destination;

/// How a request ended.
#[derive(Clone, Copy, Debug)]
pub struct End {
    pub status: Option<u16>,
    pub reason: Option<Reason>,
}

impl End {
    /// A response that the proxy generated.
    pub fn answered(status: u16, reason: Reason) -> Self {
        Self {
            status: Some(status),
            reason: Some(reason),
        }
    }

    /// Without a response.
    pub fn unanswered(reason: Reason) -> Self {
        Self {
            status: None,
            reason: Some(reason),
        }
    }
}

/// How the protocol must handle a request.
pub enum Plan {
    /// Send it to this backend. Request filters have been applied to its head.
    Forward(ForwardPlan),
    Redirect {
        rule: Arc<Rule>,
        status: u16,
        location: String,
        /// The origin that may read the response, by the rule's CORS filter.
        origin: Option<Box<str>>,
    },
    /// Answer a browser's CORS preflight request.
    Preflight(Preflight),
    /// Answer with this error.
    Refuse(Reason),
}

/// The destination of a request.
pub struct ForwardPlan {
    pub logical: Arc<Logical>,
    pub rule: Arc<Rule>,
    /// Index into the rule's backends.
    pub backend: usize,
    /// As in [`Plan::Redirect`].
    pub origin: Option<Box<str>>,
}

/// One request.
pub struct Exchange<'a> {
    session: &'a Session,
    version: HttpVersion,
    pub started: Instant,
    /// The series of the request. `None`: nothing has been decided yet.
    metrics: Option<Arc<RequestMetrics>>,
    /// For the access log, if enabled: the request before filters changed it.
    original: Option<Box<Original>>,
    logical: Option<Arc<Logical>>,
    rule: Option<Arc<Rule>>,
    endpoint: Option<SocketAddr>,
    attempts: u32,
}

struct Original {
    method: String,
    authority: String,
    /// Without the query, which may carry secrets.
    path: String,
}

impl<'a> Exchange<'a> {
    pub fn begin(session: &'a Session, version: HttpVersion, head: &impl RequestHead) -> Self {
        let original = || {
            let path = head.path_and_query().split('?').next();
            Box::new(Original {
                method: head.method().to_owned(),
                authority: head.authority().unwrap_or_default().to_owned(),
                path: path.unwrap_or_default().to_owned(),
            })
        };
        Self {
            session,
            version,
            started: Instant::now(),
            metrics: None,
            original: session.worker.access_log.enabled().then(original),
            logical: None,
            rule: None,
            endpoint: None,
            attempts: 0,
        }
    }

    /// Decides how the request is handled, and applies the rule's filters to its head.
    ///
    /// `check`: why the protocol rejects the head. `stays`: the backend to which an earlier request
    /// has bound the client's connection.
    pub fn decide<H: RequestHead>(
        &mut self,
        head: &mut H,
        check: impl FnOnce(&H) -> Option<Reason>,
        stays: impl FnOnce(&Rule) -> Option<usize>,
    ) -> Plan {
        let session = self.session;
        let destination = session.destination.load();
        let logical = match &**destination {
            Destination::Logical(logical) => logical.clone(),
            Destination::Passthrough | Destination::Unknown => {
                self.count(session.unknown_metrics());
                return Plan::Refuse(Reason::DestinationUnknown);
            }
        };
        drop(destination);
        logical.budget.deposit(self.started.into_std());
        self.logical = Some(logical.clone());
        if let Some(reason) = check(head) {
            self.count(session.request_metrics(&logical.default_rule, None));
            return Plan::Refuse(reason);
        }
        let decision = route::decide(&logical, head, &mut session.worker.random.borrow_mut());
        match decision {
            Decision::Forward {
                rule,
                backend,
                origin,
            } => {
                let backend = stays(&rule).unwrap_or(backend);
                self.count(session.request_metrics(&rule, Some(backend)));
                self.rule = Some(rule.clone());
                session.introduce(head);
                Plan::Forward(ForwardPlan {
                    logical,
                    rule,
                    backend,
                    origin,
                })
            }
            Decision::Redirect {
                rule,
                status,
                location,
                origin,
            } => {
                self.count(session.request_metrics(&rule, None));
                self.rule = Some(rule.clone());
                Plan::Redirect {
                    rule,
                    status,
                    location,
                    origin,
                }
            }
            Decision::Preflight { rule, answer } => {
                self.count(session.request_metrics(&rule, None));
                self.rule = Some(rule);
                Plan::Preflight(answer)
            }
            Decision::Fail { rule, reason } => {
                let counted = rule.as_ref().unwrap_or(&logical.default_rule);
                self.count(session.request_metrics(counted, None));
                self.rule = rule;
                Plan::Refuse(reason)
            }
        }
    }

    fn count(&mut self, metrics: Arc<RequestMetrics>) {
        metrics.begin(self.version);
        self.metrics = Some(metrics);
    }

    /// The series of the request, once it has been decided.
    pub fn metrics(&self) -> Option<&RequestMetrics> {
        self.metrics.as_deref()
    }

    /// The worker's random number generator.
    pub fn random(&self) -> &'a RefCell<SmallRng> {
        &self.session.worker.random
    }

    /// Records the endpoint that the request is sent to.
    pub fn attempted(&mut self, endpoint: SocketAddr) {
        self.attempts += 1;
        self.endpoint = Some(endpoint);
    }

    /// Counts and logs the request, which has ended. Returns the time of its end.
    pub fn end(self, end: End) -> Instant {
        let ended = Instant::now();
        let elapsed = ended.duration_since(self.started);
        if let Some(metrics) = &self.metrics {
            metrics.end(end.status, end.reason, elapsed);
        }
        if let Some(original) = &self.original {
            self.log(original, end, elapsed);
        }
        ended
    }

    fn log(&self, original: &Original, end: End, elapsed: Duration) {
        let rule = self.rule.as_ref();
        self.session.worker.access_log.write(&Entry {
            direction: self.session.direction(),
            version: self.version,
            client: self.session.client.as_str(),
            method: &original.method,
            authority: &original.authority,
            path: &original.path,
            service: self.logical.as_ref().map_or("", |l| &l.service),
            route: rule.map_or("", |rule| &rule.route),
            rule: rule.map_or("", |rule| &rule.name),
            endpoint: self.endpoint,
            status: end.status,
            reason: end.reason,
            attempts: self.attempts,
            elapsed,
        });
    }
}

/// Counts a refusal that comes before there is a request: `status` is that of the response, if
/// there is one.
pub fn refused(session: &Session, version: HttpVersion, status: Option<u16>, reason: Reason) {
    let metrics = match &**session.destination.load() {
        Destination::Logical(logical) => session.request_metrics(&logical.default_rule, None),
        Destination::Passthrough | Destination::Unknown => session.unknown_metrics(),
    };
    metrics.begin(version);
    metrics.end(status, Some(reason), Duration::ZERO);
}
