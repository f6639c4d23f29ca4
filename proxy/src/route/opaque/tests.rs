//! Routes for connections, from a client's first bytes to the app.

use std::net::SocketAddr;

use proptest::collection::vec;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;

use super::*;
use crate::balance::{Endpoint, EndpointSet, Load, Peer, next_endpoint_id};
use crate::connection;
use crate::route::Protocol;
use crate::session::Session;
use crate::testing::mesh::{Mesh, Setup, run, until, unused_address};
use crate::testing::sockets::{accept, client_hello, greet, is_reset, listener, pair};
use crate::wire::client_hello::{ClientHello, MAX_CLIENT_HELLO};

/// A TLSRoute of that name with these hostnames.
fn tls_route(
    name: &str,
    hostnames: &[&str],
    backends: impl IntoIterator<Item = OpaqueBackend>,
) -> Arc<OpaqueRoute> {
    Arc::new(OpaqueRoute {
        name: name.into(),
        hostnames: hostnames.iter().map(|name| Box::from(*name)).collect(),
        backends: backends.into_iter().collect(),
    })
}

/// TLSRoutes without backends.
fn tls(routes: &[(&str, &[&str])]) -> TlsRoutes {
    let routes = routes
        .iter()
        .map(|(name, hostnames)| tls_route(name, hostnames, []));
    TlsRoutes::new(routes.collect())
}

#[test]
fn the_more_specific_name_precedes_and_then_the_first_route() {
    let routes = tls(&[
        ("wide", &["*.example", "same.example"]),
        ("shop", &["*.shop.example", "same.example"]),
        ("exact", &["a.shop.example"]),
    ]);
    for (name, expected) in [
        ("a.shop.example", Some("exact")),
        ("b.shop.example", Some("shop")),
        ("b.a.shop.example", Some("shop")),
        ("shop.example", Some("wide")),
        ("same.example", Some("wide")),
        ("example", None),
        (".example", None),
        ("shop.example.org", None),
        ("", None),
    ] {
        let found = routes.find(name).map(|route| &*route.name);
        assert_eq!(found, expected, "{name}");
    }
}

proptest! {
    /// Explanations agree with decisions.
    #[test]
    fn the_first_matching_name_in_order_of_precedence_applies(
        hostnames in vec(vec("(\\*\\.)?([ab]\\.){0,2}[ab]", 1..4), 1..5),
        name in "([ab]\\.){0,3}[ab]",
    ) {
        let names: Vec<Vec<&str>> = hostnames
            .iter()
            .map(|names| names.iter().map(String::as_str).collect())
            .collect();
        let routes = names.iter().map(|names| ("", names.as_slice()));
        let routes: Vec<(&str, &[&str])> = routes.collect();
        let routes = OpaqueRoutes::Tls(tls(&routes));
        let hello = Hello::Complete(ClientHello::naming(Some(name)));
        let explained = explain(&routes, Some(&hello));
        prop_assert_eq!(explained.len(), hostnames.iter().flatten().count());
        let fitting = explained
            .iter()
            .find(|one| one.verdict != Some(Verdict::OtherName));
        match (fitting, routes.decide(&hello)) {
            (Some(first), Ok(route)) => {
                prop_assert_eq!(first.verdict, Some(Verdict::Takes));
                prop_assert!(std::ptr::eq(first.route, route));
            }
            (first, decided) => {
                prop_assert!(first.is_none() && decided.err() == Some(Reason::NoRoute));
            }
        }
    }
}

/// A backend with one endpoint without a sidecar.
fn backend(weight: u32, address: SocketAddr) -> OpaqueBackend {
    let endpoint = Arc::new(Endpoint {
        id: next_endpoint_id(),
        address,
        peer: Peer::Plain,
        pod: "".into(),
        workload: "".into(),
        zone: "".into(),
        load: Load::default(),
    });
    let endpoints = EndpointSet::new(vec![endpoint]);
    let backend = Backend::new("shop".into(), "app".into(), 80, endpoints);
    OpaqueBackend {
        weight,
        backend: Ok(Arc::new(backend)),
    }
}

fn invalid(weight: u32) -> OpaqueBackend {
    OpaqueBackend {
        weight,
        backend: Err("BackendNotFound: there is no Service shop/gone".into()),
    }
}

/// A TCPRoute.
fn route(backends: impl IntoIterator<Item = OpaqueBackend>) -> Arc<OpaqueRoute> {
    tls_route("shop/tcp", &[], backends)
}

/// A Service declared as HTTP, with routes for connections.
fn mesh(routes: OpaqueRoutes, patience: Duration) -> Mesh {
    let mut setup = Setup::new(&[]);
    setup.protocol = Protocol::Http;
    setup.opaque_routes = Some(routes);
    setup.limits.handshake_timeout = patience;
    setup.start()
}

/// Longer than any client here takes.
const PATIENCE: Duration = Duration::from_secs(10);

async fn client(mesh: &Mesh) -> TcpStream {
    let (client, accepted) = pair().await;
    let session = Session::outbound(mesh.worker.clone(), mesh.cell.clone());
    spawn_local(connection::serve(session, Buffered::new(accepted)));
    client
}

async fn closed(mesh: &Mesh, reason: &str, times: f64) {
    let reason = format!("reason=\"{reason}\"");
    let count = || mesh.metric(&["naru_tcp_closed_total{", "service=\"web\"", &reason]);
    until(|| count() == times).await;
}

