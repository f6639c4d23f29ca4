use naru_contract as contract;
use naru_contract::PathMatchKind;
use proptest::prelude::*;

use super::*;

#[test]
fn a_prefix_matches_whole_segments() {
    for (value, target, expected) in [
        ("/abc", "/abc", "yes"),
        ("/abc", "/abc/", "yes"),
        ("/abc", "/abc/def", "yes"),
        ("/abc", "/abc?q", "yes"),
        ("/abc", "/abcd", "-"),
        ("/abc", "/ABC", "-"),
        ("/abc", "/ab", "-"),
        ("/abc", "/x/abc", "-"),
        ("/abc/", "/abc", "yes"),
        ("/abc/", "/abc/", "yes"),
        ("/abc/", "/abc/def", "yes"),
        ("/abc/", "/abcd", "-"),
        ("/abc", "/%61bc", "-"),
        ("/", "/", "yes"),
        ("/", "/anything?at=all", "yes"),
    ] {
        let found = taken(&one(prefix(value)), head("GET", target, &[]));
        assert_eq!(found, expected, "{value} {target}");
    }
}

#[test]
fn an_exact_path_is_compared_literally() {
    for (target, expected) in [
        ("/abc", "yes"),
        ("/abc?q", "yes"),
        ("/abc/", "-"),
        ("/abc/d", "-"),
        ("/Abc", "-"),
    ] {
        let found = taken(
            &one(path(PathMatchKind::Exact, "/abc")),
            head("GET", target, &[]),
        );
        assert_eq!(found, expected, "{target}");
    }
}

#[test]
fn a_pattern_must_match_the_whole_path() {
    let logical = one(path(PathMatchKind::RegularExpression, "/a|/ab+"));
    for (target, expected) in [
        ("/a", "yes"),
        ("/abb", "yes"),
        ("/abbc", "-"),
        ("/x/a", "-"),
    ] {
        assert_eq!(
            taken(&logical, head("GET", target, &[])),
            expected,
            "{target}"
        );
    }
}

#[test]
fn headers_are_compared_by_case_insensitive_name_and_all_of_their_values() {
    let exact = |name: &str, value: &str| contract::HttpMatch {
        headers: vec![named(name, value, false)],
        ..Default::default()
    };
    let plain = one(exact("Version", "two"));
    for (headers, expected) in [
        (&[("version", "two")][..], "yes"),
        (&[("VERSION", "two")], "yes"),
        (&[("version", "Two")], "-"),
        (&[("version", "two "), ("x", "y")], "-"),
        (&[("version", "one"), ("version", "two")], "-"),
        (&[], "-"),
    ] {
        assert_eq!(
            taken(&plain, head("GET", "/", headers)),
            expected,
            "{headers:?}"
        );
    }
    let joined = one(exact("version", "one,two"));
    let spaced = one(exact("version", "one, two"));
    let both = [("version", "one"), ("version", "two")];
    assert_eq!(taken(&joined, head("GET", "/", &both)), "yes");
    assert_eq!(taken(&spaced, head("GET", "/", &both)), "yes");
    let cookie = one(exact("cookie", "a=1; b=2"));
    let crumbs = [("cookie", "a=1"), ("cookie", "b=2")];
    assert_eq!(taken(&cookie, head("GET", "/", &crumbs)), "yes");
    let pattern = one(contract::HttpMatch {
        headers: vec![named("version", "one,t.o", true)],
        ..Default::default()
    });
    assert_eq!(taken(&pattern, head("GET", "/", &both)), "yes");
    assert_eq!(taken(&pattern, head("GET", "/", &both[..1])), "-");
    let host = one(exact("Host", "web"));
    assert_eq!(taken(&host, head("GET", "/", &[])), "yes");
}

#[test]
fn only_the_first_condition_and_the_first_parameter_of_a_name_count() {
    let twice = one(contract::HttpMatch {
        headers: vec![named("a", "1", false), named("A", "2", false)],
        query: vec![named("q", "x", false), named("q", "y", false)],
        ..Default::default()
    });
    let headers = [("a", "1")];
    assert_eq!(taken(&twice, head("GET", "/?q=x&q=y", &headers)), "yes");
    assert_eq!(taken(&twice, head("GET", "/?q=y&q=x", &headers)), "-");
}

#[test]
fn query_parameters_are_compared_as_sent() {
    let logical = one(contract::HttpMatch {
        query: vec![named("q", "a%20b", false), named("empty", "", false)],
        ..Default::default()
    });
    for (target, expected) in [
        ("/?q=a%20b&empty=", "yes"),
        ("/?empty&x&q=a%20b", "yes"),
        ("/?q=a+b&empty", "-"),
        ("/?Q=a%20b&empty", "-"),
        ("/?q=a%20b", "-"),
        ("/", "-"),
    ] {
        assert_eq!(
            taken(&logical, head("GET", target, &[])),
            expected,
            "{target}"
        );
    }
}

