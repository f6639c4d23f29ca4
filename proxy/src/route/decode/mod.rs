//! Contract messages in, [`Routes`] out. A message with unknown or unsupported content is an error
//! that names the field: nothing is guessed.

mod filter;

use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use naru_contract as contract;
use naru_contract::PathMatchKind;
use naru_contract::http_filter::Kind;
use regex::bytes::{Regex, RegexBuilder};

use super::problem::{In, Problem, header_name, method, problem};
use super::{
    Filter, Match, Mirror, NamedMatch, PathMatch, RetryPolicy, RouteRule, Routes, Rule,
    RuleBackend, ValueMatch,
};
use crate::balance::Backend;
use crate::observe::metrics::{Metrics, MirrorLabels, RequestLabels, ServiceLabels};
use crate::socket::Direction;
use filter::{check_filters, decode_filter, is_rewrite};

/// Length of a pattern, in bytes. Gateway API allows 4,096 characters for a header's value.
const MAX_REGEX_LENGTH: usize = 4 * 1024;
/// Memory of one compiled pattern, in bytes: enough for every usual pattern, too little for
/// `(\w{1000}){1000}`.
const MAX_REGEX_SIZE: usize = 256 * 1024;
/// Memory of the cache that matching fills, in bytes for each pattern and thread.
const MAX_REGEX_CACHE: usize = 256 * 1024;

/// Why a route is rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{route}: {field}: {problem}")]
pub struct DecodeError {
    /// `namespace/name`
    pub route: String,
    /// As `rules[0].matches[1].path`.
    pub field: String,
    pub problem: String,
}

/// Wait before the first retry where the rule has no backoff.
pub const DEFAULT_BACKOFF: Duration = Duration::from_millis(25);
/// The rules of `routes` (in order of precedence between equal matches). `resolve` maps the name of
/// an `endpoints/…` resource to its backend.
pub fn decode_routes(
    routes: &[&contract::HttpRoute],
    resolve: &mut dyn FnMut(&str) -> Option<Arc<Backend>>,
    metrics: &Metrics,
    service: &ServiceLabels,
) -> Result<Routes, DecodeError> {
    let mut rules = Vec::new();
    for route in routes {
        let name = format!("{}/{}", route.namespace, route.name);
        let mut context = RuleContext {
            route: name.as_str().into(),
            resolve,
            metrics,
            service,
        };
        for (index, rule) in route.rules.iter().enumerate() {
            let rule = context.rule(rule, index).map_err(|problem| DecodeError {
                route: name.clone(),
                field: format!("rules[{index}]{}", problem.field),
                problem: problem.text,
            })?;
            rules.push(rule);
        }
    }
    Ok(Routes::new(rules))
}

/// The rule of a Service without routes, or of a pod: every request goes to the one backend.
pub fn default_rule(backend: Arc<Backend>, metrics: &Metrics, service: &ServiceLabels) -> Rule {
    let empty: Arc<str> = "".into();
    let labels = labels(service, &empty, &empty);
    let with_backend = metrics.request(RequestLabels {
        backend: backend_label(&backend),
        ..labels.clone()
    });
    Rule {
        route: empty.clone(),
        name: empty,
        filters: Vec::new(),
        mirrors: Vec::new(),
        backends: vec![RuleBackend {
            weight: 1,
            backend: Ok(backend),
            filters: Vec::new(),
            mirrors: Vec::new(),
            metrics: with_backend,
        }],
        request_timeout: None,
        backend_request_timeout: None,
        retry: None,
        metrics: metrics.request(labels),
    }
}

struct RuleContext<'a> {
    route: Arc<str>,
    resolve: &'a mut dyn FnMut(&str) -> Option<Arc<Backend>>,
    metrics: &'a Metrics,
    service: &'a ServiceLabels,
}

