//! From the name in a URL to the question for a sidecar, against an API server in memory, and from
//! its answers to text.

use serde_json::{Value, json};

use super::*;
use crate::fake_api::FakeApi;
use crate::sidecar::Answer;

const SERVICES: &str = "/api/v1/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";

fn service(namespace: &str, name: &str, spec: &Value) -> Value {
    json!({ "metadata": { "name": name, "namespace": namespace }, "spec": spec })
}

fn cluster() -> FakeApi {
    let api = FakeApi::new(&[SERVICES, SLICES]);
    let ports = json!([{ "port": 80 }, { "port": 443 }]);
    let with_ip = |ip: &str| json!({ "clusterIP": ip, "ports": ports });
    api.apply(SERVICES, service("shop", "web", &with_ip("10.96.0.1")));
    api.apply(SERVICES, service("blue", "web", &with_ip("fd00::1")));
    api.apply(SERVICES, service("shop", "db", &with_ip("None")));
    api.apply(SERVICES, service("shop", "idle", &with_ip("None")));
    let external = json!({ "type": "ExternalName", "externalName": "www.example.com" });
    api.apply(SERVICES, service("shop", "outside", &external));
    for (name, other) in [("alias", "web"), ("circle", "circle")] {
        let other = format!("{other}.shop.svc.cluster.local");
        let spec = json!({ "type": "ExternalName", "externalName": other });
        api.apply(SERVICES, service("shop", name, &spec));
    }
    api.apply(
        SLICES,
        json!({
            "metadata": { "name": "db-x", "namespace": "shop",
                "labels": { "kubernetes.io/service-name": "db" } },
            "addressType": "IPv4", "endpoints": [
                { "addresses": ["10.0.0.1"], "conditions": { "ready": false } },
                { "addresses": ["10.0.0.2"], "conditions": {} },
            ],
        }),
    );
    api
}

/// The question for the sidecar of a pod in `shop`, with the remarks, or the error.
async fn asked(api: &FakeApi, url: &str) -> Result<(String, Vec<String>), String> {
    let client = api.client();
    let mut notes = Vec::new();
    let url = url.parse().expect("a URL");
    let found = destination(Some(&client), "shop", &url, &mut notes).await;
    found
        .map(|found| (found, notes))
        .map_err(|error| format!("{error:#}"))
}

#[tokio::test]
async fn a_name_is_resolved_as_by_the_pod_s_resolver() {
    let api = cluster();
    for (url, expected, note) in [
        ("http://web/a", "10.96.0.1:80", None),
        ("http://web.shop.svc.cluster.local", "10.96.0.1:80", None),
        ("http://web.blue", "[fd00::1]:80", None),
        ("http://alias", "10.96.0.1:80", None),
        ("http://10.1.2.3:81", "10.1.2.3:81", None),
        ("http://[fd00::2]", "[fd00::2]:80", None),
        (
            "http://web:81",
            "10.96.0.1:81",
            Some("no port 81, only 80, 443"),
        ),
        ("http://db:5432", "10.0.0.2:5432", Some("headless")),
    ] {
        let (found, notes) = asked(&api, url).await.expect(url);
        assert_eq!(found, expected, "{url}");
        match note {
            None => assert_eq!(notes, [""; 0], "{url}"),
            Some(note) => assert!(notes[0].contains(note), "{url}: {notes:?}"),
        }
    }
    for (url, told) in [
        ("http://missing/", "namespace shop has no Service missing"),
        ("http://web.green/", "namespace green has no Service web"),
        ("http://outside/", "another name for www.example.com"),
        ("http://circle/", "another name for itself"),
        ("http://idle/", "no pod that is ready"),
        ("http://www.example.com/", "not the name of a Service"),
    ] {
        let error = asked(&api, url).await.expect_err(url);
        assert!(error.contains(told), "{url}: {error}");
    }
}

