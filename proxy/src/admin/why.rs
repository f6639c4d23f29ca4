//! `/why`: which rule would take a request, from the tables in force, and why the others would not.
//!
//! In: a destination, and the head of a request that nobody sends. Out: every match of the destination's routes in order of precedence,
//! what speaks against it, and what would become of the request. The data path's own functions decide. A destination that the app has
//! not called yet is asked of the controller, as its first call would.

use std::net::SocketAddr;
use std::sync::Arc;

use http::header::{HOST, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Request};
use serde::{Deserialize, Serialize};

use crate::http2::{grpc_status, is_grpc};
use crate::reason::Reason;
use crate::route::{
    Explained, Filter, HeaderFields as _, Mirror, NamedMatch, Outcome, RequestHead as _, Rule,
    RuleBackend, Unmet, Verdict, explain, is_credential, outcome, query_value, split_query,
};
use crate::table::{Attached, Destination, Logical, Protocol};
use naru_contract::ResourceName;

/// Fields in the head of a request.
const MAX_HEADERS: usize = 100;
/// Matches in an answer. The one that takes the request is always there.
const MAX_MATCHES: usize = 1_000;
/// Characters of a value that was sent: enough to see what is wrong with it.
const MAX_SHOWN: usize = 200;

/// What is asked.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// `10.96.0.10:80`, or `NAME.NAMESPACE:PORT` of a Service that the app has called before.
    destination: String,
    /// None: what the routes are is all that is asked.
    request: Option<Asked>,
}

/// The head of a request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    method: String,
    /// With its query.
    path: String,
    /// `Host` or `:authority`.
    authority: String,
    #[serde(default)]
    headers: Vec<(String, String)>,
}

/// Where a question leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asks {
    Address(SocketAddr),
    /// A port of a Service. Without a namespace: in the proxy's own.
    Service {
        name: String,
        namespace: Option<String>,
        port: u16,
    },
}

#[derive(Debug, Serialize)]
pub struct Answer {
    client_namespace: String,
    /// `service`, `pod`, `passthrough` (none of the mesh's: the connection goes there as it is), or `unknown` until the controller has
    /// said.
    target: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<Service>,
    /// First the one that wins where matches are equal.
    routes: Vec<Route>,
    rejected: Vec<Rejected>,
    /// As `matches` refers to them.
    rules: Vec<RuleAnswer>,
    /// In order of precedence.
    matches: Vec<MatchAnswer>,
    /// How many more there are.
    matches_left_out: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<OutcomeAnswer>,
}

#[derive(Debug, Serialize)]
struct Service {
    namespace: String,
    name: String,
    port: u16,
    /// `detect`, `http`, `http2` or `tcp`.
    protocol: &'static str,
}

#[derive(Debug, Serialize)]
struct Route {
    kind: &'static str,
    /// `namespace/name`
    name: String,
}

/// What the controller sent and is not in force. The version before it is, if there was one.
#[derive(Debug, Serialize)]
struct Rejected {
    name: String,
    reason: String,
}

#[derive(Debug, Serialize)]
struct RuleAnswer {
    /// Empty: the rule of a destination that no route is attached to.
    kind: &'static str,
    route: String,
    /// Its name, or its index.
    rule: String,
    filters: Vec<String>,
    backends: Vec<BackendAnswer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_timeout_ms: Option<u128>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backend_request_timeout_ms: Option<u128>,
    /// After the first attempt.
    retries: u32,
}

#[derive(Debug, Serialize)]
struct BackendAnswer {
    /// `namespace/name:port`; empty where it can't be used.
    service: String,
    weight: u32,
    /// Why it can't be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    invalid: Option<String>,
    filters: Vec<String>,
    endpoints: usize,
    /// How many of the endpoints are given no work for a while.
    ejected: usize,
}

#[derive(Debug, Serialize)]
struct MatchAnswer {
    /// Index into `rules`.
    rule: usize,
    /// In words.
    matches: String,
    #[serde(flatten)]
    verdict: Option<VerdictAnswer>,
}

#[derive(Debug, Serialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
enum VerdictAnswer {
    Takes,
    /// It would take it, and the one that does comes first.
    Outranked {
        by: &'static str,
    },
    /// The first part that does not hold.
    Unmet {
        /// `path`, `method`, `header` or `query-parameter`.
        part: &'static str,
        /// What it wants, in words.
        wanted: String,
        /// What the request has. None: it has none.
        has: Option<String>,
    },
}

