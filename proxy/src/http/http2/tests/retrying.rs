use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response};
use tokio::task::spawn_local;
use tokio_rustls::TlsAcceptor;

use super::super::reply;
use crate::balance::{Peer, RetryBudget};
use crate::identity::testing::{Authority, spiffe_id};
use crate::observe::reason::Reason;
use crate::testing::mesh::*;

#[test]
fn an_endpoint_without_a_listener_fails_no_request() {
    run(async {
        let app = answering(200, "ok").await;
        let mesh =
            Setup::new(&[unused_address().await, app.address, unused_address().await]).start();
        let client = mesh.client().await;
        for _ in 0..50 {
            let got = call(&client, request("POST", "/"), b"body")
                .await
                .expect("a response");
            assert_eq!((got.status, got.body.as_slice()), (200, &b"ok"[..]));
        }
        assert!(mesh.metric(&["naru_retries_total{", "sent"]) >= 1.0);
    });
}

#[test]
fn a_refused_stream_is_sent_elsewhere_with_its_body_whatever_the_method() {
    run(async {
        let refusing = app(|mut call| async move {
            let _ = call.request.body_mut().data().await;
            call.respond.send_reset(h2::Reason::REFUSED_STREAM);
        })
        .await;
        let taking = app(|mut call| async move {
            assert_eq!(read(call.request.body_mut()).await, 40_000);
            answer(&mut call.respond, 200, "taken");
        })
        .await;
        let mesh = Setup::new(&[refusing.address, taking.address]).start();
        let client = mesh.client().await;
        for _ in 0..20 {
            let got = call(&client, request("POST", "/"), &[7; 40_000]).await;
            assert_eq!(got.expect("a response").body, b"taken");
        }
        assert!(refusing.calls.get() > 0);
        assert_eq!(taking.calls.get(), 20);
    });
}

