//! Status writes to an API server in memory.

use std::time::Duration;

use naru_contract::{MtlsMode, TrustAnchors};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::lease::{Lease, Terms};
use super::*;
use crate::compile::{Catalog, CatalogOptions};
use crate::kubernetes::fake_api::FakeApi;
use crate::source::{Event, Kind, Name, ObjectKey, parse};

const ROUTES: &str = "/apis/gateway.networking.k8s.io/v1/httproutes";
const LEASES: &str = "/apis/coordination.k8s.io/v1/leases";
const PATIENCE: Duration = Duration::from_secs(30);
/// Long enough for an unexpected write to arrive.
const QUIET: Duration = Duration::from_millis(400);
const TERMS: Terms = Terms {
    lifetime: Duration::from_millis(600),
    give_up: Duration::from_millis(300),
    every: Duration::from_millis(50),
};

struct Fixture {
    api: FakeApi,
    hub: Arc<Hub>,
    held: watch::Sender<bool>,
}

impl Fixture {
    fn start() -> Self {
        let catalog = Catalog::new(CatalogOptions {
            trust_domain: "cluster.local".into(),
            mtls: MtlsMode::Permissive,
        });
        let fixture = Self {
            api: FakeApi::new(&[ROUTES]),
            hub: Arc::new(Hub::new(catalog, TrustAnchors::default())),
            held: watch::Sender::new(false),
        };
        let (client, hub) = (fixture.api.client(), fixture.hub.clone());
        tokio::spawn(writer::run(
            client,
            hub,
            Metrics::new(),
            fixture.held.subscribe(),
        ));
        fixture
    }

    fn service(&self, name: &str, port: u16) {
        self.apply(&json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": "shop", "name": name},
            "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": port}]},
        }));
    }

    /// Creates a route in the cluster, and sends its event to the hub.
    fn route(&self, generation: i64, backend: &str, status: Value) {
        let route = json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": {"namespace": "shop", "name": "web", "generation": generation},
            "spec": {
                "parentRefs": [
                    {"group": "", "kind": "Service", "name": "web", "port": 80},
                    {"name": "edge"},
                ],
                "rules": [{"backendRefs": [{"name": backend, "port": 80}]}],
            },
            "status": status,
        });
        self.apply(&route);
        self.api.apply(ROUTES, route);
    }

    fn apply(&self, object: &Value) {
        for object in parse::objects(&object.to_string(), true).unwrap() {
            self.hub.apply(Event::Apply(object));
        }
    }

    fn parents(&self) -> Value {
        self.api.get(ROUTES, "shop", "web").unwrap()["status"]["parents"].clone()
    }

    /// Waits until a condition of our entry has a status and a reason, at a generation.
    async fn condition(&self, kind: &str, expected: (&str, &str, i64)) -> Value {
        let seen = timeout(PATIENCE, async {
            loop {
                let parents = self.parents();
                let ours = parents.as_array().into_iter().flatten();
                let mut conditions = ours
                    .filter(|entry| entry["controllerName"] == CONTROLLER_NAME)
                    .flat_map(|entry| entry["conditions"].as_array().unwrap().clone());
                let found = conditions.find(|c| {
                    c["type"] == kind
                        && (
                            c["status"].as_str().unwrap(),
                            c["reason"].as_str().unwrap(),
                            c["observedGeneration"].as_i64().unwrap(),
                        ) == expected
                });
                match found {
                    Some(condition) => return condition,
                    None => sleep(Duration::from_millis(10)).await,
                }
            }
        });
        seen.await
            .unwrap_or_else(|_| panic!("{kind} {expected:?} in {}", self.parents()))
    }
}

fn foreign() -> Value {
    json!({"parents": [{
        "parentRef": {"name": "edge"},
        "controllerName": "example.com/gateway",
        "conditions": [],
    }]})
}

