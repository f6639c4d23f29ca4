//! Pushes in, tables out: no network, no controller.

mod filters;
mod forgetting;
mod locality;
mod rejecting;
mod streams;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use naru_contract as contract;
use naru_contract::resource::Body;
use naru_contract::{MAX_SUBSCRIPTIONS, Push, Resource};
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use tokio::time::Instant;

use super::*;
use crate::balance::{Endpoint, Peer};
use crate::identity::Identity;
use crate::identity::testing::{Authority, TRUST_DOMAIN, spiffe_id};
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

/// How long tests wait for a first answer.
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

    /// A Service with two endpoints, which the app has called.
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

    /// The rejections of a push: name and reason.
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

    /// Lets time pass, then sweeps the store.
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
    assert_eq!(backend_endpoints(&cell)[0].peer, Peer::Mesh(spiffe_id(WEB)));
    let mapped = "[::ffff:10.96.0.1]:80".parse().unwrap();
    assert!(Arc::ptr_eq(
        &cell,
        &fixture.tables.destination(mapped).await
    ));
}

#[tokio::test]
async fn endpoints_keep_their_state_as_long_as_they_are_unchanged() {
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
async fn a_delta_changes_only_the_endpoints_that_it_names() {
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
async fn a_changed_route_applies_to_open_connections() {
    let (mut fixture, cell) = Fixture::with_service();
    let before = logical(&cell);
    assert_eq!(fixture.push([route(1, "/a"), service(2, &[ROUTE])]), []);
    let routed = logical(&cell);
    assert!(routed.routes.is_some());
    assert!(Arc::ptr_eq(&before.budget, &routed.budget));
    // The route alone: the Service's message is not sent again.
    assert_eq!(fixture.push([route(2, "/b")]), []);
    let changed = logical(&cell);
    assert!(!Arc::ptr_eq(&routed, &changed));
    assert!(Arc::ptr_eq(&routed.budget, &changed.budget));
    // The endpoints alone: nothing is rebuilt.
    fixture.push([endpoints(2, &[("10.0.0.7", WEB)])]);
    assert!(Arc::ptr_eq(&changed, &logical(&cell)));
    assert_eq!(addresses(&cell), ["10.0.0.7"]);
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
    assert_eq!(backend_endpoints(&cell)[0].peer, Peer::Mesh(spiffe_id(WEB)));
    let nothing = contract::Destination { target: None };
    assert_eq!(
        fixture.push([resource(name, 2, Body::Destination(nothing))]),
        []
    );
    assert!(matches!(**cell.load(), Destination::Passthrough));
}

#[tokio::test]
async fn anchors_are_put_in_force_and_cannot_be_removed() {
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
async fn inbound_ports_apply_to_new_and_open_connections() {
    let mut fixture = Fixture::new();
    assert!(
        fixture.tables.inbound().strict,
        "no client is accepted before the controller allows it"
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
async fn a_hello_lists_exactly_the_needed_resources() {
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
    /// Wholes and deltas by turns give the same result as a plain map of the accepted changes.
    #[test]
    fn deltas_add_up(
        steps in vec(
            (any::<bool>(), btree_set(0_u8..8, 0..4), btree_set(8_u8..16, 0..4), 0_u64..3),
            1..20,
        ),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (mut fixture, cell) = Fixture::with_service();
            let mut expected = BTreeSet::from(["10.0.0.1".to_owned(), "10.0.0.2".to_owned()]);
            let mut version = 1;
            let ip = |last: &u8| format!("10.0.0.{last}");
            for (whole, first, second, behind) in steps {
                let upserted: Vec<_> = first.iter().map(ip).collect();
                let removed: Vec<_> = second.iter().map(ip).collect();
                let with_ids: Vec<_> = upserted.iter().map(|ip| (ip.as_str(), WEB)).collect();
                if whole {
                    version += 10;
                    prop_assert_eq!(fixture.push([endpoints(version, &with_ids)]), []);
                    expected = upserted.into_iter().collect();
                } else {
                    let removed: Vec<_> = removed.iter().map(String::as_str).collect();
                    let base = if behind == 0 { version } else { version + 1_000 + behind };
                    let rejected =
                        fixture.push([delta(base, version + 1, &with_ids, &removed)]);
                    prop_assert_eq!(rejected.is_empty(), behind == 0);
                    if behind == 0 {
                        version += 1;
                        expected.retain(|ip| !removed.contains(&ip.as_str()));
                        expected.extend(upserted);
                    }
                }
                let found: BTreeSet<_> = addresses(&cell).into_iter().collect();
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
