//! A client, two proxies and an app.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;
use tokio::time::sleep;

use super::client;
use crate::balance::Peer;
use crate::identity::testing::{Authority, Leaf, spiffe_id};
use crate::route::Protocol;
use crate::table::Inbound;
use crate::testing::mesh::{CLIENT, Mesh, Setup, call, get, run, until};
use crate::testing::sockets::{accept, greet, is_reset, listener, received_text};
use crate::{inbound, socket};

const POD: &str = "spiffe://cluster.local/ns/shop/sa/pod";

/// The client's proxy, and the app's proxy.
struct Pods {
    client: Mesh,
    server: Mesh,
    app: TcpListener,
    authority: Authority,
}

impl Pods {
    async fn new(protocol: Protocol) -> Self {
        let authority = Authority::new("mesh");
        let (app, arrivals) = (listener().await, listener().await);
        let mut setup = Setup::new(&[]);
        setup.identity = authority.identity(POD);
        let server = setup.start();
        let address = app.local_addr().unwrap();
        server.worker.tables.set_inbound(Inbound {
            workload: "pod".into(),
            strict: true,
            ports: [(address.port(), Protocol::Tcp)].into(),
        });
        let worker = server.worker.clone();
        let mut setup = Setup::new(&[]);
        setup.protocol = protocol;
        setup.identity = authority.identity(CLIENT);
        setup.endpoints = vec![(arrivals.local_addr().unwrap(), Peer::Mesh(spiffe_id(POD)))];
        spawn_local(async move {
            while let Ok((arrived, _)) = arrivals.accept().await {
                let place = crate::workers::places(&worker.config.limits).enter(address.ip());
                spawn_local(inbound::serve(worker.clone(), arrived, address, place));
            }
        });
        Self {
            client: setup.start(),
            server,
            app,
            authority,
        }
    }

    /// A connection from the client to the app.
    async fn connection(&self) -> (TcpStream, TcpStream) {
        tokio::join!(client(&self.client), accept(&self.app))
    }

    /// A complete connection, which leaves the connection between the proxies to the next one.
    async fn conversation(&self) {
        let (mut client, mut app) = self.connection().await;
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(received_text(&mut app).await, "question");
        app.write_all(b"answer").await.unwrap();
        drop(app);
        assert_eq!(received_text(&mut client).await, "answer");
        until(|| self.idle() == 1.0).await;
    }

    fn idle(&self) -> f64 {
        let labels = ["naru_pool_connections{", "\"tcp\"", "\"idle\""];
        self.client.metric(&labels)
    }

    /// Counts of TLS handshakes on both sides.
    fn handshakes(&self) -> (f64, f64) {
        let handshakes = |mesh: &Mesh, direction| {
            mesh.metric(&["naru_tls_handshakes_total{", direction, "\"ok\""])
        };
        let outbound = handshakes(&self.client, "\"outbound\"");
        (outbound, handshakes(&self.server, "\"inbound\""))
    }

    /// A counter of the app's connections, on both sides.
    fn counted(&self, name: &str, label: &str) -> (f64, f64) {
        let inbound = self
            .server
            .metric(&[name, "direction=\"inbound\"", CLIENT, label]);
        (
            self.client.metric(&[name, "service=\"web\"", label]),
            inbound,
        )
    }
}

#[test]
fn connections_follow_each_other_on_one_between_the_sidecars() {
    run(async {
        for protocol in [Protocol::Tcp, Protocol::Detect] {
            let pods = Pods::new(protocol).await;
            for _ in 0..5 {
                pods.conversation().await;
            }
            assert_eq!(pods.handshakes(), (1.0, 1.0));
            let bytes = "naru_tcp_bytes_total{";
            assert_eq!(pods.counted(bytes, "way=\"sent\""), (40.0, 40.0));
            assert_eq!(pods.counted(bytes, "way=\"received\""), (30.0, 30.0));
            let (total, open) = ("naru_tcp_connections_total{", "naru_tcp_connections_open{");
            assert_eq!(pods.counted(total, ""), (5.0, 5.0));
            until(|| pods.counted(open, "") == (0.0, 0.0)).await;
            let closed = "naru_tcp_closed_total{";
            assert_eq!(pods.counted(closed, "reason=\"\""), (5.0, 5.0));
        }
    });
}

#[test]
fn concurrent_connections_use_separate_ones_between_the_sidecars() {
    run(async {
        let pods = Pods::new(Protocol::Tcp).await;
        let (mut first, mut first_app) = pods.connection().await;
        let (mut second, mut second_app) = pods.connection().await;
        greet(&mut first, &mut first_app).await;
        greet(&mut second, &mut second_app).await;
        assert_eq!(pods.handshakes(), (2.0, 2.0));
        drop((first, first_app, second, second_app));
        until(|| pods.idle() == 2.0).await;
    });
}

