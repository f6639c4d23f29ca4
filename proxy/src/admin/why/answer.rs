//! The answer, as JSON.

use std::sync::Arc;

use naru_contract::ResourceName;
use serde::Serialize;

use crate::balance::Backend;
use crate::observe::reason::Reason;
use crate::route::Logical;

/// Bound on the matches in an answer. The match that applies is always included.
const MAX_MATCHES: usize = 1_000;

#[derive(Debug, Serialize)]
pub struct Answer {
    pub(super) client_namespace: String,
    /// `service`, `pod`, `passthrough` (outside the mesh: the connection goes there unchanged), or
    /// `unknown` until the controller has answered.
    pub(super) target: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) service: Option<Service>,
    /// In order of precedence: the first wins between equal matches.
    pub(super) routes: Vec<Route>,
    pub(super) rejected: Vec<Rejected>,
    /// `matches` refers to these by index.
    pub(super) rules: Vec<RuleAnswer>,
    /// In order of precedence.
    pub(super) matches: Vec<MatchAnswer>,
    /// Number of matches omitted.
    pub(super) matches_left_out: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) outcome: Option<OutcomeAnswer>,
}

#[derive(Debug, Serialize)]
pub(super) struct Service {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) port: u16,
    /// `detect`, `http`, `http2` or `tcp`.
    pub(super) protocol: &'static str,
}

#[derive(Debug, Serialize)]
pub(super) struct Route {
    pub(super) kind: &'static str,
    /// `namespace/name`
    pub(super) name: String,
}

/// A resource of the controller's that was rejected. The version before it stays in force, if there
/// was one.
#[derive(Debug, Serialize)]
pub(super) struct Rejected {
    pub(super) name: String,
    pub(super) reason: String,
}

#[derive(Debug, Serialize)]
pub(super) struct RuleAnswer {
    /// Empty: the default rule of a destination without attached routes.
    pub(super) kind: &'static str,
    pub(super) route: String,
    /// The rule's name, or its index. Empty for kinds of route with at most one rule: TLSRoute and
    /// TCPRoute.
    pub(super) rule: String,
    pub(super) filters: Vec<String>,
    pub(super) backends: Vec<BackendAnswer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) request_timeout_ms: Option<u128>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) backend_request_timeout_ms: Option<u128>,
    /// Attempts after the first.
    pub(super) retries: u32,
}

#[derive(Debug, Serialize)]
pub(super) struct BackendAnswer {
    /// `namespace/name:port`; empty if the backend is invalid.
    pub(super) service: String,
    pub(super) weight: u32,
    /// Why the backend is invalid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) invalid: Option<String>,
    pub(super) filters: Vec<String>,
    pub(super) endpoints: usize,
    /// How many of the endpoints are ejected.
    pub(super) ejected: usize,
}

#[derive(Debug, Serialize)]
pub(super) struct MatchAnswer {
    /// Index into `rules`.
    pub(super) rule: usize,
    /// A description.
    pub(super) matches: String,
    #[serde(flatten)]
    pub(super) verdict: Option<VerdictAnswer>,
}

#[derive(Debug, Serialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub(super) enum VerdictAnswer {
    Takes,
    /// It matches, but a match of higher precedence applies.
    Outranked {
        by: &'static str,
    },
    /// The first condition that does not hold.
    Unmet {
        /// `path`, `method`, `header` or `query-parameter`; `server-name` or `client-hello` of a
        /// connection.
        part: &'static str,
        /// The value that the match requires, described.
        wanted: String,
        /// The value of the request or connection. `None`: the value is absent.
        has: Option<String>,
    },
}

#[derive(Debug, Default, Serialize)]
pub(super) struct OutcomeAnswer {
    /// Whether the request or connection can reach a backend.
    pub(super) forwarded: bool,
    /// The reason with which the proxy would answer every such request itself, or end every such
    /// connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<&'static str>,
    /// The HTTP status of that answer. `None`: the connection is ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) status: Option<u16>,
    /// The gRPC status in addition, for a gRPC request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) grpc_status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) location: Option<String>,
    /// One for each backend of the rule with a weight.
    pub(super) backends: Vec<Prospect>,
}

