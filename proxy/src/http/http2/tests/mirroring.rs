use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};

use crate::testing::mesh::*;

/// An app that records the last request, and answers with `status` and `body`.
async fn recording(status: u16, body: &'static str) -> (App, Rc<RefCell<Vec<String>>>) {
    let heard = Rc::new(RefCell::new(Vec::new()));
    let kept = heard.clone();
    let app = app(move |mut call| {
        let kept = kept.clone();
        async move {
            let head = format!(
                "{} {} {:?}",
                call.request.method(),
                call.request.uri(),
                call.request.headers()
            );
            let length = read(call.request.body_mut()).await;
            let trailers = call.request.body_mut().trailers().await;
            kept.borrow_mut()
                .push(format!("{head} {length} {trailers:?}"));
            answer(&mut call.respond, status, body);
        }
    })
    .await;
    (app, heard)
}

/// An app that neither reads nor answers.
async fn silent() -> App {
    app(|call| async move {
        let _call = call;
        std::future::pending().await
    })
    .await
}

#[test]
fn every_mirror_gets_the_backends_request_and_its_response_is_dropped() {
    run(async {
        let (app, backend) = recording(200, "seen").await;
        let (one, first) = recording(500, "unseen").await;
        let (other, second) = recording(500, "unseen").await;
        let setup = Setup::new(&[app.address]).mirror(&[one.address], 100);
        let mesh = setup.mirror(&[other.address], 100).start();
        let mut client = mesh.client().await;
        let (response, mut send) = client
            .send_request(grpc("/a.B/C"), false)
            .expect("a stream");
        for _ in 0..3 {
            write(&mut send, Bytes::from(vec![1; 50_000]), false)
                .await
                .expect("data");
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("x-end", HeaderValue::from_static("1"));
        send.send_trailers(trailers).expect("trailers");
        let got = collect(response.await.expect("a response")).await;
        assert_eq!(got.expect("a body").body, b"seen");
        let got = call(&client, get("/without/a/body"), b"").await;
        assert_eq!(got.expect("a response").body, b"seen");
        until(|| mesh.mirrored("answered") == 4.0).await;
        let sorted = |heard: &Rc<RefCell<Vec<String>>>| {
            let mut heard = heard.borrow().clone();
            heard.sort();
            heard
        };
        assert!(backend.borrow()[0].contains("150000"), "{backend:?}");
        assert!(backend.borrow()[0].contains("x-end"), "{backend:?}");
        assert_eq!(sorted(&first), sorted(&backend));
        assert_eq!(sorted(&second), sorted(&backend));
        assert_eq!(mesh.metric(&["naru_requests_total{"]), 2.0);
        assert_eq!(mesh.metric(&["naru_responses_total{", "500"]), 0.0);
    });
}

#[test]
fn a_dead_mirror_costs_nothing() {
    run(async {
        let app = answering(200, "ok").await;
        let mesh = Setup::new(&[app.address])
            .mirror(&[unused_address().await], 100)
            .start();
        let client = mesh.client().await;
        let got = call(&client, request("POST", "/"), &[1; 100_000]).await;
        assert_eq!(got.expect("a response").body, b"ok");
        until(|| mesh.mirrored("failed") == 1.0).await;
        assert_eq!(mesh.metric(&["naru_retries_total{"]), 0.0);
    });
}

#[test]
fn a_mirror_that_does_not_read_is_aborted_and_the_body_flows() {
    run(async {
        let app = answering(200, "ok").await;
        let reset = Rc::new(Cell::new(None));
        let noted = reset.clone();
        let mirror = crate::testing::mesh::app(move |mut call| {
            let noted = noted.clone();
            async move {
                let code = std::future::poll_fn(|cx| call.respond.poll_reset(cx)).await;
                noted.set(code.ok());
            }
        })
        .await;
        let mesh = Setup::new(&[app.address])
            .mirror(&[mirror.address], 100)
            .start();
        let client = mesh.client().await;
        let got = call(&client, request("POST", "/"), &vec![1; 4 * 1024 * 1024]).await;
        assert_eq!(got.expect("a response").body, b"ok");
        until(|| reset.get().is_some()).await;
        assert_eq!(reset.get(), Some(h2::Reason::CANCEL));
        assert_eq!(mesh.mirrored("too_slow"), 1.0);
    });
}

#[test]
fn copies_in_progress_are_bounded() {
    run(async {
        let app = answering(200, "ok").await;
        let mirror = silent().await;
        let mut mesh = Setup::new(&[app.address])
            .mirror(&[mirror.address], 100)
            .start();
        let client = mesh.client().await;
        for _ in 0..300 {
            let got = call(&client, get("/"), b"").await.expect("a response");
            assert_eq!(got.body, b"ok");
        }
        assert_eq!(mesh.mirrored("skipped"), 300.0 - 256.0);
        // A shutdown does not wait for them either.
        let signal = mesh.signal.take().expect("a signal");
        signal.start();
        signal.finished().await;
    });
}

#[test]
fn a_truncated_body_is_truncated_for_the_mirror() {
    run(async {
        let app = app(|mut call| async move {
            read(call.request.body_mut()).await;
        })
        .await;
        let broken = Rc::new(Cell::new(false));
        let noted = broken.clone();
        let mirror = crate::testing::mesh::app(move |mut call| {
            let noted = noted.clone();
            async move {
                let body = call.request.body_mut();
                body.data().await.expect("a start").expect("a start");
                noted.set(matches!(body.data().await, Some(Err(_))));
            }
        })
        .await;
        let mesh = Setup::new(&[app.address])
            .mirror(&[mirror.address], 100)
            .start();
        let mut client = mesh.client().await;
        let (_response, mut send) = client
            .send_request(request("POST", "/"), false)
            .expect("a stream");
        send.send_data(Bytes::from_static(b"start"), false)
            .expect("data");
        until(|| mirror.calls.get() == 1).await;
        send.send_reset(h2::Reason::CANCEL);
        until(|| broken.get()).await;
        assert_eq!(mesh.mirrored("broken_off"), 1.0);
    });
}

#[test]
fn a_request_that_is_retried_is_copied_once() {
    run(async {
        let refusing = app(|mut call| async move {
            let _ = call.request.body_mut().data().await;
            call.respond.send_reset(h2::Reason::REFUSED_STREAM);
        })
        .await;
        let taking = answering(200, "taken").await;
        let (mirror, heard) = recording(200, "unseen").await;
        let mesh = Setup::new(&[refusing.address, taking.address])
            .mirror(&[mirror.address], 100)
            .start();
        let client = mesh.client().await;
        for _ in 0..20 {
            let got = call(&client, request("POST", "/"), &[7; 40_000]).await;
            assert_eq!(got.expect("a response").body, b"taken");
        }
        assert!(refusing.calls.get() > 0);
        until(|| mesh.mirrored("answered") == 20.0).await;
        assert!(heard.borrow().iter().all(|heard| heard.contains("40000")));
    });
}
