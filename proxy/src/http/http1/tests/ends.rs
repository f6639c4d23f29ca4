//! Which side closes what, and when: half-closed connections, early responses, and servers that
//! close the connection.

use std::time::Duration;

use tokio::io::AsyncWriteExt;

use super::fixture::*;

/// An app that waits for the end of its client's half before it answers, and closes.
async fn patient() -> App {
    app(|_, mut talk| async move {
        let head = talk.head().await.expect("a request");
        if head.starts_with("POST ") {
            talk.exactly(5).await.expect("a body");
        }
        assert_eq!(talk.rest().await, "", "the end of a half is passed on");
        talk.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate")
            .await;
    })
    .await
}

#[test]
fn a_client_that_half_closes_after_the_request_gets_its_response() {
    run(async {
        for request in [
            GET,
            "GET / HTTP/1.0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\n\r\nhello",
        ] {
            for inbound in [false, true] {
                let app = patient().await;
                let mesh = Setup::new(&[app.address]).start();
                let mut client = match inbound {
                    true => inbound_client(&mesh, "spiffe://t/ns/a/sa/b"),
                    false => client(&mesh),
                };
                client.talk.send(request).await;
                client.talk.io.shutdown().await.expect("half a close");
                let answer = client.talk.rest().await;
                assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
                assert!(answer.ends_with("\r\n\r\nlate"), "{answer}");
                assert!(!client.served.await.expect("no panic"), "ended in order");
            }
        }
    });
}

#[test]
fn all_requests_before_a_half_close_are_answered() {
    run(async {
        let app = answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        let mesh = Setup::new(&[app.address]).start();
        let mut client = client(&mesh);
        client.talk.send(&GET.repeat(3)).await;
        client.talk.io.shutdown().await.expect("half a close");
        assert_eq!(client.talk.rest().await.matches("\r\n\r\nok").count(), 3);
    });
}

const POST: &str = "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: ";

#[test]
fn a_response_before_a_long_body_announces_the_close() {
    run(async {
        for close in ["", "Connection: close\r\n"] {
            let app = app(move |_, mut talk| async move {
                talk.head().await.expect("a request");
                let answer =
                    format!("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n{close}\r\n");
                talk.send(&answer).await;
            })
            .await;
            let mesh = Setup::new(&[app.address]).start();
            let mut client = client(&mesh);
            client.talk.send(&format!("{POST}400000\r\n\r\n")).await;
            let head = client.talk.head().await.expect("an answer");
            assert!(head.starts_with("HTTP/1.1 401 "), "{head}");
            assert!(head.contains("Connection: close\r\n"), "{head}");
        }
    });
}

#[test]
fn a_client_that_stops_reading_loses_its_connection_in_time() {
    const LENGTH: usize = 64 * 1024 * 1024;
    run(async {
        let app = app(move |_, mut talk| async move {
            while talk.head().await.is_some() {
                talk.send(&format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n"
                ))
                .await;
                let piece = "x".repeat(64 * 1024);
                for _ in 0..LENGTH / piece.len() {
                    talk.send(&piece).await;
                }
            }
        })
        .await;
        let mut setup = Setup::new(&[app.address]);
        setup.limits.reader_timeout = Duration::from_millis(200);
        let mesh = setup.start();
        let stopped = ["naru_responses_total{", "reader-stopped", "\"200\""];
        let mut client = client(&mesh);
        client.talk.send(GET).await;
        client.talk.head().await.expect("an answer");
        client.talk.exactly(64 * 1024).await.expect("a part of it");
        // The client stops reading.
        until(|| mesh.metric(&stopped) == 1.0).await;
        let active = ["naru_pool_connections{", "http/1.1", "active"];
        until(|| mesh.metric(&active) == 0.0).await;
    });
}

#[test]
fn a_short_rest_of_the_body_after_an_early_response_is_awaited() {
    run(async {
        // The first app reads the body; the second closes without announcing it.
        for reads in [true, false] {
            let app = app(move |_, mut talk| async move {
                while let Some(head) = talk.head().await {
                    talk.send("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
                        .await;
                    if head.starts_with("POST ") && reads {
                        talk.exactly(60_000).await.expect("the body");
                    } else if head.starts_with("POST ") {
                        return;
                    }
                }
            })
            .await;
            let mesh = Setup::new(&[app.address]).start();
            let mut client = client(&mesh);
            client.talk.send(&format!("{POST}60000\r\n\r\n")).await;
            for _ in 0..2 {
                let head = client.talk.head().await.expect("an answer");
                assert!(head.starts_with("HTTP/1.1 401 "), "{head}");
                assert!(!head.contains("Connection: close"), "{head}");
                // The body, directly followed by the next request.
                client.talk.send(&"b".repeat(60_000)).await;
                client.talk.send(&format!("{POST}60000\r\n\r\n")).await;
            }
        }
    });
}

#[test]
fn an_app_that_answers_first_still_gets_the_whole_body() {
    run(async {
        let (done, seen) = tokio::sync::oneshot::channel();
        let done = std::cell::Cell::new(Some(done));
        let done = std::rc::Rc::new(done);
        let app = app(move |_, mut talk| {
            let done = done.clone();
            async move {
                talk.head().await.expect("a request");
                talk.send("HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")
                    .await;
                let body = talk.exactly(1_000_000).await.map(|body| body.len());
                done.take()
                    .expect("one request")
                    .send(body)
                    .expect("a test");
            }
        })
        .await;
        let mesh = Setup::new(&[app.address]).start();
        let mut client = client(&mesh);
        client.talk.send(&format!("{POST}1000000\r\n\r\n")).await;
        client.talk.head().await.expect("an answer");
        client.talk.send(&"b".repeat(1_000_000)).await;
        assert_eq!(seen.await, Ok(Some(1_000_000)));
    });
}

#[test]
fn a_408_that_crosses_a_request_is_ignored() {
    run(async {
        let app = app(|number, mut talk| async move {
            talk.head().await.expect("a request");
            talk.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                .await;
            if number > 1 || talk.head().await.is_none() {
                return;
            }
            talk.send(
                "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            )
            .await;
        })
        .await;
        let mesh = Setup::new(&[app.address]).start();
        let mut client = client(&mesh);
        for _ in 0..2 {
            client.talk.send(GET).await;
            let head = client.talk.head().await.expect("an answer");
            assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        }
        assert_eq!(app.connections.get(), 2);
    });
}

#[test]
fn a_408_on_a_new_connection_is_passed_on() {
    run(async {
        let (head, _) = ask(
            "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            GET,
        )
        .await;
        assert!(head.starts_with("HTTP/1.1 408 "), "{head}");
    });
}

#[test]
fn a_client_whose_expectation_fails_may_retry() {
    run(async {
        for (status, says) in [
            ("417 Expectation Failed", false),
            ("401 Unauthorized", true),
        ] {
            let app = app(move |_, mut talk| async move {
                talk.head().await.expect("a request");
                talk.send(&format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n"))
                    .await;
                assert_eq!(talk.rest().await, "", "nothing is taken for the body");
            })
            .await;
            let mesh = Setup::new(&[app.address]).start();
            let mut client = client(&mesh);
            client
                .talk
                .send(&format!("{POST}60\r\nExpect: 100-continue\r\n\r\n"))
                .await;
            let head = client.talk.head().await.expect("an answer");
            assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{head}");
            assert_eq!(head.contains("Connection: close"), says, "{head}");
            client.talk.send(GET).await;
            assert_eq!(client.talk.rest().await, "");
        }
    });
}
