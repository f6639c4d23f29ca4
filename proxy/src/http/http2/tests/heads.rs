//! Heads and trailers that h2 accepts and the proxy rejects or changes.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};

use crate::testing::mesh::*;

#[test]
fn a_head_over_the_limit_is_answered_with_a_reason_and_counted() {
    run(async {
        let mesh = Setup::new(&[unused_address().await]).start();
        let client = mesh.client().await;
        let long = |mut request: Request<()>, length: usize| {
            let value = HeaderValue::from_str(&"v".repeat(length)).expect("a value");
            request.headers_mut().insert("x-long", value);
            request
        };
        for length in [70_000, 150_000] {
            let got = call(&client, long(get("/"), length), b"")
                .await
                .expect("a response");
            assert_eq!(
                (got.status, got.header("naru-reason")),
                (431, "header-too-large")
            );
            let got = call(&client, long(grpc("/a/b"), length), b"")
                .await
                .expect("a response");
            assert_eq!(
                (got.status, got.header("naru-reason")),
                (200, "header-too-large")
            );
            assert_eq!(got.header("grpc-status"), "8");
        }
        for status in ["status=\"431\"", "status=\"200\""] {
            let counted = [
                "naru_responses_total{",
                status,
                "reason=\"header-too-large\"",
            ];
            assert_eq!(mesh.metric(&counted), 2.0, "{status}");
        }
    });
}

#[test]
fn an_ambiguous_request_reaches_no_app() {
    run(async {
        let app = answering(200, "").await;
        let mesh = Setup::new(&[app.address]).start();
        let client = mesh.client().await;
        let with = |method: &str, fields: &[(&'static str, &'static str)]| {
            let mut request = request(method, "/");
            for (name, value) in fields {
                request
                    .headers_mut()
                    .append(*name, HeaderValue::from_static(value));
            }
            request
        };
        for refused in [
            with("POST", &[("content-length", "4"), ("content-length", "4")]),
            with("GET", &[("host", "other")]),
            with("GET", &[("host", "a b")]),
        ] {
            let body: &[u8] = if refused.method() == "POST" {
                b"four"
            } else {
                b""
            };
            let got = call(&client, refused, body).await.expect("a response");
            assert_eq!(
                (got.status, got.header("naru-reason")),
                (400, "bad-request")
            );
        }
        let connect = Request::builder().method("CONNECT").uri("db:5432").body(());
        let got = call(&client, connect.expect("a request"), b"")
            .await
            .expect("a response");
        assert_eq!(
            (got.status, got.header("naru-reason")),
            (501, "connect-method")
        );
        assert_eq!(app.calls.get(), 0);
        let got = call(&client, with("GET", &[]), b"")
            .await
            .expect("a response");
        assert_eq!(got.status, 200);
    });
}

#[test]
fn trailers_that_frame_or_route_a_message_are_refused() {
    run(async {
        for (name, status) in [
            ("content-length", 400),
            ("host", 400),
            ("authorization", 400),
            ("x-checksum", 200),
        ] {
            let app = app(|mut call| async move {
                read(call.request.body_mut()).await;
                if call.request.body_mut().trailers().await.is_ok() {
                    answer(&mut call.respond, 200, "");
                }
            })
            .await;
            let mesh = Setup::new(&[app.address]).start();
            let client = mesh.client().await;
            let mut ready = client.ready().await.expect("a connection");
            let (response, mut send) = ready
                .send_request(request("POST", "/"), false)
                .expect("a stream");
            send.send_data(Bytes::from_static(b"body"), false)
                .expect("data");
            let mut trailers = HeaderMap::new();
            trailers.insert(name, HeaderValue::from_static("4"));
            send.send_trailers(trailers).expect("trailers");
            let got = collect(response.await.expect("a response"))
                .await
                .expect("all of it");
            assert_eq!(got.status, status, "{name}");
        }
    });
}

#[test]
fn a_response_with_framing_trailers_is_reset() {
    run(async {
        let app = app(|mut call| async move {
            let mut send = call
                .respond
                .send_response(Response::new(()), false)
                .expect("a response");
            let mut trailers = HeaderMap::new();
            trailers.insert("content-length", HeaderValue::from_static("4"));
            send.send_trailers(trailers).expect("trailers");
        })
        .await;
        let mesh = Setup::new(&[app.address]).start();
        let client = mesh.client().await;
        let got = call(&client, get("/"), b"").await;
        assert_eq!(code(got), Some(h2::Reason::INTERNAL_ERROR));
    });
}

#[test]
fn a_response_before_a_long_body_leaves_the_next_request_intact() {
    run(async {
        let app = app(|mut call| async move {
            answer(&mut call.respond, 401, "no");
        })
        .await;
        let mesh = Setup::new(&[app.address]).start();
        let client = mesh.client().await;
        for _ in 0..40 {
            let mut ready = client.clone().ready().await.expect("a connection");
            let (response, mut send) = ready
                .send_request(request("POST", "/"), false)
                .expect("a stream");
            send.send_data(Bytes::from(vec![0; 100_000]), false)
                .expect("data");
            let answered = tokio::time::timeout(Duration::from_secs(10), response).await;
            let got = collect(answered.expect("in time").expect("an answer")).await;
            assert_eq!(got.expect("all of it").status, 401);
        }
    });
}
