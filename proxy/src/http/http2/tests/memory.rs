//! The memory budget of streams.

use std::future::{pending, poll_fn};

use http::{HeaderValue, Response};

use crate::http::strict::MAX_FIELDS;
use crate::memory::{Budget, Use};
use crate::testing::mesh::*;

const MIB: usize = 1024 * 1024;

/// An app whose responses have one MiB each.
async fn large() -> App {
    app(|mut call| async move {
        if let Ok(mut send) = call.respond.send_response(Response::new(()), false) {
            let _ = write(&mut send, vec![b'x'; MIB].into(), true).await;
        }
    })
    .await
}

#[test]
fn http_2_accepts_as_many_fields_as_http_1() {
    run(async {
        let app = answering(200, "").await;
        let mesh = Setup::new(&[app.address]).start();
        let client = mesh.client().await;
        for (fields, status, reason) in [
            (MAX_FIELDS, 200, ""),
            (MAX_FIELDS + 1, 431, "header-too-large"),
            (1_400, 431, "header-too-large"),
        ] {
            let mut request = get("/");
            for _ in 0..fields {
                let empty = HeaderValue::from_static("");
                request.headers_mut().append("cookie", empty);
            }
            let got = call(&client, request, b"").await.expect("a response");
            assert_eq!(
                (got.status, got.header("naru-reason")),
                (status, reason),
                "{fields}"
            );
        }
        assert_eq!(app.calls.get(), 1);
    });
}

#[test]
fn a_response_of_too_many_fields_is_an_error_of_the_upstream() {
    run(async {
        let app = app(|mut call| async move {
            let mut response = Response::new(());
            for _ in 0..=MAX_FIELDS {
                let empty = HeaderValue::from_static("");
                response.headers_mut().append("set-cookie", empty);
            }
            let _ = call.respond.send_response(response, true);
        })
        .await;
        let mesh = Setup::new(&[app.address]).start();
        let client = mesh.client().await;
        let got = call(&client, get("/"), b"").await.expect("a response");
        assert_eq!(
            (got.status, got.header("naru-reason")),
            (502, "upstream-protocol-error")
        );
    });
}

#[test]
fn a_stream_beyond_the_budget_is_refused_until_there_is_room() {
    run(async {
        let app = answering(200, "").await;
        let mesh = Setup::new(&[app.address]).start();
        let client = mesh.client().await;
        let memory = &mesh.worker.memory;
        let others = memory.charge(Use::Connection, memory.size() / 8 * 7);
        assert!(others.is_some());
        let got = call(&client, get("/"), b"").await.expect("a response");
        assert_eq!((got.status, got.header("naru-reason")), (503, "overload"));
        let got = call(&client, grpc("/a/b"), b"").await.expect("a response");
        assert_eq!((got.status, got.header("grpc-status")), (200, "14"));
        assert_eq!(memory.refused(Use::Stream), 2);
        drop(others);
        let got = call(&client, get("/"), b"").await.expect("a response");
        assert_eq!(got.status, 200);
        until(|| memory.charged() == 0).await;
    });
}

#[test]
fn unread_data_stays_within_the_budget() {
    run(async {
        let app = large().await;
        let mut setup = Setup::new(&[app.address]);
        setup.memory = Budget::new(8 * MIB);
        let mesh = setup.start();
        let memory = &mesh.worker.memory;
        let mut stopped = h2::client::Builder::new();
        stopped.initial_window_size(0);
        let (client, connection) = mesh.client_with(&stopped).await;
        let mut responses = Vec::new();
        for _ in 0..200 {
            let mut client = client.clone().ready().await.expect("a connection");
            responses.push(client.send_request(get("/"), true).expect("a stream").0);
        }
        // 200 windows are 50 MiB.
        until(|| memory.refused(Use::Body) + memory.refused(Use::SmallBody) > 0).await;
        assert!(memory.charged() <= memory.size());
        let mut ended = 0;
        for response in responses {
            let mut body = response.await.expect("a head").into_body();
            let at_an_end = poll_fn(|cx| match body.poll_data(cx) {
                std::task::Poll::Ready(data) => std::task::Poll::Ready(data.is_some()),
                std::task::Poll::Pending => std::task::Poll::Ready(false),
            });
            ended += usize::from(at_an_end.await);
        }
        assert!(ended < 200, "{ended}");
        drop(client);
        connection.abort();
        until(|| memory.charged() == 0).await;
        // Other clients are served.
        let got = call(&mesh.client().await, get("/"), b"").await;
        assert_eq!(got.expect("a response").body.len(), MIB);
    });
}