#[test]
fn a_body_that_is_still_coming_is_sent_again_from_its_start_with_its_trailers() {
    run(async {
        let refusing = app(|mut call| async move {
            let _ = call.request.body_mut().data().await;
            call.respond.send_reset(h2::Reason::REFUSED_STREAM);
        })
        .await;
        let taking = app(|mut call| async move {
            let body = call.request.body_mut();
            assert_eq!(read(body).await, 30);
            let trailers = body.trailers().await.expect("trailers").expect("trailers");
            assert_eq!(trailers["x-end"], "1");
            answer(&mut call.respond, 200, "taken");
        })
        .await;
        let mesh = Setup::new(&[refusing.address, taking.address]).start();
        let mut client = mesh.client().await;
        for _ in 0..10 {
            let (response, mut send) = client
                .send_request(request("POST", "/"), false)
                .expect("a stream");
            for _ in 0..3 {
                let piece = Bytes::from_static(b"ten bytes.");
                send.send_data(piece, false).expect("data");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let mut trailers = http::HeaderMap::new();
            trailers.insert("x-end", HeaderValue::from_static("1"));
            send.send_trailers(trailers).expect("trailers");
            let got = collect(response.await.expect("a response")).await;
            assert_eq!(got.expect("a body").body, b"taken");
        }
        assert!(refusing.calls.get() > 0);
    });
}

#[test]
fn a_request_refused_by_all_endpoints_is_refused() {
    run(async {
        let refusing = app(|mut call| async move {
            call.respond.send_reset(h2::Reason::REFUSED_STREAM);
        })
        .await;
        let mesh = Setup::new(&[refusing.address]).start();
        let client = mesh.client().await;
        let refused = call(&client, get("/"), b"").await;
        assert_eq!(code(refused), Some(h2::Reason::REFUSED_STREAM));
        assert_eq!(refusing.calls.get(), 6);
        assert_eq!(mesh.metric(&["naru_retries_total{", "limit"]), 1.0);
    });
}

#[test]
fn a_body_that_is_too_large_to_keep_is_sent_once() {
    run(async {
        let refusing = app(|mut call| async move {
            let mut seen = 0;
            while seen < 100_000 {
                let Some(Ok(data)) = call.request.body_mut().data().await else {
                    return;
                };
                seen += data.len();
                let _ = call
                    .request
                    .body_mut()
                    .flow_control()
                    .release_capacity(data.len());
            }
            call.respond.send_reset(h2::Reason::REFUSED_STREAM);
        })
        .await;
        let mesh = Setup::new(&[refusing.address]).retry(&[503], 3).start();
        let client = mesh.client().await;
        let refused = call(&client, request("POST", "/"), &[7; 200_000]).await;
        assert_eq!(code(refused), Some(h2::Reason::REFUSED_STREAM));
        assert_eq!(refusing.calls.get(), 1);
        assert_eq!(mesh.metric(&["naru_retries_total{", "body_too_large"]), 1.0);
    });
}

/// Answers every second request with `status`, and the others with 200.
async fn flaky(status: u16) -> App {
    let number = Rc::new(Cell::new(0));
    app(move |mut call| {
        number.set(number.get() + 1);
        let bad = number.get() % 2 == 1;
        async move {
            assert_eq!(read(call.request.body_mut()).await, 4);
            match bad {
                true => answer(&mut call.respond, status, "bad"),
                false => answer(&mut call.respond, 200, "good"),
            }
        }
    })
    .await
}

#[test]
fn statuses_of_the_rule_are_retried_and_others_are_not() {
    run(async {
        let app = flaky(503).await;
        let mesh = Setup::new(&[app.address]).retry(&[503], 2).start();
        let client = mesh.client().await;
        for _ in 0..10 {
            let got = call(&client, request("POST", "/"), b"body")
                .await
                .expect("a response");
            assert_eq!((got.status, got.body.as_slice()), (200, &b"good"[..]));
        }
        assert_eq!(mesh.metric(&["naru_retries_total{", "sent"]), 10.0);
        let app = flaky(500).await;
        let mesh = Setup::new(&[app.address]).retry(&[503], 2).start();
        let client = mesh.client().await;
        let got = call(&client, request("POST", "/"), b"body")
            .await
            .expect("a response");
        assert_eq!((got.status, got.body.as_slice()), (500, &b"bad"[..]));
    });
}

#[test]
fn the_budget_stops_retries_and_the_last_response_is_passed_on() {
    run(async {
        let app = answering(503, "down").await;
        let mut setup = Setup::new(&[app.address]).retry(&[503], 5);
        setup.budget = RetryBudget::new(0, Duration::from_secs(10), 0.2);
        let mesh = setup.start();
        let client = mesh.client().await;
        for _ in 0..5 {
            let got = call(&client, get("/"), b"").await.expect("a response");
            assert_eq!((got.status, got.header("naru-reason")), (503, ""));
            assert_eq!(got.body, b"down");
        }
        assert_eq!(app.calls.get(), 5 + 2);
        assert_eq!(mesh.metric(&["naru_retries_total{", "budget"]), 5.0);
    });
}

/// Answers only requests that must not wait.
async fn slow() -> App {
    app(|mut call| async move {
        tokio::time::sleep(Duration::from_secs(60)).await;
        answer(&mut call.respond, 200, "late");
    })
    .await
}

#[test]
fn a_request_times_out() {
    run(async {
        let app = slow().await;
        let mut setup = Setup::new(&[app.address]);
        setup.request_timeout = Some(Duration::from_millis(50));
        let mesh = setup.start();
        let client = mesh.client().await;
        let got = call(&client, get("/"), b"").await.expect("a response");
        assert_eq!(
            (got.status, got.header("naru-reason")),
            (504, "request-timeout")
        );
        let got = call(&client, grpc("/"), b"").await.expect("a response");
        assert_eq!((got.status, got.header("grpc-status")), (200, "4"));
        assert_eq!(got.header("naru-reason"), "request-timeout");
    });
}

#[test]
fn an_attempt_that_takes_too_long_is_made_elsewhere_if_the_rule_retries() {
    run(async {
        let (slow, fast) = (slow().await, answering(200, "fast").await);
        let mut setup = Setup::new(&[slow.address, fast.address]).retry(&[], 2);
        setup.backend_request_timeout = Some(Duration::from_millis(50));
        let mesh = setup.start();
        let client = mesh.client().await;
        for _ in 0..10 {
            let got = call(&client, get("/"), b"").await.expect("a response");
            assert_eq!((got.status, got.body.as_slice()), (200, &b"fast"[..]));
        }
        let mut setup = Setup::new(&[slow.address]);
        setup.backend_request_timeout = Some(Duration::from_millis(50));
        let mesh = setup.start();
        let got = call(&mesh.client().await, get("/"), b"")
            .await
            .expect("a response");
        assert_eq!(
            (got.status, got.header("naru-reason")),
            (504, "backend-request-timeout")
        );
    });
}

#[test]
fn a_response_that_takes_too_long_is_reset() {
    run(async {
        let app = app(|mut call| async move {
            let mut send = call
                .respond
                .send_response(Response::new(()), false)
                .expect("a response");
            send.send_data(Bytes::from_static(b"begun"), false)
                .expect("data");
            tokio::time::sleep(Duration::from_secs(60)).await;
        })
        .await;
        let mut setup = Setup::new(&[app.address]);
        setup.request_timeout = Some(Duration::from_millis(100));
        let mesh = setup.start();
        let client = mesh.client().await;
        let got = call(&client, get("/"), b"").await;
        assert_eq!(code(got), Some(h2::Reason::INTERNAL_ERROR));
        let got = call(&client, grpc("/"), b"").await.expect("a response");
        assert_eq!(got.body, b"begun");
        let trailers = got.trailers.expect("trailers");
        assert_eq!(trailers["grpc-status"], "4");
        assert_eq!(trailers["naru-reason"], "request-timeout");
    });
}

/// A sidecar's inbound side, which answers every request itself with `reason`, or else lets the app
/// answer.
async fn sidecar(authority: &Authority, id: &str, reason: Option<Reason>) -> App {
    let (listener, app) = listening().await;
    let config = authority
        .identity(id)
        .server_config()
        .expect("a certificate");
    let acceptor = TlsAcceptor::from(config);
    let (connections, calls) = (app.connections.clone(), app.calls.clone());
    spawn_local(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let (acceptor, connections, calls) =
                (acceptor.clone(), connections.clone(), calls.clone());
            spawn_local(async move {
                let Ok(socket) = acceptor.accept(socket).await else {
                    return;
                };
                connections.set(connections.get() + 1);
                let mut connection = h2::server::handshake(socket).await.expect("HTTP/2");
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    calls.set(calls.get() + 1);
                    let _ = match reason {
                        Some(reason) => {
                            let grpc = reply::is_grpc(request.headers());
                            reply::error(&mut respond, grpc, reason).map(drop)
                        }
                        None => respond.send_response(Response::new(()), true).map(drop),
                    };
                }
            });
        }
    });
    app
}

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