#[test]
fn the_more_specific_match_precedes_regardless_of_order() {
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
    // In order of precedence.
    let ranked = [
        (
            "exact-header",
            with(path(PathMatchKind::Exact, "/a/b"), "", 1, 0),
        ),
        ("exact", path(PathMatchKind::Exact, "/a/b")),
        (
            "regex-long",
            path(PathMatchKind::RegularExpression, "/a/[b]"),
        ),
        ("regex", path(PathMatchKind::RegularExpression, "/a/.")),
        ("long", prefix("/a/b")),
        ("method", with(prefix("/a"), "GET", 0, 0)),
        ("headers-query", with(prefix("/a"), "", 2, 1)),
        ("headers", with(prefix("/a"), "", 2, 0)),
        ("header", with(prefix("/a"), "", 1, 2)),
        ("queries", with(prefix("/a"), "", 0, 2)),
        ("query", with(prefix("/a"), "", 0, 1)),
        ("short", prefix("/a")),
        ("all", contract::HttpMatch::default()),
    ];
    let request = || head("GET", "/a/b?n0=v&n1=v", &[("n0", "v"), ("n1", "v")]);
    for first in 0..ranked.len() {
        // All remaining matches, from last to first and from first to last, in rules of one route
        // and in routes of their own.
        let left = &ranked[first..];
        let rules: Vec<_> = left
            .iter()
            .map(|(name, m)| rule(name, vec![m.clone()]))
            .collect();
        let routes: Vec<_> = rules
            .iter()
            .map(|r| route(&r.name, vec![r.clone()]))
            .collect();
        let reversed_rules = rules.iter().rev().cloned().collect();
        let reversed_routes: Vec<_> = routes.iter().rev().cloned().collect();
        for routes in [
            vec![route("r", rules)],
            vec![route("r", reversed_rules)],
            routes,
            reversed_routes,
        ] {
            let logical = logical(decode(&routes).expect("routes"), 80);
            assert_eq!(taken(&logical, request()), left[0].0);
        }
    }
}

#[test]
fn equal_matches_resolve_to_the_first_route_and_its_first_rule() {
    let rules = |names: [&str; 2]| names.map(|n| rule(n, vec![prefix("/a")])).to_vec();
    let routes = [
        route("old", rules(["first", "second"])),
        route("new", rules(["third", "fourth"])),
    ];
    let both = logical(decode(&routes).expect("routes"), 80);
    assert_eq!(taken(&both, head("GET", "/a", &[])), "first");
    let none = logical(Routes::new(Vec::new()), 80);
    assert_eq!(taken(&none, head("GET", "/a", &[])), "-");
}

#[test]
fn a_rule_applies_if_one_of_its_matches_does() {
    let either = vec![prefix("/a"), path(PathMatchKind::Exact, "/b")];
    let logical = logical(
        decode(&[route("r", vec![rule("yes", either)])]).expect("a route"),
        80,
    );
    for (target, expected) in [("/a/x", "yes"), ("/b", "yes"), ("/c", "-")] {
        assert_eq!(taken(&logical, head("GET", target, &[])), expected);
    }
}

#[test]
fn the_authority_never_selects_the_rule() {
    let logical = one(prefix("/"));
    let mut request = head("GET", "/", &[("host", "other")]);
    request.set_authority("elsewhere:1");
    assert_eq!(taken(&logical, request), "yes");
}

#[test]
fn connect_and_options_of_the_whole_server_match_the_rule_for_everything() {
    let all = one(contract::HttpMatch::default());
    let connect = http::Request::connect("db:5432")
        .body(())
        .expect("a request");
    assert_eq!(taken(&all, connect.into_parts().0), "yes");
    let options = http::Request::options("*").body(()).expect("a request");
    assert_eq!(taken(&all, options.into_parts().0), "yes");
}

fn segment() -> impl Strategy<Value = String> {
    "(/[ab%]{0,2}){0,4}/?"
}

proptest! {
    /// The specification's definition of prefixes, formulated differently.
    #[test]
    fn a_prefix_matches_like_a_list_of_segments(value in segment(), path in segment()) {
        let value = format!("/{}", value.trim_start_matches('/'));
        let path = format!("/{}", path.trim_start_matches('/'));
        let parts = |text: &str| -> Vec<String> {
            text.split('/').skip(1).map(ToOwned::to_owned).collect()
        };
        let mut wanted = parts(&value);
        if wanted.last().is_some_and(String::is_empty) {
            wanted.pop();
        }
        let expected = parts(&path).starts_with(&wanted);
        let found = taken(&one(prefix(&value)), head("GET", &path, &[]));
        prop_assert_eq!(found == "yes", expected, "{} {}", value, path);
    }

    #[test]
    fn values_of_repeated_fields_match_as_if_joined(
        values in prop::collection::vec("[a,b ]{0,3}", 1..4),
        other in "[a,b ]{0,6}",
    ) {
        let values: Vec<_> = values.iter().map(|v| v.trim().to_owned()).collect();
        let headers: Vec<_> = values.iter().map(|v| ("x", v.as_str())).collect();
        let matches = |value: &str| {
            let m = contract::HttpMatch {
                headers: vec![named("x", value, false)],
                ..Default::default()
            };
            taken(&one(m), head("GET", "/", &headers)) == "yes"
        };
        prop_assert!(matches(&values.join(",")));
        let starts_with_space = |value: &String| value.starts_with(' ');
        let is_ambiguous = values.len() > 1 && values[1..].iter().any(starts_with_space);
        prop_assert!(matches(&values.join(", ")) || is_ambiguous);
        let without = |text: &str| text.replace(' ', "");
        if without(&other) != without(&values.join(",")) {
            prop_assert!(!matches(&other));
        }
    }
}
