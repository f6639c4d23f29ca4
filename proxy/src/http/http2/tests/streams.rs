use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};
use tokio::task::spawn_local;

use crate::testing::mesh::*;

/// An app that echoes every piece of a request as it comes, with its trailers.
async fn echo() -> App {
    app(|mut call| async move {
        let mut send = call
            .respond
            .send_response(Response::new(()), false)
            .expect("a response");
        let body = call.request.body_mut();
        while let Some(Ok(data)) = body.data().await {
            let length = data.len();
            if write(&mut send, data, false).await.is_err() {
                return;
            }
            let _ = body.flow_control().release_capacity(length);
        }
        match body.trailers().await {
            Ok(Some(trailers)) => send.send_trailers(trailers),
            _ => send.send_data(Bytes::new(), true),
        }
        .expect("the end");
    })
    .await
}

#[test]
fn a_request_and_its_response_arrive_unchanged() {
    run(async {
        let app = app(|mut call| async move {
            let request = &call.request;
            assert_eq!(request.method(), "POST");
            assert_eq!(request.uri(), "http://web/a%2Fb?c=d&c");
            assert_eq!(request.headers()["te"], "trailers");
            assert_eq!(request.headers().get_all("x-many").iter().count(), 2);
            assert!(!request.headers().contains_key("naru-reason"));
            assert_eq!(read(call.request.body_mut()).await, 5);
            let response = Response::builder()
                .status(201)
                .header("x-answer", "yes")
                .header("naru-reason", "made-up")
                .body(())
                .expect("a head");
            let mut send = call
                .respond
                .send_response(response, false)
                .expect("a response");
            send.send_data(Bytes::from_static(b"world"), false)
                .expect("data");
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            trailers.insert("naru-reason", HeaderValue::from_static("made-up"));
            send.send_trailers(trailers).expect("trailers");
        })
        .await;
        let mesh = Setup::new(&[app.address]).start();
        let client = mesh.client().await;
        let mut request = grpc("/a%2Fb?c=d&c");
        let headers = request.headers_mut();
        headers.append("x-many", HeaderValue::from_static("1"));
        headers.append("x-many", HeaderValue::from_static("2"));
        headers.insert("naru-reason", HeaderValue::from_static("made-up"));
        let got = call(&client, request, b"hello").await.expect("a response");
        assert_eq!((got.status, got.header("x-answer")), (201, "yes"));
        assert_eq!(got.header("naru-reason"), "");
        assert_eq!(got.body, b"world");
        let trailers = got.trailers.expect("trailers");
        assert_eq!(
            (&trailers["grpc-status"], trailers.len()),
            (&HeaderValue::from_static("0"), 1)
        );
        assert_eq!(mesh.metric(&["naru_requests_total{", "http/2", "web"]), 1.0);
        assert_eq!(mesh.metric(&["naru_responses_total{", "\"201\""]), 1.0);
    });
}

