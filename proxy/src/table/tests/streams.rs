//! Routes for connections are added, changed and removed.

use super::*;
use crate::route::opaque::OpaqueRoutes;

const TCP: &str = "tcp-route/shop/tcp";
const A: &str = "tls-route/shop/a";
const B: &str = "tls-route/shop/b";
const CANARY: &str = "endpoints/shop/canary/80";

fn service_with(version: u64, http: &[&str], streams: &[&str]) -> Resource {
    let mut service = service(version, http);
    if let Some(Body::Service(service)) = &mut service.body {
        service.opaque_routes = streams.iter().map(ToString::to_string).collect();
    }
    service
}

fn backend(weight: u32, endpoints: &str) -> contract::OpaqueBackend {
    contract::OpaqueBackend {
        weight,
        endpoints: endpoints.to_owned(),
        invalid: String::new(),
    }
}

fn tcp_route(version: u64, backends: &[contract::OpaqueBackend]) -> Resource {
    let body = contract::TcpRoute {
        namespace: "shop".to_owned(),
        name: "tcp".to_owned(),
        backends: backends.to_vec(),
    };
    resource(TCP, version, Body::TcpRoute(body))
}

fn tls_route(name: &str, hostnames: &[&str], backends: &[contract::OpaqueBackend]) -> Resource {
    let body = contract::TlsRoute {
        namespace: "shop".to_owned(),
        name: name.rsplit('/').next().unwrap().to_owned(),
        hostnames: hostnames.iter().map(ToString::to_string).collect(),
        backends: backends.to_vec(),
    };
    resource(name, 1, Body::TlsRoute(body))
}

/// Weight and Service of each backend of the TCPRoute in force.
fn tcp_backends(cell: &DestinationCell) -> Vec<(u32, String)> {
    match &logical(cell).opaque_routes {
        Some(OpaqueRoutes::Tcp(route)) => (route.backends.iter())
            .map(|backend| match &backend.backend {
                Ok(target) => (backend.weight, target.service.to_string()),
                Err(invalid) => (backend.weight, invalid.to_string()),
            })
            .collect(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_changed_tcp_route_applies_to_the_next_connection() {
    let (mut fixture, cell) = Fixture::with_service();
    assert!(logical(&cell).opaque_routes.is_none());
    let gone = contract::OpaqueBackend {
        invalid: "BackendNotFound: there is no Service shop/gone".to_owned(),
        ..backend(2, "")
    };
    let route = tcp_route(1, &[backend(1, ENDPOINTS), gone]);
    assert_eq!(fixture.push([route, service_with(2, &[], &[TCP])]), []);
    let gone = "BackendNotFound: there is no Service shop/gone".to_owned();
    let expected = [(1, "web".to_owned()), (2, gone)];
    assert_eq!(tcp_backends(&cell), expected);
    // The route alone.
    assert_eq!(fixture.push([tcp_route(2, &[backend(0, CANARY)])]), []);
    assert_eq!(tcp_backends(&cell), [(0, "canary".to_owned())]);
    fixture.rejects(tcp_route(3, &[backend(0, "web")]), "backends[0].endpoints");
    assert_eq!(tcp_backends(&cell), [(0, "canary".to_owned())]);
    assert_eq!(
        fixture.push_and_remove([service_with(3, &[], &[])], &[TCP]),
        []
    );
    assert!(logical(&cell).opaque_routes.is_none());
}

#[tokio::test]
async fn routes_of_a_wrong_kind_or_in_a_mixture_are_rejected() {
    let (mut fixture, cell) = Fixture::with_service();
    for (http, streams, problem) in [
        (&[][..], &[ROUTE][..], "opaque_routes[0]"),
        (&[], &[A, TCP], "opaque_routes[1]"),
        (&[], &[TCP, TCP], "opaque_routes[0]"),
        (&[ROUTE], &[A], "http_routes"),
        (&[TCP], &[], "http_routes[0]"),
        (&[], &["udp-route/shop/a"], "opaque_routes[0]"),
    ] {
        fixture.rejects(service_with(2, http, streams), problem);
    }
    for (hostnames, problem) in [
        (&[][..], "hostnames"),
        (&["a.example", "A.example"], "hostnames[1]"),
        (&["*."], "hostnames[0]"),
        (&["a.*.example"], "hostnames[0]"),
    ] {
        fixture.rejects(tls_route(A, hostnames, &[]), problem);
    }
    let mut other_name = tls_route(A, &["a.example"], &[]);
    other_name.name = B.to_owned();
    fixture.rejects(other_name, "name");
    let mut other_kind = tcp_route(1, &[]);
    other_kind.name = "tls-route/shop/tcp".to_owned();
    fixture.rejects(other_kind, "of another kind");
    assert!(logical(&cell).opaque_routes.is_none());
}

#[tokio::test]
async fn tls_routes_are_in_force_together_and_shown() {
    let (mut fixture, cell) = Fixture::with_service();
    let pushed = fixture.push([
        tls_route(A, &["a.example"], &[backend(1, ENDPOINTS)]),
        tls_route(B, &["*.example"], &[backend(3, CANARY)]),
        service_with(2, &[], &[A, B]),
    ]);
    assert_eq!(pushed, []);
    let logical = logical(&cell);
    let Some(OpaqueRoutes::Tls(routes)) = &logical.opaque_routes else {
        panic!("{logical:?}");
    };
    let service_of = |name: &str| {
        let route = routes.find(name)?;
        let backend = route.backends[0].backend.as_ref().ok()?;
        Some(backend.service.to_string())
    };
    assert_eq!(service_of("a.example").as_deref(), Some("web"));
    assert_eq!(service_of("b.example").as_deref(), Some("canary"));
    assert_eq!(service_of("example"), None);
    let view = serde_json::to_value(fixture.store.view()).unwrap();
    let resources = view["resources"].as_array().unwrap();
    let find = |name: &str| resources.iter().find(|r| r["name"] == name).unwrap();
    assert_eq!(find(SERVICE)["opaque_routes"][1], B);
    assert_eq!(find(B)["kind"], "tls-route");
    assert_eq!(find(B)["hostnames"][0], "*.example");
    assert_eq!(find(B)["backends"][0]["weight"], 3);
}

#[tokio::test]
async fn resources_needed_by_a_connection_route_are_kept() {
    let (mut fixture, _cell) = Fixture::with_service();
    let canary = contract::Endpoints {
        namespace: "shop".to_owned(),
        service: "canary".to_owned(),
        port: 80,
        ..contract::Endpoints::default()
    };
    fixture.push([
        resource(CANARY, 4, Body::Endpoints(canary)),
        tcp_route(5, &[backend(1, CANARY)]),
        service_with(6, &[], &[TCP]),
    ]);
    let held = fixture.held();
    for needed in [(CANARY, 4), (TCP, 5), (SERVICE, 6), (ENDPOINTS, 1)] {
        assert!(held.contains(&(needed.0.to_owned(), needed.1)), "{held:?}");
    }
}
