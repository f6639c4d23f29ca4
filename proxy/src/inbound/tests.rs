//! Which clients are accepted, how, and what the app gets to see of them.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use naru_listen::{Bounds, Limit, Places};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::serve;
use crate::config::Limits;
use crate::identity::testing::{Authority, TRUST_DOMAIN, spiffe_id};
use crate::identity::{Alpn, Identity};
use crate::opaque::frame::Kind;
use crate::opaque::frame::testing::{data, receive, send, send_data};
use crate::route::Protocol;
use crate::table::Inbound;
use crate::testing::mesh::{Mesh, Setup, answering, call, get, run, until};
use crate::testing::sockets::{accept, client_hello, is_reset, listener, pair, received_text};
use crate::upstream::mux;
use crate::workers;

const POD: &str = "spiffe://cluster.local/ns/shop/sa/pod";
const CALLER: &str = "spiffe://cluster.local/ns/shop/sa/caller";
const BY_CALLER: &str = "client=\"spiffe://cluster.local/ns/shop/sa/caller\"";
const BY_STRANGER: &str = "client=\"unauthenticated\"";
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n";
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
/// Longer than the silence after which the proxy connects to the app.
const SILENT: Duration = Duration::from_millis(60);

/// A pod: its proxy, its app, and its policy for clients.
struct Pod {
    mesh: Mesh,
    places: Places,
    app: TcpListener,
    authority: Authority,
}

impl Pod {
    async fn strict() -> Self {
        Self::new(true, Protocol::Detect).await
    }

    async fn permissive(protocol: Protocol) -> Self {
        Self::new(false, protocol).await
    }

    async fn new(strict: bool, protocol: Protocol) -> Self {
        let mut setup = Setup::new(&[]);
        setup.limits = Limits {
            handshake_timeout: Duration::from_millis(300),
            ..Limits::default()
        };
        Self::of(setup, strict, protocol).await
    }

    async fn of(mut setup: Setup, strict: bool, protocol: Protocol) -> Self {
        let authority = Authority::new("mesh");
        let app = listener().await;
        setup.identity = authority.identity(POD);
        let places = workers::places(&setup.limits);
        let mesh = setup.start();
        let port = app.local_addr().unwrap().port();
        let pod = Self {
            mesh,
            places,
            app,
            authority,
        };
        pod.configure(strict, port, protocol);
        pod
    }

    /// Applies a table as the controller sends it.
    fn configure(&self, strict: bool, port: u16, protocol: Protocol) {
        self.mesh.worker.tables.set_inbound(Inbound {
            workload: "pod".into(),
            strict,
            ports: HashMap::from([(port, protocol)]),
        });
    }

    /// An inbound connection.
    async fn caller(&self) -> TcpStream {
        let (caller, accepted) = pair().await;
        let destination = self.app.local_addr().unwrap();
        let place = self.places.enter(caller.local_addr().unwrap().ip());
        let eviction = place.eviction();
        let worker = self.mesh.worker.clone();
        let task = spawn_local(serve(worker, accepted, destination, place));
        eviction.ends(task.abort_handle());
        caller
    }

    /// A connection of a peer's sidecar.
    async fn peer(&self, alpn: Alpn) -> TlsStream<TcpStream> {
        let identity = self.authority.identity(CALLER);
        handshake(self.caller().await, &identity, alpn)
            .await
            .unwrap()
    }

