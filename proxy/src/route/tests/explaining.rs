use std::collections::HashSet;

use naru_contract as contract;
use naru_contract::PathMatchKind;
use proptest::prelude::*;

use super::*;

/// For each match, in order of precedence, the name of its rule and its verdict.
fn said(logical: &Logical, head: &http::request::Parts) -> Vec<(String, String)> {
    let explained = explain(logical, Some(head));
    let words = |one: &Explained<'_>| match one.verdict.expect("a request") {
        Verdict::Takes { covered } => format!("takes {covered}"),
        Verdict::Outranked(by) => by.as_str().to_owned(),
        Verdict::Unmet(Unmet::Path(path)) => path.to_string(),
        Verdict::Unmet(Unmet::Method(method)) => format!("method {method}"),
        Verdict::Unmet(Unmet::Header(header)) => format!("header {header}"),
        Verdict::Unmet(Unmet::Query(param)) => format!("query {param}"),
    };
    let said = explained.iter();
    said.map(|one| (one.rule.name.to_string(), words(one)))
        .collect()
}

fn all(routes: &[contract::HttpRoute]) -> Logical {
    logical(decode(routes).expect("routes"), 80)
}

#[test]
fn the_first_condition_that_does_not_hold_is_named() {
    let full = || contract::HttpMatch {
        method: "POST".to_owned(),
        headers: vec![named("version", "2", false), named("x", "a|b", true)],
        query: vec![named("q", "1", false)],
        ..prefix("/a")
    };
    let logical = one(full());
    let both = [("version", "2"), ("x", "b")];
    for (method, target, headers, expected) in [
        ("POST", "/a/b?q=1", &both[..], "takes 2"),
        ("POST", "/ab?q=1", &both, "path /a/…"),
        ("GET", "/a?q=1", &both, "method POST"),
        ("POST", "/a?q=1", &both[1..], "header version = \"2\""),
        ("POST", "/a?q=1", &both[..1], "header x ~ a|b"),
        ("POST", "/a?q=2", &both, "query q = \"1\""),
        ("POST", "/a", &both, "query q = \"1\""),
    ] {
        let said = said(&logical, &head(method, target, headers));
        assert_eq!(said, [("yes".to_owned(), expected.to_owned())], "{target}");
    }
    let pattern = one(path(PathMatchKind::RegularExpression, "/a|/b"));
    assert_eq!(said(&pattern, &head("GET", "/c", &[]))[0].1, "path ~ /a|/b");
    let exact = one(path(PathMatchKind::Exact, "/a"));
    assert_eq!(said(&exact, &head("GET", "/a/", &[]))[0].1, "path = /a");
}

#[test]
fn an_outranked_match_names_the_criterion() {
    let with = |m: contract::HttpMatch, method: &str, headers: usize, query: usize| {
        let several = |n| {
            (0..n)
                .map(|i| named(&format!("n{i}"), "v", false))
                .collect()
        };
        contract::HttpMatch {
            method: method.to_owned(),
            headers: several(headers),
            query: several(query),
            ..m
        }
    };
    let request = head("GET", "/a/b?n0=v&n1=v", &[("n0", "v"), ("n1", "v")]);
    let exact = || path(PathMatchKind::Exact, "/a/b");
    let regex = |pattern| path(PathMatchKind::RegularExpression, pattern);
    for (winner, loser, by) in [
        (exact(), regex("/a/b"), "exact-path"),
        (exact(), prefix("/a/b"), "exact-path"),
        (regex("/.*"), prefix("/a/b"), "regular-expression"),
        (regex("/a/.*"), regex("/.*"), "longer-path"),
        (prefix("/a/b"), prefix("/a"), "longer-path"),
        (
            prefix("/a"),
            with(contract::HttpMatch::default(), "GET", 2, 2),
            "longer-path",
        ),
        (
            with(prefix("/a"), "GET", 0, 0),
            with(prefix("/a"), "", 2, 2),
            "method",
        ),
        (
            with(prefix("/a"), "", 2, 0),
            with(prefix("/a"), "", 1, 2),
            "more-headers",
        ),
        (
            with(prefix("/a"), "", 1, 2),
            with(prefix("/a"), "", 1, 1),
            "more-query-parameters",
        ),
    ] {
        let rules = vec![rule("loser", vec![loser]), rule("winner", vec![winner])];
        let said = said(&all(&[route("r", rules)]), &request);
        assert_eq!(said[0].0, "winner", "{by}");
        assert!(said[0].1.starts_with("takes"), "{said:?}");
        assert_eq!(said[1], ("loser".to_owned(), by.to_owned()));
    }
}

