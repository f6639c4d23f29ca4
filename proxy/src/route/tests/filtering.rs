use naru_contract as contract;
use naru_contract::PathModifierKind;
use naru_contract::http_filter::Kind;
use proptest::prelude::*;

use super::*;

/// How many of 10,000 requests go to each backend, and how many to no backend.
fn split(weights: &[u32], invalid: &[usize]) -> (Vec<u32>, u32) {
    let mut all = rule("split", vec![]);
    all.backends = weights
        .iter()
        .enumerate()
        .map(|(index, weight)| contract::HttpBackend {
            weight: *weight,
            endpoints: format!("endpoints/shop/b{index}/80"),
            invalid: if invalid.contains(&index) {
                "BackendNotFound"
            } else {
                ""
            }
            .to_owned(),
            ..Default::default()
        })
        .collect();
    let logical = logical(decode(&[route("r", vec![all])]).expect("a route"), 80);
    let mut shares = vec![0; weights.len()];
    let mut failed = 0;
    let mut random = random();
    for _ in 0..10_000 {
        match decide(&logical, &mut head("GET", "/", &[]), &mut random) {
            Decision::Forward { backend, .. } => shares[backend] += 1,
            Decision::Fail { reason, .. } => {
                let expected = if invalid.is_empty() {
                    Reason::NoBackend
                } else {
                    Reason::BackendInvalid
                };
                assert_eq!(reason, expected);
                assert_eq!(reason.status(), Some(500));
                failed += 1;
            }
            Decision::Redirect { .. } | Decision::Preflight { .. } => unreachable!("no filter"),
        }
    }
    (shares, failed)
}

#[test]
fn requests_are_split_by_weight() {
    let near = |share: u32, expected: u32| share.abs_diff(expected) < 250;
    let (shares, failed) = split(&[9, 1], &[]);
    assert!(
        near(shares[0], 9_000) && near(shares[1], 1_000),
        "{shares:?}"
    );
    assert_eq!(failed, 0);
    assert_eq!(split(&[1, 0], &[]).0, [10_000, 0]);
    assert_eq!(split(&[0, 0], &[]), (vec![0, 0], 10_000));
    assert_eq!(split(&[0], &[]), (vec![0], 10_000));
    assert_eq!(split(&[], &[]), (vec![], 10_000));
    let (shares, failed) = split(&[1, 3], &[0]);
    assert!(
        near(failed, 2_500) && near(shares[1], 7_500),
        "{shares:?} {failed}"
    );
    assert_eq!(split(&[0, 3], &[0]).1, 0);
    let (shares, _) = split(&[u32::MAX, u32::MAX], &[]);
    assert!(near(shares[0], 5_000), "{shares:?}");
}

fn location(redirect: contract::Redirect, port: u16, authority: &str) -> String {
    let mut all = rule("redirect", vec![prefix("/old")]);
    all.filters = vec![filter(Kind::Redirect(redirect))];
    let logical = logical(decode(&[route("r", vec![all])]).expect("a route"), port);
    let mut head = head("GET", "/old/path?q", &[]);
    head.set_authority(authority);
    match decide(&logical, &mut head, &mut random()) {
        Decision::Redirect {
            status, location, ..
        } => format!("{status} {location}"),
        _ => "none".to_owned(),
    }
}

#[test]
fn a_redirect_keeps_the_parts_that_it_does_not_change() {
    let to = |scheme: &str, hostname: &str, port: u32| contract::Redirect {
        scheme: scheme.to_owned(),
        hostname: hostname.to_owned(),
        port,
        status: 302,
        path: None,
    };
    for (redirect, port, authority, expected) in [
        (to("", "", 0), 80, "web", "302 http://web/old/path?q"),
        (to("", "", 0), 80, "web:80", "302 http://web/old/path?q"),
        (
            to("", "", 0),
            8080,
            "web:8080",
            "302 http://web:8080/old/path?q",
        ),
        (
            to("", "other", 0),
            8080,
            "web:8080",
            "302 http://other:8080/old/path?q",
        ),
        (
            to("https", "", 0),
            8080,
            "web:8080",
            "302 https://web/old/path?q",
        ),
        (
            to("http", "", 0),
            8080,
            "web:8080",
            "302 http://web/old/path?q",
        ),
        (
            to("https", "", 443),
            80,
            "web",
            "302 https://web/old/path?q",
        ),
        (
            to("https", "", 80),
            80,
            "web",
            "302 https://web:80/old/path?q",
        ),
        (to("", "", 443), 80, "web", "302 http://web:443/old/path?q"),
        (to("", "", 0), 80, "[::1]:80", "302 http://[::1]/old/path?q"),
    ] {
        assert_eq!(location(redirect, port, authority), expected);
    }
    let replacing = contract::Redirect {
        path: modifier(PathModifierKind::ReplacePrefixMatch, "/new"),
        ..to("", "", 0)
    };
    assert_eq!(location(replacing, 80, "web"), "302 http://web/new/path?q");
    let replacing = contract::Redirect {
        path: modifier(PathModifierKind::ReplaceFullPath, "/new"),
        ..to("", "", 0)
    };
    assert_eq!(location(replacing, 80, "web"), "302 http://web/new?q");
}