    /// Answers one HTTP/1 request.
    async fn answer(&self) -> String {
        let mut app = accept(&self.app).await;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            app.read_buf(&mut head).await.unwrap();
        }
        app.write_all(RESPONSE).await.unwrap();
        String::from_utf8(head).unwrap()
    }

    /// The same with few places.
    fn with_places(mut self, taken: usize, all: usize) -> Self {
        self.places = Places::new(Bounds {
            waiting: 3,
            waiting_of_source: 3,
            taken,
            taken_of_source: all,
            spare: 0,
            all,
            of_source: all,
        });
        self
    }

    async fn is_app_left_alone(&self) -> bool {
        timeout(SILENT, self.app.accept()).await.is_err()
    }

    fn refused(&self) -> f64 {
        let reason = "reason=\"identity-required\"";
        let labels = ["naru_tcp_closed_total{", BY_STRANGER, reason];
        self.mesh.metric(&labels)
    }

    /// Requests of the caller that have ended, however they did.
    fn ended_requests(&self) -> f64 {
        let text = self.mesh.worker.metrics.render().unwrap();
        let text = String::from_utf8(text).unwrap();
        let ended = text
            .lines()
            .filter(|line| line.starts_with("naru_responses_total{") && line.contains(BY_CALLER));
        let counts = ended.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        counts.sum()
    }

    fn handshakes(&self, outcome: &str) -> f64 {
        let outcome = format!("outcome=\"{outcome}\"");
        let labels = [
            "naru_tls_handshakes_total{",
            "direction=\"inbound\"",
            &outcome,
        ];
        self.mesh.metric(&labels)
    }
}

async fn handshake(
    caller: TcpStream,
    identity: &Identity,
    alpn: Alpn,
) -> std::io::Result<TlsStream<TcpStream>> {
    let config = identity.client_config(&spiffe_id(POD), alpn).unwrap();
    let name = ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into());
    TlsConnector::from(config).connect(name, caller).await
}

#[test]
fn a_peers_opaque_connection_is_carried_under_its_identity() {
    run(async {
        let pod = Pod::strict().await;
        let mut peer = pod.peer(Alpn::Tcp).await;
        send(&mut peer, Kind::Open, b"").await;
        let mut app = accept(&pod.app).await;
        // Either side may send first.
        app.write_all(b"welcome").await.unwrap();
        assert_eq!(receive(&mut peer).await, data(b"welcome"));
        send_data(&mut peer, REQUEST).await;
        send(&mut peer, Kind::End, b"").await;
        assert_eq!(received_text(&mut app).await.as_bytes(), REQUEST);
        app.write_all(b"goodbye").await.unwrap();
        drop(app);
        assert_eq!(receive(&mut peer).await, data(b"goodbye"));
        assert_eq!(receive(&mut peer).await, (Kind::End, Vec::new()));
        let labels = ["naru_tcp_closed_total{", BY_CALLER, "reason=\"\""];
        until(|| pod.mesh.metric(&labels) == 1.0).await;
        assert_eq!(pod.handshakes("ok"), 1.0);
    });
}

/// A client of the mesh that claims another identity.
const FORGED: &[u8] = b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\
    X-Forwarded-Client-Cert: URI=spiffe://forged\r\n\
    X_Forwarded_Client-Cert: URI=spiffe://forged\r\n\r\n";

#[test]
fn a_peers_opaque_bytes_to_an_http_port_are_read_as_http() {
    for pause in [false, true] {
        run(async {
            let pod = Pod::permissive(Protocol::Http).await;
            let mut peer = pod.peer(Alpn::Tcp).await;
            send(&mut peer, Kind::Open, b"").await;
            let (first, second) = FORGED.split_at(if pause { 5 } else { FORGED.len() });
            send_data(&mut peer, first).await;
            if pause {
                sleep(SILENT).await;
                send_data(&mut peer, second).await;
            }
            send(&mut peer, Kind::End, b"").await;
            let head = pod.answer().await;
            assert!(!head.contains("forged"), "{head}");
            let proved = format!("By={POD};URI={CALLER}");
            assert!(head.contains(&proved), "{head}");
            let mut response = Vec::new();
            loop {
                match receive(&mut peer).await {
                    (Kind::End, _) => break,
                    (_, bytes) => response.extend(bytes),
                }
            }
            let response = String::from_utf8(response).unwrap();
            assert!(response.ends_with("\r\n\r\nok"), "{response}");
            let labels = ["naru_requests_total{", BY_CALLER, "protocol=\"http/1.1\""];
            assert_eq!(pod.mesh.metric(&labels), 1.0);
            // The outer connection goes on with the next stream, also after one that breaks.
            for _ in 0..2 {
                send(&mut peer, Kind::Open, b"").await;
                send_data(&mut peer, b"GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
                drop(accept(&pod.app).await);
                send(&mut peer, Kind::Reset, b"").await;
                while receive(&mut peer).await.0 != Kind::Reset {}
            }
            // What the client has broken off is counted to its end.
            until(|| pod.ended_requests() == 3.0).await;
        });
    }
}

#[test]
fn a_response_that_breaks_off_arrives_as_far_as_it_came() {
    run(async {
        let pod = Pod::permissive(Protocol::Http).await;
        let mut peer = pod.peer(Alpn::Tcp).await;
        send(&mut peer, Kind::Open, b"").await;
        send_data(&mut peer, REQUEST).await;
        let mut app = accept(&pod.app).await;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            app.read_buf(&mut head).await.unwrap();
        }
        let response = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf";
        app.write_all(response).await.unwrap();
        drop(app);
        let mut arrived = Vec::new();
        loop {
            match receive(&mut peer).await {
                (Kind::Reset, _) => break,
                (kind, bytes) => {
                    assert_ne!(kind, Kind::End);
                    arrived.extend(bytes);
                }
            }
        }
        assert!(arrived.ends_with(b"half"), "{arrived:?}");
    });
}

