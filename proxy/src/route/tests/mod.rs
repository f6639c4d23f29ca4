//! Routes, from the contract's messages to decisions.

mod cors;
mod decoding;
mod explaining;
mod filtering;
mod matching;
mod mirroring;

use naru_contract as contract;
use naru_contract::http_filter::Kind;
use naru_contract::{PathMatchKind, PathModifierKind};
use rand::SeedableRng;

use super::*;
use crate::balance::{EndpointSet, RetryBudget};
use crate::observe::metrics::{Metrics, ServiceLabels, TcpLabels};
use crate::route::Protocol;

fn labels(port: u16) -> ServiceLabels {
    ServiceLabels {
        namespace: "shop".into(),
        service: "web".into(),
        port,
    }
}

fn backend(name: &str) -> Option<Arc<Backend>> {
    let known = name.strip_prefix("endpoints/shop/")?.strip_suffix("/80")?;
    let endpoints = EndpointSet::default();
    Some(Arc::new(Backend::new(
        "shop".into(),
        known.into(),
        80,
        endpoints,
    )))
}

fn decode(routes: &[contract::HttpRoute]) -> Result<Routes, DecodeError> {
    let routes: Vec<_> = routes.iter().collect();
    decode_routes(&routes, &mut backend, &Metrics::default(), &labels(80))
}

fn route(name: &str, rules: Vec<contract::HttpRule>) -> contract::HttpRoute {
    contract::HttpRoute {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        rules,
    }
}

/// A rule with a name and a backend of that name.
fn rule(name: &str, matches: Vec<contract::HttpMatch>) -> contract::HttpRule {
    contract::HttpRule {
        name: name.to_owned(),
        matches,
        backends: vec![contract::HttpBackend {
            weight: 1,
            endpoints: format!("endpoints/shop/{name}/80"),
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn path(kind: PathMatchKind, value: &str) -> contract::HttpMatch {
    contract::HttpMatch {
        path: Some(contract::PathMatch {
            kind: kind.into(),
            value: value.to_owned(),
        }),
        ..Default::default()
    }
}

fn prefix(value: &str) -> contract::HttpMatch {
    path(PathMatchKind::Prefix, value)
}

fn named(name: &str, value: &str, regular_expression: bool) -> contract::NamedMatch {
    contract::NamedMatch {
        name: name.to_owned(),
        value: value.to_owned(),
        regular_expression,
    }
}

fn logical(routes: Routes, port: u16) -> Logical {
    let metrics = Metrics::default();
    let own = backend("endpoints/shop/web/80").expect("a backend");
    Logical {
        namespace: "shop".into(),
        service: "web".into(),
        port,
        protocol: Protocol::Http,
        routes: Some(routes),
        opaque_routes: None,
        default_rule: Arc::new(default_rule(own, &metrics, &labels(port))),
        budget: Arc::new(RetryBudget::default()),
        tcp: metrics.tcp(TcpLabels {
            direction: crate::socket::Direction::Outbound,
            client: "".into(),
            namespace: "shop".into(),
            service: "web".into(),
            port: Some(port),
        }),
    }
}

fn head(method: &str, target: &str, headers: &[(&str, &str)]) -> http::request::Parts {
    let mut request = http::Request::builder()
        .method(method)
        .uri(format!("http://web{target}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).expect("a request").into_parts().0
}

fn random() -> SmallRng {
    SmallRng::seed_from_u64(3)
}

/// The name of the rule that applies to a request; `-` for no rule.
fn taken(logical: &Logical, mut head: http::request::Parts) -> String {
    match decide(logical, &mut head, &mut random()) {
        Decision::Forward { rule, .. }
        | Decision::Redirect { rule, .. }
        | Decision::Preflight { rule, .. } => rule.name.to_string(),
        Decision::Fail { rule, reason } => {
            assert!(rule.is_some() || reason == Reason::NoRoute);
            rule.map_or_else(|| "-".to_owned(), |rule| rule.name.to_string())
        }
    }
}

fn one(m: contract::HttpMatch) -> Logical {
    logical(
        decode(&[route("r", vec![rule("yes", vec![m])])]).expect("a route"),
        80,
    )
}

fn filter(kind: Kind) -> contract::HttpFilter {
    contract::HttpFilter { kind: Some(kind) }
}

fn modifier(kind: PathModifierKind, value: &str) -> Option<contract::PathModifier> {
    Some(contract::PathModifier {
        kind: kind.into(),
        value: value.to_owned(),
    })
}

fn mirror(endpoints: &str, numerator: u32, denominator: u32) -> contract::HttpFilter {
    filter(Kind::Mirror(contract::Mirror {
        endpoints: endpoints.to_owned(),
        numerator,
        denominator,
    }))
}