#[test]
fn between_equals_the_route_then_the_rule_then_the_match_decides() {
    let same = || vec![prefix("/a")];
    let old = route(
        "old",
        vec![
            rule("first", vec![prefix("/a"), prefix("/a/")]),
            rule("second", same()),
        ],
    );
    let new = route("new", vec![rule("third", same())]);
    let request = head("GET", "/a", &[]);
    let said = said(&all(&[old, new]), &request);
    let pair = |name: &str, words: &str| (name.to_owned(), words.to_owned());
    // A trailing slash counts as a character, as written.
    assert_eq!(
        said,
        [
            pair("first", "takes 2"),
            pair("first", "longer-path"),
            pair("second", "longer-path"),
            pair("third", "longer-path"),
        ]
    );
    let old = route(
        "old",
        vec![
            rule("first", [same(), same()].concat()),
            rule("second", same()),
        ],
    );
    let new = route("new", vec![rule("third", same())]);
    let said = self::said(&all(&[old, new]), &request);
    let by: Vec<&str> = said.iter().map(|(_, words)| &**words).collect();
    assert_eq!(
        by,
        ["takes 2", "earlier-match", "earlier-rule", "older-route"]
    );
}

#[test]
fn a_service_without_routes_matches_everything_by_its_default_rule() {
    let mut logical = all(&[]);
    logical.routes = None;
    let request = head("GET", "/", &[]);
    let explained = explain(&logical, Some(&request));
    assert!(matches!(
        explained.as_slice(),
        [Explained {
            matched: None,
            verdict: Some(Verdict::Takes { covered: 0 }),
            ..
        }]
    ));
    assert!(explain(&logical, None)[0].verdict.is_none());
}

#[test]
fn credentials_and_values_that_filters_add_are_hidden() {
    for name in ["Authorization", "cookie", "x-api-key", "X-Session-Token"] {
        let m = contract::HttpMatch {
            headers: vec![named(name, "hunter2", false)],
            ..Default::default()
        };
        let told = said(&one(m), &head("GET", "/", &[]));
        assert_eq!(told[0].1, format!("header {name} = (not shown)"));
    }
    let header = |name: &str| contract::Header {
        name: name.to_owned(),
        value: "hunter2".to_owned(),
    };
    let modifier = contract::HeaderModifier {
        set: vec![header("x-a"), header("host")],
        add: vec![header("x-b")],
        remove: vec!["x-c".to_owned(), "x-d".to_owned()],
    };
    let mut changes = rule("web", Vec::new());
    changes.filters = vec![filter(Kind::RequestHeaders(modifier))];
    let logical = all(&[route("r", vec![changes])]);
    let words = explain(&logical, None)[0].rule.filters[0].to_string();
    assert_eq!(
        words,
        "request headers: set x-a, host to hunter2; add x-b; remove x-c, x-d"
    );
}

