//! An HTTPRoute as written, validated like its CRD, and reduced to the fields that routing tables
//! need. An unsupported feature makes the whole route invalid, with the reason: a route is never
//! applied in part.

use std::sync::LazyLock;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use naru_contract as contract;
use naru_contract::{PathMatchKind, http_filter::Kind};
use regex::Regex;

use super::checks::{Failure, METHODS, at_most, header_name, optional_port, referent};
use super::filters;
use crate::source::objects::*;
use crate::source::parse::problem::Invalid;
use crate::source::parse::{builtin, duration, gateway};

const MAX_PARENTS: usize = 32;
const MAX_RULES: usize = 16;
const MAX_MATCHES: usize = 64;
const MAX_MATCHES_OF_A_ROUTE: usize = 128;
const MAX_BACKENDS: usize = 16;
const MAX_NAMED_MATCHES: usize = 16;
const MAX_PATH: usize = 1024;
const MAX_VALUE: usize = 4096;
const MAX_WEIGHT: i64 = 1_000_000;
const DEFAULT_WEIGHT: i64 = 1;
/// The default number of retries in a rule with retries.
const DEFAULT_RETRY_ATTEMPTS: i64 = 1;
const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";
/// Sequences that an exact or prefix path must not contain, because normalized paths do not.
const NOT_IN_PATHS: [&str; 7] = ["//", "/./", "/../", "%2f", "%2F", "#", "?"];

static PATH: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^(?:[-A-Za-z0-9/._~!$&'()*+,;=:@]|%[0-9a-fA-F]{2})+$").expect("a constant pattern")
});

pub fn http_route(object: gateway::HttpRoute) -> Result<Route, Invalid> {
    // Hostnames do not apply to a route that is attached to a Service (GEP-1294).
    let gateway::HttpRouteSpec {
        parent_refs, rules, ..
    } = object.spec;
    let rules = rules.unwrap_or_else(|| vec![gateway::HttpRule::default()]);
    if rules.is_empty() {
        return Err(Invalid::new("spec.rules", "there has to be at least one"));
    }
    let rules = rules.into_iter().map(Ok).collect();
    reduce(RouteKind::Http, &object.metadata, parent_refs, rules)
}

/// Reduces a route of any kind. `rules`: its rules, or why one of them is not used.
pub fn reduce(
    kind: RouteKind,
    metadata: &ObjectMeta,
    parent_refs: Vec<gateway::ParentRef>,
    rules: Vec<Result<gateway::HttpRule, Failure>>,
) -> Result<Route, Invalid> {
    let name = builtin::name(metadata)?;
    let created = builtin::created(metadata);
    let generation = metadata.generation.unwrap_or_default();
    at_most("spec.parentRefs", parent_refs.len(), MAX_PARENTS)?;
    let mut parents = Vec::new();
    for (i, parent) in parent_refs.into_iter().enumerate() {
        let field = format!("spec.parentRefs[{i}]");
        let port = optional_port(&format!("{field}.port"), parent.port)?;
        // Gateways as parents are handled by other controllers.
        let group = parent.group.unwrap_or_else(|| GATEWAY_GROUP.to_owned());
        if builtin::is_core(&group) && parent.kind.as_deref() == Some("Service") {
            let names_namespace = parent.namespace.is_some();
            let namespace = parent.namespace.unwrap_or_else(|| name.namespace.clone());
            parents.push(ParentRef {
                group,
                names_namespace,
                service: Name::new(namespace, parent.name),
                port,
                port_name: parent.section_name.filter(|name| !name.is_empty()),
            });
        }
    }
    at_most("spec.rules", rules.len(), MAX_RULES)?;
    let matches: usize = (rules.iter().flatten())
        .map(|rule| rule.matches.as_ref().map_or(0, Vec::len))
        .sum();
    at_most(
        "spec.rules[*].matches (of all rules)",
        matches,
        MAX_MATCHES_OF_A_ROUTE,
    )?;
    let mut reduced = Vec::with_capacity(rules.len());
    let mut refused = None;
    for (i, given) in rules.into_iter().enumerate() {
        let field = format!("spec.rules[{i}]");
        match given.and_then(|given| rule(&field, &name.namespace, given)) {
            Ok(rule) => reduced.push(rule),
            // The rest is validated all the same, so that its errors are reported too.
            Err(Failure::Unsupported(reason)) => refused = refused.or(Some(reason)),
            Err(Failure::Invalid(invalid)) => return Err(invalid),
        }
    }
    if refused.is_some() {
        reduced.clear();
    }
    Ok(Route {
        kind,
        name,
        created,
        generation,
        parents,
        hostnames: Vec::new(),
        rules: reduced,
        refused,
    })
}

