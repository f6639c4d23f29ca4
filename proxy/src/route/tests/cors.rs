use super::*;

fn cors(change: impl FnOnce(&mut contract::Cors)) -> Logical {
    let mut cors = contract::Cors {
        max_age_seconds: 5,
        ..Default::default()
    };
    change(&mut cors);
    let mut all = rule("cors", vec![]);
    all.filters = vec![filter(Kind::Cors(cors))];
    logical(decode(&[route("r", vec![all])]).expect("a route"), 80)
}

fn texts(values: &[&str]) -> Vec<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

/// The filter of the first route of Gateway API's own test.
fn listed() -> Logical {
    cors(|cors| {
        cors.allow_origins = texts(&["https://www.foo.com", "https://*.bar.com"]);
        cors.allow_methods = texts(&["GET", "OPTIONS"]);
        cors.allow_headers = texts(&["x-header-1", "x-header-2"]);
        cors.expose_headers = texts(&["x-header-3", "x-header-4"]);
        cors.allow_credentials = true;
        cors.max_age_seconds = 3600;
    })
}

fn wildcards(credentials: bool) -> Logical {
    cors(|cors| {
        cors.allow_origins = texts(&["*"]);
        cors.allow_methods = texts(&["*"]);
        cors.allow_headers = texts(&["*"]);
        cors.expose_headers = texts(&["*"]);
        cors.allow_credentials = credentials;
    })
}

/// Status and fields of the answer to a preflight request, but for `Vary`.
fn preflight(logical: &Logical, headers: &[(&str, &str)]) -> (u16, Vec<(String, String)>) {
    match decide(logical, &mut head("OPTIONS", "/", headers), &mut random()) {
        Decision::Preflight { answer, .. } => {
            let mut fields = answer.fields;
            let vary = fields.remove(0);
            assert_eq!(vary.0, "vary");
            let short = |name: &str| name.trim_start_matches("access-control-").to_owned();
            let each = fields.into_iter().map(|(name, value)| (short(name), value));
            (answer.status, each.collect())
        }
        _ => panic!("no preflight answer"),
    }
}

fn fields(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    let each = expected.iter();
    each.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

/// The response fields after the filter, for an app that sends the fields `said`.
fn response(logical: &Logical, origin: Option<&str>, said: &[(&str, &str)]) -> http::HeaderMap {
    let headers: Vec<_> = origin.iter().map(|origin| ("origin", *origin)).collect();
    let mut request = head("GET", "/", &headers);
    let decision = decide(logical, &mut request, &mut random());
    let Decision::Forward {
        rule,
        backend,
        origin,
    } = decision
    else {
        panic!("not forwarded");
    };
    let mut response = http::HeaderMap::new();
    for (name, value) in said {
        response.add_field(name, value);
    }
    rule.filter_response(Some(backend), origin.as_deref(), &mut response);
    response
}

fn values<'a>(headers: &'a http::HeaderMap, name: &str) -> Vec<&'a str> {
    let all = headers.get_all(name).iter();
    all.map(|value| value.to_str().expect("text")).collect()
}

const GET: (&str, &str) = ("access-control-request-method", "GET");
const PUT: (&str, &str) = ("access-control-request-method", "PUT");
const HEADERS: (&str, &str) = ("access-control-request-headers", "x-header-1, x-header-2");

#[test]
fn a_preflight_from_a_listed_origin_gets_the_filter_s_lists() {
    for origin in [
        "https://www.foo.com",
        "https://www.bar.com",
        "https://xpto.www.bar.com",
        "https://www.foo.com:443",
        "https://WWW.foo.com",
    ] {
        assert_eq!(
            preflight(&listed(), &[("origin", origin), GET, HEADERS]),
            (
                204,
                fields(&[
                    ("allow-origin", origin),
                    ("allow-credentials", "true"),
                    ("expose-headers", "x-header-3, x-header-4"),
                    ("allow-methods", "GET, OPTIONS"),
                    ("allow-headers", "x-header-1, x-header-2"),
                    ("max-age", "3600"),
                ])
            )
        );
    }
}

#[test]
fn any_other_origin_gets_no_fields() {
    for origin in [
        "https://foobar.com",
        "https://bar.com",
        "https://.bar.com.evil.com",
        "https://evilbar.com",
        "http://www.foo.com",
        "https://www.foo.com:8443",
        "https://www.foo.com:0443x",
        "https://www.foo.com/",
        "https://user@www.bar.com/.bar.com",
        "null",
        "",
    ] {
        let asked = [("origin", origin), GET];
        assert_eq!(preflight(&listed(), &asked), (403, vec![]), "{origin}");
        let response = response(&listed(), Some(origin), &[]);
        assert!(!response.contains_key("access-control-allow-origin"));
        assert_eq!(values(&response, "vary"), ["Origin"]);
    }
    let twice = [
        ("origin", "https://www.foo.com"),
        ("origin", "https://www.foo.com"),
        GET,
    ];
    assert_eq!(preflight(&listed(), &twice).0, 403);
    let no_origin = cors(|_| {});
    assert_eq!(preflight(&no_origin, &[("origin", "http://a"), GET]).0, 403);
}

