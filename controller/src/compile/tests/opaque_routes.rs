//! TLSRoutes and TCPRoutes, and routes of several kinds on one port.

use super::*;

const PORT: &str = "{ port: 80 }";
const KINDS: [&str; 4] = ["TCPRoute", "TLSRoute", "HTTPRoute", "GRPCRoute"];

/// A route of any kind to `web` in `shop` (port 80 or all ports) with the backend `backend`.
fn of_kind(kind: &str, namespace: &str, name: &str, port: &str, backend: &str) -> String {
    let hostnames = match kind {
        "TLSRoute" => "hostnames: [a.example, \"*.b.example\"], ",
        _ => "",
    };
    route(
        namespace,
        name,
        &format!(
            "{hostnames}parentRefs: [{{ group: \"\", kind: Service, namespace: shop, name: \
             web{port} }}], rules: [{{ backendRefs: [{{ {backend} }}] }}]"
        ),
    )
    .replace("kind: HTTPRoute", &format!("kind: {kind}"))
}

fn to_web(kind: &str, namespace: &str, name: &str) -> String {
    of_kind(
        kind,
        namespace,
        name,
        ", port: 80",
        "name: v2, namespace: shop, port: 80",
    )
}

fn shop() -> Catalog {
    catalog(&[
        &service(
            "shop",
            "web",
            "10.0.0.1",
            "{ name: a, port: 80 }, { name: b, port: 81 }",
        ),
        &service("shop", "v2", "10.0.0.2", PORT),
        &service("other", "own", "10.0.0.3", PORT),
    ])
}

/// Routes in force: HTTP and gRPC routes, and TLS and TCP routes.
fn routes(catalog: &Catalog, client: &str, port: u16) -> (Vec<String>, Vec<String>) {
    let name = format!("service/{client}/shop/web/{port}");
    let compiled = compile_for(catalog, client, &name);
    let needs = compiled.as_ref().unwrap().needs.clone();
    let service = service_of(compiled);
    for route in service.http_routes.iter().chain(&service.opaque_routes) {
        assert!(needs.contains(&route.parse().unwrap()), "{route}");
    }
    (service.http_routes, service.opaque_routes)
}

/// All routes in force for a client, of any kind.
fn in_force(catalog: &Catalog, client: &str, port: u16) -> Vec<String> {
    let (http, streams) = routes(catalog, client, port);
    http.into_iter().chain(streams).collect()
}

/// Whether a route is accepted, with the reason and the message.
fn accepted(catalog: &Catalog, kind: &str, name: &str) -> (bool, &'static str, String) {
    let statuses = catalog.route_statuses();
    let id = format!("{kind} {name}");
    let status = statuses
        .iter()
        .find(|status| status.route.to_string() == id);
    let accepted = &status.unwrap().parents[0].accepted;
    (accepted.holds, accepted.reason, accepted.message.clone())
}

#[test]
fn opaque_routes_are_listed_separately_from_http_routes() {
    let mut catalog = shop();
    let changed = apply(&mut catalog, &to_web("TCPRoute", "shop", "r"));
    for name in ["tcp-route/shop/r", "service/*/shop/web/80"] {
        assert!(changed.contains(&change(name)));
    }
    let (http, streams) = routes(&catalog, "other", 80);
    assert!(http.is_empty());
    assert_eq!(streams, ["tcp-route/shop/r"]);
    assert!(in_force(&catalog, "other", 81).is_empty());
    let compiled = compile(&catalog, "tcp-route/shop/r").unwrap();
    assert_eq!(compiled.needs, ["endpoints/shop/v2/80".parse().unwrap()]);
    let Body::TcpRoute(route) = compiled.body else {
        panic!("{:?}", compiled.body);
    };
    assert_eq!(route.backends[0].endpoints, "endpoints/shop/v2/80");
    assert_eq!(route.backends[0].weight, 1);
    delete(&mut catalog, &to_web("TCPRoute", "shop", "r"));
    assert!(in_force(&catalog, "other", 80).is_empty());
    assert_eq!(compile(&catalog, "tcp-route/shop/r"), None);
}