#[derive(Debug, Serialize)]
pub(super) struct Prospect {
    /// Index into the rule's backends.
    pub(super) backend: usize,
    /// Its share of the requests or connections.
    pub(super) share: f64,
    /// The reason with which the proxy would answer this share itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) grpc_status: Option<u16>,
    /// The request as the backend would see it. `None`: the connection is opaque bytes to the
    /// proxy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) request: Option<Seen>,
}

#[derive(Debug, Serialize)]
pub(super) struct Seen {
    pub(super) path: String,
    pub(super) authority: String,
}

impl Service {
    pub(super) fn of(logical: &Logical) -> Self {
        Self {
            namespace: logical.namespace.to_string(),
            name: logical.service.to_string(),
            port: logical.port,
            protocol: logical.protocol.as_str(),
        }
    }
}

impl Route {
    pub(super) fn of(name: &ResourceName) -> Option<Self> {
        let (kind, namespace, name) = match name {
            ResourceName::HttpRoute { namespace, name } => ("HTTPRoute", namespace, name),
            ResourceName::GrpcRoute { namespace, name } => ("GRPCRoute", namespace, name),
            ResourceName::TlsRoute { namespace, name } => ("TLSRoute", namespace, name),
            ResourceName::TcpRoute { namespace, name } => ("TCPRoute", namespace, name),
            _ => return None,
        };
        Some(Self {
            kind,
            name: format!("{namespace}/{name}"),
        })
    }
}

impl Answer {
    /// Adds the matches in their order, each with its rule. Beyond the bound, only the match that
    /// applies is added.
    pub(super) fn add<'r, R: 'r>(
        &mut self,
        matches: impl Iterator<Item = (&'r R, String, Option<VerdictAnswer>)>,
        rule: impl Fn(&Self, &'r R) -> RuleAnswer,
    ) {
        let mut rules: Vec<&R> = Vec::new();
        for (index, (of, matches, verdict)) in matches.enumerate() {
            let takes = matches!(verdict, Some(VerdictAnswer::Takes));
            if index >= MAX_MATCHES && !takes {
                self.matches_left_out += 1;
                continue;
            }
            // Usually the rule of the previous match.
            let known = rules.iter().rposition(|rule| std::ptr::eq(*rule, of));
            let rule = known.unwrap_or_else(|| {
                rules.push(of);
                rules.len() - 1
            });
            self.matches.push(MatchAnswer {
                rule,
                matches,
                verdict,
            });
        }
        self.rules = rules.into_iter().map(|of| rule(self, of)).collect();
    }

    /// The kind of the route `namespace/name`; empty if there is no such route.
    pub(super) fn kind(&self, route: &str) -> &'static str {
        let route = self.routes.iter().find(|other| other.name == route);
        route.map_or("", |route| route.kind)
    }
}

impl BackendAnswer {
    pub(super) fn new(
        weight: u32,
        backend: &Result<Arc<Backend>, Arc<str>>,
        filters: Vec<String>,
    ) -> Self {
        let mut answer = Self {
            service: String::new(),
            weight,
            invalid: None,
            filters,
            endpoints: 0,
            ejected: 0,
        };
        match backend {
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

impl OutcomeAnswer {
    /// The outcome across all backends.
    pub(super) fn of(prospects: Vec<Prospect>) -> Self {
        let forwarded = prospects.iter().any(|prospect| prospect.reason.is_none());
        // The same for all backends, as it depends on the request alone.
        let first = prospects.first();
        let all = first.filter(|first| prospects.iter().all(|other| other.reason == first.reason));
        Self {
            forwarded,
            reason: all.and_then(|all| all.reason),
            status: all.and_then(|all| all.status),
            grpc_status: all.and_then(|all| all.grpc_status),
            location: None,
            backends: prospects,
        }
    }

    /// The connection is ended.
    pub(super) fn ended(reason: Reason) -> Self {
        Self {
            reason: Some(reason.as_str()),
            ..Self::default()
        }
    }
}