#[tokio::test]
async fn a_verdict_is_written_by_the_holder_alone_and_only_when_it_changes() {
    let fixture = Fixture::start();
    fixture.service("web", 80);
    fixture.route(1, "web", foreign());
    fixture.hub.apply(Event::Synced);
    sleep(QUIET).await;
    assert!(
        fixture.api.take_requests().is_empty(),
        "another replica writes"
    );

    fixture.held.send_replace(true);
    fixture.condition("Accepted", ("True", "Accepted", 1)).await;
    fixture
        .condition("ResolvedRefs", ("True", "ResolvedRefs", 1))
        .await;
    let parents = fixture.parents();
    assert_eq!(parents[0], foreign()["parents"][0]);
    let parent = json!({"group": "", "kind": "Service", "name": "web", "port": 80});
    assert_eq!(parents[1]["parentRef"], parent);
    assert_eq!(parents.as_array().unwrap().len(), 2);
    let written = fixture.api.take_written();
    assert_eq!(written.len(), 1);
    let (_, path, patch) = &written[0];
    for part in [
        "/namespaces/shop/httproutes/web/status?",
        "force=true",
        "fieldManager=naru-controller",
    ] {
        assert!(path.contains(part), "{part} in {path}");
    }
    assert_eq!(patch.get("spec"), None);

    // An unrelated change, and a related one without an effect.
    fixture.service("other", 80);
    fixture.route(1, "web", json!({"parents": fixture.parents()}));
    sleep(QUIET).await;
    assert_eq!(fixture.api.take_written().len(), 0);

    fixture.route(2, "gone", json!({"parents": fixture.parents()}));
    let accepted = fixture.condition("Accepted", ("True", "Accepted", 2)).await;
    assert_eq!(
        accepted["lastTransitionTime"],
        parents[1]["conditions"][0]["lastTransitionTime"]
    );
    let refs = fixture
        .condition("ResolvedRefs", ("False", "BackendNotFound", 2))
        .await;
    assert_eq!(refs["message"], "there is no Service shop/gone");
    fixture.service("gone", 80);
    fixture
        .condition("ResolvedRefs", ("True", "ResolvedRefs", 2))
        .await;
    let key = ObjectKey {
        kind: Kind::Service,
        name: Name::new("shop", "web"),
    };
    fixture.hub.apply(Event::Delete(key));
    fixture
        .condition("Accepted", ("False", "NoMatchingParent", 2))
        .await;
    assert_eq!(fixture.parents()[0], foreign()["parents"][0]);
}

#[tokio::test]
async fn a_conflicting_write_is_retried_on_the_new_version() {
    let fixture = Fixture::start();
    fixture.service("web", 80);
    fixture.route(1, "web", json!({}));
    fixture.hub.apply(Event::Synced);
    let path = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/httproutes/web/status";
    fixture.api.answer(
        path,
        409,
        crate::kubernetes::fake_api::status(409, "Conflict"),
    );
    fixture.held.send_replace(true);
    sleep(QUIET).await;
    assert!(fixture.parents().is_null());
    // At once, because the other write has likely finished, but bounded.
    assert_eq!(fixture.api.take_written().len(), 5);
    fixture.api.answer_no_more(path);
    fixture.route(1, "web", foreign());
    fixture.condition("Accepted", ("True", "Accepted", 1)).await;
    assert_eq!(fixture.parents()[0], foreign()["parents"][0]);
}

#[tokio::test]
async fn a_parent_ref_is_written_with_exactly_the_fields_of_the_route() {
    let fixture = Fixture::start();
    fixture.service("web", 80);
    let parents = json!([
        {"group": "core", "kind": "Service", "name": "web"},
        {"group": "", "kind": "Service", "name": "web", "namespace": "shop", "port": 80},
        {"group": "core", "kind": "Service", "name": "web", "sectionName": "http"},
    ]);
    let route = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"namespace": "shop", "name": "web", "generation": 1},
        "spec": {
            "parentRefs": parents,
            "rules": [{"backendRefs": [{"group": "core", "kind": "Service", "name": "web",
                            "port": 80}]}],
        },
    });
    fixture.apply(&route);
    fixture.api.apply(ROUTES, route);
    fixture.hub.apply(Event::Synced);
    fixture.held.send_replace(true);
    fixture.condition("Accepted", ("True", "Accepted", 1)).await;
    fixture
        .condition("ResolvedRefs", ("True", "ResolvedRefs", 1))
        .await;
    let written = fixture.parents();
    let written = written.as_array().unwrap().iter();
    let refs: Vec<_> = written.map(|entry| entry["parentRef"].clone()).collect();
    assert_eq!(json!(refs), parents);
}