impl RuleContext<'_> {
    fn rule(&mut self, rule: &contract::HttpRule, index: usize) -> Result<RouteRule, Problem> {
        let name: Arc<str> = if rule.name.is_empty() {
            index.to_string().into()
        } else {
            rule.name.as_str().into()
        };
        let labels = labels(self.service, &self.route, &name);
        let matches = each(&rule.matches, ".matches", decode_match)?;
        let (filters, mirrors) = self.filters(&rule.filters, &labels)?;
        check_filters(&matches, &filters).within(".filters")?;
        let mut backends = Vec::with_capacity(rule.backends.len());
        for (index, backend) in rule.backends.iter().enumerate() {
            let backend = self
                .backend(backend, &matches, &filters, &labels)
                .within(format_args!(".backends[{index}]"))?;
            backends.push(backend);
        }
        let rule = Rule {
            route: self.route.clone(),
            name,
            filters,
            mirrors,
            backends,
            request_timeout: milliseconds(rule.request_timeout_ms),
            backend_request_timeout: milliseconds(rule.backend_request_timeout_ms),
            retry: rule
                .retry
                .as_ref()
                .map(|retry| decode_retry(retry).within(".retry"))
                .transpose()?,
            metrics: self.metrics.request(labels),
        };
        Ok(RouteRule {
            matches,
            rule: Arc::new(rule),
        })
    }

    fn backend(
        &mut self,
        backend: &contract::HttpBackend,
        matches: &[Match],
        rule_filters: &[Filter],
        labels: &RequestLabels,
    ) -> Result<RuleBackend, Problem> {
        let (filters, mirrors) = self.filters(&backend.filters, labels)?;
        check_filters(matches, &filters).within(".filters")?;
        for (index, filter) in filters.iter().enumerate() {
            let text = match filter {
                Filter::Redirect(_) => "a backend can't redirect",
                Filter::Cors(_) => "a backend can't answer for its rule",
                Filter::Rewrite(_) if rule_filters.iter().any(is_rewrite) => {
                    "the rule rewrites already"
                }
                _ => continue,
            };
            return Err(problem(text)).within(format_args!(".filters[{index}]"));
        }
        let mut label: Arc<str> = "".into();
        let target = if backend.invalid.is_empty() {
            let found = (self.resolve)(&backend.endpoints)
                .ok_or_else(|| problem(format_args!("{:?} is not known", backend.endpoints)));
            let found = found.within(".endpoints")?;
            label = backend_label(&found);
            Ok(found)
        } else {
            Err(backend.invalid.as_str().into())
        };
        Ok(RuleBackend {
            weight: backend.weight,
            backend: target,
            filters,
            mirrors,
            metrics: self.metrics.request(RequestLabels {
                backend: label,
                ..labels.clone()
            }),
        })
    }
}

impl RuleContext<'_> {
    /// Except mirrors: they get the request that results from all other filters.
    fn filters(
        &mut self,
        messages: &[contract::HttpFilter],
        labels: &RequestLabels,
    ) -> Result<(Vec<Filter>, Vec<Mirror>), Problem> {
        let (mut filters, mut mirrors) = (Vec::new(), Vec::new());
        for (index, message) in messages.iter().enumerate() {
            let decoded = match &message.kind {
                Some(Kind::Mirror(mirror)) => self.mirror(mirror, labels).map(|m| mirrors.push(m)),
                _ => decode_filter(message).map(|filter| filters.push(filter)),
            };
            decoded.within(format_args!(".filters[{index}]"))?;
        }
        Ok((filters, mirrors))
    }

    fn mirror(
        &mut self,
        message: &contract::Mirror,
        labels: &RequestLabels,
    ) -> Result<Mirror, Problem> {
        if message.denominator == 0 || message.numerator > message.denominator {
            return Err(problem(format_args!(
                "{} of {} is no share",
                message.numerator, message.denominator
            )));
        }
        let backend = (self.resolve)(&message.endpoints)
            .ok_or_else(|| problem(format_args!("{:?} is not known", message.endpoints)));
        let backend = backend.within(".endpoints")?;
        Ok(Mirror {
            numerator: message.numerator,
            denominator: message.denominator,
            metrics: self.metrics.mirror(MirrorLabels {
                namespace: labels.namespace.clone(),
                service: labels.service.clone(),
                port: labels.port,
                route: labels.route.clone(),
                rule: labels.rule.clone(),
                mirror: backend_label(&backend),
            }),
            backend,
        })
    }
}

fn labels(service: &ServiceLabels, route: &Arc<str>, rule: &Arc<str>) -> RequestLabels {
    RequestLabels {
        direction: Direction::Outbound,
        client: "".into(),
        namespace: service.namespace.clone(),
        service: service.service.clone(),
        port: Some(service.port),
        route: route.clone(),
        rule: rule.clone(),
        backend: "".into(),
    }
}

fn backend_label(backend: &Backend) -> Arc<str> {
    format!("{}/{}:{}", backend.namespace, backend.service, backend.port).into()
}

fn each<M, T>(
    messages: &[M],
    field: &str,
    decode: impl Fn(&M) -> Result<T, Problem>,
) -> Result<Vec<T>, Problem> {
    messages
        .iter()
        .enumerate()
        .map(|(index, message)| decode(message).within(format_args!("{field}[{index}]")))
        .collect()
}

