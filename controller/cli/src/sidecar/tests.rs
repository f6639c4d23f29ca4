//! The choice of a pod, against an API server in memory, and a forwarded port, against one on a
//! socket.

use std::convert::Infallible;

use http::header::SEC_WEBSOCKET_PROTOCOL;
use http::{Response, StatusCode};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kube::Config;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::forward::post;
use super::*;
use crate::fake_api::{FakeApi, status};

const PODS: &str = "/api/v1/pods";

fn pod(namespace: &str, name: &str, deployment: &str, ready: bool) -> Value {
    json!({
        "metadata": {
            "name": name, "namespace": namespace,
            "annotations": { "naru.dev/skip-outbound-ports": "25" },
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{deployment}-5d8f"),
                "uid": "1", "controller": true,
            }],
        },
        "spec": {
            "initContainers": [{ "name": "naru-proxy",
                    "ports": [{ "name": "naru-admin", "containerPort": 15021 }] }],
            "containers": [{ "name": "app" }],
        },
        "status": { "phase": "Running", "initContainerStatuses": [
            { "name": "naru-proxy", "ready": ready, "restartCount": 0, "image": "", "imageID": "" },
        ] },
    })
}

fn shop() -> FakeApi {
    let api = FakeApi::new(&[PODS]);
    api.apply(PODS, pod("shop", "web-1", "web", false));
    api.apply(PODS, pod("shop", "web-2", "web", true));
    api.apply(PODS, pod("shop", "cart-1", "cart", true));
    api.apply(PODS, pod("blue", "client-1", "client", true));
    let mut without = pod("shop", "db-1", "db", true);
    without["spec"]["initContainers"] = json!([]);
    api.apply(PODS, without);
    api
}

/// The pod that `--from` selects, as `NAMESPACE/NAME`, or the error.
async fn found(api: &FakeApi, from: Option<&str>) -> Result<String, String> {
    let flags = Flags {
        from: from.map(|from| from.parse().expect(from)),
        namespace: None,
        kubeconfig: None,
        context: None,
    };
    let found = Sidecar::find(Some(&api.client()), &flags, "shop").await;
    found
        .map(|sidecar| sidecar.name())
        .map_err(|error| format!("{error:#}"))
}

#[tokio::test]
async fn from_selects_a_pod_a_workload_or_a_namespace() {
    let api = shop();
    for (from, expected) in [
        (None, "shop/cart-1"),
        (Some("web-2"), "shop/web-2"),
        (Some("pod/web-2"), "shop/web-2"),
        (Some("deployment/web"), "shop/web-2"),
        (Some("deploy/cart"), "shop/cart-1"),
        (Some("blue"), "blue/client-1"),
        (Some("ns/blue"), "blue/client-1"),
        (Some("blue/deployment/client"), "blue/client-1"),
        (Some("http://127.0.0.1:15020"), "127.0.0.1:15020"),
    ] {
        let found = found(&api, from).await;
        assert_eq!(found.as_deref(), Ok(expected), "{from:?}");
    }
    for wrong in ["http://web", "a//b", "", "a/b/c/d"] {
        assert!(wrong.parse::<From>().is_err(), "{wrong:?}");
    }
}

#[tokio::test]
async fn a_sidecar_that_cannot_be_queried_is_reported_with_the_reason() {
    let api = shop();
    for (from, told) in [
        ("web-1", "is not ready"),
        ("db-1", "not in the mesh"),
        ("deployment/db", "not in the mesh"),
        ("deployment/missing", "no pod that runs"),
        ("pod/missing", "namespace shop has no pod missing"),
        ("missing", "no pod of that name"),
    ] {
        let error = found(&api, Some(from)).await.expect_err(from);
        assert!(error.contains(told), "{from}: {error}");
    }
    api.uninstall(PODS);
    assert!(found(&api, None).await.is_err());
}

#[tokio::test]
async fn a_pod_comes_with_its_admin_port_and_bypass_annotations() {
    let flags = Flags {
        from: Some("web-2".parse().expect("a pod")),
        namespace: None,
        kubeconfig: None,
        context: None,
    };
    let sidecar = Sidecar::find(Some(&shop().client()), &flags, "shop").await;
    let Ok(Sidecar::Pod { pod, .. }) = sidecar else {
        panic!("no pod");
    };
    assert_eq!(pod.admin_port, 15021);
    assert_eq!(pod.skips, ["naru.dev/skip-outbound-ports: 25"]);
}

/// The API server's reaction to a request for a forwarded port.
#[derive(Clone, Copy)]
enum Forwards {
    /// The pod responds, in frames that are split anywhere.
    Answer,
    /// Nothing listens in the pod.
    Refused,
    Forbidden,
}

