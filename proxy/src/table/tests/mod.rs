//! Pushes in, tables out: no network, no controller.

mod filters;
mod locality;
mod streams;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use naru_contract as contract;
use naru_contract::resource::Body;
use naru_contract::{MAX_SUBSCRIPTIONS, Push, Resource};
use proptest::prelude::*;
use tokio::time::Instant;

use super::*;
use crate::balance::{Endpoint, Peer};
use crate::identity::Identity;
use crate::identity::testing::{Authority, TRUST_DOMAIN};
use crate::observe::metrics::Metrics;

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const SERVICE: &str = "service/shop/shop/web/80";
const ENDPOINTS: &str = "endpoints/shop/web/80";
const ROUTE: &str = "http-route/shop/web";
const CLUSTER_IP: &str = "10.96.0.1:80";

struct Fixture {
    tables: Tables,
    store: Store,
    identity: Identity,
    metrics: Metrics,
    misses: Misses,
    sequence: u64,
    now: Instant,
}

/// How long a first word is waited for here.
const PATIENCE: Duration = Duration::from_millis(300);

impl Fixture {
    fn new() -> Self {
        let metrics = Metrics::default();
        let anchor = Authority::new("a").anchor();
        let identity = Identity::new(TRUST_DOMAIN, vec![anchor]).unwrap();
        let (tables, misses) = tables("shop", metrics.clone(), PATIENCE);
        let store = Store::new(&tables, identity.clone(), metrics.clone());
        Self {
            tables,
            store,
            identity,
            metrics,
            misses,
            sequence: 0,
            now: Instant::now(),
        }
    }

    /// A Service with two endpoints that the app has called.
    fn with_service() -> (Self, Arc<DestinationCell>) {
        let mut fixture = Self::new();
        fixture.store.hello();
        let cell = fixture.store.subscribe(address(CLUSTER_IP)).unwrap();
        assert_eq!(
            fixture.push([
                destination(CLUSTER_IP, SERVICE),
                service(1, &[]),
                endpoints(1, &[("10.0.0.1", WEB), ("10.0.0.2", WEB)]),
            ]),
            []
        );
        (fixture, cell)
    }

    /// What of a push is rejected: name and reason.
    fn push(&mut self, updates: impl Into<Vec<Resource>>) -> Vec<(String, String)> {
        self.push_and_remove(updates, &[])
    }

    fn push_and_remove(
        &mut self,
        updates: impl Into<Vec<Resource>>,
        removed: &[&str],
    ) -> Vec<(String, String)> {
        self.sequence += 1;
        let answer = self.store.apply(Push {
            sequence: self.sequence,
            updates: updates.into(),
            removed: removed.iter().map(ToString::to_string).collect(),
        });
        assert_eq!(answer.sequence, self.sequence);
        let rejected = answer.rejected.into_iter();
        rejected.map(|r| (r.name, r.reason)).collect()
    }

    fn rejects(&mut self, update: Resource, reason: &str) {
        let name = update.name.clone();
        let rejected = self.push([update]);
        let [(rejected, why)] = rejected.as_slice() else {
            panic!("expected one rejection, got {rejected:?}");
        };
        assert_eq!(rejected, &name);
        assert!(why.contains(reason), "{why:?} does not say {reason:?}");
    }

    /// Lets time go by, and then the store look round.
    fn sweep_after(&mut self, time: Duration) {
        self.now += time;
        self.store.sweep(self.now);
    }