#[test]
fn the_port_and_the_scheme_of_a_wildcard_host_count() {
    let wild = cors(|cors| cors.allow_origins = texts(&["http://*:8080", "https://*"]));
    for (origin, status) in [
        ("http://a.b:8080", 204),
        ("http://[::1]:8080", 204),
        ("https://a", 204),
        ("http://a.b", 403),
        ("https://a:8080", 403),
        ("https://[::1]", 204),
    ] {
        let answer = preflight(&wild, &[("origin", origin), GET]);
        assert_eq!(answer.0, status, "{origin}");
    }
}

#[test]
fn wildcards_echo_the_request_and_are_never_a_star_with_credentials() {
    let asked = [("origin", "https://other.foo.com:12345"), PUT, HEADERS];
    assert_eq!(
        preflight(&wildcards(true), &asked),
        (
            204,
            fields(&[
                ("allow-origin", "https://other.foo.com:12345"),
                ("allow-credentials", "true"),
                ("allow-methods", "PUT"),
                ("allow-headers", "x-header-1, x-header-2"),
                ("max-age", "5"),
            ])
        )
    );
    assert_eq!(
        preflight(&wildcards(false), &asked[..2]),
        (
            204,
            fields(&[
                ("allow-origin", "*"),
                ("expose-headers", "*"),
                ("allow-methods", "PUT"),
                ("max-age", "5"),
            ])
        )
    );
}

#[test]
fn other_requests_than_preflights_go_to_the_app() {
    let origin = ("origin", "https://www.foo.com");
    for (method, headers) in [
        ("OPTIONS", &[origin][..]),
        ("OPTIONS", &[GET]),
        ("GET", &[origin, GET]),
    ] {
        let mut head = head(method, "/", headers);
        let decision = decide(&listed(), &mut head, &mut random());
        assert!(matches!(decision, Decision::Forward { .. }), "{method}");
    }
}

#[test]
fn an_app_s_own_fields_are_replaced_and_its_vary_is_kept() {
    let said = [
        ("access-control-allow-origin", "*"),
        ("Access-Control-Allow-Origin", "https://app.example"),
        ("access-control-allow-credentials", "true"),
        ("access-control-expose-headers", "x-app"),
        ("vary", "Accept"),
    ];
    let allowed = response(&listed(), Some("https://www.bar.com"), &said);
    assert_eq!(
        values(&allowed, "access-control-allow-origin"),
        ["https://www.bar.com"]
    );
    assert_eq!(
        values(&allowed, "access-control-expose-headers"),
        ["x-header-3, x-header-4"]
    );
    assert_eq!(values(&allowed, "vary"), ["Accept", "Origin"]);
    for origin in [Some("https://other.com"), None] {
        let denied = response(&listed(), origin, &said);
        assert_eq!(values(&denied, "vary"), ["Accept", "Origin"]);
        assert_eq!(denied.len(), 2, "{denied:?}");
    }
    let already = response(&listed(), None, &[("vary", "accept, ORIGIN")]);
    assert_eq!(values(&already, "vary"), ["accept, ORIGIN"]);
}

#[test]
fn an_answer_that_is_the_same_for_all_origins_does_not_vary() {
    let everyone = wildcards(false);
    for origin in [Some("https://a"), Some("null"), None] {
        let response = response(&everyone, origin, &[]);
        assert_eq!(values(&response, "access-control-allow-origin"), ["*"]);
        assert!(!response.contains_key("vary"));
    }
    let with_credentials = response(&wildcards(true), Some("https://a"), &[]);
    assert_eq!(
        values(&with_credentials, "access-control-allow-origin"),
        ["https://a"]
    );
    assert_eq!(values(&with_credentials, "vary"), ["Origin"]);
}

#[test]
fn a_redirect_has_the_fields_too() {
    let mut all = rule("cors", vec![]);
    all.filters = vec![
        filter(Kind::Cors(contract::Cors {
            allow_origins: texts(&["http://a"]),
            ..Default::default()
        })),
        filter(Kind::Redirect(contract::Redirect {
            status: 302,
            hostname: "b".to_owned(),
            ..Default::default()
        })),
    ];
    let logical = logical(decode(&[route("r", vec![all])]).expect("a route"), 80);
    assert_eq!(preflight(&logical, &[("origin", "http://a"), GET]).0, 204);
    let mut get = head("GET", "/", &[("origin", "http://a")]);
    let decision = decide(&logical, &mut get, &mut random());
    let Decision::Redirect { origin, .. } = decision else {
        panic!("no redirect");
    };
    assert_eq!(origin.as_deref(), Some("http://a"));
}