/// An API server that forwards ports. Returns the request that it received and the bytes for the
/// pod.
#[expect(clippy::disallowed_methods, reason = "a test's queues are short")]
async fn api_server(forwards: Forwards) -> (Client, tokio::task::JoinHandle<(String, String)>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("an address");
    let (asked, mut was_asked) = tokio::sync::mpsc::unbounded_channel();
    let serving = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("accept");
        let (sent, mut was_sent) = tokio::sync::mpsc::unbounded_channel();
        let service = service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
            let _ = asked.send(request.uri().to_string());
            let sent = sent.clone();
            async move {
                let mut response = Response::new(String::new());
                if let Forwards::Forbidden = forwards {
                    *response.status_mut() = StatusCode::FORBIDDEN;
                    *response.body_mut() = status(403, "jane may not").to_string();
                    return Ok::<_, Infallible>(response);
                }
                tokio::spawn(async move {
                    let upgraded = hyper::upgrade::on(&mut request).await.expect("an upgrade");
                    let _ = sent.send(in_the_pod(TokioIo::new(upgraded), forwards).await);
                });
                *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                let headers = response.headers_mut();
                headers.insert("connection", "Upgrade".parse().expect("a value"));
                headers.insert("upgrade", "websocket".parse().expect("a value"));
                let protocol = "v4.channel.k8s.io".parse().expect("a value");
                headers.insert(SEC_WEBSOCKET_PROTOCOL, protocol);
                Ok(response)
            }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        // The client may have closed the connection.
        let _ended = connection.await;
        let sent = was_sent.recv().await.unwrap_or_default();
        (was_asked.recv().await.unwrap_or_default(), sent)
    });
    let config = Config::new(format!("http://{address}").parse().expect("a URI"));
    (Client::try_from(config).expect("a client"), serving)
}

/// Server frames: unmasked, shorter than 126 bytes.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).expect("a short frame");
    [&[first, length], payload].concat()
}

/// Reads one client frame, of any length.
async fn received(io: &mut (impl AsyncReadExt + Unpin)) -> Vec<u8> {
    let mut head = [0; 2];
    io.read_exact(&mut head).await.expect("a frame");
    assert_eq!(head[1] & 0x80, 0x80, "a client masks");
    let length = match head[1] & 0x7f {
        126 => io.read_u16().await.expect("a length") as usize,
        short => usize::from(short),
    };
    let mut mask = [0; 4];
    io.read_exact(&mut mask).await.expect("a mask");
    let mut payload = vec![0; length];
    io.read_exact(&mut payload).await.expect("a payload");
    for (byte, mask) in payload.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
    payload
}

async fn in_the_pod(
    mut io: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    forwards: Forwards,
) -> String {
    // Each channel begins with the port.
    let port = 15021_u16.to_le_bytes();
    for channel in [0, 1] {
        io.write_all(&frame(0x82, &[&[channel], &port[..]].concat()))
            .await
            .expect("write");
    }
    if let Forwards::Refused = forwards {
        io.write_all(&frame(0x82, b"\x01error forwarding port"))
            .await
            .expect("write");
        io.write_all(&frame(0x88, b"")).await.expect("write");
        return String::new();
    }
    let sent = received(&mut io).await;
    assert_eq!(sent[0], 0, "the connection's channel");
    io.write_all(&frame(0x89, b"are you there?"))
        .await
        .expect("write");
    assert_eq!(received(&mut io).await, b"are you there?");
    // One message in two frames, and an empty one.
    for (first, payload) in [
        (0x02, &b"\x00HTTP/1.0 200 OK\r\n"[..]),
        (0x80, b"content-length: 2\r\n\r\n"),
        (0x82, b""),
        (0x82, b"\x00hi"),
        (0x88, b""),
    ] {
        let sent = io.write_all(&frame(first, payload)).await;
        sent.expect("write");
    }
    String::from_utf8(sent[1..].to_vec()).expect("text")
}

fn web() -> Pod {
    Pod {
        namespace: "shop".to_owned(),
        name: "web-1".to_owned(),
        admin_port: 15021,
        skips: Vec::new(),
    }
}

#[tokio::test]
async fn a_forwarded_port_carries_a_request_and_its_answer() {
    let (client, serving) = api_server(Forwards::Answer).await;
    let answer = post(&client, &web(), "/why", "{}", PATIENCE).await;
    let answer = answer.expect("an answer");
    assert_eq!((answer.status, answer.body.as_str()), (200, "hi"));
    let (asked, sent) = serving.await.expect("served");
    assert_eq!(
        asked,
        "/api/v1/namespaces/shop/pods/web-1/portforward?ports=15021"
    );
    assert!(sent.starts_with("POST /why HTTP/1.0\r\n"), "{sent}");
    assert!(sent.ends_with("\r\n\r\n{}"), "{sent}");
}

#[tokio::test]
async fn failures_of_a_forwarded_port_are_reported() {
    let (client, _serving) = api_server(Forwards::Refused).await;
    let error = post(&client, &web(), "/why", "{}", PATIENCE).await;
    let error = format!("{:#}", error.expect_err("no listener"));
    assert!(error.contains("error forwarding port"), "{error}");

    let (client, _serving) = api_server(Forwards::Forbidden).await;
    let error = post(&client, &web(), "/why", "{}", PATIENCE).await;
    let error = format!("{:#}", error.expect_err("it is not permitted"));
    for part in [
        "jane may not",
        "pods/portforward in shop",
        "port-forward web-1",
    ] {
        assert!(error.contains(part), "{error}");
    }
}