#[test]
fn mirrors_and_cors_are_described_and_a_preflight_has_the_status_of_its_answer() {
    let mut told = rule("web", Vec::new());
    let origins = ["https://shop.example", "http://*.example:8080"];
    told.filters = vec![
        filter(Kind::Cors(contract::Cors {
            allow_origins: origins.map(str::to_owned).to_vec(),
            allow_credentials: true,
            ..Default::default()
        })),
        mirror("endpoints/shop/shadow/80", 20, 100),
        mirror("endpoints/shop/all/80", 1, 1),
    ];
    let logical = all(&[route("r", vec![told])]);
    let rule = explain(&logical, None)[0].rule;
    assert_eq!(
        rule.filters[0].to_string(),
        "CORS for https://shop.example, http://*.example:8080, with credentials"
    );
    let mirrors: Vec<String> = rule.mirrors.iter().map(ToString::to_string).collect();
    assert_eq!(
        mirrors,
        [
            "mirror 20 of 100 to shop/shadow:80",
            "mirror to shop/all:80"
        ]
    );
    for (origin, expected) in [("https://shop.example", 204), ("https://other", 403)] {
        let asked = [("origin", origin), ("access-control-request-method", "PUT")];
        let told = outcome_of(&logical, &head("OPTIONS", "/", &asked));
        assert!(
            matches!(told, Outcome::Preflight { status } if status == expected),
            "{told:?}"
        );
    }
}

fn outcome_of(logical: &Logical, head: &http::request::Parts) -> Outcome {
    outcome(logical, &explain(logical, Some(head)), head)
}

#[test]
fn the_outcome_is_shown_for_every_backend() {
    let mut split = rule("web", vec![prefix("/a")]);
    split.backends = ["endpoints/shop/one/80", "endpoints/shop/none/80", ""]
        .map(|name| contract::HttpBackend {
            weight: 1,
            endpoints: name.to_owned(),
            invalid: match name {
                "" => "BackendNotFound: no".to_owned(),
                _ => String::new(),
            },
            ..Default::default()
        })
        .to_vec();
    split.backends[0].filters = vec![filter(Kind::Rewrite(contract::Rewrite {
        hostname: "other".to_owned(),
        path: modifier(PathModifierKind::ReplacePrefixMatch, "/z"),
    }))];
    let mut empty = rule("empty", vec![prefix("/empty")]);
    empty.backends[0].weight = 0;
    let logical = all(&[route("r", vec![split, empty])]);
    let rules = explain(&logical, None);
    let web = rules.iter().find(|one| &*one.rule.name == "web");
    let rule = web.expect("the rule").rule.clone();
    let one = rule.backends[0].backend.as_ref().expect("a backend");
    one.set_endpoints(EndpointSet::new(vec![Arc::new(endpoint())]));
    let Outcome::Forward(prospects) = outcome_of(&logical, &head("GET", "/a/b?c", &[])) else {
        panic!("not forwarded");
    };
    let seen = prospects[0].as_ref().expect("an endpoint");
    assert_eq!(seen.path_and_query(), "/z/b?c");
    assert_eq!(RequestHead::authority(&**seen), Some("other"));
    assert_eq!(prospects[1].as_ref().err(), Some(&Reason::NoEndpoint));
    assert_eq!(prospects[2].as_ref().err(), Some(&Reason::BackendInvalid));
    for (target, reason) in [("/empty", Reason::NoBackend), ("/", Reason::NoRoute)] {
        let found = outcome_of(&logical, &head("GET", target, &[]));
        assert!(matches!(found, Outcome::Fail(found) if found == reason));
    }
}

fn endpoint() -> crate::balance::Endpoint {
    crate::balance::Endpoint {
        id: crate::balance::next_endpoint_id(),
        address: "10.0.0.1:80".parse().expect("an address"),
        peer: crate::balance::Peer::Plain,
        pod: "".into(),
        workload: "".into(),
        zone: "".into(),
        load: crate::balance::Load::default(),
    }
}

fn arbitrary_match() -> impl Strategy<Value = contract::HttpMatch> {
    let kinds = prop::sample::select(vec![
        PathMatchKind::Prefix,
        PathMatchKind::Exact,
        PathMatchKind::RegularExpression,
    ]);
    let path_match = (kinds, "(/[ab]){0,2}/?").prop_map(|(kind, value)| {
        let value = format!("/{}", value.trim_start_matches('/'));
        path(kind, &value)
    });
    let names = || prop::collection::vec(("[xy]", "[12]"), 0..2);
    (path_match, "(GET)?", names(), names()).prop_map(|(m, method, headers, query)| {
        let all = |pairs: Vec<(String, String)>| {
            let named = |(name, value): &(String, String)| named(name, value, false);
            pairs.iter().map(named).collect()
        };
        contract::HttpMatch {
            method,
            headers: all(headers),
            query: all(query),
            ..m
        }
    })
}