#[test]
fn a_peers_opaque_bytes_to_an_http2_port_are_read_as_http2() {
    run(async {
        let pod = Pod::permissive(Protocol::Http2).await;
        let mut peer = pod.peer(Alpn::Tcp).await;
        send(&mut peer, Kind::Open, b"").await;
        send_data(&mut peer, FORGED).await;
        send(&mut peer, Kind::End, b"").await;
        let (_, response) = receive(&mut peer).await;
        let response = String::from_utf8(response).unwrap();
        assert!(response.starts_with("HTTP/1.1 505"), "{response}");
        assert!(pod.is_app_left_alone().await);
    });
}

/// The first bytes of a ClientHello, and then a request.
const HALF_TLS: &[u8] = b"\x16\x03\x01\x00\x08\x01\x00\x00\x04GET / HTTP/1.1\r\nHost: web\r\n\r\n";

#[test]
fn what_only_begins_like_tls_is_read_as_http_at_an_http_port() {
    run(async {
        let pod = Pod::permissive(Protocol::Http).await;
        let mut start = [0; 9];
        let mut stranger = pod.caller().await;
        stranger.write_all(HALF_TLS).await.unwrap();
        stranger.read_exact(&mut start).await.unwrap();
        assert_eq!(&start, b"HTTP/1.1 ");
        let mut peer = pod.peer(Alpn::Tcp).await;
        send(&mut peer, Kind::Open, b"").await;
        send_data(&mut peer, HALF_TLS).await;
        let (_, response) = receive(&mut peer).await;
        assert!(response.starts_with(b"HTTP/1.1 "), "{response:?}");
        // HTTP/2 has no answer to it.
        let http2 = Pod::permissive(Protocol::Http2).await;
        let mut stranger = http2.caller().await;
        stranger.write_all(HALF_TLS).await.unwrap();
        assert!(is_reset(&mut stranger).await);
        let mut peer = http2.peer(Alpn::Tcp).await;
        send(&mut peer, Kind::Open, b"").await;
        send_data(&mut peer, HALF_TLS).await;
        assert_eq!(receive(&mut peer).await.0, Kind::Reset);
        assert!(pod.is_app_left_alone().await && http2.is_app_left_alone().await);
    });
}

#[test]
fn the_apps_own_tls_from_a_peer_reaches_an_http_port() {
    for protocol in [Protocol::Http, Protocol::Http2] {
        run(async {
            let hello = client_hello("127.0.0.1");
            let pod = Pod::permissive(protocol).await;
            let mut peer = pod.peer(Alpn::Tcp).await;
            send(&mut peer, Kind::Open, b"").await;
            send_data(&mut peer, &hello).await;
            let mut app = accept(&pod.app).await;
            let mut arrived = vec![0; hello.len()];
            app.read_exact(&mut arrived).await.unwrap();
            assert_eq!(arrived, hello);
            app.write_all(b"alert").await.unwrap();
            drop(app);
            assert_eq!(receive(&mut peer).await, data(b"alert"));
            assert_eq!(receive(&mut peer).await, (Kind::End, Vec::new()));
            send(&mut peer, Kind::End, b"").await;
            let closed = ["naru_tcp_closed_total{", BY_CALLER, "reason=\"\""];
            until(|| pod.mesh.metric(&closed) == 1.0).await;
            // A break of the client's is one for the app.
            send(&mut peer, Kind::Open, b"").await;
            send_data(&mut peer, &hello).await;
            let mut app = accept(&pod.app).await;
            app.read_exact(&mut arrived).await.unwrap();
            send(&mut peer, Kind::Reset, b"").await;
            assert!(is_reset(&mut app).await);
            let open = ["naru_tcp_connections_open{", BY_CALLER];
            until(|| pod.mesh.metric(&open) == 0.0).await;
        });
    }
}

