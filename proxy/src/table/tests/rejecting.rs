//! Invalid parts of a push, and what stays in force.

use super::*;

#[tokio::test]
async fn an_invalid_resource_is_rejected_alone_and_its_last_valid_version_stays() {
    let (mut fixture, cell) = Fixture::with_service();
    let mut wrong = endpoints(2, &[("10.0.0.9", "not an identity")]);
    let rejected = fixture.push([wrong.clone(), inbound(1, true, &[])]);
    assert_eq!(rejected.len(), 1);
    assert_eq!(rejected[0].0, ENDPOINTS);
    assert!(
        rejected[0].1.contains("endpoints[0].identity"),
        "{rejected:?}"
    );
    assert_eq!(addresses(&cell), ["10.0.0.1", "10.0.0.2"]);
    assert!(fixture.tables.inbound().strict);
    assert_eq!(&*fixture.tables.inbound().workload, "deployment/web");
    // Once corrected, it is accepted.
    wrong = endpoints(3, &[("10.0.0.9", WEB)]);
    assert_eq!(fixture.push([wrong]), []);
    assert_eq!(addresses(&cell), ["10.0.0.9"]);
}

#[tokio::test]
async fn every_invalid_field_is_named() {
    let (mut fixture, _) = Fixture::with_service();
    let resource = |name: &str, body| resource(name, 7, body);
    let endpoints_with = |change: &dyn Fn(&mut contract::Endpoint)| {
        let mut one = endpoint("10.0.0.1", WEB);
        change(&mut one);
        let body = contract::Endpoints {
            namespace: "shop".to_owned(),
            service: "web".to_owned(),
            port: 80,
            endpoints: vec![one],
            ..contract::Endpoints::default()
        };
        resource(ENDPOINTS, Body::Endpoints(body))
    };
    fixture.rejects(
        endpoints_with(&|e| e.ip = vec![1, 2, 3].into()),
        "endpoints[0].ip",
    );
    fixture.rejects(
        endpoints_with(&|e| e.for_zones = vec!["z".repeat(1_000)]),
        "endpoints[0].for_zones",
    );
    fixture.rejects(
        endpoints_with(&|e| e.for_nodes = vec!["n".to_owned(); 1_000]),
        "endpoints[0].for_nodes",
    );
    fixture.rejects(
        endpoints_with(&|e| e.ip = vec![0; 4].into()),
        "endpoints[0].ip",
    );
    fixture.rejects(endpoints_with(&|e| e.port = 0), "endpoints[0].port");
    fixture.rejects(endpoints_with(&|e| e.port = 65_536), "endpoints[0].port");
    fixture.rejects(
        endpoints_with(&|e| e.pod = "x".repeat(600)),
        "endpoints[0].pod",
    );
    fixture.rejects(
        endpoints(7, &[("10.0.0.1", WEB), ("10.0.0.1", "")]),
        "there twice",
    );
    fixture.rejects(
        inbound(7, false, &[(0, contract::Protocol::Tcp)]),
        "ports[0].port",
    );
    fixture.rejects(
        inbound(
            7,
            false,
            &[(80, contract::Protocol::Tcp), (80, contract::Protocol::Tcp)],
        ),
        "ports[1]",
    );
    let mut unknown = inbound(7, false, &[]);
    if let Some(Body::Inbound(inbound)) = &mut unknown.body {
        inbound.mtls = 9;
    }
    fixture.rejects(unknown, "mtls");
    let service_with = |change: &dyn Fn(&mut contract::Service)| {
        let mut resource = service(7, &[]);
        if let Some(Body::Service(service)) = &mut resource.body {
            change(service);
        }
        resource
    };
    fixture.rejects(service_with(&|s| s.protocol = 77), "protocol");
    fixture.rejects(service_with(&|s| s.name = "api".to_owned()), "name");
    fixture.rejects(
        service_with(&|s| s.endpoints = "inbound".to_owned()),
        "endpoints",
    );
    fixture.rejects(
        service_with(&|s| s.http_routes = vec![SERVICE.to_owned()]),
        "http_routes[0]",
    );
    let budget = |percent, interval_ms| {
        Some(contract::RetryBudget {
            percent,
            interval_ms,
            min_retries_per_1000_s: 0,
        })
    };
    fixture.rejects(
        service_with(&|s| s.retry_budget = budget(101, 1_000)),
        "percent",
    );
    fixture.rejects(
        service_with(&|s| s.retry_budget = budget(20, 0)),
        "interval_ms",
    );
    fixture.rejects(
        resource("inbound", Body::Service(contract::Service::default())),
        "kind",
    );
    fixture.rejects(
        Resource {
            name: "inbound".to_owned(),
            version: 7,
            body: None,
        },
        "does not know",
    );
    let mut unversioned = inbound(0, false, &[]);
    unversioned.version = 0;
    fixture.rejects(unversioned, "version");
    fixture.rejects(
        resource("nonsense", Body::Inbound(contract::Inbound::default())),
        "nonsense",
    );
    let no_anchor = Body::TrustAnchors(contract::TrustAnchors::default());
    fixture.rejects(resource("trust-anchors", no_anchor), "no certificate");
    let pod = contract::destination::Target::Pod(Box::default());
    let body = contract::Destination { target: Some(pod) };
    fixture.rejects(
        resource("destination/10.0.0.1:80", Body::Destination(body)),
        "pod.endpoint",
    );
}

#[tokio::test]
async fn an_invalid_route_is_rejected_under_its_own_name() {
    let (mut fixture, cell) = Fixture::with_service();
    assert_eq!(fixture.push([route(1, "/a"), service(2, &[ROUTE])]), []);
    let before = logical(&cell);
    fixture.rejects(route(2, "no slash"), "rules[0].matches[0].path");
    assert!(Arc::ptr_eq(&before, &logical(&cell)));
    assert!(fixture.held().contains(&(ROUTE.to_owned(), 1)));
}

#[tokio::test]
async fn a_service_whose_only_route_was_never_valid_serves_without_it() {
    let (mut fixture, cell) = Fixture::with_service();
    let rejected = fixture.push([route(1, "no slash"), service(2, &[ROUTE])]);
    assert_eq!(rejected.len(), 1);
    assert_eq!(rejected[0].0, ROUTE);
    assert!(logical(&cell).routes.is_none());
    assert!(fixture.held().contains(&(SERVICE.to_owned(), 2)));
}
