//! The path of an app's requests through the mesh.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::apps::{App, Echo, Stream};
use crate::mesh::{Mesh, split};
use crate::process::{SOON, eventually};

/// How many requests must follow a change before it counts as applied.
const ENOUGH: usize = 20;

#[tokio::test]
async fn a_request_uses_mutual_tls_and_its_client_is_identified() {
    let mesh = Mesh::start().await;
    mesh.service("web", Some("http"), &[1]);
    let app = App::named(mesh.app(1), "web").await;
    let web = mesh.sidecar("web", 1, &[]).await;
    let client = mesh.sidecar("client", 2, &["web"]).await;

    let answer = client.get("web").await;
    assert_eq!((answer.status, &*answer.body), (200, "web"), "{answer:?}");
    assert_eq!((answer.reason(), app.requests()), ("", 1));

    let inbound = [
        "direction=\"inbound\"",
        "client=\"spiffe://cluster.local/ns/shop/sa/client\"",
        "namespace=\"shop\"",
        "port=\"8080\"",
        "protocol=\"http/1.1\"",
    ];
    eventually("the inbound side has counted it", async || {
        web.metric("naru_requests_total", &inbound).await == 1.0
    })
    .await;
    let outbound = [
        "direction=\"outbound\"",
        "service=\"web\"",
        "port=\"80\"",
        "backend=\"shop/web:80\"",
        "status=\"200\"",
        "reason=\"\"",
    ];
    eventually("the outbound side has counted it", async || {
        client.metric("naru_responses_total", &outbound).await == 1.0
    })
    .await;
    for (side, direction) in [(&web, "inbound"), (&client, "outbound")] {
        let direction = format!("direction=\"{direction}\"");
        let handshakes = side
            .metric("naru_tls_handshakes_total", &[&direction, "outcome=\"ok\""])
            .await;
        assert_eq!(handshakes, 1.0, "{direction}");
    }
}

#[tokio::test]
async fn undeclared_http_is_detected_by_its_first_bytes() {
    let mesh = Mesh::start().await;
    mesh.service("web", None, &[1]);
    let _app = App::named(mesh.app(1), "web").await;
    let _web = mesh.sidecar("web", 1, &[]).await;
    let client = mesh.sidecar("client", 2, &["web"]).await;
    assert_eq!(client.get("web").await.body, "web");
    let labels = ["direction=\"outbound\"", "service=\"web\""];
    assert_eq!(client.metric("naru_requests_total", &labels).await, 1.0);
}

#[tokio::test]
async fn messages_of_a_stream_are_forwarded_both_ways_as_they_arrive() {
    let mesh = Mesh::start().await;
    mesh.service("echo", Some("grpc"), &[1]);
    let _app = Echo::start(mesh.app(1)).await;
    let echo = mesh.sidecar("echo", 1, &[]).await;
    let client = mesh.sidecar("client", 2, &["echo"]).await;

    let mut stream = Stream::open(client.calls("echo"), "/chat").await;
    for message in ["one", "two", "three"] {
        stream
            .send
            .send_data(Bytes::from(message), false)
            .expect("send");
        // Send the next one only then: nothing may wait for the stream's end.
        assert_eq!(stream.next().await.as_deref(), Some(message.as_bytes()));
    }
    stream.send.send_data(Bytes::new(), true).expect("send");
    assert_eq!(stream.next().await, None);
    let trailers = stream.receive.trailers().await.expect("trailers");
    let trailers = trailers.expect("trailers");
    assert_eq!(trailers["grpc-status"], "0");

    let inbound = ["direction=\"inbound\"", "protocol=\"http/2\""];
    assert_eq!(echo.metric("naru_requests_total", &inbound).await, 1.0);
}

#[tokio::test]
async fn a_changed_weight_applies_to_every_later_request() {
    let mesh = Mesh::start().await;
    let mut running = Vec::new();
    for (name, number) in [("v1", 1), ("v2", 2)] {
        mesh.service(name, Some("http"), &[number]);
        let app = App::named(mesh.app(number), name).await;
        running.push((app, mesh.sidecar(name, number, &[]).await));
    }
    mesh.service("both", Some("http"), &[]);
    mesh.put(&split("both", &[("v1", 1), ("v2", 0)]));
    let client = mesh.sidecar("client", 3, &["both"]).await;
    assert_eq!(client.get("both").await.body, "v1");

    for (weights, name) in [([0, 1], "v2"), ([1, 0], "v1"), ([0, 1], "v2")] {
        mesh.put(&split("both", &[("v1", weights[0]), ("v2", weights[1])]));
        eventually(&format!("{name} answers"), async || {
            client.get("both").await.body == name
        })
        .await;
        for _ in 0..ENOUGH {
            assert_eq!(client.get("both").await.body, name);
        }
    }
    let split = [
        "route=\"shop/both\"",
        "rule=\"split\"",
        "backend=\"shop/v2:80\"",
    ];
    assert!(client.metric("naru_requests_total", &split).await > 2.0);
}

