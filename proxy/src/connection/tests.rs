//! Which protocol connections of the app turn out to carry.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;
use tokio::time::sleep;

use super::serve;
use crate::route::Protocol;
use crate::session::Session;
use crate::table::{Destination, DestinationCell};
use crate::testing::mesh::{Mesh, Setup, answering, call, get, run, until, unused_address};
use crate::testing::sockets::{accept, is_reset, listener, pair, received_text};
use crate::wire::buffered::Buffered;

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n";
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
/// Longer than the silence after which the proxy connects to an endpoint.
const SILENT: Duration = Duration::from_millis(50);

fn service(protocol: Protocol, endpoints: &[SocketAddr]) -> Mesh {
    let mut setup = Setup::new(endpoints);
    setup.protocol = protocol;
    setup.start()
}

async fn app(protocol: Protocol) -> (Mesh, TcpListener) {
    let listener = listener().await;
    let mesh = service(protocol, &[listener.local_addr().unwrap()]);
    (mesh, listener)
}

async fn client(mesh: &Mesh) -> TcpStream {
    client_of(mesh, mesh.cell.clone()).await
}

async fn client_of(mesh: &Mesh, cell: Arc<DestinationCell>) -> TcpStream {
    let (client, accepted) = pair().await;
    let session = Session::outbound(mesh.worker.clone(), cell);
    spawn_local(serve(session, Buffered::new(accepted)));
    client
}

/// Answers one request on the next connection that carries a request.
async fn answer_one(listener: &TcpListener) {
    loop {
        let mut app = accept(listener).await;
        let mut head = vec![0; 1024];
        if app.read(&mut head).await.is_ok_and(|length| length > 0) {
            app.write_all(RESPONSE).await.unwrap();
            return;
        }
    }
}

fn requests(mesh: &Mesh, protocol: &str) -> f64 {
    let protocol = format!("protocol=\"{protocol}\"");
    mesh.metric(&["naru_requests_total{", &protocol])
}

fn opaque(mesh: &Mesh) -> f64 {
    mesh.metric(&["naru_tcp_connections_total{", "service=\"web\""])
}

#[test]
fn a_server_may_send_first() {
    run(async {
        let (mesh, listener) = app(Protocol::Detect).await;
        let mut client = client(&mesh).await;
        let mut app = accept(&listener).await;
        app.write_all(b"220 ready\r\n").await.unwrap();
        let mut greeting = [0; 11];
        client.read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting, b"220 ready\r\n");
        // Bytes that look like HTTP are now part of the server's protocol.
        client.write_all(REQUEST).await.unwrap();
        drop(client);
        assert_eq!(received_text(&mut app).await.as_bytes(), REQUEST);
        assert_eq!((opaque(&mesh), requests(&mesh, "http/1.1")), (1.0, 0.0));
    });
}