#[test]
fn messages_flow_in_both_directions_on_one_stream_as_they_come() {
    run(async {
        let app = echo().await;
        let mesh = Setup::new(&[app.address]).start();
        let mut client = mesh.client().await;
        let (response, mut send) = client.send_request(grpc("/chat"), false).expect("a stream");
        let mut body = response.await.expect("a response").into_body();
        for number in 0..100_u32 {
            let message = Bytes::from(number.to_string());
            send.send_data(message.clone(), false).expect("data");
            let back = body.data().await.expect("data").expect("data");
            assert_eq!(back, message);
            let _ = body.flow_control().release_capacity(back.len());
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("x-end", HeaderValue::from_static("1"));
        send.send_trailers(trailers).expect("trailers");
        assert!(body.data().await.is_none());
        let trailers = body.trailers().await.expect("trailers").expect("trailers");
        assert_eq!(trailers["x-end"], "1");
    });
}

#[test]
fn large_bodies_arrive_complete_in_both_directions() {
    run(async {
        const LENGTH: usize = 16 * 1024 * 1024;
        let app = echo().await;
        let mesh = Setup::new(&[app.address]).start();
        let mut client = mesh.client().await;
        let (response, mut send) = client
            .send_request(request("POST", "/"), false)
            .expect("a stream");
        let data: Vec<u8> = (0..LENGTH).map(|i| (i / 7 % 251) as u8).collect();
        let sent = Bytes::from(data);
        let writer = {
            let sent = sent.clone();
            spawn_local(async move { write(&mut send, sent, true).await })
        };
        let got = collect(response.await.expect("a response"))
            .await
            .expect("a body");
        assert_eq!(got.body.len(), LENGTH);
        assert!(got.body == sent);
        writer.await.expect("a task").expect("written");
    });
}

#[test]
fn unread_streams_do_not_stop_the_others() {
    run(async {
        let app = app(|mut call| async move {
            let mut send = call
                .respond
                .send_response(Response::new(()), false)
                .expect("a response");
            let length = match call.request.uri().path() {
                "/endless" => 1024 * 1024 * 1024,
                _ => 512 * 1024,
            };
            let mut left = length;
            while left > 0 {
                let part = Bytes::from(vec![0; 64 * 1024]);
                left -= part.len();
                if write(&mut send, part, left == 0).await.is_err() {
                    return;
                }
            }
        })
        .await;
        let mesh = Setup::new(&[app.address]).start();
        let mut builder = h2::client::Builder::new();
        builder
            .initial_connection_window_size(64 * 1024 * 1024)
            .initial_window_size(256 * 1024);
        let (mut client, _ended) = mesh.client_with(&builder).await;
        let mut stuck = Vec::new();
        for _ in 0..99 {
            let (response, _) = client
                .send_request(get("/endless"), true)
                .expect("a stream");
            stuck.push(response.await.expect("a response"));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        // The same upstream connection, and those of other clients.
        for client in [client, mesh.client().await] {
            let got = call(&client, get("/"), b"").await.expect("a response");
            assert_eq!(got.body.len(), 512 * 1024);
        }
        drop(stuck);
    });
}

#[test]
fn a_reset_reaches_the_other_side_with_its_code() {
    run(async {
        let seen: Rc<RefCell<Option<h2::Reason>>> = Rc::default();
        let app = {
            let seen = seen.clone();
            app(move |mut call| {
                let seen = seen.clone();
                async move {
                    match call.request.uri().path() {
                        "/before" => call.respond.send_reset(h2::Reason::INADEQUATE_SECURITY),
                        "/after" => {
                            let mut send = call
                                .respond
                                .send_response(Response::new(()), false)
                                .expect("a response");
                            send.send_data(Bytes::from_static(b"half"), false)
                                .expect("data");
                            // h2 does not send data that is queued before a reset.
                            tokio::time::sleep(Duration::from_millis(20)).await;
                            send.send_reset(h2::Reason::INTERNAL_ERROR);
                        }
                        _ => {
                            let code = poll_fn(|cx| call.respond.poll_reset(cx)).await;
                            *seen.borrow_mut() = code.ok();
                        }
                    }
                }
            })
            .await
        };
        let mesh = Setup::new(&[app.address]).start();
        let mut client = mesh.client().await;
        let before = call(&client, get("/before"), b"").await;
        assert_eq!(code(before), Some(h2::Reason::INADEQUATE_SECURITY));
        let after = call(&client, get("/after"), b"").await;
        assert_eq!(code(after), Some(h2::Reason::INTERNAL_ERROR));
        let (response, mut send) = client.send_request(get("/wait"), false).expect("a stream");
        until(|| app.calls.get() == 3).await;
        send.send_reset(h2::Reason::from(0x77));
        until(|| seen.borrow().is_some()).await;
        assert_eq!(*seen.borrow(), Some(h2::Reason::from(0x77)));
        drop(response);
        let gone = ["naru_responses_total{", "client-gone"];
        until(|| mesh.metric(&gone) == 1.0).await;
        let truncated = ["naru_responses_total{", "response-truncated", "\"200\""];
        assert_eq!(mesh.metric(&truncated), 1.0);
    });
}

#[test]
fn a_client_that_disappears_cancels_its_requests() {
    run(async {
        let seen: Rc<RefCell<Vec<Option<h2::Reason>>>> = Rc::default();
        let app = {
            let seen = seen.clone();
            app(move |mut call| {
                let seen = seen.clone();
                async move {
                    let code = poll_fn(|cx| call.respond.poll_reset(cx)).await;
                    seen.borrow_mut().push(code.ok());
                }
            })
            .await
        };
        let mesh = Setup::new(&[app.address]).start();
        let (mut client, ended) = mesh.client_with(&h2::client::Builder::new()).await;
        let (response, send) = client.send_request(get("/"), false).expect("a stream");
        until(|| app.calls.get() == 1).await;
        ended.abort();
        drop((response, send, client));
        until(|| !seen.borrow().is_empty()).await;
        assert_eq!(seen.borrow()[0], Some(h2::Reason::CANCEL));
        // The upstream connection stays usable.
        assert_eq!(
            mesh.metric(&["naru_pool_connections{", "http/2", "idle"]),
            1.0
        );
    });
}

#[test]
fn a_response_before_the_body_is_passed_on() {
    run(async {
        let app = app(|mut call| async move {
            answer(&mut call.respond, 413, "enough");
        })
        .await;
        let mesh = Setup::new(&[app.address]).start();
        let mut client = mesh.client().await;
        let (response, mut send) = client
            .send_request(request("POST", "/"), false)
            .expect("a stream");
        send.send_data(Bytes::from_static(b"begin"), false)
            .expect("data");
        let got = collect(response.await.expect("a response"))
            .await
            .expect("a body");
        assert_eq!((got.status, got.body.as_slice()), (413, &b"enough"[..]));
        // As h2's server ends it: RST_STREAM with NO_ERROR.
        let stopped = poll_fn(|cx| send.poll_reset(cx)).await.expect("a code");
        assert_eq!(stopped, h2::Reason::NO_ERROR);
        until(|| mesh.metric(&["naru_responses_total{", "\"413\""]) == 1.0).await;
    });
}

#[test]
fn interim_responses_are_passed_on() {
    run(async {
        let app = app(|mut call| async move {
            let interim = Response::builder()
                .status(103)
                .header("link", "</a>")
                .header("naru-reason", "no-endpoint");
            call.respond
                .send_informational(interim.body(()).expect("a head"))
                .expect("an interim response");
            tokio::time::sleep(Duration::from_millis(20)).await;
            answer(&mut call.respond, 200, "done");
        })
        .await;
        let mesh = Setup::new(&[app.address]).start();
        let mut client = mesh.client().await;
        let (mut response, _) = client.send_request(get("/"), true).expect("a stream");
        let interim = poll_fn(|cx| response.poll_informational(cx)).await;
        let interim = interim.expect("one").expect("one");
        assert_eq!(
            (interim.status().as_u16(), &interim.headers()["link"]),
            (103, &HeaderValue::from_static("</a>"))
        );
        assert!(!interim.headers().contains_key("naru-reason"));
        let got = collect(response.await.expect("a response"))
            .await
            .expect("a body");
        assert_eq!((got.status, got.body.as_slice()), (200, &b"done"[..]));
    });
}

#[test]
fn head_and_empty_responses_keep_their_length_fields() {
    run(async {
        let app = app(|mut call| async move {
            let response = Response::builder().header("content-length", "123").status(
                if call.request.method() == "HEAD" {
                    200
                } else {
                    304
                },
            );
            let response = response.body(()).expect("a head");
            call.respond
                .send_response(response, true)
                .expect("a response");
        })
        .await;
        let mesh = Setup::new(&[app.address]).start();
        let client = mesh.client().await;
        let got = call(&client, request("HEAD", "/"), b"")
            .await
            .expect("a response");
        assert_eq!((got.status, got.header("content-length")), (200, "123"));
        let got = call(&client, get("/"), b"").await.expect("a response");
        assert_eq!((got.status, got.header("content-length")), (304, "123"));
    });
}

#[test]
fn tunnels_carry_bytes_in_both_directions() {
    run(async {
        let mut builder = h2::server::Builder::new();
        builder.enable_connect_protocol();
        let app = app_with(builder, |mut call| async move {
            let protocol = call.request.extensions().get::<h2::ext::Protocol>();
            let name = protocol.map_or("none", |p| p.as_str()).to_owned();
            let response = Response::builder().header("x-protocol", name).body(());
            let mut send = call
                .respond
                .send_response(response.expect("a head"), false)
                .expect("a response");
            let body = call.request.body_mut();
            while let Some(Ok(data)) = body.data().await {
                send.send_data(data, false).expect("data");
            }
            send.send_data(Bytes::new(), true).expect("the end");
        })
        .await;
        let mesh = Setup::new(&[app.address]).start();
        let mut client = mesh.client().await;
        let mut extended = http::Request::connect("http://web/chat")
            .body(())
            .expect("a request");
        extended
            .extensions_mut()
            .insert(h2::ext::Protocol::from_static("websocket"));
        let (response, mut send) = client.send_request(extended, false).expect("a stream");
        let response = response.await.expect("a response");
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["x-protocol"], "websocket");
        let mut body = response.into_body();
        send.send_data(Bytes::from_static(b"ping"), false)
            .expect("data");
        assert_eq!(body.data().await.expect("data").expect("data"), "ping");
        send.send_data(Bytes::new(), true).expect("the end");
        assert_eq!(read(&mut body).await, 0);
    });
}

#[test]
fn a_host_field_instead_of_the_authority_is_passed_on() {
    run(async {
        let app = app(|mut call| async move {
            assert_eq!(call.request.headers()["host"], "web");
            assert_eq!(call.request.uri().path(), "/a");
            answer(&mut call.respond, 200, "");
        })
        .await;
        let mesh = Setup::new(&[app.address]).start();
        let client = mesh.client().await;
        let mut request = http::Request::get("/a").body(()).expect("a request");
        *request.version_mut() = http::Version::HTTP_11;
        request
            .headers_mut()
            .insert("host", HeaderValue::from_static("web"));
        let got = call(&client, request, b"").await.expect("a response");
        assert_eq!(got.status, 200);
    });
}