/// A ClientHello that offers a protocol without a name.
fn unreadable_hello() -> Vec<u8> {
    let mut hello = client_hello("127.0.0.1");
    let h2 = hello.windows(3).position(|part| part == b"\x02h2").unwrap();
    hello[h2..h2 + 3].copy_from_slice(b"\0\x01h");
    hello
}

#[test]
fn the_apps_own_tls_that_only_the_app_can_read_reaches_an_http_port() {
    for protocol in [Protocol::Detect, Protocol::Http, Protocol::Http2] {
        run(async {
            let hello = unreadable_hello();
            let pod = Pod::permissive(protocol).await;
            let mut arrived = vec![0; hello.len()];
            let mut stranger = pod.caller().await;
            stranger.write_all(&hello).await.unwrap();
            let mut app = accept(&pod.app).await;
            app.read_exact(&mut arrived).await.unwrap();
            assert_eq!(arrived, hello);
            let mut peer = pod.peer(Alpn::Tcp).await;
            send(&mut peer, Kind::Open, b"").await;
            send_data(&mut peer, &hello).await;
            let mut app = accept(&pod.app).await;
            app.read_exact(&mut arrived).await.unwrap();
            assert_eq!(arrived, hello);
        });
    }
}

#[test]
fn a_peers_requests_are_carried_under_its_identity() {
    run(async {
        let pod = Pod::strict().await;
        let connection = mux::tests::client(pod.peer(Alpn::Http1).await);
        let mut peer = connection.connection.open_stream().unwrap();
        peer.write_all(REQUEST).await.unwrap();
        let (_, response) = tokio::join!(pod.answer(), received_text(&mut peer));
        assert!(response.ends_with("\r\n\r\nok"), "{response}");
        let labels = ["naru_requests_total{", BY_CALLER, "protocol=\"http/1.1\""];
        assert_eq!(pod.mesh.metric(&labels), 1.0);
    });
    run(async {
        let mut pod = Pod::strict().await;
        let app = answering(200, "two").await;
        // Another app, behind the same proxy.
        drop(std::mem::replace(&mut pod.app, listener().await));
        let (caller, accepted) = pair().await;
        let place = pod.places.enter(app.address.ip());
        let worker = pod.mesh.worker.clone();
        spawn_local(serve(worker, accepted, app.address, place));
        let identity = pod.authority.identity(CALLER);
        let peer = handshake(caller, &identity, Alpn::Http2).await.unwrap();
        let (send, connection) = h2::client::handshake(peer).await.unwrap();
        spawn_local(connection);
        let got = call(&send, get("/"), b"").await.unwrap();
        assert_eq!(got.body, b"two");
        let labels = ["naru_requests_total{", BY_CALLER, "protocol=\"http/2\""];
        assert_eq!(pod.mesh.metric(&labels), 1.0);
    });
}

#[test]
fn strict_refuses_clients_without_an_identity() {
    run(async {
        let pod = Pod::strict().await;
        let hello = client_hello("127.0.0.1");
        for (number, said) in [REQUEST, b"*1\r\n", &hello].into_iter().enumerate() {
            let mut stranger = pod.caller().await;
            stranger.write_all(said).await.unwrap();
            assert!(is_reset(&mut stranger).await);
            assert_eq!(pod.refused(), number as f64 + 1.0);
        }
        // The proxy does not wait forever for a silent client.
        assert!(is_reset(&mut pod.caller().await).await);
        assert!(pod.is_app_left_alone().await);
    });
}