fn report(answer: &Value, notes: &[&str]) -> Report {
    Report {
        from: "shop/client-1".to_owned(),
        method: Some("GET".to_owned()),
        url: "http://web/api".to_owned(),
        server_name: None,
        scheme: Scheme::Http,
        destination: "10.96.0.1:80".to_owned(),
        notes: notes.iter().map(ToString::to_string).collect(),
        answer: Answer::parse(&answer.to_string()).expect("an answer"),
    }
}

fn written(report: &Report) -> String {
    let mut written = Vec::new();
    text::write(report, &mut written).expect("written");
    String::from_utf8(written).expect("text")
}

#[test]
fn an_answer_starts_with_the_matching_rule_and_ends_with_the_others() {
    let rule = |rule: &str| {
        json!({
            "kind": "HTTPRoute", "route": "shop/split", "rule": rule, "filters": [], "retries": 0,
            "backends": [{ "service": "shop/v1:80", "weight": 3, "endpoints": 2 },
                { "weight": 1, "invalid": "RefNotPermitted: no" }],
        })
    };
    let answer = json!({
        "client_namespace": "shop", "target": "service",
        "service": { "namespace": "shop", "name": "web", "port": 80, "protocol": "http" },
        "routes": [{ "kind": "HTTPRoute", "name": "shop/split" }],
        "rejected": [{ "name": "http-route/shop/new", "reason": "rules[0]: a kind" }],
        "rules": [rule("a"), rule("b")],
        "matches": [
            { "rule": 0, "matches": "path /api/…, header x = \"2\"", "verdict": "unmet",
                "part": "header", "wanted": "x = \"2\"", "has": "1" },
            { "rule": 1, "matches": "path /api/…", "verdict": "takes" },
            { "rule": 0, "matches": "any path", "verdict": "outranked", "by": "longer-path" },
            { "rule": 0, "matches": "path /b/…", "verdict": "unmet", "part": "path",
                "wanted": "path /b/…", "has": "/api" },
        ],
        "outcome": { "forwarded": true, "backends": [
            { "backend": 0, "share": 0.75, "request": { "path": "/api", "authority": "web" } },
            { "backend": 1, "share": 0.25, "reason": "backend-invalid", "status": 500 },
        ] },
    });
    let report = report(&answer, &["see there"]);
    assert!(report.is_forwarded());
    let expected = "\
GET http://web/api from shop/client-1 (namespace shop)
  10.96.0.1:80 is port 80 of Service shop/web (http)
  note: see there
  note: the sidecar has rejected http-route/shop/new, and keeps its last good version if it has \
  one: rules[0]: a kind

HTTPRoute shop/split, rule b takes it (path /api/…)
  75 %     shop/v1:80, 2 endpoints
           → as /api for host web
  25 %     can't be used: RefNotPermitted: no
           → the sidecar answers 500, backend-invalid

The others, in order of precedence:
  RULE                          MATCHES                   WHY NOT
  HTTPRoute shop/split, rule a  path /api/…, header x = \"2\"  header x = \"2\": it is \"1\"
  HTTPRoute shop/split, rule a  any path                  it would, but the other has a longer path
  HTTPRoute shop/split, rule a  path /b/…                 the path is /api
";
    // Ignore the widths of columns, which the table's own tests cover.
    let squeeze = |text: &str| {
        let lines = text.lines();
        let lines = lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        lines.collect::<Vec<_>>()
    };
    assert_eq!(squeeze(&written(&report)), squeeze(expected));
}

/// The text for a question about a connection.
fn of_connection(scheme: Scheme, server_name: Option<&str>, answer: &Value) -> String {
    let report = Report {
        method: None,
        url: "tls://web:80".to_owned(),
        server_name: server_name.map(str::to_owned),
        scheme,
        ..report(answer, &[])
    };
    written(&report)
}