#[test]
fn a_redirect_for_a_client_without_a_host_is_relative() {
    let mut all = rule("redirect", vec![]);
    all.filters = vec![filter(Kind::Redirect(contract::Redirect {
        status: 301,
        path: modifier(PathModifierKind::ReplaceFullPath, "/new"),
        ..Default::default()
    }))];
    let logical = logical(decode(&[route("r", vec![all])]).expect("a route"), 80);
    let mut head = http::Request::get("/old")
        .body(())
        .expect("a request")
        .into_parts()
        .0;
    let decision = decide(&logical, &mut head, &mut random());
    assert!(matches!(decision, Decision::Redirect { location, .. } if location == "/new"));
}

#[test]
fn filters_apply_in_order_and_those_of_the_backend_last() {
    let header = |name: &str, value: &str| contract::Header {
        name: name.to_owned(),
        value: value.to_owned(),
    };
    let change = |set: &str, add: &str, remove: &[&str]| contract::HeaderModifier {
        set: vec![header("x-set", set)],
        add: vec![header("x-add", add)],
        remove: remove.iter().map(ToString::to_string).collect(),
    };
    let mut all = rule("all", vec![]);
    all.filters = vec![
        filter(Kind::RequestHeaders(change("1", "a", &["x-gone"]))),
        filter(Kind::ResponseHeaders(change("r1", "ra", &[]))),
        filter(Kind::RequestHeaders(contract::HeaderModifier {
            set: vec![header("Host", "other:81")],
            ..Default::default()
        })),
    ];
    all.backends[0].filters = vec![
        filter(Kind::RequestHeaders(change("2", "b", &[]))),
        filter(Kind::ResponseHeaders(change("r2", "rb", &["x-inner"]))),
        filter(Kind::Rewrite(contract::Rewrite {
            hostname: String::new(),
            path: modifier(PathModifierKind::ReplacePrefixMatch, "/v2/"),
        })),
    ];
    let logical = logical(decode(&[route("r", vec![all])]).expect("a route"), 80);
    let mut request = head(
        "GET",
        "/x?y",
        &[("x-set", "0"), ("x-gone", "0"), ("x-kept", "0")],
    );
    let Decision::Forward { rule, backend, .. } = decide(&logical, &mut request, &mut random())
    else {
        panic!("not forwarded");
    };
    let values = |map: &http::HeaderMap, name: &str| -> Vec<String> {
        let all = map.get_all(name).iter();
        all.map(|v| v.to_str().expect("text").to_owned()).collect()
    };
    assert_eq!(request.uri, "http://other:81/v2/x?y");
    assert_eq!(values(&request.headers, "x-set"), ["2"]);
    assert_eq!(values(&request.headers, "x-add"), ["a", "b"]);
    assert_eq!(values(&request.headers, "x-kept"), ["0"]);
    assert!(values(&request.headers, "x-gone").is_empty());
    let mut response = http::HeaderMap::new();
    response.append("x-inner", http::HeaderValue::from_static("1"));
    let mut redirect = response.clone();
    rule.filter_response(Some(backend), None, &mut response);
    assert_eq!(values(&response, "x-set"), ["r2"]);
    assert_eq!(values(&response, "x-add"), ["ra", "rb"]);
    assert!(values(&response, "x-inner").is_empty());
    rule.filter_response(None, None, &mut redirect);
    assert_eq!(values(&redirect, "x-set"), ["r1"]);
    assert_eq!(values(&redirect, "x-inner"), ["1"]);
}

fn target_of(path: &str, query: &str) -> String {
    match query {
        "" => path.to_owned(),
        query => format!("{path}?{query}"),
    }
}

proptest! {
    #[test]
    fn a_replaced_prefix_keeps_the_rest_and_the_query(
        covered in "(/[a-c]{1,2}){1,3}",
        rest in "(/[a-c%]{0,2}){0,3}",
        query in "[a-c=&?/]{0,6}",
        replacement in "(/[x-z]{1,2}){0,3}/?",
    ) {
        let mut all = rule("a", vec![prefix(&covered)]);
        all.filters = vec![filter(Kind::Rewrite(contract::Rewrite {
            hostname: String::new(),
            path: modifier(PathModifierKind::ReplacePrefixMatch, &replacement),
        }))];
        let logical = logical(decode(&[route("r", vec![all])]).expect("a route"), 80);
        let mut head = head("GET", &target_of(&format!("{covered}{rest}"), &query), &[]);
        let decision = decide(&logical, &mut head, &mut random());
        let forwarded = matches!(decision, Decision::Forward { .. });
        prop_assert!(forwarded);
        let kept = replacement.strip_suffix('/').unwrap_or(&replacement);
        let expected = match rest.as_str() {
            "" if replacement.is_empty() => "/".to_owned(),
            "" => replacement.clone(),
            rest => format!("{kept}{rest}"),
        };
        prop_assert_eq!(RequestHead::path_and_query(&head), target_of(&expected, &query));
    }

}