#[tokio::test]
async fn a_route_that_is_created_again_gets_its_status_again() {
    let fixture = Fixture::start();
    fixture.service("web", 80);
    fixture.route(1, "web", json!({}));
    fixture.hub.apply(Event::Synced);
    fixture.held.send_replace(true);
    fixture.condition("Accepted", ("True", "Accepted", 1)).await;
    let key = ObjectKey {
        kind: Kind::HttpRoute,
        name: Name::new("shop", "web"),
    };
    fixture.hub.apply(Event::Delete(key));
    fixture.route(1, "web", json!({}));
    fixture.condition("Accepted", ("True", "Accepted", 1)).await;
}

#[tokio::test]
async fn our_entry_is_removed_once_the_route_has_no_service_as_a_parent() {
    let fixture = Fixture::start();
    fixture.service("web", 80);
    fixture.route(1, "web", foreign());
    fixture.hub.apply(Event::Synced);
    fixture.held.send_replace(true);
    fixture.condition("Accepted", ("True", "Accepted", 1)).await;
    let mut route = fixture.api.get(ROUTES, "shop", "web").unwrap();
    route["spec"]["parentRefs"] = json!([{"name": "edge"}]);
    route["metadata"]["generation"] = json!(2);
    route["apiVersion"] = json!("gateway.networking.k8s.io/v1");
    fixture.apply(&route);
    let gone = async {
        while fixture.parents() != foreign()["parents"] {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, gone).await.unwrap();
}

#[tokio::test]
async fn tls_and_tcp_routes_have_a_status_of_their_own_kind() {
    let fixture = Fixture::start();
    fixture.service("web", 80);
    for (plural, kind) in [("tlsroutes", "TLSRoute"), ("tcproutes", "TCPRoute")] {
        let at = ROUTES.replace("httproutes", plural);
        fixture.api.install(&at);
        let route = json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": kind,
            "metadata": {"namespace": "shop", "name": "web", "generation": 1},
            "spec": {
                "parentRefs": [{"group": "", "kind": "Service", "name": "web"}],
                "hostnames": ["a.example"],
                "rules": [{"backendRefs": [{"name": "web", "port": 80}]}],
            },
        });
        fixture.apply(&route);
        fixture.api.apply(&at, route);
    }
    fixture.hub.apply(Event::Synced);
    fixture.held.send_replace(true);
    for (plural, reason) in [("tlsroutes", "Accepted"), ("tcproutes", "Conflicted")] {
        let at = ROUTES.replace("httproutes", plural);
        let written = async {
            loop {
                let route = fixture.api.get(&at, "shop", "web").unwrap();
                let condition = &route["status"]["parents"][0]["conditions"][0];
                if condition["reason"] == reason {
                    return condition.clone();
                }
                sleep(Duration::from_millis(10)).await;
            }
        };
        let condition = timeout(PATIENCE, written).await.expect(plural);
        assert_eq!(condition["type"], "Accepted");
    }
}

struct Replica {
    held: watch::Receiver<bool>,
    stop: watch::Sender<bool>,
}

impl Replica {
    fn start(api: &FakeApi, identity: &str) -> Self {
        let (held, stop) = (watch::Sender::new(false), watch::Sender::new(false));
        let replica = Self {
            held: held.subscribe(),
            stop: stop.clone(),
        };
        let lease = Lease::new(api.client(), identity.to_owned(), TERMS);
        tokio::spawn(lease.hold(held, stop.subscribe()));
        replica
    }

    async fn holds(&mut self, holds: bool) {
        let waited = timeout(PATIENCE, self.held.wait_for(|held| *held == holds)).await;
        waited.expect("in time").unwrap();
    }
}

