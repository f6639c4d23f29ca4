//! How a client that requests more than it reads affects others.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::Response;
use tokio::sync::Notify;
use tokio::task::spawn_local;

use crate::session::Session;
use crate::table::Inbound;
use crate::testing::mesh::*;

/// Streams of one connection to the app; all connections together have 32 times as many.
const STREAMS: u32 = 4;
const ALL: usize = 32 * STREAMS as usize;

/// An app whose responses exceed the window of a client that reads nothing.
async fn talkative() -> App {
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(STREAMS);
    app_with(builder, |mut call| async move {
        let sent = call.respond.send_response(Response::new(()), false);
        if let Ok(mut send) = sent {
            let _ = write(&mut send, Bytes::from(vec![0; 8 * 1024]), true).await;
        }
    })
    .await
}

/// A client that never reads a body, and its requests.
struct Deaf {
    _client: SendRequest<Bytes>,
    _responses: Vec<h2::client::ResponseFuture>,
}

fn deaf_builder() -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(0)
        .initial_max_send_streams(1_000);
    builder
}

fn ask(mut client: SendRequest<Bytes>, requests: usize) -> Deaf {
    let responses = (0..requests)
        .map(|_| client.send_request(get("/"), true).expect("a stream").0)
        .collect();
    Deaf {
        _client: client,
        _responses: responses,
    }
}

fn refused(mesh: &Mesh, limit: &str) -> f64 {
    let limit = format!("limit=\"{limit}\"");
    mesh.metric(&["naru_streams_refused_total{", "http/2", &limit])
}

#[test]
fn clients_that_read_nothing_leave_streams_for_others() {
    run(async {
        let app = talkative().await;
        let mesh = Setup::new(&[app.address]).start();
        // Makes the app's limit known.
        call(&mesh.client().await, get("/"), b"")
            .await
            .expect("a response");
        let mut deaf = Vec::new();
        for _ in 0..4 {
            deaf.push(ask(mesh.client_with(&deaf_builder()).await.0, ALL));
        }
        let held = || app.calls.get() - 1;
        until(|| held() >= ALL / 2).await;
        for _ in 0..20 {
            // Another connection of the same client, and another client.
            for client in [mesh.client().await, mesh.inbound_client().await.0] {
                let got = call(&client, get("/"), b"").await.expect("a response");
                assert_eq!((got.status, got.body.len()), (200, 8 * 1024));
            }
        }
        assert!(app.connections.get() <= 32);
    });
}

#[test]
fn clients_without_an_identity_take_no_streams_from_any_others() {
    run(async {
        let app = talkative().await;
        let mesh = Setup::new(&[app.address]).start();
        let inbound = Inbound {
            workload: "".into(),
            strict: false,
            ports: Default::default(),
        };
        mesh.worker.tables.set_inbound(inbound);
        call(&mesh.client().await, get("/"), b"")
            .await
            .expect("a response");
        let from = |address: [u8; 4]| {
            let (worker, cell) = (mesh.worker.clone(), mesh.cell.clone());
            Session::unauthenticated(worker, cell, (address, 1).into())
        };
        let mut deaf = Vec::new();
        for _ in 0..30 {
            let (client, _) = connect(from([10, 0, 0, 1]), &deaf_builder()).await;
            deaf.push(ask(client, 20));
        }
        until(|| app.calls.get() > ALL / 2).await;
        for _ in 0..20 {
            let (stranger, _) = connect(from([10, 0, 0, 2]), &h2::client::Builder::new()).await;
            for client in [stranger, mesh.inbound_client().await.0] {
                let got = call(&client, get("/"), b"").await.expect("a response");
                assert_eq!((got.status, got.body.len()), (200, 8 * 1024));
            }
        }
    });
}

#[test]
fn a_request_that_waits_too_long_for_a_stream_is_refused() {
    run(async {
        let go = Rc::new(Notify::new());
        let mut builder = h2::server::Builder::new();
        builder.max_concurrent_streams(1);
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
        let mut setup = Setup::new(&[app.address]);
        setup.limits.stream_wait = Duration::from_millis(50);
        setup.limits.connect_timeout = Duration::from_millis(500);
        let mesh = setup.start();
        let client = mesh.client().await;
        go.notify_one();
        call(&client, get("/"), b"").await.expect("a response");
        let calls: Vec<_> = (0..40)
            .map(|_| {
                let client = client.clone();
                spawn_local(async move { call(&client, get("/"), b"").await })
            })
            .collect();
        // Its share of the 32 streams; the other requests fail and are not sent to another
        // endpoint.
        let begun = app.calls.get();
        let wait = || refused(&mesh, "wait");
        until(|| wait() == 20.0).await;
        assert_eq!(app.calls.get() - begun, 20);
        go.notify_waiters();
        let mut statuses = Vec::new();
        for call in calls {
            let got = call.await.expect("a task").expect("a response");
            statuses.push((got.status, got.header("naru-reason").to_owned()));
        }
        let count = |status: u16, reason: &str| {
            let same = |got: &&(u16, String)| got.0 == status && got.1 == reason;
            statuses.iter().filter(same).count()
        };
        assert_eq!(
            (count(200, ""), count(503, "overload")),
            (20, 20),
            "{statuses:?}"
        );
    });
}

