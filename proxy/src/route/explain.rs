//! Explains routing decisions: every match with the condition that fails, and the outcome of the
//! request.
//!
//! In: the head of a hypothetical request. Out: the results of the functions behind
//! [`super::decide`], for every rule and every backend instead of the chosen one. Nothing is
//! counted and no endpoint is picked.

use std::sync::Arc;

use http::request::Parts;

use super::filter::{Answer, Context, apply_to_request};
use super::matches::{Match, Precedence, Unmet, split_query};
use super::{RequestHead as _, Routes, Rule};
use crate::balance;
use crate::observe::reason::Reason;
use crate::route::Logical;

/// A match of a rule, and its verdict on a request.
#[derive(Debug)]
pub struct Explained<'r> {
    pub rule: &'r Arc<Rule>,
    /// `None`: the default rule of a Service without attached routes.
    pub matched: Option<&'r Match>,
    /// `None`: no request was given.
    pub verdict: Option<Verdict<'r>>,
}

#[derive(Clone, Copy, Debug)]
pub enum Verdict<'r> {
    /// It applies, and its prefix covers so many bytes of the path.
    Takes { covered: usize },
    /// It matches, but another match comes first by this criterion.
    Outranked(Criterion),
    /// This condition does not hold.
    Unmet(Unmet<'r>),
}

/// The criterion by which one match precedes another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Criterion {
    ExactPath,
    RegularExpression,
    LongerPath,
    Method,
    MoreHeaders,
    MoreQueryParameters,
    /// Its route is older, or equally old and first by name: the controller sends routes in this
    /// order.
    OlderRoute,
    /// Its rule comes earlier in the same route.
    EarlierRule,
    /// It comes earlier in the same rule.
    EarlierMatch,
}

impl Criterion {
    /// The identifier in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ExactPath => "exact-path",
            Self::RegularExpression => "regular-expression",
            Self::LongerPath => "longer-path",
            Self::Method => "method",
            Self::MoreHeaders => "more-headers",
            Self::MoreQueryParameters => "more-query-parameters",
            Self::OlderRoute => "older-route",
            Self::EarlierRule => "earlier-rule",
            Self::EarlierMatch => "earlier-match",
        }
    }

    fn between(first: &(Match, Arc<Rule>), second: &(Match, Arc<Rule>)) -> Self {
        let (a, b): (Precedence, Precedence) = (first.0.precedence(), second.0.precedence());
        if a.path != b.path {
            return match a.path {
                0 => Self::ExactPath,
                _ => Self::RegularExpression,
            };
        }
        if a.chars != b.chars {
            Self::LongerPath
        } else if a.any_method != b.any_method {
            Self::Method
        } else if a.headers != b.headers {
            Self::MoreHeaders
        } else if a.query != b.query {
            Self::MoreQueryParameters
        } else if first.1.route != second.1.route {
            Self::OlderRoute
        } else if !Arc::ptr_eq(&first.1, &second.1) {
            Self::EarlierRule
        } else {
            Self::EarlierMatch
        }
    }
}

/// Every match of a Service's routes in order of precedence, with its verdict on `head`, if given.
pub fn explain<'r>(logical: &'r Logical, head: Option<&Parts>) -> Vec<Explained<'r>> {
    match &logical.routes {
        Some(routes) => explain_routes(routes, head),
        None => vec![Explained {
            rule: &logical.default_rule,
            matched: None,
            verdict: head.map(|_| Verdict::Takes { covered: 0 }),
        }],
    }
}

fn explain_routes<'r>(routes: &'r Routes, head: Option<&Parts>) -> Vec<Explained<'r>> {
    let mut taken = None;
    let explain = |entry: &'r (Match, Arc<Rule>)| {
        let verdict = head.map(|head| {
            let (path, query) = split_query(head.path_and_query());
            match entry.0.check(head, path, query.unwrap_or("")) {
                Err(unmet) => Verdict::Unmet(unmet),
                Ok(covered) => match taken {
                    Some(first) => Verdict::Outranked(Criterion::between(first, entry)),
                    None => {
                        taken = Some(entry);
                        Verdict::Takes { covered }
                    }
                },
            }
        });
        Explained {
            rule: &entry.1,
            matched: Some(&entry.0),
            verdict,
        }
    };
    routes.entries().iter().map(explain).collect()
}

/// The outcome of a request.
#[derive(Debug)]
pub enum Outcome {
    Redirect {
        status: u16,
        location: String,
    },
    /// A preflight request is answered with this status.
    Preflight {
        status: u16,
    },
    Fail(Reason),
    /// For each of the rule's backends in their order: the request that it would get, or why it
    /// would get none.
    Forward(Vec<Result<Box<Parts>, Reason>>),
}

impl Outcome {
    /// The outcome of `head`, to which `rule` applies with `covered` bytes of its path.
    fn of(rule: &Rule, covered: usize, port: u16, mut head: Parts) -> Self {
        let context = Context {
            matched_prefix: covered,
            port,
        };
        // The response is not explained.
        let mut origin = None;
        match apply_to_request(&rule.filters, context, &mut head, &mut origin) {
            None => {}
            Some(Answer::Redirect(status, location)) => {
                return Self::Redirect { status, location };
            }
            Some(Answer::Preflight(answer)) => {
                let status = answer.status;
                return Self::Preflight { status };
            }
        }
        if rule.backends.iter().all(|backend| backend.weight == 0) {
            return Self::Fail(Reason::NoBackend);
        }
        let prospects = rule.backends.iter().map(|backend| {
            let Ok(target) = &backend.backend else {
                return Err(Reason::BackendInvalid);
            };
            if !balance::is_usable(&target.endpoints()) {
                return Err(Reason::NoEndpoint);
            }
            let mut head = Box::new(head.clone());
            // A backend's filters never answer: decoding ensures that.
            apply_to_request(&backend.filters, context, &mut *head, &mut None);
            Ok(head)
        });
        Self::Forward(prospects.collect())
    }
}

/// The outcome of `head`; `explained` has all of its verdicts.
pub fn outcome(logical: &Logical, explained: &[Explained<'_>], head: &Parts) -> Outcome {
    let taken = explained.iter().find_map(|one| match one.verdict {
        Some(Verdict::Takes { covered }) => Some((one.rule, covered)),
        _ => None,
    });
    match taken {
        Some((rule, covered)) => Outcome::of(rule, covered, logical.port, head.clone()),
        None => Outcome::Fail(Reason::NoRoute),
    }
}