fn milliseconds(number: u64) -> Option<Duration> {
    (number > 0).then(|| Duration::from_millis(number))
}

fn decode_match(message: &contract::HttpMatch) -> Result<Match, Problem> {
    let path = match &message.path {
        None => PathMatch::default(),
        Some(path) => decode_path(path).within(".path")?,
    };
    let method = match message.method.as_str() {
        "" => None,
        name => Some(method(name).within(".method")?.into()),
    };
    let headers = each(&message.headers, ".headers", |header| {
        header_name(&header.name)?;
        decode_named(header)
    })?;
    let query = each(&message.query, ".query", decode_named)?;
    Ok(Match {
        path,
        method,
        headers: first_of_each_name(headers, |a, b| a.eq_ignore_ascii_case(b)),
        query: first_of_each_name(query, |a, b| a == b),
    })
}

fn decode_path(message: &contract::PathMatch) -> Result<PathMatch, Problem> {
    let value = message.value.as_str();
    match PathMatchKind::try_from(message.kind) {
        Ok(PathMatchKind::Exact) => Ok(PathMatch::Exact(absolute_path(value)?.into())),
        Ok(PathMatchKind::Prefix) => Ok(PathMatch::prefix(absolute_path(value)?)),
        Ok(PathMatchKind::RegularExpression) => Ok(PathMatch::Regex(whole_regex(value)?)),
        Err(_) => Err(unknown_kind(message.kind)),
    }
}

fn decode_named(message: &contract::NamedMatch) -> Result<NamedMatch, Problem> {
    if message.name.is_empty() {
        return Err(problem("the name is empty"));
    }
    Ok(NamedMatch {
        name: message.name.as_str().into(),
        value: if message.regular_expression {
            ValueMatch::Regex(whole_regex(&message.value)?)
        } else {
            ValueMatch::Exact(message.value.as_str().into())
        },
    })
}

/// The specification uses only the first of several conditions on one name.
fn first_of_each_name(all: Vec<NamedMatch>, same: fn(&str, &str) -> bool) -> Vec<NamedMatch> {
    let mut kept: Vec<NamedMatch> = Vec::with_capacity(all.len());
    for named in all {
        if !kept.iter().any(|other| same(&other.name, &named.name)) {
            kept.push(named);
        }
    }
    kept
}

fn decode_retry(message: &contract::Retry) -> Result<RetryPolicy, Problem> {
    let codes = each(&message.codes, ".codes", |code| match code {
        400..=599 => Ok(*code as u16),
        other => Err(problem(format_args!("{other} is not from 400 to 599"))),
    })?;
    Ok(RetryPolicy {
        codes,
        attempts: message.attempts,
        backoff: milliseconds(message.backoff_ms).unwrap_or(DEFAULT_BACKOFF),
    })
}

fn unknown_kind(kind: i32) -> Problem {
    problem(format_args!(
        "a kind ({kind}) that this proxy does not know"
    ))
}

fn absolute_path(value: &str) -> Result<&str, Problem> {
    if !value.starts_with('/') {
        return Err(problem(format_args!(
            "{value:?} does not begin with a slash"
        )));
    }
    path_text(value)
}

/// Validates the path of a request.
fn path_text(value: &str) -> Result<&str, Problem> {
    let fit = value
        .bytes()
        .all(|b| b.is_ascii_graphic() && b != b'?' && b != b'#');
    let absolute = if value.starts_with('/') {
        PathAndQuery::try_from(value)
    } else {
        PathAndQuery::try_from(format!("/{value}"))
    };
    if fit && absolute.is_ok() {
        Ok(value)
    } else {
        Err(problem(format_args!("{value:?} is no path")))
    }
}

/// A pattern that must match the whole text. Linear in the length of the text, as the `regex` crate
/// guarantees.
fn whole_regex(pattern: &str) -> Result<Regex, Problem> {
    if pattern.len() > MAX_REGEX_LENGTH {
        return Err(problem(format_args!(
            "a pattern of {} bytes (at most {MAX_REGEX_LENGTH})",
            pattern.len()
        )));
    }
    let compile = |pattern: &str| {
        RegexBuilder::new(pattern)
            .size_limit(MAX_REGEX_SIZE)
            .dfa_size_limit(MAX_REGEX_CACHE)
            .build()
            .map_err(|error| problem(format_args!("pattern {pattern:?}: {error}")))
    };
    // Compiled on its own first: `a)|(b` would be valid only inside of the parentheses below.
    compile(pattern)?;
    compile(&format!(r"\A(?:{pattern})\z"))
}