#[test]
fn a_tcp_route_applies_to_any_protocol_whichever_side_sends_first() {
    run(async {
        let app = listener().await;
        let only = route([backend(1, app.local_addr().unwrap())]);
        let mesh = mesh(OpaqueRoutes::Tcp(only), PATIENCE);
        let mut silent = client(&mesh).await;
        let mut accepted = accept(&app).await;
        accepted.write_all(b"welcome").await.unwrap();
        silent.read_exact(&mut [0; 7]).await.unwrap();
        // The client has sent nothing: HTTP would have waited for it.
        let mut http = client(&mesh).await;
        let mut accepted = accept(&app).await;
        let request = b"GET / HTTP/1.1\r\nhost: web\r\n\r\n";
        http.write_all(request).await.unwrap();
        let mut heard = [0; 29];
        accepted.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, request);
    });
}

/// Which of the apps got a connection.
async fn accepted(apps: &[&TcpListener; 2]) -> usize {
    tokio::select! {
        accepted = apps[0].accept() => accepted.map(|_| 0),
        accepted = apps[1].accept() => accepted.map(|_| 1),
    }
    .unwrap()
}

#[test]
fn connections_are_distributed_by_weight_and_a_weight_of_0_gets_none() {
    run(async {
        let (a, b, never) = (listener().await, listener().await, listener().await);
        let mesh = mesh(
            OpaqueRoutes::Tcp(route([
                backend(3, a.local_addr().unwrap()),
                backend(0, never.local_addr().unwrap()),
                backend(1, b.local_addr().unwrap()),
            ])),
            PATIENCE,
        );
        let mut got = [0; 2];
        for _ in 0..200 {
            let _client = client(&mesh).await;
            got[accepted(&[&a, &b]).await] += 1;
        }
        // 150 and 50, and five standard deviations of it.
        assert!((119..=181).contains(&got[0]), "{got:?}");
        assert_eq!(got[0] + got[1], 200);
    });
}

#[test]
fn a_connection_that_cannot_be_forwarded_is_reset_with_a_reason() {
    run(async {
        let app = listener().await.local_addr().unwrap();
        for (backends, reason) in [
            (vec![invalid(1)], "backend-invalid"),
            (vec![backend(0, app), invalid(0)], "no-backend"),
            (vec![], "no-backend"),
            // Another backend of the route is not tried instead.
            (
                vec![backend(1, unused_address().await), backend(0, app)],
                "connect-failed",
            ),
        ] {
            let mesh = mesh(OpaqueRoutes::Tcp(route(backends)), PATIENCE);
            assert!(is_reset(&mut client(&mesh).await).await, "{reason}");
            closed(&mesh, reason, 1.0).await;
        }
    });
}

#[test]
fn the_server_name_selects_the_route_and_the_bytes_arrive_unchanged() {
    run(async {
        let (a, b) = (listener().await, listener().await);
        let to = |app: &TcpListener| [backend(1, app.local_addr().unwrap())];
        let routes = TlsRoutes::new(vec![
            tls_route("a", &["a.example"], to(&a)),
            tls_route("b", &["*.example"], to(&b)),
        ]);
        let mesh = mesh(OpaqueRoutes::Tls(routes), PATIENCE);
        for (name, app) in [("A.example", &a), ("b.example", &b), ("b.c.example", &b)] {
            let hello = client_hello(name);
            let mut client = client(&mesh).await;
            client.set_nodelay(true).unwrap();
            // In more than one segment.
            let (first, second) = hello.split_at(hello.len() / 2);
            client.write_all(first).await.unwrap();
            tokio::task::yield_now().await;
            client.write_all(second).await.unwrap();
            let mut app = accept(app).await;
            let mut heard = vec![0; hello.len()];
            app.read_exact(&mut heard).await.unwrap();
            assert!(heard == hello, "{name}");
            greet(&mut client, &mut app).await;
        }
        for name in ["a.example.org", "10.0.0.1"] {
            let mut client = client(&mesh).await;
            client.write_all(&client_hello(name)).await.unwrap();
            assert!(is_reset(&mut client).await, "{name}");
        }
        closed(&mesh, "no-route", 2.0).await;
    });
}

#[test]
fn a_client_without_a_client_hello_is_rejected() {
    run(async {
        let routes = || OpaqueRoutes::Tls(tls(&[("app", &["*.example"])]));
        let hasty = mesh(routes(), PATIENCE);
        let mut plain = client(&hasty).await;
        plain.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        assert!(is_reset(&mut plain).await);
        // One record with an incomplete message; and many small records that never complete one.
        let mut endless = client(&hasty).await;
        endless
            .write_all(b"\x16\x03\x01\x00\x04\x01\xff\xff\xff")
            .await
            .unwrap();
        assert!(is_reset(&mut endless).await);
        let mut crumbs = client(&hasty).await;
        let start = b"\x16\x03\x01\x00\x04\x01\x00\x40\x00";
        let crumb = b"\x16\x03\x01\x00\x01\x00".repeat(MAX_CLIENT_HELLO / 6);
        // It may be reset before all of it is sent.
        let _ = crumbs.write_all(&[&start[..], &crumb].concat()).await;
        assert!(is_reset(&mut crumbs).await);
        closed(&hasty, "no-client-hello", 3.0).await;

        let mut gone = client(&hasty).await;
        gone.shutdown().await.unwrap();
        assert!(is_reset(&mut gone).await);
        closed(&hasty, "client-gone", 1.0).await;

        let impatient = mesh(routes(), Duration::from_millis(20));
        let mut silent = client(&impatient).await;
        assert!(is_reset(&mut silent).await);
        closed(&impatient, "no-client-hello", 1.0).await;
    });
}
