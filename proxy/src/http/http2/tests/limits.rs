use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::spawn_local;

use crate::http::http2::serve;
use crate::identity::testing::spiffe_id;
use crate::session::Session;
use crate::testing::mesh::*;

#[test]
fn a_head_up_to_the_limit_is_accepted_and_a_larger_one_rejected() {
    run(async {
        let app = answering(200, "").await;
        let mesh = Setup::new(&[app.address]).start();
        let client = mesh.client().await;
        let with = |length: usize| {
            let mut request = get("/");
            let value = HeaderValue::from_str(&"v".repeat(length)).expect("a value");
            request.headers_mut().insert("cookie", value);
            request
        };
        let got = call(&client, with(60_000), b"").await.expect("a response");
        assert_eq!(got.status, 200);
        let got = call(&client, with(80_000), b"").await.expect("a response");
        assert_eq!(got.status, 431);
        let got = call(&client, get("/"), b"").await.expect("a response");
        assert_eq!(got.status, 200);
    });
}

#[test]
fn a_body_that_contradicts_its_length_is_rejected() {
    run(async {
        let app = app(|mut call| async move {
            if call.request.method() == "POST" {
                read(call.request.body_mut()).await;
                return answer(&mut call.respond, 200, "");
            }
            let response = Response::builder().header("content-length", "3").body(());
            let mut send = call
                .respond
                .send_response(response.expect("a head"), false)
                .expect("a response");
            send.send_data(Bytes::from_static(b"four"), true)
                .expect("data");
        })
        .await;
        let mesh = Setup::new(&[app.address]).start();
        let client = mesh.client().await;
        let mut longer = request("POST", "/");
        longer
            .headers_mut()
            .insert("content-length", HeaderValue::from_static("3"));
        let got = call(&client, longer, b"four").await;
        assert_eq!(code(got), Some(h2::Reason::PROTOCOL_ERROR));
        // The same for a response.
        let got = call(&client, get("/"), b"").await;
        assert_eq!(code(got), Some(h2::Reason::INTERNAL_ERROR));
    });
}

/// A client that writes raw frames.
struct Raw(tokio::io::DuplexStream);

impl Raw {
    async fn new(mesh: &Mesh) -> Self {
        let (ours, theirs) = tokio::io::duplex(1024 * 1024);
        let session = Session::outbound(mesh.worker.clone(), mesh.cell.clone());
        spawn_local(serve(session, theirs));
        let mut raw = Self(ours);
        raw.0
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .await
            .expect("written");
        raw.frame(4, 0, 0, &[]).await;
        raw
    }

    async fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        let length = u32::try_from(payload.len())
            .expect("a length")
            .to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.extend_from_slice(payload);
        self.0.write_all(&frame).await.is_ok()
    }

    /// Reads until there is a response on `stream`.
    async fn answer(&mut self, stream: u32) {
        let mut frame = [0; 9];
        loop {
            self.0.read_exact(&mut frame).await.expect("a frame");
            let length = u32::from_be_bytes([0, frame[0], frame[1], frame[2]]) as usize;
            let mut payload = vec![0; length];
            self.0.read_exact(&mut payload).await.expect("a payload");
            if frame[3] == 1 && frame[5..] == stream.to_be_bytes() {
                return;
            }
        }
    }

    /// Reads until the connection ends. Returns the code of its GOAWAY.
    async fn end(&mut self) -> Option<u32> {
        let mut code = None;
        loop {
            let mut head = [0; 9];
            if self.0.read_exact(&mut head).await.is_err() {
                return code;
            }
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let mut payload = vec![0; length];
            if self.0.read_exact(&mut payload).await.is_err() {
                return code;
            }
            if head[3] == 7 {
                code = Some(u32::from_be_bytes(
                    payload[4..8].try_into().expect("a code"),
                ));
            }
        }
    }
}

const ENHANCE_YOUR_CALM: u32 = 0xb;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// `GET http / web` in HPACK's static table, with the authority as a literal.
const HEAD: [u8; 8] = [0x82, 0x86, 0x84, 0x41, 0x03, b'w', b'e', b'b'];