#[tokio::test]
async fn a_failed_attempt_is_retried_if_the_route_configures_it() {
    let mesh = Mesh::start().await;
    mesh.service("flaky", Some("http"), &[1]);
    // Every other request fails.
    let app = App::start(mesh.app(1), |number| async move {
        match number % 2 {
            1 => (StatusCode::SERVICE_UNAVAILABLE, "failed".to_owned()),
            _ => (StatusCode::OK, "done".to_owned()),
        }
    })
    .await;
    let _flaky = mesh.sidecar("flaky", 1, &[]).await;
    let client = mesh.sidecar("client", 2, &["flaky"]).await;

    // An app's own error response is passed on unchanged.
    let failed = client.get("flaky").await;
    assert_eq!((failed.status, &*failed.body), (503, "failed"));
    assert_eq!(failed.reason(), "");
    assert_eq!(client.get("flaky").await.status, 200);

    let mut route = split("flaky", &[("flaky", 1)]);
    route["spec"]["rules"][0]["retry"] = json!({ "codes": [503], "attempts": 1, "backoff": "1ms" });
    mesh.put(&route);
    // Without the route, every second request fails.
    eventually("the route is in force", async || {
        let both = (client.get("flaky").await, client.get("flaky").await);
        both.0.status == 200 && both.1.status == 200
    })
    .await;
    let before = app.requests();
    for _ in 0..ENOUGH {
        assert_eq!(client.get("flaky").await.body, "done");
    }
    assert_eq!(app.requests() - before, 2 * ENOUGH);
    let sent = [
        "service=\"flaky\"",
        "route=\"shop/flaky\"",
        "outcome=\"sent\"",
    ];
    assert!(client.metric("naru_retries_total", &sent).await >= ENOUGH as f64);
}

#[tokio::test]
async fn an_endpoint_gets_no_request_once_it_is_removed() {
    let mesh = Mesh::start().await;
    let mut running = Vec::new();
    for number in [1, 2] {
        let app = App::named(mesh.app(number), &number.to_string()).await;
        running.push((app, mesh.sidecar("web", number, &[]).await));
    }
    mesh.service("web", Some("http"), &[1, 2]);
    let client = mesh.sidecar("client", 3, &["web"]).await;
    eventually("both endpoints get requests", async || {
        client.get("web").await;
        running.iter().all(|(app, _)| app.requests() > 0)
    })
    .await;

    mesh.endpoints("web", &[2]);
    eventually("the client has heard of it", async || {
        endpoints(client.admin, "web").await == [mesh.pod(2).to_string()]
    })
    .await;
    let before = running[0].0.requests();
    for _ in 0..ENOUGH {
        assert_eq!(client.get("web").await.body, "2");
    }
    assert_eq!(running[0].0.requests(), before);

    mesh.endpoints("web", &[]);
    eventually("no connection is left", async || {
        client.get("web").await.reason() == "no-endpoint"
    })
    .await;
    mesh.endpoints("web", &[1]);
    eventually("there is an endpoint again", async || {
        client.get("web").await.body == "1"
    })
    .await;
}

#[tokio::test]
async fn a_request_that_did_not_reach_an_app_is_sent_to_another_endpoint() {
    let mesh = Mesh::start().await;
    let _app = App::named(mesh.app(1), "there").await;
    let _there = mesh.sidecar("web", 1, &[]).await;
    // Its object is Running, but nothing listens there.
    mesh.put_pod("web", 2, json!({}));
    mesh.service("web", Some("http"), &[1, 2]);
    let client = mesh.sidecar("client", 3, &["web"]).await;
    for _ in 0..ENOUGH {
        assert_eq!(client.get("web").await.body, "there");
    }
    let failed = ["outcome=\"connect-failed\""];
    let connects = "naru_upstream_connects_total";
    assert!(client.metric(connects, &failed).await > 0.0);
}

#[tokio::test]
async fn a_timeout_of_the_route_has_its_own_reason() {
    let mesh = Mesh::start().await;
    mesh.service("slow", Some("http"), &[1]);
    let _app = App::start(mesh.app(1), |_| async {
        // Longer than the test runs.
        tokio::time::sleep(Duration::from_secs(3_600)).await;
        (StatusCode::OK, String::new())
    })
    .await;
    let _slow = mesh.sidecar("slow", 1, &[]).await;
    let mut route = split("slow", &[("slow", 1)]);
    route["spec"]["rules"][0]["timeouts"] = json!({ "request": "200ms" });
    mesh.put(&route);
    let client = mesh.sidecar("client", 2, &["slow"]).await;
    let answer = client.get("slow").await;
    assert_eq!((answer.status, answer.reason()), (504, "request-timeout"));
}

