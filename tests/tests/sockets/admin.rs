//! The admin port of a running proxy.

use http::Request;
use serde_json::Value;

use crate::apps::{App, ask, get};
use crate::mesh::Mesh;
use crate::process::eventually;

#[tokio::test]
async fn a_proxy_reports_its_state_and_its_tables() {
    let mesh = Mesh::start().await;
    mesh.service("web", Some("http"), &[1]);
    let _app = App::named(mesh.app(1), "web").await;
    let _web = mesh.sidecar("web", 1, &[]).await;
    let client = mesh.sidecar("client", 2, &["web"]).await;
    client.get("web").await;

    let ready = get(client.admin, "/ready").await;
    let said: Value = serde_json::from_str(&ready.body).expect("JSON");
    assert_eq!((ready.status, &said["ready"]), (200, &Value::Bool(true)));
    assert_eq!(get(client.admin, "/live").await.status, 200);
    assert_eq!(get(client.admin, "/nothing").await.status, 404);

    let config = get(client.admin, "/config").await;
    let config: Value = serde_json::from_str(&config.body).expect("JSON");
    let destination = &config["destinations"][0];
    assert_eq!(destination["kind"], "logical", "{config:#}");
    assert_eq!(destination["service"], "shop/web:80", "{config:#}");
    let resources = config["resources"].as_array().expect("resources");
    let endpoints = resources
        .iter()
        .find(|resource| resource["kind"] == "endpoints");
    let endpoint = &endpoints.expect("endpoints")["endpoints"][0];
    assert_eq!(endpoint["address"], mesh.pod(1).to_string());
    assert_eq!(
        endpoint["identity"],
        "spiffe://cluster.local/ns/shop/sa/web"
    );
    assert_eq!(config["rejected"], Value::Array(Vec::new()));
}

#[tokio::test]
async fn the_log_level_changes_at_runtime() {
    let mesh = Mesh::start().await;
    mesh.service("web", Some("http"), &[1]);
    let _app = App::named(mesh.app(1), "web").await;
    let _web = mesh.sidecar("web", 1, &[]).await;
    let client = mesh.sidecar("client", 2, &["web"]).await;
    assert_eq!(get(client.admin, "/log").await.body, "info\n");
    assert!(!client.process.log().contains("DEBUG"));

    let put = |filter: &str| {
        let request = Request::put("/log").header("host", "proxy");
        ask(client.admin, request.body(filter.to_owned()).expect("one"))
    };
    let wrong = put("naru=loud").await.expect("an answer");
    assert_eq!(wrong.status, 400, "{wrong:?}");
    assert_eq!(put("debug").await.expect("an answer").status, 200);
    eventually("it says more", async || {
        client.get("web").await;
        client.process.log().contains("DEBUG")
    })
    .await;
}
