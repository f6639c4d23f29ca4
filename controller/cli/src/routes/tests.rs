//! Routes that are reported as not in force, against an API server in memory, and the layout of the
//! tables.

use serde_json::{Value, json};

use super::*;
use crate::fake_api::FakeApi;

const HTTP_ROUTES: &str = "/apis/gateway.networking.k8s.io/v1/httproutes";
const GRPC_ROUTES: &str = "/apis/gateway.networking.k8s.io/v1/grpcroutes";
const TLS_ROUTES: &str = "/apis/gateway.networking.k8s.io/v1/tlsroutes";
const TCP_ROUTES: &str = "/apis/gateway.networking.k8s.io/v1/tcproutes";

/// A route to the Service `shop/web`. `refusal`: the reason in its status; `None` if it is
/// Accepted.
fn route(namespace: &str, name: &str, refusal: Option<&str>) -> Value {
    let condition = json!({
        "type": "Accepted", "status": if refusal.is_some() { "False" } else { "True" },
        "reason": refusal.unwrap_or("Accepted"),
        "message": "as it is", "observedGeneration": 1,
    });
    let parent = json!({ "group": "", "kind": "Service", "name": "web", "namespace": "shop" });
    json!({
        "metadata": { "name": name, "namespace": namespace, "generation": 1 },
        "spec": { "parentRefs": [parent] },
        "status": { "parents": [{
            "controllerName": "naru.dev/controller", "parentRef": parent, "conditions": [condition],
        }] },
    })
}

/// An answer for clients in `clients`, with these HTTPRoutes in force.
fn answer(clients: &str, protocol: &str, routes: &[&str]) -> Answer {
    answer_with("HTTPRoute", clients, protocol, routes)
}

/// The same, with routes of another kind.
fn answer_with(kind: &str, clients: &str, protocol: &str, routes: &[&str]) -> Answer {
    let routes: Vec<_> = routes
        .iter()
        .map(|name| json!({ "kind": kind, "name": name }))
        .collect();
    let answer = json!({
        "client_namespace": clients, "target": "service", "routes": routes,
        "service": { "namespace": "shop", "name": "web", "port": 80, "protocol": protocol },
    });
    Answer::parse(&answer.to_string()).expect("an answer")
}

async fn unused(api: &FakeApi, clients: &str, answer: &Answer) -> Vec<(String, String)> {
    let service = ServiceName {
        namespace: "shop".to_owned(),
        name: "web".to_owned(),
    };
    let (unused, notes) = unused::find(&api.client(), &service, clients, &[answer]).await;
    assert_eq!(notes, [""; 0]);
    unused.into_iter().map(|one| (one.name, one.why)).collect()
}

#[tokio::test]
async fn a_route_that_is_not_in_force_is_reported_with_its_reason() {
    let api = FakeApi::new(&[HTTP_ROUTES, GRPC_ROUTES]);
    api.apply(HTTP_ROUTES, route("shop", "good", None));
    api.apply(HTTP_ROUTES, route("shop", "bad", Some("UnsupportedValue")));
    api.apply(HTTP_ROUTES, route("shop", "loses", Some("Conflicted")));
    api.apply(HTTP_ROUTES, route("green", "theirs", None));
    let mut fresh = route("shop", "fresh", None);
    fresh["status"] = json!({});
    api.apply(HTTP_ROUTES, fresh);
    let mut elsewhere = route("shop", "elsewhere", None);
    elsewhere["spec"]["parentRefs"][0]["name"] = json!("cart");
    api.apply(HTTP_ROUTES, elsewhere);

    let said = unused(&api, "shop", &answer("shop", "http", &["shop/good"])).await;
    let expected = [
        ("green/theirs", "for clients in green alone"),
        ("shop/bad", "not Accepted (UnsupportedValue): as it is"),
        ("shop/fresh", "no status"),
        ("shop/loses", "not Accepted (Conflicted): as it is"),
    ];
    assert_eq!(said.len(), expected.len(), "{said:?}");
    for ((name, why), (expected, told)) in said.iter().zip(expected) {
        assert_eq!(name, expected);
        assert!(why.contains(told), "{name}: {why}");
    }
}

#[tokio::test]
async fn a_consumer_s_route_replaces_the_producer_s() {
    // The CRD of GRPCRoute is not installed.
    let api = FakeApi::new(&[HTTP_ROUTES]);
    api.apply(HTTP_ROUTES, route("shop", "good", None));
    api.apply(HTTP_ROUTES, route("green", "theirs", None));
    let said = unused(&api, "green", &answer("green", "http", &["green/theirs"])).await;
    let [(name, why)] = said.as_slice() else {
        panic!("{said:?}");
    };
    assert_eq!(name, "shop/good");
    assert!(why.contains("take its place, as green/theirs"), "{why}");

    let said = unused(&api, "shop", &answer("shop", "tcp", &[])).await;
    assert!(said[1].1.contains("declared as bytes"), "{said:?}");
    let said = unused(&api, "shop", &answer("shop", "http", &[])).await;
    assert!(said[1].1.contains("not yet"), "{said:?}");
}