    fn held(&mut self) -> Vec<(String, u64)> {
        let (_, held) = self.store.hello();
        let mut held: Vec<_> = held.into_iter().map(|h| (h.name, h.version)).collect();
        held.sort();
        held
    }
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn resource(name: &str, version: u64, body: Body) -> Resource {
    Resource {
        name: name.to_owned(),
        version,
        body: Some(body),
    }
}

fn destination(at: &str, service: &str) -> Resource {
    let target = contract::destination::Target::Service(service.to_owned());
    let body = contract::Destination {
        target: Some(target),
    };
    resource(&format!("destination/{at}"), 1, Body::Destination(body))
}

fn service(version: u64, routes: &[&str]) -> Resource {
    let body = contract::Service {
        namespace: "shop".to_owned(),
        name: "web".to_owned(),
        port: 80,
        protocol: contract::Protocol::Http1 as i32,
        http_routes: routes.iter().map(ToString::to_string).collect(),
        endpoints: ENDPOINTS.to_owned(),
        ..contract::Service::default()
    };
    resource(SERVICE, version, Body::Service(body))
}

fn endpoint(ip: &str, identity: &str) -> contract::Endpoint {
    let octets = ip.parse::<std::net::Ipv4Addr>().unwrap().octets();
    contract::Endpoint {
        ip: octets.to_vec().into(),
        port: 8080,
        identity: identity.to_owned(),
        pod: format!("pod-{ip}"),
        ..contract::Endpoint::default()
    }
}

fn endpoints(version: u64, all: &[(&str, &str)]) -> Resource {
    let body = contract::Endpoints {
        namespace: "shop".to_owned(),
        service: "web".to_owned(),
        port: 80,
        endpoints: all.iter().map(|(ip, id)| endpoint(ip, id)).collect(),
        protocol: contract::Protocol::Http1 as i32,
        ..contract::Endpoints::default()
    };
    resource(ENDPOINTS, version, Body::Endpoints(body))
}

fn delta(base: u64, version: u64, upserted: &[(&str, &str)], removed: &[&str]) -> Resource {
    let body = contract::EndpointsDelta {
        base_version: base,
        upserted: upserted.iter().map(|(ip, id)| endpoint(ip, id)).collect(),
        removed: removed.iter().map(|ip| endpoint(ip, "")).collect(),
    };
    resource(ENDPOINTS, version, Body::EndpointsDelta(body))
}

fn route(version: u64, path: &str) -> Resource {
    let rule = contract::HttpRule {
        matches: vec![contract::HttpMatch {
            path: Some(contract::PathMatch {
                kind: contract::PathMatchKind::Prefix as i32,
                value: path.to_owned(),
            }),
            ..contract::HttpMatch::default()
        }],
        backends: vec![contract::HttpBackend {
            weight: 1,
            endpoints: ENDPOINTS.to_owned(),
            ..contract::HttpBackend::default()
        }],
        ..contract::HttpRule::default()
    };
    let body = contract::HttpRoute {
        namespace: "shop".to_owned(),
        name: "web".to_owned(),
        rules: vec![rule],
    };
    resource(ROUTE, version, Body::HttpRoute(body))
}

fn inbound(version: u64, strict: bool, ports: &[(u32, contract::Protocol)]) -> Resource {
    let body = contract::Inbound {
        workload: "deployment/web".to_owned(),
        ports: ports
            .iter()
            .map(|(port, protocol)| contract::InboundPort {
                port: *port,
                protocol: *protocol as i32,
            })
            .collect(),
        mtls: strict.into(),
        ..contract::Inbound::default()
    };
    resource("inbound", version, Body::Inbound(body))
}

fn logical(cell: &DestinationCell) -> Arc<Logical> {
    match &**cell.load() {
        Destination::Logical(logical) => logical.clone(),
        other => panic!("{other:?}"),
    }
}

fn backend_endpoints(cell: &DestinationCell) -> Vec<Arc<Endpoint>> {
    let logical = logical(cell);
    let backend = logical.default_rule.backends[0].backend.clone().unwrap();
    backend.endpoints().endpoints.clone()
}

fn addresses(cell: &DestinationCell) -> Vec<String> {
    let endpoints = backend_endpoints(cell).into_iter();
    endpoints.map(|e| e.address.ip().to_string()).collect()
}

#[tokio::test]
async fn a_service_is_pushed_and_found_by_its_address() {
    let (fixture, cell) = Fixture::with_service();
    let found = fixture.tables.destination(address(CLUSTER_IP)).await;
    assert!(Arc::ptr_eq(&cell, &found));
    let logical = logical(&cell);
    assert_eq!(
        (&*logical.namespace, &*logical.service, logical.port),
        ("shop", "web", 80)
    );
    assert_eq!(logical.protocol, Protocol::Http);
    assert!(logical.routes.is_none());
    assert_eq!(addresses(&cell), ["10.0.0.1", "10.0.0.2"]);
    assert_eq!(backend_endpoints(&cell)[0].peer, Peer::Mesh(WEB.into()));
    let mapped = "[::ffff:10.96.0.1]:80".parse().unwrap();
    assert!(Arc::ptr_eq(
        &cell,
        &fixture.tables.destination(mapped).await
    ));
}

#[tokio::test]
async fn endpoints_keep_what_they_have_learned_as_long_as_they_stay_the_same() {
    let (mut fixture, cell) = Fixture::with_service();
    let before = backend_endpoints(&cell);
    let other = "spiffe://cluster.local/ns/shop/sa/other";
    fixture.push([endpoints(
        2,
        &[("10.0.0.1", WEB), ("10.0.0.2", other), ("10.0.0.3", "")],
    )]);
    let after = backend_endpoints(&cell);
    assert!(Arc::ptr_eq(&before[0], &after[0]));
    assert_ne!(before[1].id, after[1].id);
    assert_eq!(after[2].peer, Peer::Plain);
}

#[tokio::test]
async fn a_delta_changes_what_it_names_and_nothing_else() {
    let (mut fixture, cell) = Fixture::with_service();
    let before = backend_endpoints(&cell);
    assert_eq!(
        fixture.push([delta(1, 2, &[("10.0.0.3", WEB)], &["10.0.0.1"])]),
        []
    );
    assert_eq!(addresses(&cell), ["10.0.0.2", "10.0.0.3"]);
    assert!(Arc::ptr_eq(&before[1], &backend_endpoints(&cell)[0]));
    fixture.rejects(delta(1, 3, &[("10.0.0.4", WEB)], &[]), "base_version");
    assert_eq!(addresses(&cell), ["10.0.0.2", "10.0.0.3"]);
    assert!(fixture.held().contains(&(ENDPOINTS.to_owned(), 2)));
}

#[tokio::test]
async fn what_is_wrong_is_rejected_alone_and_the_last_good_version_stays() {
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
    // Put right, it is taken.
    wrong = endpoints(3, &[("10.0.0.9", WEB)]);
    assert_eq!(fixture.push([wrong]), []);
    assert_eq!(addresses(&cell), ["10.0.0.9"]);
}

#[tokio::test]
async fn every_wrong_field_is_named() {
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
async fn a_changed_route_holds_for_the_connections_that_are_open() {
    let (mut fixture, cell) = Fixture::with_service();
    let before = logical(&cell);
    assert_eq!(fixture.push([route(1, "/a"), service(2, &[ROUTE])]), []);
    let routed = logical(&cell);
    assert!(routed.routes.is_some());
    assert!(Arc::ptr_eq(&before.budget, &routed.budget));
    // The route alone: the Service's message does not come again.
    assert_eq!(fixture.push([route(2, "/b")]), []);
    let changed = logical(&cell);
    assert!(!Arc::ptr_eq(&routed, &changed));
    assert!(Arc::ptr_eq(&routed.budget, &changed.budget));
    // The endpoints alone: nothing is built anew.
    fixture.push([endpoints(2, &[("10.0.0.7", WEB)])]);
    assert!(Arc::ptr_eq(&changed, &logical(&cell)));
    assert_eq!(addresses(&cell), ["10.0.0.7"]);
}

#[tokio::test]
async fn a_wrong_route_is_rejected_under_its_own_name() {
    let (mut fixture, cell) = Fixture::with_service();
    assert_eq!(fixture.push([route(1, "/a"), service(2, &[ROUTE])]), []);
    let before = logical(&cell);
    fixture.rejects(route(2, "no slash"), "rules[0].matches[0].path");
    assert!(Arc::ptr_eq(&before, &logical(&cell)));
    assert!(fixture.held().contains(&(ROUTE.to_owned(), 1)));
}

#[tokio::test]
async fn a_service_whose_only_route_never_was_right_serves_without() {
    let (mut fixture, cell) = Fixture::with_service();
    let rejected = fixture.push([route(1, "no slash"), service(2, &[ROUTE])]);
    assert_eq!(rejected.len(), 1);
    assert_eq!(rejected[0].0, ROUTE);
    assert!(logical(&cell).routes.is_none());
    assert!(fixture.held().contains(&(SERVICE.to_owned(), 2)));
}

#[tokio::test]
async fn order_within_a_push_does_not_matter() {
    let mut fixture = Fixture::new();
    fixture.store.hello();
    let cell = fixture.store.subscribe(address(CLUSTER_IP)).unwrap();
    // A backend before its endpoints, a destination before its Service.
    assert_eq!(fixture.push([service(1, &[ROUTE]), route(1, "/")]), []);
    assert!(!cell.is_known());
    assert_eq!(fixture.push([destination(CLUSTER_IP, SERVICE)]), []);
    assert_eq!(addresses(&cell), Vec::<String>::new());
    assert_eq!(fixture.push([endpoints(1, &[("10.0.0.1", WEB)])]), []);
    assert_eq!(addresses(&cell), ["10.0.0.1"]);
}

#[tokio::test]
async fn a_pod_is_a_destination_with_its_identity() {
    let mut fixture = Fixture::new();
    let cell = fixture.store.subscribe(address("10.0.0.1:8080")).unwrap();
    let pod = contract::PodDestination {
        endpoint: Some(endpoint("10.0.0.1", WEB)),
        protocol: contract::Protocol::Tcp as i32,
        namespace: "shop".to_owned(),
        service: "web".to_owned(),
    };
    let body = contract::Destination {
        target: Some(contract::destination::Target::Pod(Box::new(pod))),
    };
    let name = "destination/10.0.0.1:8080";
    assert_eq!(
        fixture.push([resource(name, 1, Body::Destination(body))]),
        []
    );
    assert_eq!(logical(&cell).protocol, Protocol::Tcp);
    assert_eq!(backend_endpoints(&cell)[0].peer, Peer::Mesh(WEB.into()));
    let nothing = contract::Destination { target: None };
    assert_eq!(
        fixture.push([resource(name, 2, Body::Destination(nothing))]),
        []
    );
    assert!(matches!(**cell.load(), Destination::Passthrough));
}

#[tokio::test]
async fn anchors_are_put_in_force_and_cannot_be_taken_away() {
    let mut fixture = Fixture::new();
    let anchor = Authority::new("b").anchor();
    let body = contract::TrustAnchors {
        certificates_der: vec![anchor.to_vec().into()],
        ..contract::TrustAnchors::default()
    };
    assert_eq!(
        fixture.push([resource("trust-anchors", 1, Body::TrustAnchors(body))]),
        []
    );
    assert!(!fixture.identity.set_trust_anchors(vec![anchor]).unwrap());
    let rejected = fixture.push_and_remove([], &["trust-anchors", "inbound", "nonsense"]);
    assert_eq!(rejected.len(), 3);
    assert!(fixture.held().contains(&("trust-anchors".to_owned(), 1)));
}

#[tokio::test]
async fn inbound_ports_hold_for_connections_to_come_and_those_that_are_open() {
    let mut fixture = Fixture::new();
    assert!(
        fixture.tables.inbound().strict,
        "nobody is let in before the controller has said so"
    );
    let app = fixture.tables.app(address("10.0.0.9:3306"));
    assert_eq!(logical(&app).protocol, Protocol::Detect);
    assert_eq!(backend_endpoints(&app)[0].peer, Peer::App);
    assert!(Arc::ptr_eq(
        &app,
        &fixture.tables.app(address("10.0.0.9:3306"))
    ));
    fixture.push([inbound(1, false, &[(3306, contract::Protocol::Tcp)])]);
    assert!(fixture.store.knows_inbound());
    assert!(!fixture.tables.inbound().strict);
    assert_eq!(logical(&app).protocol, Protocol::Tcp);
}

#[tokio::test]
async fn a_port_scan_takes_no_memory_for_ever() {
    let fixture = Fixture::new();
    let kept = fixture.tables.app(address("10.0.0.9:80"));
    for port in 1_000..5_000 {
        fixture
            .tables
            .app(SocketAddr::new([10, 0, 0, 9].into(), port));
    }
    assert!(Arc::ptr_eq(
        &kept,
        &fixture.tables.app(address("10.0.0.9:80"))
    ));
    assert!(fixture.tables.app_count() <= 1_024);
}

#[tokio::test]
async fn a_destination_that_nobody_uses_is_let_go_and_can_come_back() {
    let (mut fixture, cell) = Fixture::with_service();
    fixture.store.outbox().subscribe.clear();
    let idle = Duration::from_secs(601);
    fixture.sweep_after(idle);
    fixture.sweep_after(idle);
    assert!(fixture.store.outbox().is_empty(), "a connection holds it");
    drop(cell);
    fixture.sweep_after(Duration::ZERO);
    assert!(
        fixture.store.outbox().is_empty(),
        "somebody may just have found it"
    );
    fixture.sweep_after(Duration::from_secs(1));
    assert_eq!(fixture.store.outbox().unsubscribe.len(), 1);
    // Called again before the controller was told: as if nothing had been.
    let cell = fixture.store.subscribe(address(CLUSTER_IP)).unwrap();
    assert!(fixture.store.outbox().is_empty());
    assert_eq!(addresses(&cell), ["10.0.0.1", "10.0.0.2"]);
    drop(cell);
    // Called again afterwards: what is held is good until the controller says otherwise.
    fixture.sweep_after(idle);
    fixture.sweep_after(idle);
    fixture.store.outbox().unsubscribe.clear();
    let cell = fixture.store.subscribe(address(CLUSTER_IP)).unwrap();
    assert_eq!(fixture.store.outbox().subscribe.len(), 1);
    assert_eq!(addresses(&cell), ["10.0.0.1", "10.0.0.2"]);
    fixture.push_and_remove([], &["destination/10.96.0.1:80", SERVICE, ENDPOINTS]);
    assert!(cell.is_known());
    fixture.push([
        destination(CLUSTER_IP, SERVICE),
        service(2, &[]),
        endpoints(2, &[("10.0.0.5", WEB)]),
    ]);
    assert_eq!(addresses(&cell), ["10.0.0.5"]);
}

#[tokio::test]
async fn somebody_who_found_a_destination_just_before_it_went_keeps_it() {
    let (mut fixture, cell) = Fixture::with_service();
    drop(cell);
    let found = fixture.tables.shared.cell(address(CLUSTER_IP)).unwrap();
    // Withdrawn between finding and holding: as if the sweep had not seen the reader yet.
    let reader = Arc::downgrade(&found);
    drop(found);
    fixture.sweep_after(Duration::from_secs(601));
    let found = reader.upgrade().unwrap();
    fixture.sweep_after(Duration::from_secs(2));
    assert!(fixture.store.outbox().unsubscribe.is_empty());
    let again = fixture.tables.destination(address(CLUSTER_IP)).await;
    assert!(Arc::ptr_eq(&found, &again));
}

#[tokio::test]
async fn too_many_destinations_push_out_the_ones_unused_for_longest() {
    let mut fixture = Fixture::new();
    fixture.store.hello();
    let at = |index: usize| {
        let [a, b] = (index as u16).to_be_bytes();
        SocketAddr::new([10, 1, a, b].into(), 80)
    };
    let held = fixture.store.subscribe(at(0)).unwrap();
    let mut subscribed = 1;
    while subscribed < MAX_SUBSCRIPTIONS * 2 {
        match fixture.store.subscribe(at(subscribed)) {
            Some(_) => subscribed += 1,
            // No room until those on their way out are gone.
            None => {
                fixture.sweep_after(Duration::from_secs(2));
            }
        }
        assert!(fixture.store.cells.len() <= MAX_SUBSCRIPTIONS);
        fixture.store.outbox().subscribe.clear();
        fixture.store.outbox().unsubscribe.clear();
    }
    let found = fixture.tables.shared.cell(at(0)).unwrap();
    assert!(Arc::ptr_eq(&held, &found));
    assert!(fixture.tables.shared.cell(at(1)).is_none());
}

#[tokio::test]
async fn an_unknown_destination_is_waited_for_once() {
    let mut fixture = Fixture::new();
    let misses = &mut fixture.misses;
    let tables = fixture.tables.clone();
    let began = Instant::now();
    let lookups = tokio::spawn(async move {
        let at = address(CLUSTER_IP);
        tokio::join!(tables.destination(at), tables.destination(at))
    });
    for _ in 0..2 {
        let miss = misses.recv().await.unwrap();
        miss.reply
            .send(fixture.store.subscribe(miss.address).unwrap())
            .unwrap();
    }
    let (first, second) = lookups.await.unwrap();
    assert!(began.elapsed() >= PATIENCE);
    assert!(Arc::ptr_eq(&first, &second));
    assert!(!first.is_known());
    // It was waited for; the next one need not.
    let began = Instant::now();
    fixture.tables.destination(address(CLUSTER_IP)).await;
    assert!(began.elapsed() < PATIENCE);
}

#[tokio::test]
async fn who_waits_is_woken_by_the_word() {
    let mut fixture = Fixture::new();
    let cell = fixture.store.subscribe(address(CLUSTER_IP)).unwrap();
    let tables = fixture.tables.clone();
    let lookup = tokio::spawn(async move { tables.destination(address(CLUSTER_IP)).await });
    tokio::task::yield_now().await;
    fixture.push([
        destination(CLUSTER_IP, SERVICE),
        service(1, &[]),
        endpoints(1, &[]),
    ]);
    assert!(Arc::ptr_eq(&cell, &lookup.await.unwrap()));
    assert!(cell.is_known());
}

#[tokio::test]
async fn a_hello_says_what_is_needed_and_nothing_else() {
    let (mut fixture, _cell) = Fixture::with_service();
    fixture.push([route(1, "/"), service(2, &[ROUTE]), inbound(3, false, &[])]);
    let mut unneeded = endpoints(9, &[]);
    unneeded.name = "endpoints/shop/web/80".to_owned();
    let other = contract::Endpoints {
        namespace: "shop".to_owned(),
        service: "old".to_owned(),
        port: 80,
        ..contract::Endpoints::default()
    };
    fixture.push([resource("endpoints/shop/old/80", 9, Body::Endpoints(other))]);
    let (destinations, _) = fixture.store.hello();
    assert_eq!(destinations, [CLUSTER_IP]);
    assert_eq!(
        fixture.held(),
        [
            ("destination/10.96.0.1:80".to_owned(), 1),
            (ENDPOINTS.to_owned(), 1),
            (ROUTE.to_owned(), 1),
            ("inbound".to_owned(), 3),
            (SERVICE.to_owned(), 2),
        ]
    );
}

#[tokio::test]
async fn the_view_shows_what_is_in_force_and_what_was_rejected() {
    let (mut fixture, _cell) = Fixture::with_service();
    fixture.push([
        route(1, "/"),
        service(2, &[ROUTE]),
        inbound(3, true, &[(80, contract::Protocol::Http2)]),
    ]);
    fixture.push([endpoints(2, &[("10.0.0.1", "wrong")])]);
    let view = serde_json::to_value(fixture.store.view()).unwrap();
    assert_eq!(view["destinations"][0]["address"], CLUSTER_IP);
    assert_eq!(view["destinations"][0]["service"], "shop/web:80");
    let resources = view["resources"].as_array().unwrap();
    let find = |name: &str| resources.iter().find(|r| r["name"] == name).unwrap();
    assert_eq!(find(ENDPOINTS)["version"], "0000000000000001");
    assert_eq!(find(ENDPOINTS)["endpoints"][1]["identity"], WEB);
    assert_eq!(find(ENDPOINTS)["endpoints"][1]["ejected"], false);
    assert_eq!(find("inbound")["mtls"], "strict");
    assert_eq!(find("inbound")["ports"]["80"], "http2");
    assert_eq!(
        find(ROUTE)["rules"][0]["backends"][0]["endpoints"],
        ENDPOINTS
    );
    assert_eq!(view["rejected"][0]["name"], ENDPOINTS);
}

#[tokio::test]
async fn pushes_are_counted() {
    let (mut fixture, _cell) = Fixture::with_service();
    fixture.push([endpoints(2, &[("10.0.0.1", "wrong")])]);
    let text = String::from_utf8(fixture.metrics.render().unwrap()).unwrap();
    for line in [
        "naru_table_pushes_total{outcome=\"accepted\"} 1",
        "naru_table_pushes_total{outcome=\"rejected\"} 1",
        "naru_table_received_resources_total 4",
        "naru_table_resources 3",
        "naru_retry_budget_available{namespace=\"shop\",service=\"web\",port=\"80\"} 100",
    ] {
        assert!(text.contains(line), "{line}\nis not in\n{text}");
    }
}

proptest! {
    /// Whole and delta by turns: what is in force is what a plain map of the accepted changes says.
    #[test]
    fn deltas_add_up(steps in prop::collection::vec((any::<bool>(), prop::collection::btree_set(0_u8..8, 0..4), prop::collection::btree_set(8_u8..16, 0..4), 0_u64..3), 1..20)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (mut fixture, cell) = Fixture::with_service();
            let mut expected = std::collections::BTreeSet::from(["10.0.0.1".to_owned(), "10.0.0.2".to_owned()]);
            let mut version = 1;
            let ip = |last: &u8| format!("10.0.0.{last}");
            for (whole, first, second, behind) in steps {
                let (upserted, removed): (Vec<_>, Vec<_>) = (first.iter().map(ip).collect(), second.iter().map(ip).collect());
                let with_ids: Vec<_> = upserted.iter().map(|ip| (ip.as_str(), WEB)).collect();
                if whole {
                    version += 10;
                    prop_assert_eq!(fixture.push([endpoints(version, &with_ids)]), []);
                    expected = upserted.into_iter().collect();
                } else {
                    let removed: Vec<_> = removed.iter().map(String::as_str).collect();
                    let rejected = fixture.push([delta(if behind == 0 { version } else { version + 1_000 + behind }, version + 1, &with_ids, &removed)]);
                    prop_assert_eq!(rejected.is_empty(), behind == 0);
                    if behind == 0 {
                        version += 1;
                        expected.retain(|ip| !removed.contains(&ip.as_str()));
                        expected.extend(upserted);
                    }
                }
                let found: std::collections::BTreeSet<_> = addresses(&cell).into_iter().collect();
                prop_assert_eq!(&found, &expected);
            }
            Ok(())
        })?;
    }

    #[test]
    fn any_push_is_answered(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(push) = <Push as prost::Message>::decode(bytes.as_slice()) {
            let mut fixture = Fixture::new();
            fixture.store.apply(push);
        }
    }
}
