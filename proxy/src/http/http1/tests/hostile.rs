//! Protocol violations, and attempts to get more than a response out of the proxy.

use std::time::Duration;

use tokio::io::AsyncWriteExt;

use super::fixture::*;

#[test]
fn a_truncated_response_is_truncated_for_the_client() {
    run(async {
        for response in [
            "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense",
        ] {
            let app = app(move |_, mut talk| async move {
                talk.head().await;
                talk.send(response).await;
            })
            .await;
            let mesh = Setup::new(&[app.address]).start();
            let mut client = client(&mesh);
            client.talk.send(GET).await;
            client.talk.head().await.expect("a head");
            client.talk.rest().await;
            assert!(client.served.await.expect("no panic"), "{response}");
        }
    });
}

#[test]
fn invalid_requests_are_refused_with_a_reason() {
    run(async {
        let long = format!(
            "GET / HTTP/1.1\r\nHost: web\r\nA: {}\r\n\r\n",
            "x".repeat(70_000)
        );
        let endless = format!("GET /{}", "x".repeat(70_000));
        for (request, status, reason) in [
            ("GET / HTTP/1.1\nHost: web\r\n\r\n", 400, "bad-request"),
            ("GET / HTTP/1.1\r\n\r\n", 400, "bad-request"),
            (
                "GET / HTTP/1.1\r\nHost: web\r\nHost: web\r\n\r\n",
                400,
                "bad-request",
            ),
            (
                "GET / HTTP/1.1\r\nHost: web\r\nContent-Length: 1\r\n\
                 Transfer-Encoding: chunked\r\n\r\n",
                400,
                "bad-request",
            ),
            (
                "GET / HTTP/1.1\r\nHost: web\r\nA : b\r\n\r\n",
                400,
                "bad-request",
            ),
            (
                "GET / HTTP/2.0\r\nHost: web\r\n\r\n",
                505,
                "version-not-supported",
            ),
            (&long, 431, "header-too-large"),
            (&endless, 431, "header-too-large"),
            (
                "POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
                400,
                "bad-request",
            ),
        ] {
            let (head, reset) = ask("HTTP/1.1 200 OK\r\n\r\n", request).await;
            let start = &request[..request.len().min(60)];
            assert!(
                head.starts_with(&format!("HTTP/1.1 {status} ")),
                "{start}: {head}"
            );
            assert!(
                head.contains(&format!("naru-reason: {reason}\r\n")),
                "{start}: {head}"
            );
            assert!(head.contains("Connection: close\r\n") && !reset);
        }
    });
}

#[test]
fn a_slow_head_times_out() {
    run(async {
        let app = answering("HTTP/1.1 200 OK\r\n\r\n").await;
        let mut setup = Setup::new(&[app.address]);
        setup.limits.header_timeout = Duration::from_millis(50);
        let mesh = setup.start();
        let mut client = client(&mesh);
        client.talk.send("GET / HTTP/1.1\r\nHo").await;
        let head = client.talk.head().await.expect("a head");
        assert!(head.starts_with("HTTP/1.1 408 "), "{head}");
    });
}

#[test]
fn an_apps_own_reason_header_is_removed() {
    run(async {
        let (head, _) = ask(
            "HTTP/1.1 503 Busy\r\nnaru-reason: no-endpoint\r\nContent-Length: 0\r\n\r\n",
            GET,
        )
        .await;
        assert_eq!(head, "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n");
        let (hints, _) = ask(
            "HTTP/1.1 103 Early Hints\r\nNaru-Reason: no-endpoint\r\nLink: <a>\r\n\r\n\
             HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            GET,
        )
        .await;
        assert_eq!(hints, "HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n");
    });
}

#[test]
fn an_unrequested_protocol_switch_leaves_the_next_request_intact() {
    run(async {
        let app = app(|_, mut talk| async move {
            let head = talk.head().await.expect("a request");
            if head.starts_with("POST ") {
                talk.exactly(5).await.expect("a body");
                talk.send("HTTP/1.1 101 Switching Protocols\r\n\r\n").await;
            } else {
                assert!(head.starts_with("GET /next HTTP/1.1\r\n"), "{head}");
                talk.send("HTTP/1.1 204 No Content\r\n\r\n").await;
            }
            talk.rest().await;
        })
        .await;
        let mesh = Setup::new(&[app.address]).start();
        let mut client = client(&mesh);
        client
            .talk
            .send(
                "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\n\r\n\
                helloGET /next HTTP/1.1\r\nHost: web\r\n\r\n",
            )
            .await;
        let head = client.talk.head().await.expect("a head");
        assert!(head.starts_with("HTTP/1.1 502 "), "{head}");
        let head = client.talk.head().await.expect("another");
        assert_eq!(head, "HTTP/1.1 204 No Content\r\n\r\n");
    });
}

#[test]
fn nothing_is_read_after_a_body_with_invalid_coding() {
    run(async {
        let app = app(|_, mut talk| async move {
            talk.until("7\r\n").await.expect("a chunk's size");
            talk.rest().await;
        })
        .await;
        let mesh = Setup::new(&[app.address]).start();
        let mut client = client(&mesh);
        client
            .talk
            .send("POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n7\r\n")
            .await;
        while app.connections.get() == 0 {
            a_moment().await;
        }
        // Seven bytes of content, without an end of line after them. Read as coding, they would be
        // the end of the body.
        client.talk.send(&format!("\r\n0\r\n\r\nX{GET}")).await;
        let head = client.talk.head().await.expect("a head");
        assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
        assert!(head.contains("Connection: close\r\n"), "{head}");
        assert_eq!(client.talk.rest().await, "");
    });
}

#[test]
fn unread_replies_do_not_accumulate() {
    run(async {
        let mesh = Setup::new(&[]).start();
        let mut client = client(&mesh);
        let requests = GET.repeat(100);
        let mut sent = 0;
        loop {
            let sending = client.talk.io.write_all(requests.as_bytes());
            match tokio::time::timeout(Duration::from_millis(500), sending).await {
                Ok(written) => written.expect("open"),
                // The proxy reads no more.
                Err(_) => break,
            }
            sent += requests.len();
            assert!(sent < 1_000_000);
        }
        // A client that reads late still gets every response.
        for _ in 0..1_000 {
            client.talk.head().await.expect("a head");
        }
    });
}