#[test]
fn bytes_that_only_resemble_http_arrive_unchanged() {
    let tls: &[u8] = b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00";
    for said in [&b"GET key\r\n"[..], b"*1\r\n$4\r\nPING\r\n", tls] {
        run(async {
            let (mesh, listener) = app(Protocol::Detect).await;
            let mut client = client(&mesh).await;
            for piece in said.chunks(4) {
                client.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            let mut app = accept(&listener).await;
            let mut arrived = vec![0; said.len()];
            app.read_exact(&mut arrived).await.unwrap();
            assert_eq!(arrived, said);
            app.write_all(b"answer").await.unwrap();
            drop(app);
            assert_eq!(received_text(&mut client).await, "answer");
            assert_eq!(opaque(&mesh), 1.0);
        });
    }
}

#[test]
fn http1_is_detected_at_once_and_after_a_silence() {
    run(async {
        for silence in [Duration::ZERO, SILENT] {
            let (mesh, listener) = app(Protocol::Detect).await;
            let mut client = client(&mesh).await;
            let answering = spawn_local(async move { answer_one(&listener).await });
            sleep(silence).await;
            client.write_all(REQUEST).await.unwrap();
            assert!(received_text(&mut client).await.ends_with("\r\n\r\nok"));
            answering.await.unwrap();
            assert_eq!((opaque(&mesh), requests(&mesh, "http/1.1")), (0.0, 1.0));
        }
    });
}

#[test]
fn http2_is_detected_by_its_preface_also_in_pieces() {
    run(async {
        for protocol in [Protocol::Detect, Protocol::Http] {
            let app = answering(200, "two").await;
            let mesh = service(protocol, &[app.address]);
            let client = client(&mesh).await;
            let (send, connection) = h2::client::handshake(client).await.unwrap();
            spawn_local(connection);
            let got = call(&send, get("/"), b"").await.unwrap();
            assert_eq!((got.status, got.body.as_slice()), (200, &b"two"[..]));
            assert_eq!(requests(&mesh, "http/2"), 1.0);
        }
        let mesh = service(Protocol::Detect, &[unused_address().await]);
        let mut client = client(&mesh).await;
        client.write_all(b"PRI * HTT").await.unwrap();
        sleep(SILENT).await;
        client
            .write_all(b"P/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
            .await
            .unwrap();
        let mut settings = [0; 9];
        client.read_exact(&mut settings).await.unwrap();
        assert_eq!(settings[3], 4, "a SETTINGS frame");
    });
}

#[test]
fn a_port_that_is_declared_http_accepts_only_http1_and_http2() {
    run(async {
        let (mesh, listener) = app(Protocol::Http).await;
        let mut client = client(&mesh).await;
        sleep(SILENT).await;
        client.write_all(b"nonsense\r\n\r\n").await.unwrap();
        assert!(received_text(&mut client).await.starts_with("HTTP/1.1 400"));
        let accepting = tokio::time::timeout(SILENT, listener.accept()).await;
        assert!(accepting.is_err(), "the app was connected to for nothing");
    });
}

#[test]
fn a_client_that_ends_without_a_byte_gets_the_servers_bytes() {
    run(async {
        let (mesh, listener) = app(Protocol::Detect).await;
        let mut client = client(&mesh).await;
        client.shutdown().await.unwrap();
        let mut app = accept(&listener).await;
        assert_eq!(received_text(&mut app).await, "");
        app.write_all(b"the time is ten").await.unwrap();
        drop(app);
        assert_eq!(received_text(&mut client).await, "the time is ten");
    });
}

#[test]
fn an_incomplete_line_is_passed_on_after_a_while() {
    run(async {
        let (mesh, listener) = app(Protocol::Detect).await;
        let mut client = client(&mesh).await;
        client.write_all(b"QUIT").await.unwrap();
        let mut app = accept(&listener).await;
        let mut word = [0; 4];
        app.read_exact(&mut word).await.unwrap();
        assert_eq!(&word, b"QUIT");
    });
}

#[test]
fn a_connect_failure_during_silence_is_reported_in_http() {
    run(async {
        let mesh = service(Protocol::Detect, &[unused_address().await]);
        let mut http = client(&mesh).await;
        sleep(SILENT).await;
        http.write_all(REQUEST).await.unwrap();
        let response = received_text(&mut http).await;
        assert!(response.starts_with("HTTP/1.1 503"), "{response}");
        assert!(
            response.contains("naru-reason: connect-failed"),
            "{response}"
        );

        let mut other = client(&mesh).await;
        sleep(SILENT).await;
        other.write_all(b"*1\r\n").await.unwrap();
        assert!(is_reset(&mut other).await);
    });
}

#[test]
fn an_app_that_came_up_while_its_client_was_silent_is_reached() {
    run(async {
        let address = unused_address().await;
        let mesh = service(Protocol::Detect, &[address]);
        let mut client = client(&mesh).await;
        sleep(SILENT).await;
        let listener = TcpListener::bind(address).await.unwrap();
        client.write_all(b"*1\r\n").await.unwrap();
        let mut app = accept(&listener).await;
        let mut arrived = [0; 4];
        app.read_exact(&mut arrived).await.unwrap();
        assert_eq!(&arrived, b"*1\r\n");
    });
}

#[test]
fn a_client_of_an_unreachable_server_first_app_is_closed_soon() {
    run(async {
        let mesh = service(Protocol::Detect, &[unused_address().await]);
        let mut client = client(&mesh).await;
        assert!(is_reset(&mut client).await);
        let failed = ["naru_tcp_closed_total", "connect-failed"];
        assert_eq!(mesh.metric(&failed), 1.0);
    });
}

#[test]
fn a_client_that_resets_before_its_first_byte_leaves_nothing_open() {
    run(async {
        let (mesh, listener) = app(Protocol::Detect).await;
        let client = client(&mesh).await;
        let mut app = accept(&listener).await;
        crate::socket::reset(&client);
        drop(client);
        // An end or a reset: either way the connection is over.
        let _ = app.read_to_end(&mut Vec::new()).await;
    });
}

#[test]
fn an_unknown_destination_is_refused_in_http_or_by_a_reset() {
    run(async {
        let mesh = service(Protocol::Detect, &[]);
        let cell = DestinationCell::new(([10, 0, 0, 1], 80).into(), Destination::Unknown);
        let cell = Arc::new(cell);
        let mut http = client_of(&mesh, cell.clone()).await;
        http.write_all(REQUEST).await.unwrap();
        let response = received_text(&mut http).await;
        assert!(response.starts_with("HTTP/1.1 503"), "{response}");
        assert!(response.contains("destination-unknown"), "{response}");

        let http2 = client_of(&mesh, cell.clone()).await;
        let (send, connection) = h2::client::handshake(http2).await.unwrap();
        spawn_local(connection);
        let got = call(&send, get("/"), b"").await.unwrap();
        assert_eq!(got.header("naru-reason"), "destination-unknown");

        let mut other = client_of(&mesh, cell).await;
        other.write_all(b"*1\r\n").await.unwrap();
        assert!(is_reset(&mut other).await);
    });
}

#[test]
fn connections_out_of_the_mesh_are_passed_through_unchanged() {
    run(async {
        let listener = listener().await;
        let address = listener.local_addr().unwrap();
        let mesh = service(Protocol::Detect, &[]);
        let cell = Arc::new(DestinationCell::new(address, Destination::Passthrough));
        let mut client = client_of(&mesh, cell).await;
        // There is no delay: the server may send first.
        let mut app = accept(&listener).await;
        client.write_all(REQUEST).await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(received_text(&mut app).await.as_bytes(), REQUEST);
        app.write_all(b"as you like").await.unwrap();
        drop(app);
        assert_eq!(received_text(&mut client).await, "as you like");
        let port = format!("port=\"{}\"", address.port());
        let closed = || {
            let labels = [
                "naru_tcp_closed_total{",
                "service=\"\"",
                "reason=\"\"",
                &port,
            ];
            mesh.metric(&labels)
        };
        until(|| closed() == 1.0).await;

        let cell = DestinationCell::new(unused_address().await, Destination::Passthrough);
        assert!(is_reset(&mut client_of(&mesh, Arc::new(cell)).await).await);
    });
}

/// SETTINGS as servers send them: with a parameter, and without any.
const SETTINGS: &[u8] = b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64";
const NO_SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";

/// Accepts the speculative connection for a silent client, and sends `first` on it.
async fn greeted(listener: &TcpListener, first: &[u8]) -> TcpStream {
    let mut app = accept(listener).await;
    app.write_all(first).await.unwrap();
    app
}

#[test]
fn after_a_servers_settings_a_late_client_decides_the_protocol() {
    run(async {
        for settings in [SETTINGS, NO_SETTINGS] {
            let (mesh, listener) = app(Protocol::Detect).await;
            let client = client(&mesh).await;
            let mut speculative = greeted(&listener, settings).await;
            sleep(SILENT).await;
            let late = spawn_local(async move {
                let (send, connection) = h2::client::handshake(client).await.unwrap();
                spawn_local(connection);
                call(&send, get("/"), b"").await
            });
            let mut served = h2::server::handshake(accept(&listener).await)
                .await
                .unwrap();
            let (_, mut respond) = served.accept().await.unwrap().unwrap();
            respond
                .send_response(http::Response::new(()), true)
                .unwrap();
            spawn_local(async move { while served.accept().await.is_some() {} });
            assert_eq!(late.await.unwrap().unwrap().status, 200);
            assert_eq!((opaque(&mesh), requests(&mesh, "http/2")), (0.0, 1.0));
            // The speculative connection has ended.
            let _ = speculative.read_to_end(&mut Vec::new()).await;
        }
    });
}

#[test]
fn bytes_of_another_protocol_after_settings_are_passed_on_with_them() {
    run(async {
        let (mesh, listener) = app(Protocol::Detect).await;
        let mut client = client(&mesh).await;
        let mut app = greeted(&listener, NO_SETTINGS).await;
        client.write_all(b"*1\r\n").await.unwrap();
        let mut arrived = [0; 4];
        app.read_exact(&mut arrived).await.unwrap();
        assert_eq!(&arrived, b"*1\r\n");
        let mut greeting = vec![0; NO_SETTINGS.len()];
        client.read_exact(&mut greeting).await.unwrap();
        assert_eq!(greeting, NO_SETTINGS);
        assert_eq!(opaque(&mesh), 1.0);
    });
}

#[test]
fn a_client_that_waits_for_the_servers_settings_gets_some() {
    run(async {
        // With a parameter it is certainly HTTP/2; nine bytes alone, or fewer, are passed on
        // unchanged.
        for (said, is_http2) in [
            (SETTINGS, true),
            (NO_SETTINGS, false),
            (&b"\0\0"[..], false),
        ] {
            let (mesh, listener) = app(Protocol::Detect).await;
            let mut client = client(&mesh).await;
            let _app = greeted(&listener, said).await;
            let mut first = vec![0; said.len()];
            client.read_exact(&mut first).await.unwrap();
            assert_eq!(first == said, !is_http2, "{}", first.escape_ascii());
            assert!(SETTINGS[3..9] == first[3.min(first.len())..9.min(first.len())] || !is_http2);
            assert_eq!(opaque(&mesh), if is_http2 { 0.0 } else { 1.0 });
        }
    });
}

#[test]
fn a_port_that_is_declared_opaque_is_opaque_whatever_its_server_sends() {
    run(async {
        let (mesh, listener) = app(Protocol::Tcp).await;
        let mut client = client(&mesh).await;
        let _app = greeted(&listener, SETTINGS).await;
        let mut first = vec![0; SETTINGS.len()];
        client.read_exact(&mut first).await.unwrap();
        assert_eq!(first, SETTINGS);
    });
}

#[test]
fn a_port_that_is_declared_http2_answers_http1() {
    run(async {
        let mesh = service(Protocol::Http2, &[unused_address().await]);
        let mut client = client(&mesh).await;
        client.write_all(REQUEST).await.unwrap();
        let answer = received_text(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 505 "), "{answer}");
        assert!(
            answer.contains("naru-reason: version-not-supported\r\n"),
            "{answer}"
        );
        let counted = ["naru_responses_total", "reason=\"version-not-supported\""];
        assert_eq!(mesh.metric(&counted), 1.0);
    });
}

#[test]
fn bytes_other_than_http_on_a_port_that_is_declared_http2_are_counted() {
    run(async {
        let mesh = service(Protocol::Http2, &[unused_address().await]);
        let mut client = client(&mesh).await;
        client
            .write_all(b"\x00nothing of the kind\r\n")
            .await
            .unwrap();
        assert!(is_reset(&mut client).await);
        let counted = ["naru_tcp_closed_total", "reason=\"bad-request\""];
        until(|| mesh.metric(&counted) == 1.0).await;
    });
}