fn rule(field: &str, namespace: &str, given: gateway::HttpRule) -> Result<Rule, Failure> {
    let matches = matches(field, given.matches.unwrap_or_default())?;
    let filters = filters::filters(&format!("{field}.filters"), namespace, given.filters)?;
    filters::prefix_match_is_possible(field, &filters, &matches)?;
    if (filters.iter()).any(|f| matches!(f.kind(), Some(Kind::Redirect(_))))
        && !given.backend_refs.is_empty()
    {
        return Err(Invalid::new(
            format!("{field}.backendRefs"),
            "a rule that redirects has no backends: take one of the two away",
        )
        .into());
    }
    at_most(
        &format!("{field}.backendRefs"),
        given.backend_refs.len(),
        MAX_BACKENDS,
    )?;
    let mut backends = Vec::with_capacity(given.backend_refs.len());
    for (i, given) in given.backend_refs.into_iter().enumerate() {
        let backend = backend(&format!("{field}.backendRefs[{i}]"), namespace, given)?;
        filters::prefix_match_is_possible(field, &backend.filters, &matches)?;
        backends.push(backend);
    }
    if given.session_persistence.is_some() {
        return Err(Failure::Unsupported(format!(
            "{field}.sessionPersistence is not supported"
        )));
    }
    let timeouts = given.timeouts.unwrap_or(gateway::Timeouts {
        request: None,
        backend_request: None,
    });
    let request_timeout_ms = milliseconds(
        &format!("{field}.timeouts.request"),
        timeouts.request.as_deref(),
    )?;
    let backend_field = format!("{field}.timeouts.backendRequest");
    let backend_request_timeout_ms =
        milliseconds(&backend_field, timeouts.backend_request.as_deref())?;
    if request_timeout_ms > 0 && backend_request_timeout_ms > request_timeout_ms {
        return Err(Invalid::new(
            backend_field,
            "it may not be longer than timeouts.request, within which it lies",
        )
        .into());
    }
    let retry = match given.retry {
        None => None,
        Some(given) => Some(retry(&format!("{field}.retry"), given)?),
    };
    Ok(Rule {
        name: given.name.unwrap_or_default(),
        matches,
        filters,
        backends,
        request_timeout_ms,
        backend_request_timeout_ms,
        retry,
    })
}

fn retry(field: &str, given: gateway::Retry) -> Result<contract::Retry, Invalid> {
    let mut codes = Vec::with_capacity(given.codes.len());
    for (i, code) in given.codes.into_iter().enumerate() {
        let code =
            (u32::try_from(code).ok().filter(|c| (400..600).contains(c))).ok_or_else(|| {
                Invalid::new(
                    format!("{field}.codes[{i}]"),
                    format!("{code} is not a status from 400 to 599"),
                )
            })?;
        if !codes.contains(&code) {
            codes.push(code);
        }
    }
    let attempts = given.attempts.unwrap_or(DEFAULT_RETRY_ATTEMPTS);
    Ok(contract::Retry {
        codes,
        attempts: u32::try_from(attempts).map_err(|_| {
            Invalid::new(
                format!("{field}.attempts"),
                format!("{attempts} is not a number of retries"),
            )
        })?,
        backoff_ms: milliseconds(&format!("{field}.backoff"), given.backoff.as_deref())?,
    })
}

fn backend(
    field: &str,
    namespace: &str,
    given: gateway::BackendRef,
) -> Result<BackendRef, Failure> {
    let weight_field = format!("{field}.weight");
    let weight = given.weight.unwrap_or(DEFAULT_WEIGHT);
    if !(0..=MAX_WEIGHT).contains(&weight) {
        return Err(
            Invalid::new(weight_field, format!("{weight} is not 0 to {MAX_WEIGHT}")).into(),
        );
    }
    let backend = BackendRef {
        to: referent(
            field,
            namespace,
            gateway::BackendObject {
                group: given.group,
                kind: given.kind,
                namespace: given.namespace,
                name: given.name,
                port: given.port,
            },
        )?,
        weight: u32::try_from(weight).unwrap_or_default(),
        filters: filters::filters(&format!("{field}.filters"), namespace, given.filters)?,
    };
    // The filter responds before a backend is picked.
    let answers = |filter: &Filter| match filter.kind() {
        Some(Kind::Redirect(_)) => Some("redirect"),
        Some(Kind::Cors(_)) => Some("CORS filter"),
        _ => None,
    };
    if let Some(what) = backend.filters.iter().find_map(answers) {
        return Err(Failure::Unsupported(format!(
            "{field}.filters: a {what} of a single backend is not supported; give the rule the \
             filter"
        )));
    }
    Ok(backend)
}

