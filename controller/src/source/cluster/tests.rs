//! The watches against an API server in memory.

use serde_json::{Value, json};
use tokio::time::timeout;

use super::*;
use crate::compile::{Catalog, CatalogOptions};
use crate::kubernetes::fake_api::FakeApi;
use crate::source::Object;

const NAMESPACES: &str = "/api/v1/namespaces";
const PODS: &str = "/api/v1/pods";
const SERVICES: &str = "/api/v1/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
const ROUTES: &str = "/apis/gateway.networking.k8s.io/v1/httproutes";
const OLD_GRANTS: &str = "/apis/gateway.networking.k8s.io/v1beta1/referencegrants";
const EVENTS: &str = "/apis/events.k8s.io/v1/events";
const BUILT_IN: [&str; 5] = [NAMESPACES, PODS, SERVICES, SLICES, EVENTS];

/// Timeout for an event, far above its usual time.
const PATIENCE: Duration = Duration::from_secs(30);
/// Long enough for an unexpected event to arrive.
const QUIET: Duration = Duration::from_millis(300);
const PACE: Pace = Pace {
    first_pause: Duration::from_millis(5),
    longest_pause: Duration::from_millis(50),
    missing_every: Duration::from_millis(100),
    missing_for_good: Duration::from_secs(1),
};

struct Cluster {
    api: FakeApi,
    events: mpsc::Receiver<Event>,
    metrics: Metrics,
}

impl Cluster {
    fn start(api: FakeApi) -> Self {
        let (sender, events) = mpsc::channel(100);
        let metrics = Metrics::new();
        let client = api.client();
        let counted = metrics.clone();
        tokio::spawn(async move { watch_all(client, sender, counted, &PACE).await });
        Self {
            api,
            events,
            metrics,
        }
    }

    /// The next event in short: `+Service shop/web`, `-Service shop/web`, `synced`.
    async fn next(&mut self) -> String {
        let event = timeout(PATIENCE, self.events.recv()).await;
        short(&event.expect("an event in time").expect("an event"))
    }

    /// All events up to the end of the first listing, sorted by name.
    async fn synced(&mut self) -> Vec<String> {
        let mut events = Vec::new();
        loop {
            match self.next().await {
                event if event == "synced" => break,
                event => events.push(event),
            }
        }
        events.sort();
        events
    }

    async fn nothing(&mut self) {
        if let Ok(event) = timeout(QUIET, self.events.recv()).await {
            panic!("{event:?}");
        }
    }

    fn text(&self) -> String {
        String::from_utf8(self.metrics.render().unwrap()).unwrap()
    }

    fn metric(&self, line: &str) -> bool {
        self.text().lines().any(|other| other == line)
    }
}

fn short(event: &Event) -> String {
    match event {
        Event::Apply(object) => format!("+{}", object.key()),
        Event::Delete(key) => format!("-{key}"),
        Event::Synced => "synced".to_owned(),
    }
}

fn service(name: &str, port: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "shop", "name": name, "uid": "u",
            "managedFields": [{"manager": "m"}]},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": port}]},
    })
}

fn route(name: &str) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"namespace": "shop", "name": name},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": "web"}],
            "rules": [{"backendRefs": [{"name": "web", "port": 80}]}],
        },
    })
}

fn with_crds() -> FakeApi {
    FakeApi::new(&[&BUILT_IN[..], &[ROUTES, OLD_GRANTS]].concat())
}

#[tokio::test]
async fn existing_objects_come_first_and_then_events() {
    let api = with_crds();
    api.apply(NAMESPACES, json!({"metadata": {"name": "shop"}}));
    api.apply(SERVICES, service("web", 80));
    api.apply(ROUTES, route("web"));
    let grant = json!({
        "metadata": {"namespace": "shop", "name": "all"},
        "spec": {
            "from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute",
                    "namespace": "other"}],
            "to": [{"group": "", "kind": "Service"}],
        },
    });
    api.apply(OLD_GRANTS, grant);
    let mut cluster = Cluster::start(api);
    assert_eq!(
        cluster.synced().await,
        [
            "+HTTPRoute shop/web",
            "+Namespace shop",
            "+ReferenceGrant shop/all",
            "+Service shop/web"
        ]
    );
    cluster.api.apply(SERVICES, service("db", 5432));
    assert_eq!(cluster.next().await, "+Service shop/db");
    cluster.api.apply(SERVICES, service("db", 5433));
    let changed = timeout(PATIENCE, cluster.events.recv())
        .await
        .unwrap()
        .unwrap();
    match changed {
        Event::Apply(Object::Service(service)) => assert_eq!(service.ports[0].port, 5433),
        other => panic!("{other:?}"),
    }
    cluster.api.delete(SERVICES, "shop", "db");
    assert_eq!(cluster.next().await, "-Service shop/db");
    cluster.nothing().await;
}