#[test]
fn a_tls_route_has_its_names_and_reports_an_invalid_backend() {
    let mut catalog = shop();
    let backend = "name: own, namespace: other, port: 80, weight: 7";
    apply(&mut catalog, &of_kind("TLSRoute", "shop", "r", "", backend));
    let compiled = |catalog: &Catalog| match compile(catalog, "tls-route/shop/r").unwrap().body {
        Body::TlsRoute(route) => route,
        other => panic!("{other:?}"),
    };
    let route = compiled(&catalog);
    assert_eq!(route.hostnames, ["a.example", "*.b.example"]);
    let backend = &route.backends[0];
    assert_eq!((backend.weight, backend.endpoints.as_str()), (7, ""));
    let invalid = &backend.invalid;
    assert!(invalid.starts_with("RefNotPermitted: ") && invalid.contains("TLSRoutes of shop"));
    // A grant for another kind does not apply.
    let grant = |kind: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\n\
             kind: ReferenceGrant\n\
             metadata: {{ name: g, namespace: other }}\n\
             spec: {{ from: [{{ group: gateway.networking.k8s.io, kind: {kind}, \
             namespace: shop }}], to: [{{ group: \"\", kind: Service }}] }}\n"
        )
    };
    assert!(apply(&mut catalog, &grant("TCPRoute")).is_empty());
    assert_eq!(compiled(&catalog), route);
    let changed = apply(&mut catalog, &grant("TLSRoute"));
    assert_eq!(changed, [change("tls-route/shop/r")]);
    let granted = compiled(&catalog);
    assert_eq!(granted.backends[0].endpoints, "endpoints/other/own/80");
}

#[test]
fn a_changed_route_affects_its_own_resource_alone() {
    let mut catalog = shop();
    apply(&mut catalog, &to_web("TCPRoute", "shop", "tcp"));
    apply(&mut catalog, &to_web("TLSRoute", "shop", "tls"));
    let weighted =
        to_web("TCPRoute", "shop", "tcp").replace("port: 80 }] }]", "port: 80, weight: 5 }] }]");
    let changed = apply(&mut catalog, &weighted);
    assert_eq!(changed, [change("tcp-route/shop/tcp")]);
    let renamed = to_web("TLSRoute", "shop", "tls").replace("a.example", "c.example");
    let changed = apply(&mut catalog, &renamed);
    assert_eq!(changed, [change("tls-route/shop/tls")]);
    // A consumer's route affects its own namespace.
    let changed = apply(&mut catalog, &to_web("TCPRoute", "other", "mine"));
    assert!(changed.contains(&change("service/other/shop/web/80")));
    let elsewhere = |changed: &Changed| match changed {
        Changed::Resource(ResourceName::Service {
            client_namespace, ..
        }) => client_namespace != "other",
        Changed::Service { .. } => true,
        _ => false,
    };
    assert!(!changed.iter().any(elsewhere));
}

#[test]
fn the_most_specific_kind_on_a_port_is_in_force_and_the_others_are_reported() {
    let mut catalog = shop();
    for (i, kind) in KINDS.into_iter().enumerate() {
        apply(&mut catalog, &to_web(kind, "shop", "r"));
        let prefix = format!("{}-route", kind.trim_end_matches("Route").to_lowercase());
        assert_eq!(
            in_force(&catalog, "third", 80),
            [format!("{prefix}/shop/r")]
        );
        let (holds, reason, _) = accepted(&catalog, kind, "shop/r");
        assert_eq!((holds, reason), (true, "Accepted"));
        for loser in &KINDS[..i] {
            let (holds, reason, message) = accepted(&catalog, loser, "shop/r");
            assert_eq!((holds, reason), (false, "Conflicted"), "{loser}");
            assert!(
                message.contains(&format!("port 80: {kind}s take")),
                "{message}"
            );
        }
    }
    // In reverse, the outranked routes come into force.
    for (loser, kind) in KINDS.into_iter().rev().skip(1).zip(KINDS.into_iter().rev()) {
        delete(&mut catalog, &to_web(kind, "shop", "r"));
        let (holds, reason, _) = accepted(&catalog, loser, "shop/r");
        assert_eq!((holds, reason), (true, "Accepted"), "{loser}");
    }
}

#[test]
fn a_route_with_some_of_its_ports_is_accepted_and_names_the_others() {
    let mut catalog = shop();
    let all_ports = of_kind("TCPRoute", "shop", "all", "", "name: v2, port: 80");
    apply(&mut catalog, &all_ports);
    let message = "in force for Service shop/web".to_owned();
    assert_eq!(
        accepted(&catalog, "TCPRoute", "shop/all"),
        (true, "Accepted", message)
    );
    apply(&mut catalog, &to_web("HTTPRoute", "shop", "one"));
    let (holds, reason, message) = accepted(&catalog, "TCPRoute", "shop/all");
    assert_eq!((holds, reason), (true, "Accepted"));
    assert!(
        message.ends_with("port 80: HTTPRoutes take all of it"),
        "{message}"
    );
    assert_eq!(in_force(&catalog, "shop", 81), ["tcp-route/shop/all"]);
}

#[test]
fn a_consumer_s_route_of_any_kind_replaces_the_producer_s_for_its_namespace_alone() {
    let mut catalog = shop();
    apply(&mut catalog, &to_web("HTTPRoute", "shop", "producer"));
    apply(&mut catalog, &to_web("TCPRoute", "other", "consumer"));
    assert_eq!(
        in_force(&catalog, "other", 80),
        ["tcp-route/other/consumer"]
    );
    assert_eq!(in_force(&catalog, "shop", 80), ["http-route/shop/producer"]);
    assert_eq!(
        in_force(&catalog, "third", 80),
        ["http-route/shop/producer"]
    );
    // Neither outranks another.
    for (kind, name) in [
        ("HTTPRoute", "shop/producer"),
        ("TCPRoute", "other/consumer"),
    ] {
        let (holds, reason, message) = accepted(&catalog, kind, name);
        assert_eq!(
            (holds, reason, message.as_str()),
            (true, "Accepted", "in force for Service shop/web")
        );
    }
    // Among the consumer's own routes the order of kinds applies.
    apply(&mut catalog, &to_web("TLSRoute", "other", "secure"));
    assert_eq!(in_force(&catalog, "other", 80), ["tls-route/other/secure"]);
    assert_eq!(
        accepted(&catalog, "TCPRoute", "other/consumer").1,
        "Conflicted"
    );
}

#[test]
fn the_oldest_tcp_route_takes_every_connection_and_tls_routes_coexist() {
    let mut catalog = shop();
    let created = |kind: &str, name: &str, time: &str| {
        to_web(kind, "shop", name).replace(
            "namespace: shop }\nspec",
            &format!("namespace: shop, creationTimestamp: \"{time}\" }}\nspec"),
        )
    };
    let (old, new) = ("2025-01-01T00:00:00Z", "2026-01-01T00:00:00Z");
    apply(&mut catalog, &created("TCPRoute", "a-new", new));
    apply(&mut catalog, &created("TCPRoute", "z-old", old));
    assert_eq!(in_force(&catalog, "shop", 80), ["tcp-route/shop/z-old"]);
    let (holds, reason, message) = accepted(&catalog, "TCPRoute", "shop/a-new");
    assert_eq!((holds, reason), (true, "Accepted"));
    assert!(
        message.contains("the older TCPRoute shop/z-old"),
        "{message}"
    );
    apply(&mut catalog, &created("TLSRoute", "a-new", new));
    apply(&mut catalog, &created("TLSRoute", "z-old", old));
    let expected = ["tls-route/shop/z-old", "tls-route/shop/a-new"];
    assert_eq!(in_force(&catalog, "shop", 80), expected);
    assert_eq!(
        accepted(&catalog, "TLSRoute", "shop/a-new").2,
        "in force for Service shop/web"
    );
}

#[test]
fn on_an_opaque_port_http_routes_do_not_apply() {
    let mut catalog = shop();
    let opaque = "apiVersion: v1\n\
        kind: Namespace\n\
        metadata: { name: shop, annotations: { naru.dev/opaque-ports: \"80\" } }\n";
    apply(&mut catalog, opaque);
    apply(&mut catalog, &to_web("HTTPRoute", "shop", "http"));
    apply(&mut catalog, &to_web("TCPRoute", "shop", "tcp"));
    assert_eq!(in_force(&catalog, "shop", 80), ["tcp-route/shop/tcp"]);
    assert_eq!(accepted(&catalog, "TCPRoute", "shop/tcp").1, "Accepted");
    let (holds, reason, message) = accepted(&catalog, "HTTPRoute", "shop/http");
    assert_eq!((holds, reason), (false, "NoMatchingParent"));
    assert!(
        message.contains("port 80: it is declared to be opaque"),
        "{message}"
    );
    let changed = delete(&mut catalog, opaque);
    assert!(changed.contains(&change("service/*/shop/web/80")));
    assert_eq!(in_force(&catalog, "shop", 80), ["http-route/shop/http"]);
}
