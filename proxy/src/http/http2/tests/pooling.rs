use std::rc::Rc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::spawn_local;

use crate::testing::mesh::*;

/// An app whose responses wait for a notification, with at most `streams` at once on a connection.
async fn held(streams: u32) -> (App, Rc<Notify>) {
    let go = Rc::new(Notify::new());
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(streams);
    let app = {
        let go = go.clone();
        app_with(builder, move |mut call| {
            let go = go.clone();
            async move {
                go.notified().await;
                answer(&mut call.respond, 200, "");
            }
        })
        .await
    };
    (app, go)
}

#[test]
fn requests_of_all_clients_share_one_connection() {
    run(async {
        let app = answering(200, "").await;
        let mesh = Setup::new(&[app.address]).start();
        let (one, other) = (mesh.client().await, mesh.client().await);
        let calls = (0..100).map(|number| {
            let client = if number % 2 == 0 { &one } else { &other };
            call(client, get("/"), b"")
        });
        for got in futures_util::future::join_all(calls).await {
            assert_eq!(got.expect("a response").status, 200);
        }
        assert_eq!((app.connections.get(), app.calls.get()), (1, 100));
        assert_eq!(
            mesh.metric(&["naru_pool_connections{", "http/2", "idle"]),
            1.0
        );
        assert_eq!(
            mesh.metric(&["naru_pool_connections{", "http/2", "active"]),
            0.0
        );
    });
}

#[test]
fn a_client_with_a_login_on_its_connection_shares_none_with_others() {
    run(async {
        let app = answering(200, "").await;
        let mesh = Setup::new(&[app.address]).start();
        let (alice, other) = (mesh.client().await, mesh.client().await);
        call(&other, get("/"), b"").await.expect("a response");
        let mut login = get("/");
        let credentials = "Negotiate YII=".parse().expect("a value");
        login.headers_mut().insert("authorization", credentials);
        call(&alice, login, b"").await.expect("a response");
        assert_eq!(app.connections.get(), 2);
        for _ in 0..3 {
            call(&alice, get("/"), b"").await.expect("a response");
            call(&other, get("/"), b"").await.expect("a response");
        }
        assert_eq!(app.connections.get(), 2);
        // The connection ends with its client.
        drop(alice);
        until(|| mesh.metric(&["naru_pool_connections{", "http/2", "idle"]) == 1.0).await;
    });
}

#[test]
fn more_streams_than_a_peer_allows_use_further_connections() {
    run(async {
        let (app, go) = held(2).await;
        let mesh = Setup::new(&[app.address]).start();
        let client = mesh.client().await;
        // Makes the peer's limit known.
        go.notify_one();
        call(&client, get("/"), b"").await.expect("a response");
        let calls: Vec<_> = (0..6)
            .map(|_| {
                let client = client.clone();
                spawn_local(async move { call(&client, get("/"), b"").await })
            })
            .collect();
        until(|| app.calls.get() == 7).await;
        assert_eq!(app.connections.get(), 3);
        for _ in 0..6 {
            go.notify_one();
        }
        for call in calls {
            assert_eq!(call.await.expect("a task").expect("a response").status, 200);
        }
    });
}

#[test]
fn a_leaving_peer_gets_no_new_requests_and_none_fails() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a socket");
        let address = listener.local_addr().expect("an address");
        // Sends GOAWAY after each tenth request of a connection.
        spawn_local(async move {
            while let Ok((socket, _)) = listener.accept().await {
                spawn_local(async move {
                    let mut connection = h2::server::handshake(socket).await.expect("HTTP/2");
                    let mut taken = 0;
                    while let Some(Ok((_, mut respond))) = connection.accept().await {
                        taken += 1;
                        if taken == 10 {
                            connection.graceful_shutdown();
                        }
                        spawn_local(async move {
                            tokio::time::sleep(Duration::from_millis(1)).await;
                            answer(&mut respond, 200, "ok");
                        });
                    }
                });
            }
        });
        let mesh = Setup::new(&[address]).start();
        let client = mesh.client().await;
        let workers = (0..10).map(|_| async {
            for _ in 0..50 {
                let got = call(&client, request("POST", "/"), b"body")
                    .await
                    .expect("a response");
                assert_eq!((got.status, got.body.as_slice()), (200, &b"ok"[..]));
            }
        });
        futures_util::future::join_all(workers).await;
    });
}

