//! TLSRoutes and TCPRoutes: connections reach the configured backend, with their bytes unchanged.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::apps::{App, get};
use crate::mesh::{Mesh, NAMESPACE, Sidecar, split};
use crate::process::{SOON, eventually};

/// An app that sends its name to every client before it reads. It stops on drop.
pub struct Greeter {
    task: JoinHandle<()>,
    /// Its certificate for TLS clients.
    pub certificate: Option<CertificateDer<'static>>,
}

impl Greeter {
    pub async fn plain(address: SocketAddr, name: &'static str) -> Self {
        let listener = TcpListener::bind(address).await.expect("bind");
        let task = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.expect("accept");
                tokio::spawn(async move { stream.write_all(name.as_bytes()).await });
            }
        });
        Self {
            task,
            certificate: None,
        }
    }

    /// With TLS, and a certificate for `hostname`.
    pub async fn tls(address: SocketAddr, name: &'static str, hostname: &str) -> Self {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed([hostname.to_owned()]).expect("a certificate");
        let key = PrivatePkcs8KeyDer::from(signing_key.serialize_der());
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key.into());
        let acceptor = TlsAcceptor::from(Arc::new(config.expect("a configuration")));
        let listener = TcpListener::bind(address).await.expect("bind");
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.expect("accept");
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let mut stream = acceptor.accept(stream).await?;
                    stream.write_all(name.as_bytes()).await?;
                    stream.shutdown().await
                });
            }
        });
        Self {
            task,
            certificate: Some(cert.der().clone()),
        }
    }
}

impl Drop for Greeter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The name of the app that answers.
pub async fn greeting(address: SocketAddr) -> std::io::Result<String> {
    let greeting = async {
        let mut stream = TcpStream::connect(address).await?;
        let mut name = String::new();
        stream.read_to_string(&mut name).await?;
        Ok(name)
    };
    timeout(SOON, greeting).await.expect("an end")
}

/// The name of the app that answers with a certificate for `hostname`.
pub async fn tls_greeting(
    address: SocketAddr,
    hostname: &str,
    proof: &CertificateDer<'static>,
) -> std::io::Result<String> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(proof.clone()).expect("a certificate");
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from(hostname.to_owned()).expect("a name");
    let greeting = async {
        let stream = TcpStream::connect(address).await?;
        let mut stream = connector.connect(name, stream).await?;
        let mut name = String::new();
        stream.read_to_string(&mut name).await?;
        Ok(name)
    };
    timeout(SOON, greeting).await.expect("an end")
}

/// A route of a kind to the Service `front`.
pub fn route(kind: &str, name: &str, more: Value, backends: &[(&str, u32)]) -> Value {
    let mut route = split("front", backends);
    route["kind"] = kind.into();
    route["metadata"] = json!({ "name": name, "namespace": NAMESPACE });
    for (field, value) in more.as_object().expect("fields") {
        route["spec"][field] = value.clone();
    }
    route
}

async fn closed(client: &Sidecar, reason: &str) -> f64 {
    let reason = format!("reason=\"{reason}\"");
    let labels = ["direction=\"outbound\"", "service=\"front\"", &reason];
    client.metric("naru_tcp_closed_total", &labels).await
}

pub fn is_reset(ended: std::io::Result<String>) -> bool {
    ended.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
}

/// A client of `front`, whose TCPRoute `tcp` routes to the greeter `bytes`; there is also a Service
/// `web`. The second value keeps the backends alive.
pub async fn bytes_behind_front(mesh: &Mesh) -> (Sidecar, (App, Greeter, [Sidecar; 2])) {
    mesh.service("web", Some("http"), &[1]);
    let web = App::named(mesh.app(1), "web").await;
    let web_proxy = mesh.sidecar("web", 1, &[]).await;
    mesh.service("bytes", None, &[2]);
    let bytes = Greeter::plain(mesh.app(2), "bytes").await;
    let bytes_proxy = mesh.sidecar("bytes", 2, &[]).await;
    mesh.service("front", Some("http"), &[]);
    mesh.put(&route("TCPRoute", "tcp", json!({}), &[("bytes", 1)]));
    let client = mesh.sidecar("client", 3, &["front"]).await;
    let greeting = greeting(client.calls("front")).await;
    assert_eq!(greeting.expect("a greeting"), "bytes");
    (client, (web, bytes, [web_proxy, bytes_proxy]))
}

