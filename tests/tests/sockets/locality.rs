//! Calls stay in the client's zone or on its node, if the Service is configured so.

use serde_json::{Value, json};

use crate::apps::App;
use crate::mesh::{Mesh, NAMESPACE, Sidecar};
use crate::process::eventually;

/// How many requests show the distribution.
const ENOUGH: usize = 30;

/// Pod 1 is on the node n1 in zone z1, pod 2 on n2 in z2.
fn hinted(number: u8) -> Value {
    let zone = format!("z{number}");
    json!({
        "nodeName": format!("n{number}"), "zone": zone, "hints": { "forZones": [{ "name": zone }] },
    })
}

/// A Service with those two pods, and a client on n1, whose zone is only in the EndpointSlice.
async fn spread(mesh: &Mesh) -> (Vec<(App, Sidecar)>, Sidecar) {
    mesh.service("web", Some("http"), &[]);
    let mut running = Vec::new();
    for number in [1, 2] {
        let app = App::named(mesh.app(number), &number.to_string()).await;
        running.push((app, mesh.sidecar("web", number, &[]).await));
    }
    mesh.put(&json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "client-3", "namespace": NAMESPACE,
            "labels": { "app": "client", "naru.dev/injected": "true" },
        },
        "spec": {
            "serviceAccountName": "client",
            "nodeName": "n1",
            "containers": [{ "name": "app" }],
        },
        "status": { "phase": "Running", "podIP": mesh.pod(3).ip().to_string() },
    }));
    let client = mesh.proxy("client", 3, &["web"], &[]).await;
    (running, client)
}

/// The endpoints that answer the next requests, sorted and deduplicated.
async fn answers(client: &Sidecar) -> Vec<String> {
    let mut answers = Vec::new();
    for _ in 0..ENOUGH {
        let answer = client.get("web").await;
        answers.push(match answer.status {
            200 => answer.body.clone(),
            _ => answer.reason().to_owned(),
        });
    }
    answers.sort();
    answers.dedup();
    answers
}

async fn eventually_answered_by(client: &Sidecar, expected: &[&str]) {
    eventually(&format!("{expected:?} answer"), async || {
        answers(client).await == expected
    })
    .await;
}

#[tokio::test]
async fn calls_stay_in_the_zone_while_it_has_endpoints() {
    let mesh = Mesh::start().await;
    let (mut running, client) = spread(&mesh).await;
    mesh.endpoints_with("web", &[1, 2], |_| json!({}));
    eventually_answered_by(&client, &["1", "2"]).await;
    mesh.endpoints_with("web", &[1, 2], hinted);
    eventually_answered_by(&client, &["1"]).await;
    // Calls fail over to the other zone before the controller detects it.
    drop(running.remove(0));
    eventually_answered_by(&client, &["2"]).await;
    mesh.endpoints_with("web", &[2], hinted);
    eventually_answered_by(&client, &["2"]).await;
}

#[tokio::test]
async fn calls_stay_on_the_node_or_fail() {
    let mesh = Mesh::start().await;
    let (_running, client) = spread(&mesh).await;
    mesh.endpoints_with("web", &[1, 2], hinted);
    let policy = |policy: &str| {
        let mut service = mesh.service_object("web", Some("http"));
        service["spec"]["internalTrafficPolicy"] = policy.into();
        mesh.put(&service);
    };
    policy("Local");
    eventually_answered_by(&client, &["1"]).await;
    mesh.endpoints_with("web", &[2], hinted);
    eventually_answered_by(&client, &["no-endpoint"]).await;
    policy("Cluster");
    eventually_answered_by(&client, &["2"]).await;
}