#[tokio::test]
async fn an_api_server_without_streaming_lists_is_read_by_pages() {
    let api = with_crds();
    api.lists_by_page_only();
    let all: Vec<String> = (0..1_200).map(|i| format!("s{i:04}")).collect();
    for name in &all {
        api.apply(SERVICES, service(name, 80));
    }
    let mut cluster = Cluster::start(api);
    let expected: Vec<String> = all
        .iter()
        .map(|name| format!("+Service shop/{name}"))
        .collect();
    assert_eq!(cluster.synced().await, expected);
    let requests = cluster.api.take_requests();
    let pages = requests
        .iter()
        .filter(|r| r.contains("/services?") && r.contains("limit="));
    assert_eq!(pages.count(), 3, "{requests:?}");
    cluster.api.apply(SERVICES, service("web", 80));
    assert_eq!(cluster.next().await, "+Service shop/web");
}

#[tokio::test]
async fn a_dropped_watch_is_resumed_where_it_ended() {
    let api = with_crds();
    api.apply(SERVICES, service("web", 80));
    let mut cluster = Cluster::start(api);
    cluster.synced().await;
    cluster.api.down(true);
    cluster.api.apply(SERVICES, service("db", 5432));
    cluster.nothing().await;
    let failures = "naru_controller_watch_failures_total{kind=\"Service\"}";
    assert!(cluster.text().contains(failures));
    cluster.api.down(false);
    assert_eq!(cluster.next().await, "+Service shop/db");
    cluster.nothing().await;
}

#[tokio::test]
async fn after_a_long_outage_only_differences_are_sent() {
    let api = with_crds();
    for name in ["web", "db", "old"] {
        api.apply(SERVICES, service(name, 80));
    }
    let mut cluster = Cluster::start(api);
    let mut catalog = Catalog::new(CatalogOptions {
        trust_domain: "cluster.local".into(),
        mtls: naru_contract::MtlsMode::Permissive,
    });
    loop {
        let event = timeout(PATIENCE, cluster.events.recv())
            .await
            .unwrap()
            .unwrap();
        let last = event == Event::Synced;
        catalog.apply(event);
        if last {
            break;
        }
    }
    cluster.api.down(true);
    tokio::time::sleep(QUIET).await;
    cluster.api.lose(SERVICES, "shop", "old");
    cluster.api.compact();
    cluster.api.apply(SERVICES, service("db", 81));
    cluster.api.down(false);
    let (mut seen, mut changed) = (Vec::new(), Vec::new());
    while let Ok(Some(event)) = timeout(QUIET, cluster.events.recv()).await {
        let text = short(&event);
        if !catalog.apply(event).is_empty() {
            changed.push(text.clone());
        }
        seen.push(text);
    }
    changed.sort();
    assert_eq!(
        changed,
        ["+Service shop/db", "-Service shop/old"],
        "of {seen:?}"
    );
    assert_eq!(seen.last().map(String::as_str), Some("-Service shop/old"));
    assert_eq!(catalog.object_counts()[1], ("Service", 2));
}

#[tokio::test]
async fn an_object_that_does_not_parse_keeps_its_last_good_state_and_stops_nothing() {
    let api = with_crds();
    let mut bad = service("bad", 80);
    bad["spec"]["clusterIP"] = json!("10.96.0");
    api.apply(SERVICES, bad.clone());
    api.apply(SERVICES, service("web", 80));
    let mut cluster = Cluster::start(api);
    assert_eq!(cluster.synced().await, ["+Service shop/web"]);
    assert!(cluster.metric("naru_controller_invalid_objects{kind=\"Service\"} 1"));

    let mut worse = service("web", 80);
    worse["spec"]["ports"][0]["port"] = json!("eighty");
    cluster.api.apply(SERVICES, worse);
    cluster.api.apply(SERVICES, service("db", 5432));
    assert_eq!(cluster.next().await, "+Service shop/db");
    cluster.nothing().await;
    assert!(cluster.metric("naru_controller_invalid_objects{kind=\"Service\"} 2"));
    // Another version with the same problem is not reported again.
    bad["metadata"]["labels"] = json!({"a": "b"});
    cluster.api.apply(SERVICES, bad);
    cluster.nothing().await;
    let written = cluster.api.take_written();
    let notes: Vec<_> = (written.iter())
        .map(|(_, path, event)| {
            (
                path.as_str(),
                event["regarding"]["name"].as_str(),
                event["note"].as_str(),
            )
        })
        .collect();
    assert_eq!(notes.len(), 2, "{notes:?}");
    let (path, name, note) = notes[0];
    assert!(
        path.starts_with("/apis/events.k8s.io/v1/namespaces/shop/events"),
        "{path}"
    );
    assert_eq!(name, Some("bad"));
    assert!(note.is_some_and(|note| note.contains("spec.clusterIP") && note.contains("left out")));
    let (_, name, note) = notes[1];
    assert_eq!(name, Some("web"));
    assert!(
        note.is_some_and(
            |note| note.contains("spec.ports[0].port") && note.contains("stays in force")
        )
    );

    cluster.api.apply(SERVICES, service("bad", 80));
    assert_eq!(cluster.next().await, "+Service shop/bad");
    cluster.api.delete(SERVICES, "shop", "web");
    assert_eq!(cluster.next().await, "-Service shop/web");
    assert!(cluster.metric("naru_controller_invalid_objects{kind=\"Service\"} 0"));
}