#[derive(Debug, Default, Serialize)]
struct OutcomeAnswer {
    /// Whether a backend can get the request.
    forwarded: bool,
    /// The word of what the proxy would answer itself with, to every request like this.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    /// The status of that. None: the connection is ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    /// The gRPC status beside it, where the request is one of gRPC's.
    #[serde(skip_serializing_if = "Option::is_none")]
    grpc_status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    location: Option<String>,
    /// For each of the rule's backends that has a weight.
    backends: Vec<Prospect>,
}

#[derive(Debug, Serialize)]
struct Prospect {
    /// Index into the rule's backends.
    backend: usize,
    /// Its part of the requests.
    share: f64,
    /// What its part is answered with by the proxy.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    grpc_status: Option<u16>,
    /// As the backend would see it.
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<Seen>,
}

#[derive(Debug, Serialize)]
struct Seen {
    path: String,
    authority: String,
}

impl Question {
    /// From JSON.
    pub fn parse(body: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(body).map_err(|error| error.to_string())
    }

    pub fn asks(&self) -> Result<Asks, String> {
        if let Ok(address) = self.destination.parse() {
            return Ok(Asks::Address(address));
        }
        let wrong = || {
            format!(
                "destination: {:?} is neither IP:PORT nor NAME.NAMESPACE:PORT",
                self.destination
            )
        };
        let (name, port) = self.destination.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().map_err(|_| wrong())?;
        let (name, namespace) = match name.split_once('.') {
            Some((name, namespace)) => (name, Some(namespace)),
            None => (name, None),
        };
        let label = |text: &str| {
            let fit = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
            !text.is_empty() && text.bytes().all(fit)
        };
        if !label(name) || !namespace.is_none_or(label) {
            return Err(wrong());
        }
        Ok(Asks::Service {
            name: name.to_owned(),
            namespace: namespace.map(str::to_owned),
            port,
        })
    }

    /// The head of the request, if there is one. `Err`: it can't be sent.
    pub fn head(&self) -> Result<Option<Parts>, String> {
        self.request.as_ref().map(Asked::head).transpose()
    }
}

impl Asked {
    fn head(&self) -> Result<Parts, String> {
        let method = Method::from_bytes(self.method.as_bytes())
            .ok()
            .filter(|method| *method != Method::CONNECT)
            .ok_or_else(|| format!("method: {:?} is none for a request", self.method))?;
        let fit = self.path.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
        if !self.path.starts_with('/') || !fit {
            return Err(format!("path: {:?} is none", self.path));
        }
        if self.headers.len() > MAX_HEADERS {
            return Err(format!("headers: more than {MAX_HEADERS}"));
        }
        let mut request = Request::builder().method(method).uri(&self.path);
        let authority = [(HOST.as_str(), self.authority.as_str())];
        let headers = self.headers.iter().map(|(n, v)| (n.as_str(), v.as_str()));
        for (name, value) in authority.into_iter().chain(headers) {
            let wrong = || format!("headers: {name:?} can't have the value {value:?}");
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?;
            let value = HeaderValue::from_str(value.trim()).map_err(|_| wrong())?;
            request = request.header(name, value);
        }
        let request = request.body(()).map_err(|error| error.to_string())?;
        Ok(request.into_parts().0)
    }
}

/// The answer, for a destination that has been looked up.
pub fn answer(attached: Attached, head: Option<&Parts>) -> Answer {
    let mut answer = Answer {
        client_namespace: attached.client_namespace.to_string(),
        target: match (&*attached.destination, &attached.service) {
            (Destination::Logical(_), Some(_)) => "service",
            (Destination::Logical(_), None) => "pod",
            (Destination::Passthrough, _) => "passthrough",
            (Destination::Unknown, _) => "unknown",
        },
        service: None,
        routes: attached.routes.iter().filter_map(Route::of).collect(),
        rejected: attached
            .rejected
            .iter()
            .map(|(name, reason)| Rejected {
                name: name.to_string(),
                reason: reason.clone(),
            })
            .collect(),
        rules: Vec::new(),
        matches: Vec::new(),
        matches_left_out: 0,
        outcome: None,
    };
    match &*attached.destination {
        Destination::Logical(logical) => answer.explain(logical, head),
        Destination::Passthrough => answer.outcome = head.map(|_| OutcomeAnswer::default()),
        Destination::Unknown => {
            let failed = |head| OutcomeAnswer::failed(Reason::DestinationUnknown, head);
            answer.outcome = head.map(failed);
        }
    }
    answer
}