fn mesh_of(authority: &Authority, apps: &[&App]) -> Mesh {
    setup_of(authority, apps).start()
}

fn setup_of(authority: &Authority, apps: &[&App]) -> Setup {
    let mut setup = Setup::new(&[]);
    setup.identity = authority.identity(CLIENT);
    setup.endpoints = apps
        .iter()
        .map(|app| (app.address, Peer::Mesh(spiffe_id(WEB))))
        .collect();
    setup
}

#[test]
fn a_request_that_a_sidecar_could_not_deliver_is_sent_elsewhere() {
    run(async {
        let authority = Authority::new("mesh");
        for head in [request("POST", "/"), grpc("/shop.Cart/Add")] {
            let gone = sidecar(&authority, WEB, Some(Reason::ConnectFailed)).await;
            let well = sidecar(&authority, WEB, None).await;
            let mesh = mesh_of(&authority, &[&gone, &well]);
            let client = mesh.client().await;
            for _ in 0..20 {
                let got = call(&client, head.clone(), b"body").await;
                let got = got.expect("a response");
                assert_eq!((got.status, got.header("naru-reason")), (200, ""));
            }
            assert!(gone.calls.get() > 0);
        }
    });
}

#[test]
fn a_sidecars_answer_to_grpc_is_retried_by_the_status_of_its_reason() {
    run(async {
        let authority = Authority::new("mesh");
        let broken = sidecar(&authority, WEB, Some(Reason::UpstreamReset)).await;
        let well = sidecar(&authority, WEB, None).await;
        let setup = setup_of(&authority, &[&broken, &well]);
        let mesh = setup.retry(&[503], 1).start();
        let client = mesh.client().await;
        for _ in 0..20 {
            let got = call(&client, grpc("/shop.Cart/Add"), b"body").await;
            let got = got.expect("a response");
            assert_eq!((got.status, got.header("naru-reason")), (200, ""));
        }
        assert!(broken.calls.get() > 0);
    });
}