#[tokio::test]
async fn two_controllers_write_an_event_once() {
    let api = with_crds();
    let mut bad = service("bad", 80);
    bad["spec"]["ports"][0]["port"] = json!("eighty");
    api.apply(SERVICES, bad);
    let mut names = Vec::new();
    for _ in 0..2 {
        let mut cluster = Cluster::start(api.clone());
        assert!(cluster.synced().await.is_empty());
        let written = async {
            loop {
                let written = cluster.api.take_written();
                if let [(_, _, event)] = &written[..] {
                    return event["metadata"]["name"].as_str().map(str::to_owned);
                }
                assert!(written.is_empty(), "{written:?}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        names.push(timeout(PATIENCE, written).await.expect("an Event"));
    }
    // The API server accepts one object of that name.
    assert!(names[0].is_some() && names[0] == names[1], "{names:?}");
}

#[tokio::test]
async fn an_invalid_annotation_is_reported_and_the_rest_of_the_object_is_used() {
    let api = with_crds();
    let namespace = |mtls: &str| {
        let annotations = json!({"naru.dev/mtls": mtls});
        json!({"metadata": {"name": "shop", "annotations": annotations}})
    };
    api.apply(NAMESPACES, namespace("on"));
    let mut cluster = Cluster::start(api);
    assert_eq!(cluster.synced().await, ["+Namespace shop"]);
    let invalid = |count| format!("naru_controller_invalid_objects{{kind=\"Namespace\"}} {count}");
    assert!(cluster.metric(&invalid(1)));
    let note = timeout(PATIENCE, async {
        loop {
            match cluster.api.take_written().pop() {
                Some((_, _, event)) => return event["note"].clone(),
                None => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    });
    let note = note.await.expect("an Event");
    let note = note.as_str().unwrap_or_default();
    for said in [
        "naru.dev/mtls",
        "\"on\"",
        "refused",
        "the rest of the object",
    ] {
        assert!(note.contains(said), "{said} in {note}");
    }
    cluster.api.apply(NAMESPACES, namespace("Strict"));
    assert_eq!(cluster.next().await, "+Namespace shop");
    assert!(cluster.metric(&invalid(0)));
}

#[tokio::test]
async fn a_kind_that_is_installed_later_is_watched() {
    let mut cluster = Cluster::start(FakeApi::new(&BUILT_IN));
    assert!(cluster.synced().await.is_empty());
    cluster.nothing().await;
    cluster.api.install(ROUTES);
    cluster.api.apply(ROUTES, route("web"));
    assert_eq!(cluster.next().await, "+HTTPRoute shop/web");
}

#[tokio::test]
async fn tls_and_tcp_routes_are_watched_like_the_others() {
    let mut cluster = Cluster::start(FakeApi::new(&BUILT_IN));
    assert!(cluster.synced().await.is_empty());
    for (plural, kind) in [("tlsroutes", "TLSRoute"), ("tcproutes", "TCPRoute")] {
        let at = ROUTES.replace("httproutes", plural);
        cluster.api.install(&at);
        let mut route = route("web");
        route["kind"] = kind.into();
        route["spec"]["hostnames"] = json!(["a.example"]);
        cluster.api.apply(&at, route);
        assert_eq!(cluster.next().await, format!("+{kind} shop/web"));
        cluster.api.delete(&at, "shop", "web");
        assert_eq!(cluster.next().await, format!("-{kind} shop/web"));
    }
}

#[tokio::test]
async fn a_kind_that_is_briefly_missing_keeps_its_objects() {
    let api = with_crds();
    api.apply(ROUTES, route("web"));
    let mut cluster = Cluster::start(api);
    assert_eq!(cluster.synced().await, ["+HTTPRoute shop/web"]);
    cluster.api.down(true);
    cluster.api.uninstall(ROUTES);
    cluster.api.down(false);
    cluster.nothing().await;
    assert_eq!(cluster.next().await, "-HTTPRoute shop/web");
}

#[tokio::test]
async fn a_kind_that_every_api_server_has_is_waited_for() {
    let mut cluster = Cluster::start(FakeApi::new(&BUILT_IN[1..]));
    cluster.nothing().await;
    cluster.api.install(NAMESPACES);
    assert!(cluster.synced().await.is_empty());
}

#[tokio::test]
async fn the_watches_end_with_the_receiver_of_the_events() {
    let (sender, events) = mpsc::channel(1);
    drop(events);
    let ended = watch_all(with_crds().client(), sender, Metrics::new(), &PACE);
    timeout(PATIENCE, ended).await.expect("an end");
}
