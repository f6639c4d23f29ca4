use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use tokio::net::TcpSocket;
use tokio::task::spawn_local;

use super::fixture::app as app_of;
use super::fixture::*;
use crate::session::mirroring::Mirroring;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
const BUSY: &str = "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n";
/// A mirror's response, which must never reach the client.
const UNSEEN: &str = "HTTP/1.1 500 Oh\r\nContent-Length: 6\r\n\r\nunseen";

/// All messages that an app received.
type Recorded = Rc<RefCell<String>>;

/// An app that records each message up to `end`, and answers with `response`.
async fn recording(end: &'static str, response: &'static str) -> (App, Recorded) {
    let heard = Recorded::default();
    let kept = heard.clone();
    let app = app(move |_, mut talk| {
        let kept = kept.clone();
        async move {
            while let Some(message) = talk.until(end).await {
                kept.borrow_mut().push_str(&message);
                talk.send(response).await;
            }
        }
    })
    .await;
    (app, heard)
}

/// An app that accepts connections and never answers.
async fn silent() -> App {
    app(|_, mut talk| async move { while talk.until("never").await.is_some() {} }).await
}

#[test]
fn every_mirror_gets_the_backends_request_and_its_response_is_dropped() {
    run(async {
        for request in [
            "POST /a HTTP/1.1\r\nHost: web\r\nX-Order: 1\r\nContent-Length: 4\r\n\r\nend.",
            "POST /a HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n4;x=y\r\nend.\r\n\
             0\r\nX-Trailer: end.\r\n\r\n",
        ] {
            let end = if request.contains("chunked") {
                ".\r\n\r\n"
            } else {
                "end."
            };
            let (app, backend) = recording(end, OK).await;
            let (one, first) = recording(end, UNSEEN).await;
            let (other, second) = recording(end, UNSEEN).await;
            let setup = Setup::new(&[app.address]);
            let setup = setup.mirror(&[one.address], 100);
            let mesh = setup.mirror(&[other.address], 100).start();
            let mut client = client(&mesh);
            // In two parts, the second of which comes later.
            let (start, rest) = request.split_at(request.len() - 10);
            client.talk.send(start).await;
            a_moment().await;
            client.talk.send(rest).await;
            assert_eq!(client.talk.head().await.expect("a head"), OK);
            until(|| mesh.mirrored("answered") == 2.0).await;
            assert_eq!(*backend.borrow(), request);
            assert_eq!(*first.borrow(), request);
            assert_eq!(*second.borrow(), request);
            assert_eq!(mesh.metric(&["naru_requests_total{"]), 1.0);
            assert_eq!(mesh.metric(&["naru_responses_total{", "500"]), 0.0);
        }
    });
}

#[test]
fn a_large_body_is_copied_completely_to_a_mirror_that_reads() {
    const LENGTH: usize = 1024 * 1024;
    run(async {
        let taking = || {
            app(|_, mut talk| async move {
                talk.head().await.expect("a head");
                let body = talk.exactly(LENGTH).await.expect("a body");
                assert!(body.iter().all(|byte| *byte == b'x'));
                talk.send(OK).await;
            })
        };
        let (backend, mirror) = (taking().await, taking().await);
        let mesh = Setup::new(&[backend.address])
            .mirror(&[mirror.address], 100)
            .start();
        let Downstream { mut talk, .. } = client(&mesh);
        let head = format!("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: {LENGTH}\r\n\r\n");
        talk.send(&head).await;
        // By now both have a connection.
        until(|| mirror.connections.get() == 1).await;
        talk.send_bytes(&vec![b'x'; LENGTH]).await;
        assert_eq!(talk.head().await.expect("a head"), OK);
        until(|| mesh.mirrored("answered") == 1.0).await;
    });
}

#[test]
fn the_connection_of_a_copy_is_reused() {
    run(async {
        let app = answering(OK).await;
        let mirror = answering(UNSEEN).await;
        let mesh = Setup::new(&[app.address])
            .mirror(&[mirror.address], 100)
            .start();
        super::closing::seen_open(&mesh);
        let mut client = client(&mesh);
        for number in 1..=5 {
            client.talk.send(GET).await;
            assert_eq!(client.talk.head().await.expect("a head"), OK);
            until(|| mesh.mirrored("answered") == f64::from(number)).await;
        }
        assert_eq!(mirror.connections.get(), 1);
    });
}

#[test]
fn a_share_of_the_requests_is_copied() {
    run(async {
        let app = answering(OK).await;
        let mirror = answering(UNSEEN).await;
        let mesh = Setup::new(&[app.address])
            .mirror(&[mirror.address], 20)
            .start();
        let mut client = client(&mesh);
        for _ in 0..500 {
            client.talk.send(GET).await;
            assert_eq!(client.talk.head().await.expect("a head"), OK);
        }
        let answered = mesh.mirrored("answered");
        // Three standard deviations around 100, with a fixed seed.
        assert!((74.0..=127.0).contains(&answered), "{answered}");
    });
}

#[test]
fn a_dead_mirror_costs_nothing() {
    run(async {
        let app = answering(OK).await;
        let mesh = Setup::new(&[app.address])
            .mirror(&[unused_address().await], 100)
            .mirror(&[], 100)
            .start();
        let mut client = client(&mesh);
        client
            .talk
            .send("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 0\r\n\r\n")
            .await;
        assert_eq!(client.talk.head().await.expect("a head"), OK);
        until(|| mesh.mirrored("failed") == 2.0).await;
        assert_eq!(mesh.metric(&["naru_retries_total{"]), 0.0);
    });
}