#[tokio::test]
async fn a_server_first_protocol_works_and_each_direction_closes_by_itself() {
    let mesh = Mesh::start().await;
    mesh.service("db", None, &[1]);
    let listener = TcpListener::bind(mesh.app(1)).await.expect("bind");
    let _db = mesh.sidecar("db", 1, &[]).await;
    let client = mesh.sidecar("client", 2, &["db"]).await;

    let mut stream = TcpStream::connect(client.calls("db"))
        .await
        .expect("connect");
    let (mut app, _) = soon(listener.accept()).await.expect("accept");
    app.write_all(b"220 hello\r\n").await.expect("write");
    let mut greeting = [0; 11];
    soon(stream.read_exact(&mut greeting)).await.expect("read");
    assert_eq!(&greeting, b"220 hello\r\n");
    // The client has closed its direction, and still receives the response.
    stream.write_all(b"all of it").await.expect("write");
    stream.shutdown().await.expect("shutdown");
    let mut said = Vec::new();
    soon(app.read_to_end(&mut said)).await.expect("read");
    assert_eq!(said, b"all of it");
    app.write_all(b"bye").await.expect("write");
    drop(app);
    let mut rest = Vec::new();
    soon(stream.read_to_end(&mut rest)).await.expect("read");
    assert_eq!(rest, b"bye");

    for (way, bytes) in [("sent", 9.0), ("received", 14.0)] {
        let way = format!("way=\"{way}\"");
        let labels = ["direction=\"outbound\"", "service=\"db\"", &way];
        let counted = client.metric("naru_tcp_bytes_total", &labels).await;
        assert_eq!(counted, bytes, "{way}");
    }
}

#[tokio::test]
async fn an_incomplete_tls_handshake_is_passed_on_to_the_app() {
    let mesh = Mesh::start().await;
    mesh.service("web", Some("http"), &[1]);
    let listener = TcpListener::bind(mesh.app(1)).await.expect("bind");
    mesh.put_pod("web", 1, json!({}));
    let _web = mesh
        .proxy("web", 1, &[], &["--handshake-timeout=50ms"])
        .await;
    let mut stream = TcpStream::connect(mesh.pod(1)).await.expect("connect");
    let start = b"\x16\x03\x01\x02\x00\x01";
    stream.write_all(start).await.expect("write");
    let (mut app, _) = soon(listener.accept()).await.expect("accept");
    let mut said = [0; 6];
    soon(app.read_exact(&mut said)).await.expect("read");
    assert_eq!(&said, start);
}

/// A ClientHello with an extension of 20 KB, which is beyond what the proxy reads of one.
fn long_client_hello() -> Vec<u8> {
    let start = [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0x13, 1], &[1, 0]].concat();
    let padding = [&[0, 21][..], &20_000_u16.to_be_bytes(), &[0; 20_000]].concat();
    let extensions = [&20_004_u16.to_be_bytes()[..], &padding].concat();
    let length = (start.len() + extensions.len()) as u32;
    let message = [&length.to_be_bytes()[1..], &start, &extensions].concat();
    let records = [&[1][..], &message].concat();
    let records = records.chunks(16 * 1024).map(|part| {
        let length = (part.len() as u16).to_be_bytes();
        [&[22, 3, 1][..], &length, part].concat()
    });
    records.flatten().collect()
}

#[tokio::test]
async fn a_client_hello_of_any_length_reaches_an_app_behind_an_http_port() {
    let mesh = Mesh::start().await;
    mesh.service("web", Some("http"), &[1]);
    let listener = TcpListener::bind(mesh.app(1)).await.expect("bind");
    let _web = mesh.sidecar("web", 1, &[]).await;
    let hello = long_client_hello();
    let mut stream = TcpStream::connect(mesh.pod(1)).await.expect("connect");
    stream.write_all(&hello).await.expect("write");
    let (mut app, _) = soon(listener.accept()).await.expect("accept");
    let mut said = vec![0; hello.len()];
    soon(app.read_exact(&mut said)).await.expect("read");
    assert!(said == hello);
}

async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(SOON, future).await.expect("in time")
}

/// The addresses of a Service's endpoints, from a proxy's `/config`.
async fn endpoints(admin: SocketAddr, service: &str) -> Vec<String> {
    let config = crate::apps::get(admin, "/config").await.body;
    let config: serde_json::Value = serde_json::from_str(&config).expect("JSON");
    let name = format!("endpoints/shop/{service}/80");
    let resources = config["resources"].as_array().expect("resources");
    let resource = resources.iter().find(|resource| resource["name"] == *name);
    let endpoints = resource.map(|resource| &resource["endpoints"]);
    let endpoints = endpoints.and_then(|endpoints| endpoints.as_array());
    let addresses = endpoints.into_iter().flatten();
    addresses
        .map(|endpoint| endpoint["address"].as_str().expect("text").to_owned())
        .collect()
}