fn tls_routes(verdicts: [Value; 3], outcome: Value) -> Value {
    let rule = |route: &str, backends: Value| {
        let kind = "TLSRoute";
        json!({ "kind": kind, "route": route, "rule": "", "backends": backends })
    };
    let backends = json!([
        { "service": "shop/v1:80", "weight": 3, "endpoints": 2 },
        { "weight": 1, "invalid": "BackendNotFound: no" },
    ]);
    let names = ["a.example", "*.b.example", "*.example"];
    let matches = names.into_iter().zip(verdicts).zip([0, 1, 1]);
    let matches = matches.map(|((name, mut verdict), rule)| {
        verdict["rule"] = json!(rule);
        verdict["matches"] = json!(format!("SNI {name}"));
        verdict
    });
    json!({
        "client_namespace": "shop", "target": "service",
        "service": { "namespace": "shop", "name": "web", "port": 80, "protocol": "http" },
        "routes": [{ "kind": "TLSRoute", "name": "shop/a" },
            { "kind": "TLSRoute", "name": "shop/b" }],
        "rules": [rule("shop/a", backends), rule("shop/b", json!([]))],
        "matches": matches.collect::<Vec<_>>(), "outcome": outcome,
    })
}

#[test]
fn a_connection_s_answer_starts_with_the_matching_route_and_ends_with_the_others() {
    let asked = json!({
        "verdict": "unmet", "part": "server-name", "wanted": "*.b.example", "has": "a.example",
    });
    let answer = tls_routes(
        [
            json!({ "verdict": "takes" }),
            asked,
            json!({ "verdict": "outranked", "by": "exact-name" }),
        ],
        json!({ "forwarded": true, "backends": [
            { "backend": 0, "share": 0.75 },
            { "backend": 1, "share": 0.25, "reason": "backend-invalid" },
        ] }),
    );
    let expected = "\
TLS to tls://web:80, SNI a.example, from shop/client-1 (namespace shop)
  10.96.0.1:80 is port 80 of Service shop/web (bytes, which go where TLSRoutes say)

TLSRoute shop/a takes it (SNI a.example)
  75 %     shop/v1:80, 2 endpoints
  25 %     can't be used: BackendNotFound: no
           → the sidecar ends the connection, backend-invalid

The others, in order of precedence:
  ROUTE            MATCHES          WHY NOT
  TLSRoute shop/b  SNI *.b.example  the client asks for a.example
  TLSRoute shop/b  SNI *.example    it would, but the other has the exact name
";
    assert_eq!(
        of_connection(Scheme::Tls, Some("a.example"), &answer),
        expected
    );

    // A connection without a ClientHello, even if it is an HTTP request.
    let no_hello = || {
        let wanted = "a.example";
        json!({ "verdict": "unmet", "part": "client-hello", "wanted": wanted, "has": null })
    };
    let answer = tls_routes(
        [no_hello(), no_hello(), no_hello()],
        json!({ "forwarded": false, "reason": "no-client-hello" }),
    );
    for text in [
        of_connection(Scheme::Tcp, None, &answer),
        written(&report(&answer, &[])),
    ] {
        for part in [
            "no route takes it: the sidecar ends the connection, no-client-hello",
            "All there are, in order of precedence:",
            "SNI *.example    the client does not begin with a TLS ClientHello",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }
    let no_name =
        || json!({ "verdict": "unmet", "part": "server-name", "wanted": "a.example", "has": null });
    let answer = tls_routes(
        [no_name(), no_name(), no_name()],
        json!({ "forwarded": false, "reason": "no-route" }),
    );
    let text = of_connection(Scheme::Https, None, &answer);
    assert!(
        text.contains("without SNI, from") && text.contains("the client asks for no name"),
        "{text}"
    );
}

#[test]
fn a_port_without_opaque_routes_is_reported_with_its_protocol() {
    let with = |protocol: &str, rules: Value, outcome: Value| {
        let answer = json!({
            "client_namespace": "shop", "target": "service",
            "service": { "namespace": "shop", "name": "web", "port": 80, "protocol": protocol },
            "routes": [{ "kind": "HTTPRoute", "name": "shop/split" }],
            "rules": rules, "matches": [{ "rule": 0, "matches": "everything", "verdict": "takes" }],
            "outcome": outcome,
        });
        of_connection(Scheme::Tls, Some("web"), &answer)
    };
    let backends = json!([{ "service": "shop/web:80", "weight": 1, "endpoints": 1 }]);
    let own = json!([{ "kind": "", "route": "", "rule": "", "backends": backends }]);
    let forwarded = json!({ "forwarded": true, "backends": [{ "backend": 0, "share": 1.0 }] });
    let text = with("detect", own, forwarded);
    assert!(
        text.contains("what does not begin with HTTP goes to its own pods"),
        "{text}"
    );
    assert!(text.contains("100 %    shop/web:80, 1 endpoint"), "{text}");
    let refused = json!({ "forwarded": false, "reason": "bad-request", "status": 400 });
    let text = with("http", json!([]), refused);
    assert!(
        text.contains("it is not HTTP") && text.contains("answers 400, bad-request"),
        "{text}"
    );
    let text = with("http2", json!([]), json!({ "forwarded": false }));
    assert!(
        text.contains("it is not HTTP") && text.contains("the sidecar ends the connection"),
        "{text}"
    );
}

#[test]
fn a_destination_outside_the_mesh_or_without_a_match_is_one_line() {
    let with = |target: &str, outcome: Value| {
        let answer = json!({ "client_namespace": "shop", "target": target, "outcome": outcome });
        let report = report(&answer, &[]);
        assert!(!report.is_forwarded());
        written(&report)
    };
    let text = with("passthrough", json!({ "forwarded": false }));
    assert!(text.contains("goes there as it is, as bytes"), "{text}");
    let text = with(
        "unknown",
        json!({ "forwarded": false, "reason": "destination-unknown", "status": 503 }),
    );
    assert!(
        text.contains("the sidecar answers 503, destination-unknown"),
        "{text}"
    );
    let text = with(
        "service",
        json!({ "forwarded": false, "reason": "no-route", "status": 404 }),
    );
    assert!(
        text.contains("no rule takes it: the sidecar answers 404, no-route"),
        "{text}"
    );
    let text = with(
        "service",
        json!({ "forwarded": false, "reason": "no-route", "status": 200, "grpc_status": 12 }),
    );
    assert!(
        text.contains("answers 200 with grpc-status 12, no-route"),
        "{text}"
    );
}

#[test]
fn a_destination_without_routes_is_reported_with_its_endpoints() {
    let with = |target: &str, protocol: &str| {
        let backends = json!([{ "service": "shop/web:80", "weight": 1, "endpoints": 1 }]);
        let answer = json!({
            "client_namespace": "shop", "target": target,
            "service": { "namespace": "shop", "name": "web", "port": 80, "protocol": protocol },
            "rules": [{ "kind": "", "route": "", "rule": "", "backends": backends }],
            "matches": [{ "rule": 0, "matches": "everything", "verdict": "takes" }],
            "outcome": { "forwarded": true, "backends": [{ "backend": 0, "share": 1.0 }] },
        });
        written(&report(&answer, &[]))
    };
    for (target, protocol, told) in [
        (
            "service",
            "http",
            "no route is in force for it: everything goes to its own pods",
        ),
        ("service", "tcp", "declared as bytes"),
        ("service", "detect", "told by the first bytes"),
        ("pod", "http", "no route has a part in calls to pods"),
    ] {
        let text = with(target, protocol);
        assert!(text.contains(told), "{text}");
        assert!(text.contains("100 %    shop/web:80, 1 endpoint"), "{text}");
    }
}

#[test]
fn unknown_fields_of_a_newer_sidecar_s_answer_are_ignored() {
    let answer = json!({
        "client_namespace": "shop", "target": "service", "something": "new",
        "matches": [{ "rule": 0, "matches": "SNI = a", "verdict": "takes", "more": 1 }],
        "rules": [{ "kind": "TLSRoute", "route": "shop/tls", "rule": "0", "colour": "blue" }],
        "outcome": { "forwarded": true, "reason": "a-new-word" },
    });
    let text = written(&report(&answer, &[]));
    assert!(
        text.contains("TLSRoute shop/tls, rule 0 takes it"),
        "{text}"
    );
}
