//! A GRPCRoute is an HTTPRoute over the paths of gRPC, `/service/method`: it is converted to one
//! and handled in the same way.

use regex::Regex;

use super::checks::{Failure, at_most};
use super::http;
use crate::source::objects::{Route, RouteKind};
use crate::source::parse::gateway;
use crate::source::parse::problem::Invalid;

const MAX_MATCHES: usize = 64;
/// Length limit of a service's or method's name: a path of both is still valid in an HTTPRoute.
const MAX_NAME: usize = 500;
/// The filters that the CRD of GRPCRoute allows. The other filters of an HTTPRoute respond in ways
/// that gRPC clients do not understand.
const FILTERS: [&str; 4] = [
    "RequestHeaderModifier",
    "ResponseHeaderModifier",
    "RequestMirror",
    "ExtensionRef",
];
/// Matches any service or method.
const ANY: &str = "[^/]+";

pub fn grpc_route(object: gateway::GrpcRoute) -> Result<Route, Invalid> {
    let gateway::GrpcRouteSpec { parent_refs, rules } = object.spec;
    let rules = (rules.into_iter().enumerate())
        .map(|(i, given)| rule(&format!("spec.rules[{i}]"), given))
        .collect();
    http::reduce(RouteKind::Grpc, &object.metadata, parent_refs, rules)
}

fn rule(field: &str, given: gateway::GrpcRule) -> Result<gateway::HttpRule, Failure> {
    check_filters(&format!("{field}.filters"), &given.filters)?;
    for (i, backend) in given.backend_refs.iter().enumerate() {
        let field = format!("{field}.backendRefs[{i}].filters");
        check_filters(&field, &backend.filters)?;
    }
    let field = format!("{field}.matches");
    at_most(&field, given.matches.len(), MAX_MATCHES)?;
    let mut matches = Vec::with_capacity(given.matches.len());
    for (i, given) in given.matches.into_iter().enumerate() {
        let path = match given.method {
            None => None,
            Some(method) => Some(path(&format!("{field}[{i}].method"), method)?),
        };
        matches.push(gateway::HttpMatch {
            path,
            headers: given.headers,
            ..gateway::HttpMatch::default()
        });
    }
    Ok(gateway::HttpRule {
        name: given.name,
        matches: Some(matches),
        filters: given.filters,
        backend_refs: given.backend_refs,
        session_persistence: given.session_persistence,
        ..gateway::HttpRule::default()
    })
}

fn check_filters(field: &str, given: &[gateway::HttpFilter]) -> Result<(), Invalid> {
    let foreign = |filter: &gateway::HttpFilter| !FILTERS.contains(&filter.kind.as_str());
    match given.iter().position(foreign) {
        None => Ok(()),
        Some(i) => Err(Invalid::new(
            format!("{field}[{i}].type"),
            format!("{:?} is not one of {}", given[i].kind, FILTERS.join(", ")),
        )),
    }
}

fn path(field: &str, given: gateway::MethodMatch) -> Result<gateway::PathMatch, Failure> {
    let given_kind = given.kind.as_deref().unwrap_or("Exact");
    let parts = [("service", given.service), ("method", given.method)];
    let [service, method] = parts.map(|(name, part)| match part {
        Some(part) if !part.is_empty() => {
            check(&format!("{field}.{name}"), given_kind, part).map(Some)
        }
        _ => Ok(None),
    });
    let (kind, value) = match (given_kind, service?, method?) {
        (_, None, None) => {
            return Err(Invalid::new(field, "name a service, a method or both").into());
        }
        ("Exact", Some(service), Some(method)) => ("Exact", format!("/{service}/{method}")),
        ("Exact", Some(service), None) => ("PathPrefix", format!("/{service}")),
        ("Exact", None, Some(method)) => (
            "RegularExpression",
            format!("/{ANY}/{}", regex::escape(&method)),
        ),
        (_, service, method) => {
            let part = |part: Option<String>| part.unwrap_or_else(|| ANY.to_owned());
            let value = format!("/(?:{})/(?:{})", part(service), part(method));
            ("RegularExpression", value)
        }
    };
    Ok(gateway::PathMatch {
        kind: Some(kind.to_owned()),
        value: Some(value),
    })
}