#[test]
fn a_certificate_of_another_authority_is_rejected() {
    run(async {
        for pod in [Pod::strict().await, Pod::permissive(Protocol::Detect).await] {
            let (chain, key) =
                Authority::new("forged").issue(&crate::identity::testing::Leaf::new(CALLER));
            let anchors = vec![pod.authority.anchor()];
            let forged = Identity::from_parts(TRUST_DOMAIN, anchors, chain, key).unwrap();
            // In TLS 1.3 the client's handshake completes before the server has verified its
            // certificate.
            if let Ok(mut peer) = handshake(pod.caller().await, &forged, Alpn::Tcp).await {
                let _ = peer.write_all(b"let me in").await;
                let read = peer.read(&mut [0; 16]).await;
                assert!(!matches!(read, Ok(1..)), "{read:?}");
            }
            until(|| pod.handshakes("tls-failed") == 1.0).await;
            assert!(pod.is_app_left_alone().await);
        }
    });
}

#[test]
fn without_its_own_certificate_the_proxy_refuses_peers() {
    run(async {
        let mut pod = Pod::strict().await;
        let anchors = vec![pod.authority.anchor()];
        let worker = Rc::get_mut(&mut pod.mesh.worker).unwrap();
        worker.identity = Identity::new(TRUST_DOMAIN, anchors).unwrap();
        let identity = pod.authority.identity(CALLER);
        let refused = handshake(pod.caller().await, &identity, Alpn::Tcp).await;
        assert!(refused.is_err());
        assert_eq!(pod.handshakes("no-certificate"), 1.0);
        assert!(pod.is_app_left_alone().await);
    });
}

#[test]
fn a_stalled_handshake_times_out() {
    run(async {
        let pod = Pod::strict().await;
        let identity = pod.authority.identity(CALLER);
        let config = identity.client_config(&spiffe_id(POD), Alpn::Tcp).unwrap();
        let name = ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into());
        let mut client = rustls::ClientConnection::new(config, name).unwrap();
        let mut hello = Vec::new();
        client.write_tls(&mut hello).unwrap();
        let mut peer = pod.caller().await;
        peer.write_all(&hello).await.unwrap();
        let _ = peer.read_to_end(&mut Vec::new()).await;
        assert_eq!(pod.handshakes("tls-failed"), 1.0);
    });
}

#[test]
fn permissive_passes_the_apps_own_tls_through() {
    let hello = client_hello("127.0.0.1");
    for protocol in [Protocol::Detect, Protocol::Tcp, Protocol::Http] {
        run(async {
            let pod = Pod::permissive(protocol).await;
            let mut stranger = pod.caller().await;
            stranger.set_nodelay(true).unwrap();
            for piece in hello.chunks(100) {
                stranger.write_all(piece).await.unwrap();
                sleep(Duration::from_millis(1)).await;
            }
            let mut app = accept(&pod.app).await;
            let mut arrived = vec![0; hello.len()];
            app.read_exact(&mut arrived).await.unwrap();
            assert_eq!(arrived, hello);
            app.write_all(b"alert").await.unwrap();
            drop(app);
            assert_eq!(received_text(&mut stranger).await, "alert");
        });
    }
}

#[test]
fn permissive_terminates_the_tls_of_peers() {
    run(async {
        for protocol in [Protocol::Detect, Protocol::Tcp, Protocol::Http] {
            let pod = Pod::permissive(protocol).await;
            let mut peer = pod.peer(Alpn::Tcp).await;
            send(&mut peer, Kind::Open, b"").await;
            send_data(&mut peer, &client_hello("127.0.0.1")).await;
            let mut app = accept(&pod.app).await;
            app.read_exact(&mut [0]).await.unwrap();
            let labels = ["naru_tcp_connections_total{", BY_CALLER];
            assert_eq!(pod.mesh.metric(&labels), 1.0);
        }
    });
}

