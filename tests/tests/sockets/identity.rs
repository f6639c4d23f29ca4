//! Authorization of clients, and verification of endpoints.

use serde_json::json;

use crate::apps::{App, try_get};
use crate::mesh::Mesh;
use crate::process::eventually;

#[tokio::test]
async fn strict_rejects_plaintext_and_permissive_accepts_it_without_an_identity() {
    let mesh = Mesh::start().await;
    mesh.service("open", Some("http"), &[1]);
    mesh.service("closed", Some("http"), &[2]);
    let apps = [
        App::named(mesh.app(1), "open").await,
        App::named(mesh.app(2), "closed").await,
    ];
    let open = mesh.sidecar("open", 1, &[]).await;
    mesh.put_pod("closed", 2, json!({ "naru.dev/mtls": "strict" }));
    let closed = mesh.proxy("closed", 2, &[], &[]).await;
    let client = mesh.sidecar("client", 3, &["open", "closed"]).await;

    // From a client with a sidecar, both are reachable.
    assert_eq!(client.get("open").await.body, "open");
    assert_eq!(client.get("closed").await.body, "closed");
    let before = apps[1].requests();

    let plaintext = try_get(mesh.pod(1), "/").await.expect("an answer");
    assert_eq!(plaintext.body, "open");
    let nameless = ["direction=\"inbound\"", "client=\"unauthenticated\""];
    eventually("it is counted without a name", async || {
        open.metric("naru_requests_total", &nameless).await == 1.0
    })
    .await;

    let refused = try_get(mesh.pod(2), "/").await;
    assert!(refused.is_err(), "{refused:?}");
    assert_eq!(apps[1].requests(), before);
    let labels = ["client=\"unauthenticated\"", "reason=\"identity-required\""];
    assert_eq!(closed.metric("naru_tcp_closed_total", &labels).await, 1.0);
    assert_eq!(client.get("closed").await.body, "closed");
}

#[tokio::test]
async fn a_changed_mtls_mode_applies_to_new_connections() {
    let mesh = Mesh::start().await;
    mesh.service("web", Some("http"), &[1]);
    let _app = App::named(mesh.app(1), "web").await;
    let _web = mesh.sidecar("web", 1, &[]).await;
    let answered = async || {
        let answer = try_get(mesh.pod(1), "/").await;
        answer.is_ok_and(|answer| answer.status == 200)
    };
    assert!(answered().await);
    mesh.put_pod("web", 1, json!({ "naru.dev/mtls": "strict" }));
    eventually("plaintext is refused", async || !answered().await).await;
    mesh.put_pod("web", 1, json!({}));
    eventually("plaintext is let in again", answered).await;
}

#[tokio::test]
async fn an_endpoint_with_another_identity_gets_no_request_and_is_ejected() {
    let mesh = Mesh::start().await;
    let _good = App::named(mesh.app(1), "victim").await;
    let _victim = mesh.sidecar("victim", 1, &[]).await;
    let rogue_app = App::named(mesh.app(2), "rogue").await;
    // A valid certificate of another service account.
    let _rogue = mesh.sidecar("rogue", 2, &[]).await;
    // The tables still have a pod of the victim's at that address.
    mesh.put_pod("victim", 2, json!({}));
    mesh.service("victim", Some("http"), &[1, 2]);
    let client = mesh.sidecar("client", 3, &["victim"]).await;

    for _ in 0..50 {
        let answer = client.get("victim").await;
        assert_eq!((answer.status, &*answer.body), (200, "victim"));
    }
    assert_eq!(rogue_app.requests(), 0);
    let ejections = "naru_endpoint_ejections_total";
    let labels = ["service=\"victim\"", "reason=\"identity-mismatch\""];
    assert!(client.metric(ejections, &labels).await >= 1.0);

    // As the only endpoint it gets no request either.
    mesh.endpoints("victim", &[2]);
    eventually("no other connection is left", async || {
        client.get("victim").await.status == 503
    })
    .await;
    assert_eq!(rogue_app.requests(), 0);
}

#[tokio::test]
async fn a_pod_of_the_mesh_never_gets_plaintext() {
    let mesh = Mesh::start().await;
    // Its object has the label of a sidecar, but its app listens there in plaintext.
    mesh.put_pod("bare", 1, json!({}));
    let app = App::named(mesh.pod(1), "bare").await;
    mesh.service("bare", Some("http"), &[1]);
    let client = mesh.sidecar("client", 2, &["bare"]).await;
    let answer = client.get("bare").await;
    assert_eq!((answer.status, answer.reason()), (503, "tls-failed"));
    assert_eq!(app.requests(), 0);
}