/// Validates the name of a service or method, or a pattern.
fn check(field: &str, kind: &str, part: String) -> Result<String, Failure> {
    if part.len() > MAX_NAME {
        return Err(Failure::Unsupported(format!(
            "{field}: more than {MAX_NAME} characters are not supported"
        )));
    }
    match kind {
        "Exact" => {
            let letters = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
            match part.chars().all(letters) {
                true => Ok(part),
                false => Err(Invalid::new(
                    field,
                    format!("{part:?} is not a name: use letters, digits, _ and ."),
                )
                .into()),
            }
        }
        "RegularExpression" => match Regex::new(&part) {
            Ok(_) => Ok(part),
            Err(_) => Err(Failure::Unsupported(format!(
                "{field}: {part:?} is not a regular expression in RE2's syntax"
            ))),
        },
        other => Err(Failure::Unsupported(format!(
            "{field}: the type {other:?} is not supported"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use naru_contract::PathMatchKind;

    use super::*;
    use crate::source::objects::Object;
    use crate::source::parse;

    fn parsed(rules: &str) -> Result<Route, String> {
        let text = format!(
            "apiVersion: gateway.networking.k8s.io/v1\n\
             kind: GRPCRoute\n\
             metadata: {{ name: web, namespace: shop }}\n\
             spec: {{ parentRefs: [{{ group: \"\", kind: Service, name: web }}], {rules} }}\n"
        );
        let objects = parse::objects(&text, false);
        match objects.map(|mut objects| objects.pop()) {
            Ok(Some(Object::Route(route))) => Ok(route),
            Ok(other) => panic!("{other:?}"),
            Err(problems) => Err(problems[0].to_string()),
        }
    }

    fn path_of(method: &str) -> (PathMatchKind, String) {
        let route = parsed(&format!(
            "rules: [{{ matches: [{{ method: {{ {method} }} }}] }}]"
        ));
        let route = route.unwrap();
        assert_eq!(route.refused, None);
        let path = route.rules[0].matches[0].path.clone().unwrap();
        (PathMatchKind::try_from(path.kind).unwrap(), path.value)
    }

    #[test]
    fn a_method_becomes_a_path() {
        for (method, kind, path) in [
            (
                "service: a.B, method: Get",
                PathMatchKind::Exact,
                "/a.B/Get",
            ),
            ("type: Exact, service: a.B", PathMatchKind::Prefix, "/a.B"),
            (
                "method: Get",
                PathMatchKind::RegularExpression,
                "/[^/]+/Get",
            ),
            (
                "type: RegularExpression, service: \"a|b\", method: Get.*",
                PathMatchKind::RegularExpression,
                "/(?:a|b)/(?:Get.*)",
            ),
            (
                "type: RegularExpression, service: a",
                PathMatchKind::RegularExpression,
                "/(?:a)/(?:[^/]+)",
            ),
        ] {
            assert_eq!(path_of(method), (kind, path.to_owned()), "{method}");
        }
    }

    #[test]
    fn everything_else_is_as_in_an_http_route() {
        let route = parsed(
            "rules: [{ name: one, matches: [{ headers: [{ name: color, value: blue }] }], filters: \
             [{ type: RequestHeaderModifier, requestHeaderModifier: { remove: [x] } }], \
             backendRefs: [{ name: web, port: 80, weight: 3 }] }]",
        );
        let route = route.unwrap();
        assert_eq!((route.kind, route.parents.len()), (RouteKind::Grpc, 1));
        let rule = &route.rules[0];
        assert_eq!((rule.name.as_str(), rule.filters.len()), ("one", 1));
        assert_eq!(rule.matches[0].path, None);
        assert_eq!(rule.matches[0].headers[0].name, "color");
        assert_eq!(rule.backends[0].weight, 3);
    }

    #[test]
    fn a_problem_names_the_field_of_the_grpc_route() {
        let with = |method: &str| {
            parsed(&format!(
                "rules: [{{ matches: [{{ method: {{ {method} }} }}] }}]"
            ))
        };
        for method in [
            "type: Exact",
            "service: \"\"",
            "service: a/b",
            "method: \"a b\"",
        ] {
            let problem = with(method).unwrap_err();
            assert!(
                problem.contains("spec.rules[0].matches[0].method"),
                "{problem}"
            );
        }
        for method in [
            "type: Prefix, service: a",
            "type: RegularExpression, service: \"a)|(b\"",
        ] {
            let refused = with(method).unwrap().refused.unwrap();
            assert!(
                refused.contains("spec.rules[0].matches[0].method.service"),
                "{refused}"
            );
        }
    }

    #[test]
    fn filters_that_grpc_clients_do_not_understand_are_rejected() {
        let filter = "filters: [{ type: RequestRedirect, requestRedirect: {} }]";
        for (rules, field) in [
            (
                format!("rules: [{{ {filter} }}]"),
                "spec.rules[0].filters[0].type",
            ),
            (
                format!("rules: [{{ backendRefs: [{{ name: web, port: 80, {filter} }}] }}]"),
                "spec.rules[0].backendRefs[0].filters[0].type",
            ),
        ] {
            let problem = parsed(&rules).unwrap_err();
            assert!(problem.contains(field), "{problem}");
        }
    }
}
