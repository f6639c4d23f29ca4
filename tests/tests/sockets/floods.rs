//! Clients that open many idle connections, and others that need responses meanwhile.

use std::net::SocketAddr;

use naru_listen::descriptors::Descriptors;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::apps::{App, get, try_get};
use crate::mesh::{Mesh, metric};
use crate::process::eventually;

/// Silent connections.
async fn silent(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    Descriptors::raise();
    let mut open = Vec::new();
    for _ in 0..count {
        open.push(TcpStream::connect(address).await.expect("a connection"));
    }
    open
}

/// Scrapes whose responses are not read.
async fn unread(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut open = silent(address, count).await;
    for stream in &mut open {
        let head = b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n";
        stream.write_all(head).await.expect("a connection");
    }
    open
}

#[tokio::test]
async fn admin_ports_respond_despite_silent_connections_and_unread_scrapes() {
    let mesh = Mesh::start().await;
    let sidecar = mesh.sidecar("web", 1, &[]).await;
    for admin in [mesh.controller_admin(), sidecar.admin] {
        let _silent = silent(admin, 300).await;
        let _unread = unread(admin, 40).await;
        for path in ["/live", "/ready", "/metrics"] {
            assert_eq!(get(admin, path).await.status, 200, "{path}");
        }
    }
    let labels = ["listener=\"admin\"", "limit=\"waiting\""];
    let given_up = metric(sidecar.admin, "naru_connections_refused_total", &labels).await;
    assert!(given_up > 0.0, "{given_up}");
}

#[tokio::test]
async fn a_sidecar_starts_despite_silent_connections_to_the_controller() {
    let mesh = Mesh::start().await;
    let _silent = silent(mesh.controller_proxies(), 5_500).await;
    let _sidecar = mesh.sidecar("web", 1, &[]).await;
    let labels = ["listener=\"proxies\"", "limit=\"waiting\""];
    let name = "naru_controller_connections_refused_total";
    assert!(metric(mesh.controller_admin(), name, &labels).await > 0.0);
}

#[tokio::test]
async fn a_pod_responds_despite_connections_that_use_all_places_without_an_identity() {
    let mesh = Mesh::start().await;
    mesh.service("web", Some("http"), &[1]);
    mesh.put_pod("web", 1, serde_json::json!({}));
    let _app = App::named(mesh.app(1), "web").await;
    let limits = ["--max-connections=20"];
    let web = mesh.proxy("web", 1, &[], &limits).await;
    let client = mesh.sidecar("client", 2, &["web"]).await;

    let _silent = silent(mesh.pod(1), 200).await;
    assert_eq!(get(mesh.pod(1), "/").await.body, "web");
    assert_eq!(client.get("web").await.body, "web");

    // Active connections, up to the limit for clients without an identity.
    let mut used = Vec::new();
    let refused = loop {
        let mut stream = TcpStream::connect(mesh.pod(1)).await.expect("a connection");
        let head = b"GET / HTTP/1.1\r\nhost: web\r\n\r\n";
        stream.write_all(head).await.expect("a connection");
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.expect("an answer");
        if &answer != b"HTTP/1.1 200" {
            break answer;
        }
        used.push(stream);
        assert!(used.len() <= 20);
    };
    assert_eq!(&refused, b"HTTP/1.1 503");
    let labels = ["listener=\"inbound\"", "limit=\"unproven\""];
    let unproven = metric(web.admin, "naru_connections_refused_total", &labels).await;
    assert_eq!(unproven, 1.0);
    assert_eq!(client.get("web").await.body, "web");
    assert_eq!(get(web.admin, "/ready").await.status, 200);
    drop(used);
    eventually("a stranger has a place again", async || {
        let answer = try_get(mesh.pod(1), "/").await;
        answer.is_ok_and(|answer| answer.status == 200)
    })
    .await;
}

#[tokio::test]
async fn a_port_scan_adds_a_single_series_to_the_metrics() {
    let mesh = Mesh::start().await;
    mesh.service("web", Some("http"), &[1]);
    mesh.put_pod("web", 1, serde_json::json!({}));
    let _app = App::named(mesh.app(1), "web").await;
    // Each listener stands for a port of the pod.
    let closed: Vec<String> = (0..100)
        .map(|number| {
            format!(
                "--map-inbound={}:{}={}:{}",
                mesh.pod(1).ip(),
                30_000 + number,
                mesh.app(1).ip(),
                61_000 + number
            )
        })
        .collect();
    let closed: Vec<&str> = closed.iter().map(String::as_str).collect();
    let web = mesh.proxy("web", 1, &[], &closed).await;
    for number in 0..100 {
        let answer = get((mesh.pod(1).ip(), 30_000 + number).into(), "/").await;
        assert_eq!(answer.status, 503);
    }
    assert_eq!(get(mesh.pod(1), "/").await.body, "web");
    let scrape = get(web.admin, "/metrics").await.body;
    let series = scrape
        .lines()
        .filter(|line| line.starts_with("naru_requests_total{"));
    assert_eq!(series.count(), 2, "{scrape}");
    let requests = async |port| {
        let labels = ["direction=\"inbound\"", port];
        metric(web.admin, "naru_requests_total", &labels).await
    };
    assert_eq!(requests("port=\"\"").await, 100.0);
    assert_eq!(requests("port=\"8080\"").await, 1.0);
}