#[tokio::test]
async fn an_opaque_route_that_is_not_in_force_is_reported_with_its_reason() {
    let api = FakeApi::new(&[HTTP_ROUTES, TLS_ROUTES, TCP_ROUTES]);
    api.apply(TLS_ROUTES, route("shop", "names", None));
    api.apply(TCP_ROUTES, route("shop", "all", Some("Conflicted")));
    let mut later = route("shop", "later", None);
    later["status"]["parents"][0]["conditions"][0]["message"] = json!(
        "in force nowhere on Service shop/web: port 80: the older TCPRoute shop/all takes all of it"
    );
    api.apply(TCP_ROUTES, later);
    let with_names = answer_with("TLSRoute", "shop", "tcp", &["shop/names"]);
    let said = unused(&api, "shop", &with_names).await;
    let expected = [
        ("shop/all", "not Accepted (Conflicted): as it is"),
        ("shop/later", "the older TCPRoute shop/all takes all of it"),
    ];
    assert_eq!(said.len(), expected.len(), "{said:?}");
    for ((name, why), (expected, told)) in said.iter().zip(expected) {
        assert_eq!(name, expected);
        assert!(why.contains(told), "{name}: {why}");
    }
}

#[test]
fn opaque_routes_have_a_line_for_each_name_and_backend() {
    let mut answer = answer_with("TLSRoute", "shop", "http", &["shop/eu", "shop/all"]);
    let rules = json!([
        { "kind": "TLSRoute", "route": "shop/eu", "rule": "", "backends": [
            { "service": "shop/eu:8883", "weight": 9, "endpoints": 2, "ejected": 1 },
            { "service": "", "weight": 1, "invalid": "BackendNotFound: no" },
        ] },
        { "kind": "TLSRoute", "route": "shop/all", "rule": "",
            "backends": [{ "service": "shop/all:8883", "weight": 1, "endpoints": 1 }] },
    ]);
    answer.rules = serde_json::from_value(rules).expect("rules");
    let names = [(0, "SNI eu.example"), (1, "SNI *.example")];
    answer.matches = Vec::from(names.map(|(rule, matches)| Match {
        rule,
        matches: matches.to_owned(),
        verdict: None,
    }));
    let report = Report {
        from: "shop/web-1".to_owned(),
        service: "shop/web".to_owned(),
        ports: vec![Port { port: 8883, answer }],
        not_in_force: Vec::new(),
        notes: Vec::new(),
    };
    let mut written = Vec::new();
    text(&report, &mut written).expect("written");
    let expected = "\
Service shop/web for clients in namespace shop, as the sidecar of shop/web-1 has it

port 8883 (bytes, which go where TLSRoutes say)
  ROUTE              TAKES           BACKENDS
  TLSRoute shop/eu   SNI eu.example  weight 9: shop/eu:8883, 2 endpoints, 1 of them ejected
                                     weight 1: can't be used: BackendNotFound: no
  TLSRoute shop/all  SNI *.example   weight 1: shop/all:8883, 1 endpoint
";
    assert_eq!(String::from_utf8(written).expect("text"), expected);
}

#[test]
fn a_rule_has_a_line_for_each_of_its_backends() {
    let mut answer = answer("shop", "http", &["shop/split"]);
    let rules = json!([
        {
            "kind": "HTTPRoute", "route": "shop/split", "rule": "most", "request_timeout_ms": 2000,
            "retries": 2,
            "filters": ["request headers: set x-a"],
            "backends": [
                { "service": "shop/v1:80", "weight": 9, "endpoints": 3, "ejected": 1 },
                { "service": "", "weight": 1, "invalid": "BackendNotFound: no" },
            ],
        },
    ]);
    answer.rules = serde_json::from_value(rules).expect("rules");
    answer.matches = vec![Match {
        rule: 0,
        matches: "path /a/…".to_owned(),
        verdict: None,
    }];
    let report = Report {
        from: "shop/web-1".to_owned(),
        service: "shop/web".to_owned(),
        ports: vec![Port { port: 80, answer }],
        not_in_force: vec![Unused {
            kind: "GRPCRoute".to_owned(),
            name: "shop/x".to_owned(),
            why: "not Accepted".to_owned(),
        }],
        notes: Vec::new(),
    };
    let mut written = Vec::new();
    text(&report, &mut written).expect("written");
    let written = String::from_utf8(written).expect("text");
    let expected = "\
Service shop/web for clients in namespace shop, as the sidecar of shop/web-1 has it

port 80 (http)
  ROUTE                 RULE  MATCHES    FILTERS                   BACKENDS
  HTTPRoute shop/split  most  path /a/…  request headers: set x-a  weight 9: shop/v1:80, 3 \
  endpoints, 1 of them ejected
                                         at most 2000 ms           weight 1: can't be used: \
                                         BackendNotFound: no
                                         retries: 2

not in force
  ROUTE             WHY
  GRPCRoute shop/x  not Accepted
";
    assert_eq!(written, expected);
}

#[test]
fn a_service_is_named_with_or_without_a_namespace_and_a_port() {
    for (text, host, port) in [
        ("web", "web", None),
        ("web.shop", "web.shop", None),
        ("web.shop:80", "web.shop", Some(80)),
    ] {
        let asked: ServiceArgument = text.parse().expect(text);
        assert_eq!((asked.host.as_str(), asked.port), (host, port));
    }
    for wrong in ["", "web:x", "web:70000", "a_b"] {
        assert!(wrong.parse::<ServiceArgument>().is_err(), "{wrong:?}");
    }
}