fn arbitrary_rule() -> impl Strategy<Value = contract::HttpRule> {
    let matches = prop::collection::vec(arbitrary_match(), 0..3);
    let backends = prop::collection::vec((0_u32..3, prop::bool::ANY), 0..3);
    (matches, backends, prop::bool::weighted(0.2)).prop_map(|(matches, backends, redirects)| {
        let mut made = rule("", matches);
        made.backends = (backends.into_iter())
            .map(|(weight, valid)| contract::HttpBackend {
                weight,
                endpoints: "endpoints/shop/x/80".to_owned(),
                invalid: if valid {
                    String::new()
                } else {
                    "no".to_owned()
                },
                ..Default::default()
            })
            .collect();
        if redirects {
            made.filters = vec![filter(Kind::Redirect(contract::Redirect {
                status: 302,
                path: modifier(PathModifierKind::ReplaceFullPath, "/elsewhere"),
                ..Default::default()
            }))];
        }
        made
    })
}

proptest! {
    /// Explanations agree with decisions.
    #[test]
    fn explanations_agree_with_decisions(
        routes in prop::collection::vec(prop::collection::vec(arbitrary_rule(), 0..3), 0..3),
        target in "/[ab]?(/[ab])?",
        query in "([xy]=[12])?",
        method in "GET|PUT",
        headers in prop::collection::vec(("[xy]", "[12]"), 0..2),
        seed in 0_u64..1_000,
    ) {
        let routes: Vec<_> = routes
            .into_iter()
            .enumerate()
            .map(|(number, rules)| route(&format!("r{number}"), rules))
            .collect();
        let logical = all(&routes);
        let headers: Vec<_> = headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let request = head(&method, &format!("{target}?{query}"), &headers);
        let explained = explain(&logical, Some(&request));
        let winners: Vec<_> = explained
            .iter()
            .filter(|one| matches!(one.verdict, Some(Verdict::Takes { .. })))
            .collect();
        prop_assert!(winners.len() <= 1);
        let told = outcome(&logical, &explained, &request);
        let mut random = SmallRng::seed_from_u64(seed);
        let winner = winners.first().map(|one| Arc::as_ptr(one.rule));
        // The backends have no endpoints here, which a decision does not consider.
        match (decide(&logical, &mut request.clone(), &mut random), told) {
            (Decision::Forward { rule, backend, .. }, Outcome::Forward(told)) => {
                prop_assert_eq!(Some(Arc::as_ptr(&rule)), winner);
                prop_assert!(rule.backends[backend].weight > 0);
                prop_assert_eq!(told[backend].as_ref().err(), Some(&Reason::NoEndpoint));
            }
            (
                Decision::Redirect { rule, status, location, .. },
                Outcome::Redirect { status: s, location: l },
            ) => {
                prop_assert_eq!(Some(Arc::as_ptr(&rule)), winner);
                prop_assert_eq!((status, location), (s, l));
            }
            (Decision::Fail { rule, reason: Reason::BackendInvalid }, Outcome::Forward(told)) => {
                prop_assert_eq!(rule.as_ref().map(Arc::as_ptr), winner);
                let reasons: HashSet<_> = told.iter().map(|one| one.as_ref().err()).collect();
                prop_assert!(reasons.contains(&Some(&Reason::BackendInvalid)));
            }
            (Decision::Fail { rule, reason }, Outcome::Fail(told)) => {
                prop_assert_eq!(rule.as_ref().map(Arc::as_ptr), winner);
                prop_assert_eq!(reason, told);
            }
            (_, told) => prop_assert!(false, "told {told:?}"),
        }
    }
}
