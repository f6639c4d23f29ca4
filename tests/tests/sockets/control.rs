//! The controller's part: its handling of manifests, and traffic without it.

use serde_json::json;

use crate::apps::App;
use crate::mesh::{Mesh, metric, split};
use crate::process::eventually;

#[tokio::test]
async fn an_invalid_manifest_is_reported_and_its_last_good_state_stays() {
    let mesh = Mesh::start().await;
    mesh.service("web", Some("http"), &[1]);
    let _app = App::named(mesh.app(1), "web").await;
    let _web = mesh.sidecar("web", 1, &[]).await;
    let route = |timeout: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\n\
             kind: HTTPRoute\n\
             metadata: {{ name: web, namespace: shop }}\n\
             spec:\n\
             \x20 parentRefs: [{{ group: \"\", kind: Service, name: web }}]\n\
             \x20 rules:\n\
             \x20 - filters:\n\
             \x20   - type: RequestRedirect\n\
             \x20     requestRedirect: {{ statusCode: 301 }}\n\
             \x20   timeouts:\n\
             \x20     request: {timeout}\n"
        )
    };
    let path = mesh.file("route.yaml", &route("1s"));
    let client = mesh.sidecar("client", 2, &["web"]).await;
    eventually("the route is in force", async || {
        client.get("web").await.status == 301
    })
    .await;

    mesh.file("route.yaml", &route("soon"));
    let errors = "naru_controller_manifest_errors";
    eventually("the error is counted", async || {
        metric(mesh.controller_admin(), errors, &[]).await == 1.0
    })
    .await;
    let log = mesh.controller.log();
    let line = log.lines().find(|line| line.contains("ERROR"));
    let line = line.unwrap_or_else(|| panic!("no error in {log}"));
    for part in [
        &*path.display().to_string(),
        "line 11",
        "HTTPRoute shop/web",
        "spec.rules[0].timeouts.request",
        "\"soon\"",
    ] {
        assert!(line.contains(part), "no {part} in {line}");
    }
    assert_eq!(client.get("web").await.status, 301);

    mesh.file("route.yaml", &route("2s").replace("301", "302"));
    eventually("the corrected route is in force", async || {
        client.get("web").await.status == 302
    })
    .await;
    assert_eq!(metric(mesh.controller_admin(), errors, &[]).await, 0.0);
}

#[tokio::test]
async fn a_route_with_an_unsupported_feature_is_not_applied_in_part() {
    let mesh = Mesh::start().await;
    mesh.service("web", Some("http"), &[1]);
    let _app = App::named(mesh.app(1), "web").await;
    let _web = mesh.sidecar("web", 1, &[]).await;
    let mut route = split("web", &[("web", 1)]);
    route["spec"]["rules"] = json!([
        { "filters": [{ "type": "RequestRedirect", "requestRedirect": { "statusCode": 301 } }] },
        { "filters": [{ "type": "ExtensionRef", "extensionRef": {} }] },
    ]);
    mesh.put(&route);
    let client = mesh.sidecar("client", 2, &["web"]).await;
    eventually("the controller says so", async || {
        let log = mesh.controller.log();
        log.contains("shop/web")
            && log.contains("spec.rules[1].filters[0].type \\\"ExtensionRef\\\"")
    })
    .await;
    let answer = client.get("web").await;
    assert_eq!((answer.status, &*answer.body), (200, "web"));
}

#[tokio::test]
async fn traffic_continues_without_the_controller_and_nothing_is_resent() {
    let mut mesh = Mesh::start().await;
    for (name, number) in [("v1", 1), ("v2", 2)] {
        mesh.service(name, Some("http"), &[number]);
    }
    mesh.service("both", Some("http"), &[]);
    mesh.put(&split("both", &[("v1", 1), ("v2", 0)]));
    let _apps = [
        App::named(mesh.app(1), "v1").await,
        App::named(mesh.app(2), "v2").await,
    ];
    let _sidecars = [
        mesh.sidecar("v1", 1, &[]).await,
        mesh.sidecar("v2", 2, &[]).await,
    ];
    let client = mesh.sidecar("client", 3, &["both"]).await;
    assert_eq!(client.get("both").await.body, "v1");
    let received = "naru_table_received_resources_total";
    let before = client.metric(received, &[]).await;
    assert!(before > 0.0);

    mesh.controller.kill();
    eventually("the proxy has noticed", async || {
        client.metric("naru_controller_connected", &[]).await == 0.0
    })
    .await;
    for _ in 0..20 {
        assert_eq!(client.get("both").await.body, "v1");
    }

    mesh.restart_controller().await;
    eventually("the proxy is back", async || {
        client.metric("naru_controller_connected", &[]).await == 1.0
    })
    .await;
    // A change that is certainly sent after all others: one route.
    mesh.put(&split("both", &[("v1", 0), ("v2", 1)]));
    eventually("what changes now is obeyed", async || {
        client.get("both").await.body == "v2"
    })
    .await;
    assert_eq!(client.metric(received, &[]).await, before + 1.0);
}

#[tokio::test]
async fn only_changes_are_sent_after_the_controller_was_down() {
    let mut mesh = Mesh::start().await;
    for (name, number) in [("v1", 1), ("v2", 2)] {
        mesh.service(name, Some("http"), &[number]);
    }
    mesh.service("both", Some("http"), &[]);
    mesh.put(&split("both", &[("v1", 1), ("v2", 0)]));
    let _apps = [
        App::named(mesh.app(1), "v1").await,
        App::named(mesh.app(2), "v2").await,
    ];
    let _sidecars = [
        mesh.sidecar("v1", 1, &[]).await,
        mesh.sidecar("v2", 2, &[]).await,
    ];
    let client = mesh.sidecar("client", 3, &["both"]).await;
    assert_eq!(client.get("both").await.body, "v1");
    let received = "naru_table_received_resources_total";
    let before = client.metric(received, &[]).await;

    mesh.controller.kill();
    mesh.put(&split("both", &[("v1", 0), ("v2", 1)]));
    mesh.restart_controller().await;
    eventually("the change is obeyed", async || {
        client.get("both").await.body == "v2"
    })
    .await;
    assert_eq!(client.metric(received, &[]).await, before + 1.0);
}