#[test]
fn less_is_sent_ahead_of_readers_while_memory_is_short() {
    run(async {
        let app = large().await;
        let mut setup = Setup::new(&[app.address]);
        setup.memory = Budget::new(64 * MIB);
        let mesh = setup.start();
        let memory = &mesh.worker.memory;
        let others = memory.charge(Use::Connection, memory.size() / 4 + 1);
        let before = memory.charged();
        // The connection is updated with its first stream.
        let got = call(&mesh.client().await, get("/"), b"").await;
        assert_eq!(got.expect("a response").body.len(), MIB);
        let mut stopped = h2::client::Builder::new();
        stopped.initial_window_size(0);
        let (client, _connection) = mesh.client_with(&stopped).await;
        let mut responses = Vec::new();
        for _ in 0..50 {
            let mut client = client.clone().ready().await.expect("a connection");
            responses.push(client.send_request(get("/"), true).expect("a stream").0);
        }
        let mut bodies = Vec::new();
        for response in responses {
            bodies.push(response.await.expect("a head").into_body());
        }
        until(|| memory.charged() >= before + 50 * 16 * 1024).await;
        assert!(memory.charged() <= before + 50 * 32 * 1024);
        drop((others, bodies));
    });
}

#[test]
fn uploads_that_an_app_does_not_read_are_charged() {
    run(async {
        let app = app(|call| async move {
            pending::<()>().await;
            drop(call);
        })
        .await;
        let mut setup = Setup::new(&[app.address]);
        setup.memory = Budget::new(8 * MIB);
        let mesh = setup.start();
        let memory = &mesh.worker.memory;
        let client = mesh.client().await;
        let mut sending = tokio::task::JoinSet::new();
        for _ in 0..100 {
            let client = client.clone();
            sending.spawn_local(async move {
                let body = vec![b'x'; MIB / 2];
                call(&client, request("POST", "/"), &body).await
            });
        }
        until(|| memory.refused(Use::Body) + memory.refused(Use::SmallBody) > 0).await;
        assert!(memory.charged() <= memory.size());
        let refused = sending.join_next().await.expect("a task").expect("its end");
        let refused = refused.expect("a response");
        assert_eq!(
            (refused.status, refused.header("naru-reason")),
            (503, "memory-exhausted")
        );
        sending.abort_all();
        drop(client);
        until(|| memory.charged() == 0).await;
    });
}

#[test]
fn endless_interim_responses_are_reset_and_a_few_passed_on() {
    run(async {
        let app = app(|mut call| async move {
            let count = match call.request.uri().path() {
                "/few" => 20,
                _ => 100_000,
            };
            for number in 0..count {
                let mut interim = Response::new(());
                *interim.status_mut() = http::StatusCode::from_u16(103).expect("a status");
                if call.respond.send_informational(interim).is_err() {
                    return;
                }
                if number % 100 == 0 {
                    tokio::task::yield_now().await;
                }
            }
            answer(&mut call.respond, 200, "done");
        })
        .await;
        let mesh = Setup::new(&[app.address]).start();
        let client = mesh.client().await;
        let got = call(&client, get("/flood"), b"").await.expect("a response");
        assert_eq!(
            (got.status, got.header("naru-reason")),
            (502, "upstream-protocol-error")
        );
        let mut client = client.ready().await.expect("a connection");
        let (mut response, _) = client.send_request(get("/few"), true).expect("a stream");
        let mut seen = 0;
        while seen < 20 {
            let interim = poll_fn(|cx| response.poll_informational(cx)).await;
            assert_eq!(interim.expect("one").expect("a head").status(), 103);
            seen += 1;
        }
        let got = collect(response.await.expect("a head")).await;
        assert_eq!(got.expect("a response").body, b"done");
    });
}