impl Route {
    fn of(name: &ResourceName) -> Option<Self> {
        let (kind, namespace, name) = match name {
            ResourceName::HttpRoute { namespace, name } => ("HTTPRoute", namespace, name),
            ResourceName::GrpcRoute { namespace, name } => ("GRPCRoute", namespace, name),
            _ => return None,
        };
        Some(Self {
            kind,
            name: format!("{namespace}/{name}"),
        })
    }
}

impl Answer {
    fn explain(&mut self, logical: &Logical, head: Option<&Parts>) {
        self.service = Some(Service {
            namespace: logical.namespace.to_string(),
            name: logical.service.to_string(),
            port: logical.port,
            protocol: logical.protocol.as_str(),
        });
        let explained = explain(logical, head);
        let mut rules: Vec<&Arc<Rule>> = Vec::new();
        for (index, one) in explained.iter().enumerate() {
            let takes = matches!(one.verdict, Some(Verdict::Takes { .. }));
            if index >= MAX_MATCHES && !takes {
                self.matches_left_out += 1;
                continue;
            }
            // Most often the same as the one before.
            let known = rules.iter().rposition(|rule| Arc::ptr_eq(rule, one.rule));
            let rule = known.unwrap_or_else(|| {
                rules.push(one.rule);
                rules.len() - 1
            });
            self.matches.push(MatchAnswer {
                rule,
                matches: one
                    .matched
                    .map_or_else(|| "everything".to_owned(), |matched| matched.to_string()),
                verdict: verdict(one, head),
            });
        }
        let rules = rules.into_iter().map(|rule| self.rule(rule));
        self.rules = rules.collect();
        self.outcome = head.map(|head| outcome_answer(logical, &explained, head));
    }

    fn rule(&self, rule: &Rule) -> RuleAnswer {
        let route = self.routes.iter().find(|route| *route.name == *rule.route);
        RuleAnswer {
            kind: route.map_or("", |route| route.kind),
            route: rule.route.to_string(),
            rule: rule.name.to_string(),
            filters: in_words(&rule.filters, &rule.mirrors),
            backends: rule.backends.iter().map(BackendAnswer::of).collect(),
            request_timeout_ms: rule.request_timeout.map(|t| t.as_millis()),
            backend_request_timeout_ms: rule.backend_request_timeout.map(|t| t.as_millis()),
            retries: rule.retry.as_ref().map_or(0, |retry| retry.attempts),
        }
    }
}

fn in_words(filters: &[Filter], mirrors: &[Mirror]) -> Vec<String> {
    let filters = filters.iter().map(ToString::to_string);
    filters
        .chain(mirrors.iter().map(ToString::to_string))
        .collect()
}

impl BackendAnswer {
    fn of(backend: &RuleBackend) -> Self {
        let mut answer = Self {
            service: String::new(),
            weight: backend.weight,
            invalid: None,
            filters: in_words(&backend.filters, &backend.mirrors),
            endpoints: 0,
            ejected: 0,
        };
        match &backend.backend {
            Err(why) => answer.invalid = Some(why.to_string()),
            Ok(target) => {
                let set = target.endpoints();
                let ejected = set.endpoints.iter().filter(|e| e.load.is_ejected());
                answer.service = format!("{}/{}:{}", target.namespace, target.service, target.port);
                answer.endpoints = set.endpoints.len();
                answer.ejected = ejected.count();
            }
        }
        answer
    }
}

fn verdict(explained: &Explained<'_>, head: Option<&Parts>) -> Option<VerdictAnswer> {
    Some(match explained.verdict? {
        Verdict::Takes { .. } => VerdictAnswer::Takes,
        Verdict::Outranked(criterion) => VerdictAnswer::Outranked {
            by: criterion.as_str(),
        },
        Verdict::Unmet(unmet) => unmet_answer(&unmet, head?),
    })
}