#[test]
fn requests_after_a_goaways_last_stream_are_sent_again() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a socket");
        let address = listener.local_addr().expect("an address");
        spawn_local(async move {
            // The first connection receives a request and reports that it has processed none:
            // GOAWAY with last stream 0.
            let (mut socket, _) = listener.accept().await.expect("a client");
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
            socket.write_all(&settings).await.expect("written");
            let mut seen = vec![0; 4096];
            let mut length = 0;
            // Preface, SETTINGS, and part of a request.
            while length < 24 + 9 + 40 {
                length += socket.read(&mut seen).await.expect("a request");
            }
            let goaway = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            socket.write_all(&goaway).await.expect("written");
            let _kept = socket;
            let (socket, _) = listener.accept().await.expect("a client");
            let mut connection = h2::server::handshake(socket).await.expect("HTTP/2");
            while let Some(Ok((mut request, mut respond))) = connection.accept().await {
                spawn_local(async move {
                    assert_eq!(read(request.body_mut()).await, 4);
                    answer(&mut respond, 200, "second");
                });
            }
        });
        let mesh = Setup::new(&[address]).start();
        let client = mesh.client().await;
        let got = call(&client, request("POST", "/"), b"body")
            .await
            .expect("a response");
        assert_eq!((got.status, got.body.as_slice()), (200, &b"second"[..]));
    });
}

#[test]
fn a_connection_that_breaks_before_the_response_is_retried_only_by_rule() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a socket");
        let address = listener.local_addr().expect("an address");
        // Every other connection breaks with its first request.
        spawn_local(async move {
            let mut number = 0;
            while let Ok((socket, _)) = listener.accept().await {
                number += 1;
                let breaks = number % 2 == 1;
                spawn_local(async move {
                    let mut connection = h2::server::handshake(socket).await.expect("HTTP/2");
                    while let Some(Ok((_, mut respond))) = connection.accept().await {
                        if breaks {
                            return;
                        }
                        answer(&mut respond, 200, "ok");
                        // No connection is pooled, so that the next request comes on a new one.
                        connection.graceful_shutdown();
                    }
                });
            }
        });
        let mesh = Setup::new(&[address]).start();
        let got = call(&mesh.client().await, get("/"), b"")
            .await
            .expect("a response");
        assert_eq!(
            (got.status, got.header("naru-reason")),
            (503, "upstream-reset")
        );
        let got = call(&mesh.client().await, grpc("/"), b"")
            .await
            .expect("a response");
        assert_eq!(got.status, 200);
        let mesh = Setup::new(&[address]).retry(&[], 1).start();
        for _ in 0..3 {
            let got = call(&mesh.client().await, get("/"), b"")
                .await
                .expect("a response");
            assert_eq!((got.status, got.body.as_slice()), (200, &b"ok"[..]));
        }
    });
}

#[test]
fn unused_and_old_connections_are_closed() {
    run(async {
        let app = answering(200, "").await;
        let mut setup = Setup::new(&[app.address]);
        setup.limits.pool_idle = Duration::from_millis(100);
        let mesh = setup.start();
        let client = mesh.client().await;
        call(&client, get("/"), b"").await.expect("a response");
        until(|| mesh.metric(&["naru_pool_connections{", "http/2", "idle"]) == 0.0).await;
        call(&client, get("/"), b"").await.expect("a response");
        assert_eq!(app.connections.get(), 2);

        let mut setup = Setup::new(&[app.address]);
        setup.limits.pool_age = Duration::from_millis(100);
        let mesh = setup.start();
        let client = mesh.client().await;
        let began = std::time::Instant::now();
        while began.elapsed() < Duration::from_millis(400) {
            let got = call(&client, get("/"), b"").await.expect("a response");
            assert_eq!(got.status, 200);
        }
        assert!(app.connections.get() >= 4, "{}", app.connections.get());
    });
}

