//! TLSRoutes and TCPRoutes of a Service.

use serde_json::{Value, json};

use super::echo::{Answer, Client, SOON, condition, route, start};
use crate::kubernetes::{Namespace, eventually};
use crate::turns;

/// A TLSRoute on `echo:443` for these names.
fn tls(name: &str, hostnames: &[&str], backends: Value) -> Value {
    let mut route = route(
        "TLSRoute",
        name,
        "echo:443",
        json!([{ "backendRefs": backends }]),
    );
    route["spec"]["hostnames"] = json!(hostnames);
    route
}

fn to(service: &str, port: u16, weight: u32) -> Value {
    json!({ "name": service, "port": port, "weight": weight })
}

/// Twin of TLSRouteSimpleSameNamespace, TLSRouteHostnameIntersection,
/// TLSRouteInvalidBackendRefNonexistent.
#[test]
fn passed_through_tls_is_routed_by_the_name_that_it_asks_for() {
    let _turn = turns::beside_others();
    let namespace = Namespace::meshed("tls");
    start(&namespace, &["v1", "v2"]);
    namespace.apply(&[
        tls("exact", &["one.example.org"], json!([to("v1", 443, 1)])),
        tls("wildcard", &["*.example.org"], json!([to("v2", 443, 1)])),
        tls("gone", &["gone.example.com"], json!([to("gone", 443, 1)])),
    ]);
    let client = Client {
        namespace: &namespace,
        deployment: "v1",
    };
    let ask = |name: &str| client.call("https://echo/", &["-k", "--server-name", name]);
    eventually("the exact name is v1's", SOON, || {
        let by: Vec<String> = (0..6).map(|_| ask("one.example.org").by).collect();
        match by.iter().all(|by| by == "v1") {
            true => Ok(()),
            false => Err(format!("{by:?}")),
        }
    });
    for (name, by) in [
        ("one.example.org", "v1"),
        ("ONE.example.org", "v1"),
        ("two.example.org", "v2"),
        ("deep.two.example.org", "v2"),
        // An unknown name.
        ("example.com", ""),
        ("gone.example.com", ""),
    ] {
        let answer = ask(name);
        assert_eq!(answer.by, by, "{name}: {}", answer.text);
        assert!(
            by.is_empty() || answer.text.contains("Sni="),
            "its TLS is its own: {}",
            answer.text
        );
    }
    // A connection without TLS has no server name.
    let answer = client.call("tcp://echo:443", &["--timeout=20s"]);
    assert_eq!(answer.by, "", "{}", answer.text);
    let found = condition(&namespace, "TLSRoute", "exact", "Accepted");
    assert!(found.is("True", "Accepted"), "{found:?}");
    let found = condition(&namespace, "TLSRoute", "gone", "ResolvedRefs");
    assert!(found.is("False", "BackendNotFound"), "{found:?}");
    // Other ports are unaffected.
    assert_eq!(client.call("http://echo/", &[]).status, 200);
}

/// Twin of TCPRouteWeightedRouting, TCPRouteReferenceGrant's refusal and
/// TCPRouteInvalidBackendRefNonexistent; in addition, several kinds on one port, which the suite
/// does not cover.
#[test]
fn connections_are_shared_by_weight_and_kinds_of_routes_have_an_order() {
    let _turn = turns::beside_others();
    let namespace = Namespace::meshed("tcp");
    start(&namespace, &["v1", "v2"]);
    let tcp = |name: &str, parent: &str, backends: Value| {
        route(
            "TCPRoute",
            name,
            parent,
            json!([{ "backendRefs": backends }]),
        )
    };
    let client = Client {
        namespace: &namespace,
        deployment: "v1",
    };
    let count =
        |answers: &[Answer], by: &str| answers.iter().filter(|answer| answer.by == by).count();
    // One connection per call.
    let many = || client.calls("tcp://echo:9090", 60, &[]);
    namespace.apply(&[tcp(
        "shared",
        "echo:9090",
        json!([to("v1", 9090, 0), to("v2", 9090, 1)]),
    )]);
    eventually("weight 0 gets nothing", SOON, || {
        let answers = many();
        match (count(&answers, "v1"), count(&answers, "v2")) {
            (0, 60) => Ok(()),
            (first, second) => Err(format!("{first} and {second}")),
        }
    });
    namespace.apply(&[tcp(
        "shared",
        "echo:9090",
        json!([to("v1", 9090, 1), to("v2", 9090, 1)]),
    )]);
    eventually("both get some", SOON, || {
        let answers = many();
        match (count(&answers, "v1"), count(&answers, "v2")) {
            (first, second) if first > 0 && second > 0 && first + second == 60 => Ok(()),
            (first, second) => Err(format!("{first} and {second}")),
        }
    });
    namespace.apply(&[tcp("shared", "echo:9090", json!([to("gone", 9090, 1)]))]);
    eventually("a backend that is not there refuses", SOON, || {
        let answer = client.call("tcp://echo:9090", &[]);
        match &*answer.by {
            "" => Ok(()),
            _ => Err(answer.text),
        }
    });
    let found = condition(&namespace, "TCPRoute", "shared", "ResolvedRefs");
    assert!(found.is("False", "BackendNotFound"), "{found:?}");

    // The order of kinds on one port, in ascending precedence.
    let verdicts = |wanted: &[(&str, &str)]| {
        eventually(&format!("{wanted:?}"), SOON, || {
            let found: Vec<_> = (wanted.iter())
                .map(|(kind, _)| {
                    (
                        *kind,
                        condition(&namespace, kind, "order", "Accepted").reason,
                    )
                })
                .collect();
            match found
                .iter()
                .zip(wanted)
                .all(|((_, is), (_, wanted))| is == wanted)
            {
                true => Ok(()),
                false => Err(format!("{found:?}")),
            }
        });
    };
    namespace.apply(&[tcp("order", "echo:7070", json!([to("v1", 7070, 1)]))]);
    verdicts(&[("TCPRoute", "Accepted")]);
    let mut other = tls("order", &["a.example.org"], json!([to("v1", 7070, 1)]));
    other["spec"]["parentRefs"][0]["port"] = 7070.into();
    namespace.apply(&[other]);
    verdicts(&[("TLSRoute", "Accepted"), ("TCPRoute", "Conflicted")]);
    let backend = json!([{ "backendRefs": [to("v2", 7070, 1)] }]);
    namespace.apply(&[route("HTTPRoute", "order", "echo:7070", backend.clone())]);
    verdicts(&[
        ("HTTPRoute", "Accepted"),
        ("TLSRoute", "Conflicted"),
        ("TCPRoute", "Conflicted"),
    ]);
    namespace.apply(&[route("GRPCRoute", "order", "echo:7070", backend)]);
    verdicts(&[
        ("GRPCRoute", "Accepted"),
        ("HTTPRoute", "Conflicted"),
        ("TLSRoute", "Conflicted"),
        ("TCPRoute", "Conflicted"),
    ]);
    client.until("grpc://echo:7070", &[], |answer| answer.by == "v2");
    for (kind, then) in [
        ("GRPCRoute", "HTTPRoute"),
        ("HTTPRoute", "TLSRoute"),
        ("TLSRoute", "TCPRoute"),
    ] {
        namespace.kubectl(&["delete", kind, "order"]);
        verdicts(&[(then, "Accepted")]);
    }
}