#[test]
fn permissive_accepts_plaintext_without_an_identity() {
    run(async {
        for protocol in [Protocol::Detect, Protocol::Http] {
            for silence in [Duration::ZERO, SILENT] {
                let pod = Pod::permissive(protocol).await;
                let mut stranger = pod.caller().await;
                sleep(silence).await;
                stranger.write_all(REQUEST).await.unwrap();
                let answering = async {
                    // The connection that was opened while the client was silent has ended by now.
                    if protocol == Protocol::Detect && !silence.is_zero() {
                        assert_eq!(received_text(&mut accept(&pod.app).await).await, "");
                    }
                    pod.answer().await
                };
                let (_, response) = tokio::join!(answering, received_text(&mut stranger));
                assert!(response.ends_with("\r\n\r\nok"), "{response}");
                let labels = ["naru_requests_total{", BY_STRANGER];
                assert_eq!(pod.mesh.metric(&labels), 1.0);
            }
        }
    });
}

#[test]
fn an_app_may_send_first_to_clients_without_an_identity() {
    run(async {
        for protocol in [Protocol::Detect, Protocol::Tcp] {
            let pod = Pod::permissive(protocol).await;
            let mut stranger = pod.caller().await;
            let mut app = accept(&pod.app).await;
            app.write_all(b"220 ready\r\n").await.unwrap();
            drop(app);
            assert_eq!(received_text(&mut stranger).await, "220 ready\r\n");
            let labels = ["naru_tcp_connections_total{", BY_STRANGER];
            assert_eq!(pod.mesh.metric(&labels), 1.0);
        }
    });
}