#[test]
fn each_direction_ends_separately_on_new_and_on_pooled_connections() {
    run(async {
        let pods = Pods::new(Protocol::Tcp).await;
        for _ in 0..2 {
            pods.conversation().await;
            let (mut client, mut app) = pods.connection().await;
            app.write_all(b"greeting").await.unwrap();
            app.shutdown().await.unwrap();
            assert_eq!(received_text(&mut client).await, "greeting");
            client.write_all(b"late word").await.unwrap();
            drop(client);
            assert_eq!(received_text(&mut app).await, "late word");
            drop(app);
            until(|| pods.idle() == 1.0).await;
            let (client, mut app) = pods.connection().await;
            drop(client);
            assert_eq!(received_text(&mut app).await, "");
            drop(app);
            until(|| pods.idle() == 1.0).await;
        }
        assert_eq!(pods.handshakes(), (1.0, 1.0));
    });
}

#[test]
fn a_server_may_send_first() {
    run(async {
        for protocol in [Protocol::Tcp, Protocol::Detect] {
            let pods = Pods::new(protocol).await;
            for _ in 0..3 {
                let (mut client, mut app) = pods.connection().await;
                app.write_all(b"220 ready").await.unwrap();
                let mut greeting = [0; 9];
                client.read_exact(&mut greeting).await.unwrap();
                assert_eq!(&greeting, b"220 ready");
                // Bytes that look like HTTP are now part of the server's protocol.
                client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
                drop(client);
                assert_eq!(received_text(&mut app).await, "GET / HTTP/1.1\r\n\r\n");
                drop(app);
                until(|| pods.idle() == 1.0).await;
            }
            assert_eq!(pods.handshakes(), (1.0, 1.0));
        }
    });
}

#[test]
fn a_reset_is_passed_on_as_a_reset_in_both_directions() {
    run(async {
        let pods = Pods::new(Protocol::Tcp).await;
        pods.conversation().await;

        let (mut kept, mut app) = pods.connection().await;
        greet(&mut kept, &mut app).await;
        socket::reset(&app);
        drop(app);
        assert!(is_reset(&mut kept).await);
        pods.conversation().await;

        let (mut client, mut kept) = pods.connection().await;
        greet(&mut client, &mut kept).await;
        socket::reset(&client);
        drop(client);
        assert!(is_reset(&mut kept).await);
        pods.conversation().await;

        assert_eq!(pods.handshakes(), (1.0, 1.0));
        let closed = |reason| pods.counted("naru_tcp_closed_total{", reason);
        assert_eq!(closed("\"upstream-reset\""), (1.0, 1.0));
        until(|| closed("\"client-gone\"") == (1.0, 1.0)).await;
    });
}

#[test]
fn a_reset_leaves_the_connection_between_the_sidecars_reusable() {
    run(async {
        let pods = Pods::new(Protocol::Tcp).await;
        for round in 0..6 {
            let (mut client, mut app) = pods.connection().await;
            greet(&mut client, &mut app).await;
            let much = vec![b'x'; 100_000];
            // Both sides may have more bytes in flight, or have ended their half.
            if round % 3 == 1 {
                client.write_all(&much).await.unwrap();
                app.write_all(&much).await.unwrap();
            }
            let (broken, mut kept) = match round % 2 {
                0 => (client, app),
                _ => (app, client),
            };
            if round % 3 == 2 {
                kept.shutdown().await.unwrap();
            }
            socket::reset(&broken);
            drop(broken);
            assert!(is_reset(&mut kept).await, "{round}");
            until(|| pods.idle() == 1.0).await;
        }
        assert_eq!(pods.handshakes(), (1.0, 1.0));
        pods.conversation().await;
        assert_eq!(pods.handshakes(), (1.0, 1.0));
        let closed = |reason| pods.counted("naru_tcp_closed_total{", reason);
        assert_eq!(closed("\"upstream-reset\""), (3.0, 3.0));
        assert_eq!(closed("\"client-gone\""), (3.0, 3.0));
    });
}

#[test]
fn a_missing_app_refuses_the_client() {
    run(async {
        let mut pods = Pods::new(Protocol::Tcp).await;
        pods.conversation().await;
        pods.app = listener().await;
        for _ in 0..2 {
            assert!(is_reset(&mut client(&pods.client).await).await);
        }
        let closed = |reason| pods.counted("naru_tcp_closed_total{", reason);
        assert_eq!(closed("\"connect-failed\"").1, 2.0);
        assert_eq!(closed("\"upstream-reset\"").0, 2.0);
    });
}