#[test]
fn requests_without_a_free_stream_wait_in_a_bounded_queue() {
    run(async {
        let (app, go) = held(1).await;
        let mut setup = Setup::new(&[app.address]);
        setup.limits.max_concurrent_streams = 5_000;
        setup.limits.stream_wait = Duration::from_secs(60);
        let mesh = setup.start();
        let client = mesh.client().await;
        go.notify_one();
        call(&client, get("/"), b"").await.expect("a response");
        let mut builder = h2::client::Builder::new();
        builder.initial_max_send_streams(5_000);
        let (mut client, _ended) = mesh.client_with(&builder).await;
        let mut calls: FuturesUnordered<_> = (0..1_500)
            .map(|_| client.send_request(get("/"), true).expect("a stream").0)
            .collect();
        // At most its share of 32 connections with one stream each, and of 1,024 places in the
        // queue.
        const TAKEN: usize = 20 + 615;
        for _ in 0..1_500 - TAKEN {
            let response = calls.next().await.expect("one").expect("a response");
            let got = collect(response).await.expect("a body");
            assert_eq!((got.status, got.header("naru-reason")), (503, "overload"));
        }
        assert!(app.connections.get() <= 32);
        let mut served = 0;
        while let Some(response) = {
            go.notify_one();
            calls.next().await
        } {
            served += usize::from(response.expect("a response").status() == 200);
        }
        assert!((512..=TAKEN).contains(&served), "{served}");
    });
}

#[test]
fn a_shutdown_lets_streams_finish_and_accepts_no_new_ones() {
    run(async {
        let (app, go) = held(100).await;
        let mesh = Setup::new(&[app.address]).start();
        let (client, ended) = mesh.inbound_client().await;
        let first = {
            let client = client.clone();
            spawn_local(async move { call(&client, get("/"), b"").await })
        };
        until(|| app.calls.get() == 1).await;
        mesh.signal.as_ref().expect("a signal").start();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let late = call(&client, get("/"), b"")
            .await
            .expect_err("no new stream");
        assert!(late.is_go_away(), "{late}");
        go.notify_one();
        assert_eq!(
            first.await.expect("a task").expect("a response").status,
            200
        );
        drop(client);
        ended.await.expect("a task").expect("an end in order");
    });
}

#[test]
fn a_failed_connection_counts_once_however_many_requests_waited_for_it() {
    run(async {
        let app = answering(200, "").await;
        let mesh = Setup::new(&[unused_address().await, app.address]).start();
        let client = mesh.client().await;
        let calls = (0..50).map(|_| call(&client, get("/"), b""));
        for got in futures_util::future::join_all(calls).await {
            assert_eq!(got.expect("a response").status, 200);
        }
        assert_eq!(mesh.metric(&["naru_endpoint_ejections_total{"]), 0.0);
    });
}

#[test]
fn the_requests_of_one_connection_are_shared_among_the_endpoints() {
    run(async {
        let mut apps = Vec::new();
        for _ in 0..3 {
            apps.push(answering(200, "").await);
        }
        let addresses: Vec<_> = apps.iter().map(|app| app.address).collect();
        let mesh = Setup::new(&addresses).start();
        let client = mesh.client().await;
        for _ in 0..100 {
            let calls = (0..6).map(|_| call(&client, get("/"), b""));
            for got in futures_util::future::join_all(calls).await {
                assert_eq!(got.expect("a response").status, 200);
            }
        }
        // Only roughly even: a machine that stalls makes one of them slow for a while.
        for app in &apps {
            assert!(
                (100..=320).contains(&app.calls.get()),
                "{}",
                app.calls.get()
            );
            assert_eq!(app.connections.get(), 1);
        }
    });
}