#[test]
fn a_client_that_only_opens_and_resets_streams_is_slowed_down_and_keeps_its_connection() {
    run(async {
        let app = answering(200, "").await;
        let mesh = Setup::new(&[app.address]).start();
        let mut raw = Raw::new(&mesh).await;
        let mut stream = 1;
        while slowed(&mesh) == 0.0 {
            for _ in 0..50 {
                assert!(raw.frame(1, END_HEADERS | END_STREAM, stream, &HEAD).await);
                assert!(raw.frame(3, 0, stream, &[0, 0, 0, 8]).await);
                stream += 2;
            }
            tokio::task::yield_now().await;
        }
        // Other clients are served meanwhile, and so is this one.
        let other = mesh.client().await;
        let got = call(&other, get("/"), b"").await.expect("a response");
        assert_eq!(got.status, 200);
        assert!(raw.frame(1, END_HEADERS | END_STREAM, stream, &HEAD).await);
        raw.answer(stream).await;
        // Its requests have ended.
        until(|| mesh.metric(&["naru_pool_connections{", "http/2", "active"]) == 0.0).await;
    });
}

#[test]
fn a_client_whose_requests_are_refused_is_slowed_down() {
    run(async {
        let mesh = Setup::new(&[]).start();
        let mut raw = Raw::new(&mesh).await;
        // `GET *`.
        let head = [0x82, 0x86, 0x04, 0x01, b'*', 0x01, 0x03, b'w', b'e', b'b'];
        let mut stream = 1;
        while slowed(&mesh) == 0.0 {
            assert!(stream < 40_000, "20,000 refused requests cost nothing");
            for _ in 0..50 {
                assert!(raw.frame(1, END_HEADERS | END_STREAM, stream, &head).await);
                stream += 2;
            }
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn an_endless_head_closes_the_connection() {
    run(async {
        let mesh = Setup::new(&[]).start();
        let mut raw = Raw::new(&mesh).await;
        raw.frame(1, END_STREAM, 1, &HEAD).await;
        let mut field = vec![0x00, 0x01, b'x', 0x7f, 0x81, 0x7f];
        field.extend_from_slice(&[b'v'; 16_384 - 127]);
        for _ in 0..200 {
            field.truncate(16_000);
            if !raw.frame(9, 0, 1, &field).await {
                break;
            }
        }
        assert!(raw.end().await.is_some());
    });
}

#[test]
fn a_flood_of_empty_frames_closes_the_connection() {
    run(async {
        let app = answering(200, "").await;
        let mesh = Setup::new(&[app.address]).start();
        let mut raw = Raw::new(&mesh).await;
        let mut post = HEAD;
        post[0] = 0x83;
        raw.frame(1, END_HEADERS, 1, &post).await;
        for _ in 0..10_000 {
            if !raw.frame(0, 0, 1, &[]).await {
                break;
            }
        }
        assert_eq!(raw.end().await, Some(ENHANCE_YOUR_CALM));
    });
}

/// How often reading of a connection was paused.
fn slowed(mesh: &Mesh) -> f64 {
    let text = mesh.worker.metrics.render().expect("metrics");
    let text = String::from_utf8(text).expect("text");
    text.lines()
        .find_map(|line| line.strip_prefix("naru_http2_slowed_total "))
        .map_or(0.0, |value| value.parse().expect("a number"))
}

#[test]
fn a_flood_of_useless_frames_is_slowed_down_and_others_are_served() {
    run(async {
        let window = [0, 0, 0, 1];
        for (kind, stream, payload) in [
            (6, 0, &[0; 8][..]),         // PING
            (4, 0, &[0, 3, 0, 0, 0, 9]), // SETTINGS
            (2, 1, &[0, 0, 0, 0, 9]),    // PRIORITY
            (8, 0, &window),             // WINDOW_UPDATE
        ] {
            let app = answering(200, "").await;
            let mesh = Setup::new(&[app.address]).start();
            let mut raw = Raw::new(&mesh).await;
            for _ in 0..25_000 {
                assert!(raw.frame(kind, 0, stream, payload).await);
            }
            until(|| slowed(&mesh) >= 1.0).await;
            let client = mesh.client().await;
            let got = call(&client, get("/"), b"").await.expect("a response");
            assert_eq!(got.status, 200);
        }
    });
}

#[test]
fn connection_level_fields_are_rejected() {
    run(async {
        let app = answering(200, "").await;
        let mesh = Setup::new(&[app.address]).start();
        let client = mesh.client().await;
        for (name, value) in [
            ("connection", "close"),
            ("transfer-encoding", "chunked"),
            ("te", "gzip"),
        ] {
            let mut raw = Raw::new(&mesh).await;
            let mut head = HEAD.to_vec();
            head.extend_from_slice(&[0x00, name.len() as u8]);
            head.extend_from_slice(name.as_bytes());
            head.push(value.len() as u8);
            head.extend_from_slice(value.as_bytes());
            raw.frame(1, END_HEADERS | END_STREAM, 1, &head).await;
            let mut frame = [0; 9];
            loop {
                raw.0.read_exact(&mut frame).await.expect("a frame");
                let length = u32::from_be_bytes([0, frame[0], frame[1], frame[2]]) as usize;
                let mut payload = vec![0; length];
                raw.0.read_exact(&mut payload).await.expect("a payload");
                if frame[8] == 1 {
                    assert_eq!(
                        (frame[3], payload.as_slice()),
                        (3, &[0, 0, 0, 1][..]),
                        "{name}"
                    );
                    break;
                }
            }
        }
        assert_eq!(
            call(&client, get("/"), b"")
                .await
                .expect("a response")
                .status,
            200
        );
        assert_eq!(app.calls.get(), 1);
    });
}

#[test]
fn an_idle_connection_is_closed() {
    run(async {
        let app = answering(200, "").await;
        let mut setup = Setup::new(&[app.address]);
        setup.limits.keep_alive_idle = Duration::from_millis(150);
        let mesh = setup.start();
        let (client, ended) = mesh.client_with(&h2::client::Builder::new()).await;
        for _ in 0..6 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert_eq!(
                call(&client, get("/"), b"")
                    .await
                    .expect("a response")
                    .status,
                200
            );
        }
        ended.await.expect("a task").expect("an end in order");
    });
}

#[test]
fn the_future_of_a_stream_stays_small() {
    // Bytes. Kept for each stream: a thousand of them on a connection are 4 MiB.
    const LIMIT: usize = 4 * 1024;
    fn size<A, B, C, D, F: Future>(_: fn(A, B, C, D) -> F) -> usize {
        std::mem::size_of::<F>()
    }
    let size = size(crate::http::http2::request::run);
    assert!(size <= LIMIT, "{size}");
}

#[test]
fn a_response_head_over_the_limit_is_an_error_of_the_upstream() {
    run(async {
        let app = app(|mut call| async move {
            let value = "v".repeat(80_000);
            let response = Response::builder().header("x-long", value).body(());
            let _ = call.respond.send_response(response.expect("a head"), true);
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
fn an_app_of_another_protocol_gets_no_request() {
    run(async {
        let (listener, app) = listening().await;
        spawn_local(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let _ = socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
                let mut rest = Vec::new();
                let _ = socket.read_to_end(&mut rest).await;
            }
        });
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
fn a_connection_ends_soon_after_its_clients_certificate_has_expired() {
    run(async {
        let app = app(|call| async move {
            std::future::pending::<()>().await;
            drop(call);
        })
        .await;
        let mut setup = Setup::new(&[app.address]);
        setup.limits.drain_timeout = Duration::from_millis(100);
        let mesh = setup.start();
        let session = |left: Duration| {
            let (worker, cell) = (mesh.worker.clone(), mesh.cell.clone());
            Session::peer(worker, cell, spiffe_id(CLIENT), ANYWHERE).expiring(left)
        };
        let builder = h2::client::Builder::new();
        // An idle connection is closed in order.
        let (idle, ended) = connect(session(Duration::from_millis(50)), &builder).await;
        ended.await.expect("a task").expect("an end in order");
        drop(idle);
        // Requests in progress get their grace period, and no more.
        let (client, _) = connect(session(Duration::from_secs(2)), &builder).await;
        assert!(call(&client, get("/"), b"").await.is_err());
        assert_eq!(app.calls.get(), 1);
        assert_eq!(mesh.metric(&["naru_connections_expired_total"]), 1.0);
    });
}