#[test]
fn a_sidecars_answers_to_grpc_count_as_failures_of_its_endpoint() {
    run(async {
        let authority = Authority::new("mesh");
        let broken = sidecar(&authority, WEB, Some(Reason::UpstreamReset)).await;
        let well = sidecar(&authority, WEB, None).await;
        let mesh = mesh_of(&authority, &[&broken, &well]);
        let client = mesh.client().await;
        for _ in 0..100 {
            let _ = call(&client, grpc("/shop.Cart/Add"), b"body").await;
        }
        let ejected = ["naru_endpoint_ejections_total{", "consecutive-failures"];
        assert_eq!(mesh.metric(&ejected), 1.0);
    });
}

#[test]
fn the_reason_of_a_sidecar_is_passed_on() {
    run(async {
        let authority = Authority::new("mesh");
        let broken = sidecar(&authority, WEB, Some(Reason::UpstreamReset)).await;
        let mesh = mesh_of(&authority, &[&broken]);
        let client = mesh.client().await;
        let got = call(&client, get("/"), b"").await.expect("a response");
        assert_eq!(
            (got.status, got.header("naru-reason")),
            (503, "upstream-reset")
        );
        assert_eq!(broken.calls.get(), 1);
    });
}

#[test]
fn another_identity_at_an_endpoints_address_gets_no_request() {
    run(async {
        let authority = Authority::new("mesh");
        let stranger = sidecar(&authority, "spiffe://cluster.local/ns/evil/sa/web", None).await;
        let well = sidecar(&authority, WEB, None).await;
        let mesh = mesh_of(&authority, &[&stranger, &well]);
        let client = mesh.client().await;
        for _ in 0..50 {
            let got = call(&client, get("/"), b"").await.expect("a response");
            assert_eq!(got.status, 200);
        }
        assert_eq!(stranger.calls.get(), 0);
        let ejected = ["naru_endpoint_ejections_total{", "identity-mismatch"];
        assert_eq!(mesh.metric(&ejected), 1.0);
        // Also as the only endpoint.
        let mesh = mesh_of(&authority, &[&stranger]);
        let client = mesh.client().await;
        for expected in ["identity-mismatch", "no-endpoint"] {
            let got = call(&client, get("/"), b"").await.expect("a response");
            assert_eq!((got.status, got.header("naru-reason")), (503, expected));
        }
        assert_eq!(stranger.calls.get(), 0);
    });
}

#[test]
fn a_sidecar_that_falls_silent_is_detected() {
    run(async {
        let authority = Authority::new("mesh");
        let (listener, silent) = listening().await;
        let config = authority.identity(WEB).server_config();
        let acceptor = TlsAcceptor::from(config.expect("a certificate"));
        spawn_local(async move {
            let (socket, _) = listener.accept().await.expect("a client");
            let socket = acceptor.accept(socket).await.expect("TLS");
            let mut connection = h2::server::handshake(socket).await.expect("HTTP/2");
            let _request = connection.accept().await;
            // Stops reading and writing, but keeps the connection open.
            std::future::pending::<()>().await;
        });
        let mesh = mesh_of(&authority, &[&silent]);
        let client = mesh.client().await;
        let got = call(&client, get("/"), b"").await.expect("a response");
        assert_eq!(
            (got.status, got.header("naru-reason")),
            (503, "upstream-reset")
        );
    });
}

#[test]
fn a_slow_but_live_sidecar_is_waited_for() {
    run(async {
        let authority = Authority::new("mesh");
        let (listener, slow) = listening().await;
        let config = authority.identity(WEB).server_config();
        let acceptor = TlsAcceptor::from(config.expect("a certificate"));
        spawn_local(async move {
            let (socket, _) = listener.accept().await.expect("a client");
            let socket = acceptor.accept(socket).await.expect("TLS");
            let mut connection = h2::server::handshake(socket).await.expect("HTTP/2");
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                spawn_local(async move {
                    tokio::time::sleep(Duration::from_millis(1_200)).await;
                    answer(&mut respond, 200, "");
                });
            }
        });
        let mesh = mesh_of(&authority, &[&slow]);
        let got = call(&mesh.client().await, get("/"), b"")
            .await
            .expect("a response");
        assert_eq!(got.status, 200);
    });
}