#[test]
fn large_transfers_in_both_directions_arrive_unchanged() {
    const LENGTH: usize = 4 * 1024 * 1024;
    run(async {
        let pods = Pods::new(Protocol::Tcp).await;
        for _ in 0..2 {
            let (client, app) = pods.connection().await;
            spawn_local(async move {
                let (mut from, mut to) = app.into_split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
            let sent: Vec<u8> = (0..LENGTH).map(|index| (index % 251) as u8).collect();
            let again = sent.clone();
            let (mut from, mut to) = client.into_split();
            spawn_local(async move {
                to.write_all(&again).await.unwrap();
            });
            let mut received = Vec::new();
            from.read_to_end(&mut received).await.unwrap();
            assert!(received == sent, "{} bytes came back", received.len());
            drop(from);
            until(|| pods.idle() == 1.0).await;
        }
        assert_eq!(pods.handshakes(), (1.0, 1.0));
        let both = 2.0 * LENGTH as f64;
        let counted = pods.counted("naru_tcp_bytes_total{", "way=\"sent\"");
        assert_eq!(counted, (both, both));
    });
}

#[test]
fn a_shutdown_ends_idle_connections_and_waits_for_those_in_use() {
    run(async {
        let mut pods = Pods::new(Protocol::Tcp).await;
        let (mut used, mut app) = pods.connection().await;
        greet(&mut used, &mut app).await;
        pods.conversation().await;
        let signal = pods.server.signal.take().unwrap();
        signal.start();
        until(|| pods.idle() == 0.0).await;
        // A later connection gets its own TLS connection, and is served as long as new connections
        // are accepted.
        let (mut late, mut late_app) = pods.connection().await;
        greet(&mut late, &mut late_app).await;
        used.write_all(b"to the end").await.unwrap();
        drop(used);
        assert_eq!(received_text(&mut app).await, "to the end");
        drop((app, late, late_app));
        signal.finished().await;
    });
}

#[test]
fn a_new_certificate_leaves_open_connections_as_they_are() {
    run(async {
        let pods = Pods::new(Protocol::Tcp).await;
        pods.conversation().await;
        for (mesh, id) in [(&pods.client, CLIENT), (&pods.server, POD)] {
            let (chain, key) = pods.authority.issue(&Leaf::new(id));
            mesh.worker.identity.set_certificate(chain, key).unwrap();
        }
        pods.conversation().await;
        assert_eq!(pods.handshakes(), (1.0, 1.0));
        assert_eq!(pods.counted("naru_tcp_connections_total{", ""), (2.0, 2.0));
    });
}

#[test]
fn a_client_detected_as_http_leaves_no_speculative_connection_behind() {
    run(async {
        let pods = Pods::new(Protocol::Detect).await;
        pods.conversation().await;
        let (mut client, mut app) = pods.connection().await;
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
            .await
            .unwrap();
        assert!(is_reset(&mut app).await);
        // The request takes another connection, and the speculative one is not reused.
        until(|| {
            pods.client
                .metric(&["naru_pool_connections{", "\"tcp\"", "\"active\""])
                == 0.0
        })
        .await;
        assert_eq!(pods.idle(), 0.0);
    });
}

#[test]
fn after_a_servers_settings_the_client_decides_also_between_sidecars() {
    run(async {
        let pods = Pods::new(Protocol::Detect).await;
        let (client, mut app) = pods.connection().await;
        app.write_all(b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64")
            .await
            .unwrap();
        // The frames have arrived at the client's sidecar.
        let received = [
            "naru_tcp_bytes_total{",
            "direction=\"inbound\"",
            "\"received\"",
        ];
        until(|| pods.server.metric(&received) == 15.0).await;
        sleep(Duration::from_millis(20)).await;
        let calling = spawn_local(async move {
            let (send, connection) = h2::client::handshake(client).await.unwrap();
            spawn_local(connection);
            call(&send, get("/"), b"").await
        });
        assert!(is_reset(&mut app).await);
        let mut served = h2::server::handshake(accept(&pods.app).await)
            .await
            .unwrap();
        let (_, mut respond) = served.accept().await.unwrap().unwrap();
        respond
            .send_response(http::Response::new(()), true)
            .unwrap();
        spawn_local(async move { while served.accept().await.is_some() {} });
        assert_eq!(calling.await.unwrap().unwrap().status, 200);
        let requests = ["naru_requests_total{", "protocol=\"http/2\""];
        assert_eq!(pods.client.metric(&requests), 1.0);
        let opaque = ["naru_tcp_connections_total{", "service=\"web\""];
        assert_eq!(pods.client.metric(&opaque), 0.0);
    });
}