#[test]
fn a_mirror_that_never_answers_delays_nothing() {
    run(async {
        let app = answering(OK).await;
        let mirror = silent().await;
        let mut mesh = Setup::new(&[app.address])
            .mirror(&[mirror.address], 100)
            .start();
        let mut client = client(&mesh);
        for _ in 0..3 {
            client.talk.send(GET).await;
            assert_eq!(client.talk.head().await.expect("a head"), OK);
        }
        until(|| mirror.connections.get() == 3).await;
        let signal = mesh.signal.take().expect("a signal");
        signal.start();
        signal.finished().await;
        assert_eq!(mesh.mirrored("answered"), 0.0);
    });
}

#[test]
fn a_copy_that_takes_too_long_is_aborted() {
    run(async {
        let app = answering(OK).await;
        let gone = Rc::new(Cell::new(false));
        let noted = gone.clone();
        let mirror = app_of(move |_, mut talk| {
            let noted = noted.clone();
            async move {
                talk.head().await.expect("a copy");
                noted.set(talk.head().await.is_none());
            }
        })
        .await;
        let mut setup = Setup::new(&[app.address]).mirror(&[mirror.address], 100);
        // Long enough for the head of a copy to arrive, however slow the machine is.
        setup.mirroring = Rc::new(Mirroring::within(Duration::from_millis(500)));
        let mesh = setup.start();
        let mut client = client(&mesh);
        client.talk.send(GET).await;
        assert_eq!(client.talk.head().await.expect("a head"), OK);
        until(|| mesh.mirrored("timed_out") == 1.0).await;
        until(|| gone.get()).await;
    });
}

#[test]
fn a_mirror_that_does_not_read_is_aborted_and_the_body_flows() {
    /// More than a queue and the kernel's buffers hold.
    const LENGTH: usize = 32 * 1024 * 1024;
    run(async {
        let app = app(|_, mut talk| async move {
            talk.head().await;
            // Not stored: it is large.
            let (mut left, mut piece) = (LENGTH, vec![0; 64 * 1024]);
            while left > 0 {
                left -= tokio::io::AsyncReadExt::read(&mut talk.io, &mut piece)
                    .await
                    .expect("a body");
            }
            talk.send(OK).await;
        })
        .await;
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(4096).expect("a size");
        socket.bind(([127, 0, 0, 1], 0).into()).expect("an address");
        let listener = socket.listen(1).expect("a listener");
        let address = listener.local_addr().expect("an address");
        let mesh = Setup::new(&[app.address]).mirror(&[address], 100).start();
        let Downstream { mut talk, served } = client(&mesh);
        talk.send(&format!(
            "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: {LENGTH}\r\n\r\n"
        ))
        .await;
        let (mut unread, _) = listener.accept().await.expect("a copy");
        let client = spawn_local(async move {
            let piece = vec![b'x'; 1024 * 1024];
            for _ in 0..LENGTH / piece.len() {
                talk.send_bytes(&piece).await;
            }
            talk.head().await
        });
        let head = client.await.expect("no panic");
        assert_eq!(head.expect("a head"), OK);
        assert_eq!(mesh.mirrored("too_slow"), 1.0);
        // It is reset rather than closed in order.
        let rest = tokio::io::AsyncReadExt::read_to_end(&mut unread, &mut Vec::new()).await;
        let kind = rest.expect_err("a reset").kind();
        assert_eq!(kind, std::io::ErrorKind::ConnectionReset);
        assert!(!served.await.expect("no panic"));
    });
}

#[test]
fn a_truncated_body_is_truncated_for_the_mirror() {
    run(async {
        let (_app, _) = recording("never", OK).await;
        let broken = Rc::new(Cell::new(false));
        let noted = broken.clone();
        let mirror = app(move |_, mut talk| {
            let noted = noted.clone();
            async move {
                talk.until("first").await.expect("the start");
                noted.set(talk.until("second").await.is_none());
            }
        })
        .await;
        let mesh = Setup::new(&[_app.address])
            .mirror(&[mirror.address], 100)
            .start();
        let mut client = client(&mesh);
        client
            .talk
            .send("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 11\r\n\r\nfirst")
            .await;
        until(|| mirror.connections.get() == 1).await;
        a_moment().await;
        drop(client.talk);
        until(|| broken.get()).await;
        assert_eq!(mesh.mirrored("broken_off"), 1.0);
    });
}

#[test]
fn a_request_that_is_retried_is_copied_once() {
    run(async {
        let app = answering_hello(BUSY, OK).await;
        let (mirror, heard) = recording("hello", BUSY).await;
        let mesh = Setup::new(&[app.address])
            .retry(&[503], 2)
            .mirror(&[mirror.address], 100)
            .start();
        let mut client = client(&mesh);
        let request = "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\n\r\nhello";
        client.talk.send(request).await;
        assert_eq!(client.talk.head().await.expect("a head"), OK);
        until(|| mesh.mirrored("answered") == 1.0).await;
        assert_eq!(*heard.borrow(), request);
    });
}

#[test]
fn a_request_that_becomes_a_tunnel_is_not_copied() {
    run(async {
        let switching = "HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n";
        let app = answering(switching).await;
        let mirror = answering(UNSEEN).await;
        let mesh = Setup::new(&[app.address])
            .mirror(&[mirror.address], 100)
            .start();
        let mut client = client(&mesh);
        let request = "GET / HTTP/1.1\r\nHost: web\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";
        client.talk.send(request).await;
        let head = client.talk.head().await.expect("a head");
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        a_moment().await;
        assert_eq!(mirror.connections.get(), 0);
    });
}
