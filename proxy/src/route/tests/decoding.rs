use std::collections::HashSet;

use naru_contract as contract;
use naru_contract::http_filter::Kind;
use naru_contract::{PathMatchKind, PathModifierKind};

use super::*;

#[test]
fn an_unsupported_field_is_rejected_by_name() {
    type Change = fn(&mut contract::HttpRule);
    let cases: [(&str, Change); 26] = [
        ("rules[0].matches[0].path", |r| {
            r.matches = vec![path(PathMatchKind::Prefix, "a")]
        }),
        ("rules[0].matches[0].path", |r| {
            r.matches = vec![prefix("/a")];
            if let Some(path) = &mut r.matches[0].path {
                path.kind = 9;
            }
        }),
        ("rules[0].matches[0].path", |r| {
            r.matches = vec![path(PathMatchKind::RegularExpression, "(")];
        }),
        ("rules[0].matches[0].path", |r| {
            r.matches = vec![path(PathMatchKind::RegularExpression, "a)|(b")];
        }),
        ("rules[0].matches[0].path", |r| {
            r.matches = vec![path(PathMatchKind::RegularExpression, r"(\w{500}){500}")];
        }),
        ("rules[0].matches[1].method", |r| {
            let mut odd = prefix("/");
            odd.method = "GE T".to_owned();
            r.matches = vec![prefix("/"), odd];
        }),
        ("rules[0].matches[0].headers[0]", |r| {
            r.matches = vec![prefix("/")];
            r.matches[0].headers = vec![named("a b", "", false)];
        }),
        ("rules[0].matches[0].query[0]", |r| {
            r.matches = vec![prefix("/")];
            r.matches[0].query = vec![named("a", "[", true)];
        }),
        ("rules[0].filters[0]", |r| {
            r.filters = vec![contract::HttpFilter { kind: None }]
        }),
        ("rules[0].filters[0]", |r| {
            let mut modifier = contract::HeaderModifier::default();
            modifier.remove.push("Transfer-Encoding".to_owned());
            r.filters = vec![filter(Kind::RequestHeaders(modifier))];
        }),
        ("rules[0].filters[0]", |r| {
            let mut modifier = contract::HeaderModifier::default();
            modifier.add.push(contract::Header {
                name: "x".to_owned(),
                value: "a\r\nb".to_owned(),
            });
            r.filters = vec![filter(Kind::ResponseHeaders(modifier))];
        }),
        ("rules[0].filters[0].status", |r| {
            r.filters = vec![filter(Kind::Redirect(contract::Redirect::default()))];
        }),
        ("rules[0].filters[0].scheme", |r| {
            r.filters = vec![filter(Kind::Redirect(contract::Redirect {
                scheme: "ftp".to_owned(),
                status: 301,
                ..Default::default()
            }))];
        }),
        ("rules[0].filters[0].hostname", |r| {
            r.filters = vec![filter(Kind::Rewrite(contract::Rewrite {
                hostname: "a:80".to_owned(),
                path: None,
            }))];
        }),
        ("rules[0].filters", |r| {
            let rewrite = || filter(Kind::Rewrite(contract::Rewrite::default()));
            r.filters = vec![rewrite(), rewrite()];
        }),
        ("rules[0].filters", |r| {
            r.matches = vec![path(PathMatchKind::Exact, "/a")];
            r.filters = vec![filter(Kind::Rewrite(contract::Rewrite {
                hostname: String::new(),
                path: modifier(PathModifierKind::ReplacePrefixMatch, "/b"),
            }))];
        }),
        ("rules[0].filters[0].endpoints", |r| {
            r.filters = vec![mirror("endpoints/other/web/80", 1, 1)];
        }),
        ("rules[0].filters[1]", |r| {
            r.filters = vec![
                mirror("endpoints/shop/a/80", 1, 1),
                mirror("endpoints/shop/a/80", 2, 1),
            ];
        }),
        ("rules[0].backends[0].filters[0]", |r| {
            r.backends[0].filters = vec![mirror("endpoints/shop/a/80", 0, 0)];
        }),
        ("rules[0].filters", |r| {
            let cors = || filter(Kind::Cors(contract::Cors::default()));
            r.filters = vec![cors(), cors()];
        }),
        ("rules[0].backends[0].filters[0]", |r| {
            r.backends[0].filters = vec![filter(Kind::Cors(contract::Cors::default()))];
        }),
        ("rules[0].filters[0]", |r| {
            r.filters = vec![filter(Kind::Cors(contract::Cors {
                allow_origins: vec!["https://w*.example.com".to_owned()],
                ..Default::default()
            }))];
        }),
        ("rules[0].filters[0]", |r| {
            r.filters = vec![filter(Kind::Cors(contract::Cors {
                allow_methods: vec!["GE T".to_owned()],
                ..Default::default()
            }))];
        }),
        ("rules[0].filters[0]", |r| {
            r.filters = vec![filter(Kind::Cors(contract::Cors {
                expose_headers: vec!["a\r\nb".to_owned()],
                ..Default::default()
            }))];
        }),
        ("rules[0].backends[0].endpoints", |r| {
            r.backends[0].endpoints = "endpoints/other/web/80".to_owned();
        }),
        ("rules[0].retry.codes[1]", |r| {
            r.retry = Some(contract::Retry {
                codes: vec![500, 200],
                ..Default::default()
            });
        }),
    ];
    for (field, change) in cases {
        let mut changed = rule("a", vec![]);
        change(&mut changed);
        let error = decode(&[route("r", vec![changed])]).expect_err(field);
        assert_eq!(
            (error.route.as_str(), error.field.as_str()),
            ("shop/r", field),
            "{error}"
        );
        assert!(!error.problem.is_empty());
    }
}

#[test]
fn series_are_distinguished_by_route_rule_and_backend() {
    let metrics = Metrics::default();
    let routes = route(
        "r",
        vec![rule("named", vec![]), rule("", vec![prefix("/x")])],
    );
    let mut unnamed = routes.clone();
    unnamed.rules[1].backends.clear();
    let routes = decode_routes(&[&unnamed], &mut backend, &metrics, &labels(80)).expect("routes");
    let names: HashSet<_> = routes
        .rules()
        .map(|r| (r.route.clone(), r.name.clone()))
        .collect();
    let expected = [("shop/r", "named"), ("shop/r", "1")].map(|(a, b)| (a.into(), b.into()));
    assert_eq!(names, HashSet::from(expected));
    for rule in routes.rules() {
        for backend in &rule.backends {
            assert!(!Arc::ptr_eq(&backend.metrics, &rule.metrics));
        }
    }
}
