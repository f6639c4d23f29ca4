//! Explains a request: which rule applies.

use http::request::Parts;

use super::MAX_SHOWN;
use super::answer::{
    Answer, BackendAnswer, OutcomeAnswer, Prospect, RuleAnswer, Seen, VerdictAnswer,
};
use crate::http::http2::{grpc_status, is_grpc};
use crate::observe::reason::Reason;
use crate::route::{
    Explained, Filter, HeaderFields as _, Logical, Mirror, NamedMatch, Outcome, Protocol,
    RequestHead as _, Rule, RuleBackend, Unmet, Verdict, explain, is_credential, outcome,
    query_value, split_query,
};

impl Answer {
    /// Every match of the destination's routes. With a `head`: also which of them apply, and the
    /// outcome.
    pub(super) fn explain_request(&mut self, logical: &Logical, head: Option<&Parts>) {
        let explained = explain(logical, head);
        let matches = explained.iter().map(|one| {
            let matches = match one.matched {
                Some(matched) => matched.to_string(),
                None => EVERYTHING.to_owned(),
            };
            (&**one.rule, matches, verdict(one, head))
        });
        self.add(matches, RuleAnswer::of);
        self.outcome = head.map(|head| outcome_answer(logical, &explained, head));
    }
}

/// The description of the default rule's match, for a destination without attached routes.
pub(super) const EVERYTHING: &str = "everything";

impl RuleAnswer {
    pub(super) fn of(answer: &Answer, rule: &Rule) -> Self {
        let backends = rule.backends.iter().map(|backend| {
            let filters = in_words(&backend.filters, &backend.mirrors);
            BackendAnswer::new(backend.weight, &backend.backend, filters)
        });
        Self {
            kind: answer.kind(&rule.route),
            route: rule.route.to_string(),
            rule: rule.name.to_string(),
            filters: in_words(&rule.filters, &rule.mirrors),
            backends: backends.collect(),
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

/// The value in a request under the name of a condition.
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
    let is_bytes = logical.protocol == Protocol::Tcp;
    let total: f64 = backends.iter().map(|b| f64::from(b.weight)).sum();
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
    OutcomeAnswer::of(weighed.map(prospect).collect())
}

impl OutcomeAnswer {
    pub(super) fn failed(reason: Reason, head: &Parts) -> Self {
        let (status, grpc_status) = statuses(reason, head);
        Self {
            reason: Some(reason.as_str()),
            status,
            grpc_status,
            ..Self::default()
        }
    }
}

/// The HTTP status and gRPC status of a reason.
fn statuses(reason: Reason, head: &Parts) -> (Option<u16>, Option<u16>) {
    match is_grpc(&head.headers) {
        true => (Some(200), Some(grpc_status(reason))),
        false => (reason.status(), None),
    }
}