fn unmet_answer(unmet: &Unmet<'_>, head: &Parts) -> VerdictAnswer {
    let (path, query) = split_query(head.path_and_query());
    let (part, wanted, has) = match unmet {
        Unmet::Path(wanted) => ("path", wanted.to_string(), Some(path.to_owned())),
        Unmet::Method(wanted) => (
            "method",
            (*wanted).to_owned(),
            Some(head.method().to_owned()),
        ),
        Unmet::Header(wanted) => ("header", wanted.to_string(), header(wanted, head)),
        Unmet::Query(wanted) => {
            let value = query_value(query.unwrap_or(""), &wanted.name).map(str::to_owned);
            ("query-parameter", wanted.to_string(), value)
        }
    };
    let has = match unmet {
        Unmet::Header(NamedMatch { name, .. }) | Unmet::Query(NamedMatch { name, .. })
            if is_credential(name) =>
        {
            has.map(|_| "(not shown)".to_owned())
        }
        _ => has.map(|has| has.chars().take(MAX_SHOWN).collect()),
    };
    VerdictAnswer::Unmet { part, wanted, has }
}

/// What a request has under the name of a condition.
fn header(wanted: &NamedMatch, head: &Parts) -> Option<String> {
    if wanted.name.eq_ignore_ascii_case("host") {
        return head.authority().map(str::to_owned);
    }
    let mut values: Vec<String> = Vec::new();
    head.for_each_value(&wanted.name, &mut |value| {
        values.push(String::from_utf8_lossy(value).into_owned());
        true
    });
    (!values.is_empty()).then(|| values.join(", "))
}

fn outcome_answer(logical: &Logical, explained: &[Explained<'_>], head: &Parts) -> OutcomeAnswer {
    let of_rule = match outcome(logical, explained, head) {
        Outcome::Redirect { status, location } => {
            return OutcomeAnswer {
                reason: Some(Reason::Redirect.as_str()),
                status: Some(status),
                location: Some(location),
                ..OutcomeAnswer::default()
            };
        }
        Outcome::Preflight { status } => {
            return OutcomeAnswer {
                reason: Some(Reason::CorsPreflight.as_str()),
                status: Some(status),
                ..OutcomeAnswer::default()
            };
        }
        Outcome::Fail(reason) => return OutcomeAnswer::failed(reason, head),
        Outcome::Forward(of_rule) => of_rule,
    };
    let rule = explained
        .iter()
        .find(|one| matches!(one.verdict, Some(Verdict::Takes { .. })));
    let backends = rule.map_or(&[][..], |one| &one.rule.backends);
    let total: f64 = backends.iter().map(|b| f64::from(b.weight)).sum();
    let is_bytes = logical.protocol == Protocol::Tcp;
    let prospect = |(index, (backend, prospect)): (usize, _)| {
        let backend: &RuleBackend = backend;
        let prospect: Result<Box<Parts>, Reason> = prospect;
        let reason = prospect.as_ref().err().copied();
        let refusal = reason.filter(|_| !is_bytes);
        let (status, grpc_status) = refusal.map_or((None, None), |reason| statuses(reason, head));
        Prospect {
            backend: index,
            share: f64::from(backend.weight) / total,
            reason: reason.map(Reason::as_str),
            status,
            grpc_status,
            request: prospect.ok().filter(|_| !is_bytes).map(|head| Seen {
                path: head.path_and_query().to_owned(),
                authority: head.authority().unwrap_or_default().to_owned(),
            }),
        }
    };
    let of_backends = backends.iter().zip(of_rule).enumerate();
    let weighed = of_backends.filter(|(_, (backend, _))| backend.weight > 0);
    let prospects: Vec<Prospect> = weighed.map(prospect).collect();
    let forwarded = prospects.iter().any(|prospect| prospect.reason.is_none());
    // The same for all of them: it is the request's.
    let first = prospects.first();
    let all = first.filter(|first| prospects.iter().all(|other| other.reason == first.reason));
    OutcomeAnswer {
        forwarded,
        reason: all.and_then(|all| all.reason),
        status: all.and_then(|all| all.status),
        grpc_status: all.and_then(|all| all.grpc_status),
        location: None,
        backends: prospects,
    }
}

impl OutcomeAnswer {
    fn failed(reason: Reason, head: &Parts) -> Self {
        let (status, grpc_status) = statuses(reason, head);
        Self {
            reason: Some(reason.as_str()),
            status,
            grpc_status,
            ..Self::default()
        }
    }
}

/// The statuses that go with a reason: HTTP's, and gRPC's.
fn statuses(reason: Reason, head: &Parts) -> (Option<u16>, Option<u16>) {
    match is_grpc(&head.headers) {
        true => (Some(200), Some(grpc_status(reason))),
        false => (Some(reason.status()), None),
    }
}