#[tokio::test]
async fn the_server_name_of_a_tls_client_decides_which_backend_it_reaches() {
    let mesh = Mesh::start().await;
    let mut apps = Vec::new();
    for (name, number, hostname) in [("a", 1, "a.example"), ("b", 2, "x.b.example")] {
        mesh.service(name, None, &[number]);
        let app = Greeter::tls(mesh.app(number), name, hostname).await;
        apps.push((app, mesh.sidecar(name, number, &[]).await));
    }
    let proof = |app: usize| apps[app].0.certificate.as_ref().expect("a certificate");
    mesh.service("front", None, &[]);
    let names = |names: Value| json!({ "hostnames": names });
    mesh.put(&route(
        "TLSRoute",
        "a",
        names(json!(["a.example"])),
        &[("a", 1)],
    ));
    let wide = names(json!(["*.b.example", "a.example"]));
    mesh.put(&route("TLSRoute", "b", wide, &[("b", 1)]));
    let client = mesh.sidecar("client", 3, &["front"]).await;
    let front = client.calls("front");

    for (hostname, app, name) in [("a.example", 0, "a"), ("x.b.example", 1, "b")] {
        let reached = tls_greeting(front, hostname, proof(app)).await;
        assert_eq!(reached.expect(hostname), name);
    }
    // The sidecars' TLS, with the app's TLS inside.
    let inbound = [
        "direction=\"inbound\"",
        "client=\"spiffe://cluster.local/ns/shop/sa/client\"",
    ];
    let carried = apps[0]
        .1
        .metric("naru_tcp_connections_total", &inbound)
        .await;
    assert_eq!(carried, 1.0);

    assert!(is_reset(tls_greeting(front, "b.example", proof(1)).await));
    assert_eq!(closed(&client, "no-route").await, 1.0);
    let mut plain = TcpStream::connect(front).await.expect("connect");
    plain.write_all(b"hello\r\n").await.expect("write");
    let mut nothing = String::new();
    let ended = timeout(SOON, plain.read_to_string(&mut nothing)).await;
    assert!(is_reset(ended.expect("an end").map(|_| nothing)));
    assert_eq!(closed(&client, "no-client-hello").await, 1.0);

    // A changed route applies to the next connection.
    let names = names(json!(["c.example", "a.example"]));
    mesh.put(&route("TLSRoute", "a", names, &[("b", 1)]));
    eventually("b is given what a was", async || {
        // The server's certificate is for another name.
        let wrong = tls_greeting(front, "a.example", proof(0)).await;
        wrong.is_err_and(|error| error.kind() == ErrorKind::InvalidData)
    })
    .await;
}

#[tokio::test]
async fn a_tcp_route_balances_connections_by_weight() {
    let mesh = Mesh::start().await;
    let mut apps = Vec::new();
    for (name, number) in [("a", 1), ("b", 2), ("never", 3)] {
        mesh.service(name, None, &[number]);
        let app = Greeter::plain(mesh.app(number), name).await;
        apps.push((app, mesh.sidecar(name, number, &[]).await));
    }
    // A TCPRoute makes a port opaque, whatever its declared protocol: the proxy does not wait for a
    // request.
    mesh.service("front", Some("http"), &[3]);
    let shares = [("a", 1), ("never", 0), ("b", 1)];
    mesh.put(&route("TCPRoute", "tcp", json!({}), &shares));
    let client = mesh.sidecar("client", 4, &["front"]).await;
    let front = client.calls("front");
    let mut reached = std::collections::BTreeMap::<String, usize>::new();
    for _ in 0..200 {
        let name = greeting(front).await.expect("a greeting");
        *reached.entry(name).or_default() += 1;
    }
    assert_eq!(reached.len(), 2, "{reached:?}");
    // 100 each, with five standard deviations.
    assert!((65..=135).contains(&reached["a"]), "{reached:?}");
    assert!(!reached.contains_key("never"), "{reached:?}");

    // A missing backend.
    mesh.put(&route("TCPRoute", "tcp", json!({}), &[("gone", 1)]));
    eventually("connections are refused", async || {
        is_reset(greeting(front).await)
    })
    .await;
    assert!(closed(&client, "backend-invalid").await >= 1.0);
    mesh.put(&route("TCPRoute", "tcp", json!({}), &[("b", 0)]));
    eventually("there is none with a weight", async || {
        is_reset(greeting(front).await) && closed(&client, "no-backend").await >= 1.0
    })
    .await;
}

#[tokio::test]
async fn of_two_kinds_on_one_port_the_more_specific_one_is_in_force() {
    let mesh = Mesh::start().await;
    let (client, _behind) = bytes_behind_front(&mesh).await;
    let front = client.calls("front");

    mesh.put(&route("HTTPRoute", "http", json!({}), &[("web", 1)]));
    eventually("requests go where the HTTPRoute says", async || {
        let answer = crate::apps::try_get(front, "/").await;
        answer.is_ok_and(|answer| answer.body == "web")
    })
    .await;
    assert_eq!(get(front, "/").await.body, "web");
}