#[test]
fn a_client_that_stops_reading_loses_only_its_stream() {
    run(async {
        let app = talkative().await;
        let mut setup = Setup::new(&[app.address]);
        setup.limits.reader_timeout = Duration::from_millis(200);
        let mesh = setup.start();
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(1_000);
        let (mut client, ended) = mesh.client_with(&builder).await;
        let (response, _) = client.send_request(get("/"), true).expect("a stream");
        let response = response.await.expect("a response");
        let mut body = response.into_body();
        let first = body.data().await.expect("data").expect("data");
        assert_eq!(first.len(), 1_000);
        // The client stops reading for now.
        let stopped = ["naru_responses_total{", "reader-stopped", "\"200\""];
        until(|| mesh.metric(&stopped) == 1.0).await;
        let error = body.data().await.expect("an end").expect_err("no more");
        assert_eq!(error.reason(), Some(h2::Reason::CANCEL));
        // The connection still works.
        let (response, _) = client.send_request(get("/"), true).expect("a stream");
        let mut body = response.await.expect("a response").into_body();
        let mut length = 0;
        while let Some(data) = body.data().await {
            let data = data.expect("data");
            length += data.len();
            let _ = body.flow_control().release_capacity(data.len());
        }
        assert_eq!(length, 8 * 1024);
        assert!(!ended.is_finished());
        let active = ["naru_pool_connections{", "http/2", "active"];
        until(|| mesh.metric(&active) == 0.0).await;
    });
}

/// A body in many tiny frames.
async fn dribble(send: &mut h2::SendStream<Bytes>) -> bool {
    for number in 0..100_000 {
        if write(send, Bytes::from_static(b"x"), false).await.is_err() {
            return false;
        }
        if number % 64 == 0 {
            tokio::task::yield_now().await;
        }
    }
    true
}

#[test]
fn unread_small_messages_of_one_client_close_no_connection_to_the_app() {
    run(async {
        let dribbled: Rc<Cell<Option<bool>>> = Rc::default();
        let app = {
            let dribbled = dribbled.clone();
            app(move |mut call| {
                let dribbled = dribbled.clone();
                async move {
                    if call.request.uri().path() != "/dribble" {
                        return answer(&mut call.respond, 200, "");
                    }
                    let sent = call.respond.send_response(Response::new(()), false);
                    let mut send = sent.expect("a response");
                    dribbled.set(Some(dribble(&mut send).await));
                }
            })
            .await
        };
        let mesh = Setup::new(&[app.address]).start();
        let (mut deaf, _) = mesh.client_with(&deaf_builder()).await;
        let (response, _) = deaf.send_request(get("/dribble"), true).expect("a stream");
        let stuck = response.await.expect("a response");
        let good = mesh.client().await;
        while dribbled.get().is_none() {
            let got = call(&good, get("/"), b"").await.expect("a response");
            assert_eq!(got.status, 200);
        }
        assert_eq!(dribbled.get(), Some(true));
        assert_eq!(app.connections.get(), 1);
        drop(stuck);
    });
}

/// An app whose connections send a partial response to a request without a body, and a malformed
/// field to one that announces a body. Returns how many connections it has had.
async fn malformed_app() -> (std::net::SocketAddr, Rc<Cell<usize>>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = crate::testing::sockets::listener().await;
    let address = listener.local_addr().expect("an address");
    let connections = Rc::<Cell<usize>>::default();
    let counted = connections.clone();
    let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let head = [0, 0, payload.len() as u8, kind, flags];
        [&head[..], &stream.to_be_bytes(), payload].concat()
    };
    spawn_local(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            counted.set(counted.get() + 1);
            spawn_local(async move {
                socket.read_exact(&mut [0; 24]).await?;
                socket.write_all(&frame(4, 0, 0, &[])).await?;
                loop {
                    let mut head = [0; 9];
                    socket.read_exact(&mut head).await?;
                    let [_, high, low, kind, flags, stream @ ..] = head;
                    let mut payload = vec![0; usize::from(high) << 8 | usize::from(low)];
                    socket.read_exact(&mut payload).await?;
                    let stream = u32::from_be_bytes(stream);
                    let answer = match (kind, flags & 1) {
                        (4, 0) => frame(4, 1, 0, &[]),
                        // `:status: 200`, without END_STREAM.
                        (1, 1) => frame(1, 4, stream, &[0x88]),
                        // A field whose value has a line break.
                        (1, _) => frame(1, 5, stream, b"\x88\x00\x01a\x03x\ny"),
                        _ => continue,
                    };
                    socket.write_all(&answer).await?;
                }
                #[expect(unreachable_code)]
                Ok::<_, std::io::Error>(())
            });
        }
    });
    (address, connections)
}

#[test]
fn a_malformed_response_fails_other_responses_at_most_once() {
    run(async {
        let (app, connections) = malformed_app().await;
        let mesh = Setup::new(&[app]).start();
        for round in 0..3 {
            let mut good = mesh.client().await;
            let (response, _) = good.send_request(get("/"), true).expect("a stream");
            let response = response.await.expect("a response");
            assert_eq!(response.status(), 200);
            let mut kept = response.into_body();
            let bad = mesh.client().await;
            let before = connections.get();
            let answer = call(&bad, get("/"), b"x").await.expect("an answer");
            assert_eq!(answer.status, 502, "{round}");
            if round == 0 {
                // h2 treats a malformed field as an error of the whole connection.
                kept.data().await.expect("an end").expect_err("broken");
                continue;
            }
            assert!(connections.get() > before, "{round}");
            let ended = std::future::poll_fn(|cx| std::task::Poll::Ready(kept.poll_data(cx)));
            assert!(ended.await.is_pending(), "{round}");
        }
        let offended = ["naru_app_connection_events_total{", "offended"];
        assert_eq!(mesh.metric(&offended), 3.0);
    });
}
