//! Explains a connection: which route applies, by the first bytes of its client.

use super::MAX_SHOWN;
use super::answer::{Answer, BackendAnswer, OutcomeAnswer, Prospect, RuleAnswer, VerdictAnswer};
use super::request::EVERYTHING;
use crate::balance;
use crate::observe::reason::Reason;
use crate::route::opaque::{Explained, OpaqueRoute, OpaqueRoutes, Verdict, explain, outcome};
use crate::route::{Logical, Protocol};
use crate::wire::client_hello::Hello;

impl Answer {
    /// Every name of the routes. With a `hello`: also which name matches a connection that begins
    /// with it, and the outcome.
    pub(super) fn explain_connection(&mut self, routes: &OpaqueRoutes, hello: Option<&Hello>) {
        let explained = explain(routes, hello);
        let matches = explained.iter().map(|one| {
            let matches = match one.hostname {
                Some(hostname) => format!("SNI {hostname}"),
                None => "every connection".to_owned(),
            };
            (one.route, matches, verdict(one, hello))
        });
        self.add(matches, opaque_rule);
        self.outcome = hello.map(|hello| outcome_answer(routes, hello));
    }

    /// A connection to a port without routes for connections: other protocols than HTTP go to the
    /// Service's own pods, if there can be any.
    pub(super) fn explain_bytes(&mut self, logical: &Logical) {
        self.outcome = Some(match logical.protocol {
            Protocol::Detect | Protocol::Tcp => {
                let rule = &*logical.default_rule;
                let takes = (rule, EVERYTHING.to_owned(), Some(VerdictAnswer::Takes));
                self.add(std::iter::once(takes), RuleAnswer::of);
                match rule.backends.first() {
                    None => OutcomeAnswer::ended(Reason::NoBackend),
                    Some(backend) => {
                        let reason = match &backend.backend {
                            Err(_) => Some(Reason::BackendInvalid),
                            Ok(target) if balance::is_usable(&target.endpoints()) => None,
                            Ok(_) => Some(Reason::NoEndpoint),
                        };
                        OutcomeAnswer::of(vec![prospect(0, 1.0, reason)])
                    }
                }
            }
            Protocol::Http => OutcomeAnswer {
                status: Reason::BadRequest.status(),
                ..OutcomeAnswer::ended(Reason::BadRequest)
            },
            // It ends because HTTP/2's preface is missing, which has no reason of its own.
            Protocol::Http2 => OutcomeAnswer::default(),
        });
    }
}

fn opaque_rule(answer: &Answer, route: &OpaqueRoute) -> RuleAnswer {
    let backends = route.backends.iter();
    RuleAnswer {
        kind: answer.kind(&route.name),
        route: route.name.to_string(),
        rule: String::new(),
        filters: Vec::new(),
        backends: backends
            .map(|backend| BackendAnswer::new(backend.weight, &backend.backend, Vec::new()))
            .collect(),
        request_timeout_ms: None,
        backend_request_timeout_ms: None,
        retries: 0,
    }
}

fn verdict(explained: &Explained<'_>, hello: Option<&Hello>) -> Option<VerdictAnswer> {
    let wanted = explained.hostname.unwrap_or_default();
    let unmet = |part, has| VerdictAnswer::Unmet {
        part,
        wanted: wanted.to_owned(),
        has,
    };
    Some(match explained.verdict? {
        Verdict::Takes => VerdictAnswer::Takes,
        Verdict::Outranked(criterion) => VerdictAnswer::Outranked {
            by: criterion.as_str(),
        },
        Verdict::OtherName => {
            let asked = match hello {
                Some(Hello::Complete(hello)) => hello.server_name.as_deref(),
                _ => None,
            };
            let shown = asked.map(|name| name.chars().take(MAX_SHOWN).collect());
            unmet("server-name", shown)
        }
        Verdict::NoHello => unmet("client-hello", None),
    })
}

fn outcome_answer(routes: &OpaqueRoutes, hello: &Hello) -> OutcomeAnswer {
    let of_backends = outcome(routes, hello);
    let (of_backends, route) = match (of_backends, routes.decide(hello)) {
        (Ok(of_backends), Ok(route)) => (of_backends, route),
        (Err(reason), _) | (_, Err(reason)) => return OutcomeAnswer::ended(reason),
    };
    let total: f64 = route.backends.iter().map(|b| f64::from(b.weight)).sum();
    let of_backends = route.backends.iter().zip(of_backends).enumerate();
    let weighed = of_backends.filter(|(_, (backend, _))| backend.weight > 0);
    let prospects = weighed.map(|(index, (backend, of_backend))| {
        prospect(index, f64::from(backend.weight) / total, of_backend.err())
    });
    OutcomeAnswer::of(prospects.collect())
}

fn prospect(backend: usize, share: f64, reason: Option<Reason>) -> Prospect {
    Prospect {
        backend,
        share,
        reason: reason.map(Reason::as_str),
        status: None,
        grpc_status: None,
        request: None,
    }
}