#[tokio::test]
async fn one_replica_holds_the_lease_and_another_takes_it_when_it_is_released() {
    let api = FakeApi::new(&[LEASES]);
    let mut first = Replica::start(&api, "first");
    first.holds(true).await;
    let mut second = Replica::start(&api, "second");
    sleep(2 * TERMS.lifetime).await;
    assert!(*first.held.borrow(), "it is renewed");
    assert!(!*second.held.borrow());
    first.stop.send_replace(true);
    first.holds(false).await;
    second.holds(true).await;
    let lease = api
        .get(LEASES, "default", "naru-controller-status")
        .unwrap();
    assert_eq!(lease["spec"]["holderIdentity"], "second");
    assert!(lease["spec"]["leaseTransitions"].as_i64() > Some(0));
}

#[tokio::test]
async fn a_lease_whose_holder_is_gone_is_taken_after_its_expiry() {
    let api = FakeApi::new(&[LEASES]);
    let lease = json!({
        "metadata": {"namespace": "default", "name": "naru-controller-status"},
        "spec": {"holderIdentity": "gone", "leaseTransitions": 4},
    });
    api.apply(LEASES, lease);
    let mut replica = Replica::start(&api, "first");
    sleep(TERMS.lifetime / 2).await;
    assert!(!*replica.held.borrow());
    replica.holds(true).await;
    let lease = api
        .get(LEASES, "default", "naru-controller-status")
        .unwrap();
    assert_eq!(lease["spec"]["leaseTransitions"], 5);
}

#[tokio::test]
async fn a_holder_that_cannot_renew_steps_down_and_recovers() {
    let api = FakeApi::new(&[LEASES]);
    let mut replica = Replica::start(&api, "first");
    replica.holds(true).await;
    api.down(true);
    replica.holds(false).await;
    api.down(false);
    replica.holds(true).await;
}

const MESHES: &str = "/apis/gateway.networking.x-k8s.io/v1alpha1/xmeshes";

/// Waits until the mesh `naru` has a status.
async fn has_status(api: &FakeApi) {
    let written = async {
        while api.get(MESHES, "", "naru").unwrap()["status"].is_null() {
            sleep(TERMS.every).await;
        }
    };
    timeout(PATIENCE, written).await.expect("a status");
}

#[tokio::test]
async fn our_mesh_gets_the_supported_features_once_and_others_stay_unchanged() {
    let api = FakeApi::new(&[MESHES]);
    for (name, controller) in [("naru", CONTROLLER_NAME), ("other", "example.com/mesh")] {
        let spec = json!({ "controllerName": controller });
        let metadata = json!({ "name": name, "generation": 3 });
        api.apply(MESHES, json!({ "metadata": metadata, "spec": spec }));
    }
    let held = watch::Sender::new(false);
    tokio::spawn(mesh::run(api.client(), held.subscribe(), TERMS.every));
    sleep(QUIET).await;
    assert!(api.take_requests().is_empty(), "another replica writes");
    held.send_replace(true);
    has_status(&api).await;
    sleep(QUIET).await;
    assert_eq!(api.take_written().len(), 1);
    assert!(api.get(MESHES, "", "other").unwrap()["status"].is_null());
    let status = api.get(MESHES, "", "naru").unwrap()["status"].clone();
    let condition = &status["conditions"][0];
    for (field, value) in [
        ("type", "Accepted"),
        ("status", "True"),
        ("reason", "Accepted"),
    ] {
        assert_eq!(condition[field], value);
    }
    assert_eq!(condition["observedGeneration"], 3);
    let features = status["supportedFeatures"].as_array().unwrap();
    assert_eq!(features.len(), mesh::SUPPORTED_FEATURES.len());
    let mut names: Vec<_> = features
        .iter()
        .map(|feature| feature["name"].as_str())
        .collect();
    assert!(names.is_sorted(), "its list is a sorted set");
    names.dedup();
    assert_eq!(names.len(), features.len());
}

#[tokio::test]
async fn an_api_server_without_the_mesh_crd_is_polled_again() {
    let api = FakeApi::new(&[]);
    let held = watch::Sender::new(true);
    tokio::spawn(mesh::run(api.client(), held.subscribe(), TERMS.every));
    sleep(QUIET).await;
    api.install(MESHES);
    let spec = json!({ "controllerName": CONTROLLER_NAME });
    api.apply(
        MESHES,
        json!({ "metadata": { "name": "naru" }, "spec": spec }),
    );
    has_status(&api).await;
}