#[test]
fn after_the_apps_settings_the_client_decides_the_protocol() {
    run(async {
        for is_peer in [false, true] {
            let pod = Pod::permissive(Protocol::Detect).await;
            let caller = pod.caller().await;
            let mut app = accept(&pod.app).await;
            app.write_all(b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64")
                .await
                .unwrap();
            sleep(SILENT).await;
            if is_peer {
                let identity = pod.authority.identity(CALLER);
                let _peer = handshake(caller, &identity, Alpn::Tcp).await.unwrap();
                until(|| pod.handshakes("ok") == 1.0).await;
                continue;
            }
            let calling = spawn_local(async move {
                let (send, connection) = h2::client::handshake(caller).await.unwrap();
                spawn_local(connection);
                call(&send, get("/"), b"").await
            });
            let mut served = h2::server::handshake(accept(&pod.app).await).await.unwrap();
            let (_, mut respond) = served.accept().await.unwrap().unwrap();
            respond
                .send_response(http::Response::new(()), true)
                .unwrap();
            spawn_local(async move { while served.accept().await.is_some() {} });
            assert_eq!(calling.await.unwrap().unwrap().status, 200);
            let labels = ["naru_requests_total{", BY_STRANGER, "protocol=\"http/2\""];
            assert_eq!(pod.mesh.metric(&labels), 1.0);
        }
    });
}

#[test]
fn a_port_that_is_declared_opaque_is_not_inspected() {
    run(async {
        let pod = Pod::permissive(Protocol::Tcp).await;
        let mut stranger = pod.caller().await;
        stranger.write_all(REQUEST).await.unwrap();
        stranger.shutdown().await.unwrap();
        let mut app = accept(&pod.app).await;
        assert_eq!(received_text(&mut app).await.as_bytes(), REQUEST);
        assert_eq!(pod.mesh.metric(&["naru_requests_total{", BY_STRANGER]), 0.0);
    });
}

#[test]
fn an_inbound_connection_holds_up_a_shutdown() {
    run(async {
        let mut pod = Pod::permissive(Protocol::Tcp).await;
        let stranger = pod.caller().await;
        let app = accept(&pod.app).await;
        let signal = pod.mesh.signal.take().unwrap();
        signal.start();
        assert!(timeout(SILENT, signal.finished()).await.is_err());
        drop((stranger, app));
        signal.finished().await;
    });
}

#[test]
fn strict_applies_to_the_next_request_on_an_open_connection() {
    run(async {
        let pod = Pod::permissive(Protocol::Detect).await;
        let mut caller = pod.caller().await;
        let request = b"GET / HTTP/1.1\r\nHost: web\r\n\r\n";
        caller.write_all(request).await.unwrap();
        let mut app = accept(&pod.app).await;
        app.read_exact(&mut vec![0; request.len()]).await.unwrap();
        app.write_all(RESPONSE).await.unwrap();
        caller
            .read_exact(&mut vec![0; RESPONSE.len()])
            .await
            .unwrap();
        pod.configure(true, pod.app.local_addr().unwrap().port(), Protocol::Detect);
        caller.write_all(request).await.unwrap();
        assert!(is_reset(&mut caller).await);
        let refused = ["naru_responses_total", BY_STRANGER, "identity-required"];
        assert_eq!(pod.mesh.metric(&refused), 1.0);
    });
}

#[test]
fn silent_clients_give_way_to_others_and_the_last_places_to_peers() {
    run(async {
        for protocol in [Protocol::Http, Protocol::Detect] {
            let pod = Pod::permissive(protocol).await.with_places(1, 2);
            let mut silent = Vec::new();
            for _ in 0..20 {
                silent.push(pod.caller().await);
            }
            let ask = async || {
                let mut client = pod.caller().await;
                client.write_all(REQUEST).await.unwrap();
                client
            };
            // For those that are left the proxy has connected to the app, unless the port's
            // protocol is declared.
            let mut client = ask().await;
            let mut app = loop {
                let mut app = accept(&pod.app).await;
                let mut head = vec![0; 3];
                if app.read_exact(&mut head).await.is_ok() && head == b"GET" {
                    break app;
                }
            };
            // There is one place for clients without an identity. The next such client gets an
            // error.
            let refused = received_text(&mut ask().await).await;
            assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
            assert!(refused.contains("naru-reason: overload"), "{refused}");
            assert_eq!(pod.places.refused(Limit::Unproven), 1);
            // And one for a peer.
            let _peer = pod.peer(Alpn::Http1).await;
            until(|| pod.places.is_full()).await;
            app.write_all(RESPONSE).await.unwrap();
            assert!(received_text(&mut client).await.ends_with("ok"));
            assert!(pod.places.refused(Limit::Waiting) >= 17);
        }
    });
}

#[test]
fn a_client_is_served_when_a_server_first_app_sends() {
    run(async {
        let pod = Pod::permissive(Protocol::Detect).await.with_places(2, 2);
        let mut client = pod.caller().await;
        let mut app = accept(&pod.app).await;
        app.write_all(b"hello").await.unwrap();
        client.read_exact(&mut [0; 5]).await.unwrap();
        let mut silent = Vec::new();
        for _ in 0..20 {
            silent.push(pod.caller().await);
        }
        app.write_all(b"still").await.unwrap();
        client.read_exact(&mut [0; 5]).await.unwrap();
    });
}

#[test]
fn a_client_that_must_send_first_times_out() {
    run(async {
        let mut setup = Setup::new(&[]);
        setup.limits.first_byte_timeout = Duration::from_millis(50);
        let pod = Pod::of(setup, false, Protocol::Http).await;
        assert_eq!(received_text(&mut pod.caller().await).await, "");
    });
}

#[test]
fn ports_on_which_nothing_listens_share_one_series() {
    run(async {
        let pod = Pod::permissive(Protocol::Detect).await;
        for port in 1..=50 {
            let (mut client, accepted) = pair().await;
            client.write_all(REQUEST).await.unwrap();
            let destination = ([127, 0, 0, 1], port).into();
            let place = pod.places.enter([127, 0, 0, 1].into());
            let worker = pod.mesh.worker.clone();
            spawn_local(serve(worker, accepted, destination, place));
            assert!(received_text(&mut client).await.starts_with("HTTP/1.1 503"));
        }
        let unreachable = ["naru_responses_total{", BY_STRANGER, "port=\"\""];
        assert_eq!(pod.mesh.metric(&unreachable), 50.0);
        let mut client = pod.caller().await;
        client.write_all(REQUEST).await.unwrap();
        pod.answer().await;
        received_text(&mut client).await;
        let port = format!("port=\"{}\"", pod.app.local_addr().unwrap().port());
        let reachable = ["naru_responses_total{", BY_STRANGER, &port];
        assert_eq!(pod.mesh.metric(&reachable), 1.0);
    });
}