fn matches(
    field: &str,
    given: Vec<gateway::HttpMatch>,
) -> Result<Vec<contract::HttpMatch>, Failure> {
    at_most(&format!("{field}.matches"), given.len(), MAX_MATCHES)?;
    (given.into_iter().enumerate())
        .map(|(i, given)| {
            let field = format!("{field}.matches[{i}]");
            let path = match given.path {
                None => None,
                Some(path) => Some(path_match(&format!("{field}.path"), path)?),
            };
            let method = given.method.unwrap_or_default();
            if !method.is_empty() && !METHODS.contains(&method.as_str()) {
                return Err(Invalid::new(
                    format!("{field}.method"),
                    format!("{method:?} is not one of {}", METHODS.join(", ")),
                )
                .into());
            }
            Ok(contract::HttpMatch {
                path,
                headers: named_matches(&format!("{field}.headers"), given.headers, true)?,
                query: named_matches(&format!("{field}.queryParams"), given.query_params, false)?,
                method,
            })
        })
        .collect()
}

fn path_match(field: &str, given: gateway::PathMatch) -> Result<contract::PathMatch, Failure> {
    let kind = match given.kind.as_deref() {
        None | Some("PathPrefix") => PathMatchKind::Prefix,
        Some("Exact") => PathMatchKind::Exact,
        Some("RegularExpression") => PathMatchKind::RegularExpression,
        Some(other) => {
            return Err(Failure::Unsupported(format!(
                "{field}.type {other:?} is not supported"
            )));
        }
    };
    let value = given.value.unwrap_or_else(|| "/".to_owned());
    let field = format!("{field}.value");
    if value.len() > MAX_PATH {
        return Err(Invalid::new(field, format!("it may have {MAX_PATH} characters")).into());
    }
    if kind == PathMatchKind::RegularExpression {
        pattern(&field, &value)?;
    } else {
        if !value.starts_with('/') {
            return Err(Invalid::new(field, format!("{value:?} has to begin with a /")).into());
        }
        if let Some(found) = NOT_IN_PATHS.iter().find(|part| value.contains(**part)) {
            return Err(Invalid::new(field, format!("{value:?} may not contain {found:?}")).into());
        }
        if value.ends_with("/..") || value.ends_with("/.") {
            return Err(Invalid::new(field, format!("{value:?} may not end in /. or /..")).into());
        }
        if !PATH.is_match(&value) {
            return Err(Invalid::new(
                field,
                format!("{value:?} has a character that no path has; write it as %XX"),
            )
            .into());
        }
    }
    Ok(contract::PathMatch {
        kind: kind as i32,
        value,
    })
}

fn named_matches(
    field: &str,
    given: Vec<gateway::NamedMatch>,
    header: bool,
) -> Result<Vec<contract::NamedMatch>, Failure> {
    at_most(field, given.len(), MAX_NAMED_MATCHES)?;
    let mut reduced: Vec<contract::NamedMatch> = Vec::with_capacity(given.len());
    for (i, given) in given.into_iter().enumerate() {
        let field = format!("{field}[{i}]");
        let regular_expression = match given.kind.as_deref() {
            None | Some("Exact") => false,
            Some("RegularExpression") => true,
            Some(other) => {
                return Err(Failure::Unsupported(format!(
                    "{field}.type {other:?} is not supported"
                )));
            }
        };
        header_name(&format!("{field}.name"), &given.name)?;
        if given.value.is_empty() || given.value.len() > MAX_VALUE {
            return Err(Invalid::new(
                format!("{field}.value"),
                format!("it has to have 1 to {MAX_VALUE} characters"),
            )
            .into());
        }
        if regular_expression {
            pattern(&format!("{field}.value"), &given.value)?;
        }
        // Of several headers with the same name only the first counts (Gateway API).
        let again = reduced.iter().any(|other| match header {
            true => other.name.eq_ignore_ascii_case(&given.name),
            false => other.name == given.name,
        });
        if !again {
            reduced.push(contract::NamedMatch {
                name: given.name,
                value: given.value,
                regular_expression,
            });
        }
    }
    Ok(reduced)
}

fn pattern(field: &str, pattern: &str) -> Result<(), Failure> {
    match Regex::new(pattern) {
        Ok(_) => Ok(()),
        Err(_) => Err(Failure::Unsupported(format!(
            "{field}: {pattern:?} is not a regular expression in RE2's syntax"
        ))),
    }
}

fn milliseconds(field: &str, text: Option<&str>) -> Result<u64, Invalid> {
    let Some(text) = text else { return Ok(0) };
    duration::milliseconds(text).ok_or_else(|| {
        Invalid::new(
            field,
            format!("{text:?} is not a duration, as 1h30m, 10s or 250ms"),
        )
    })
}
