use tokio::io::AsyncWriteExt;

use super::fixture::*;

#[test]
fn messages_are_passed_on_unchanged() {
    run(async {
        let app = app(|_, mut talk| async move {
            let head = talk.head().await.expect("a request");
            assert_eq!(
                head,
                "POST /a?b=%20c HTTP/1.1\r\nhOST: web\r\nX-B: 1\r\nX-a: 2\r\nx-b: 3\r\n\
                 Content-Length: 5\r\n\r\n"
            );
            assert_eq!(talk.exactly(5).await.expect("a body"), b"hello");
            talk.send(
                "HTTP/1.1 201 Quite Made\r\nsERVER: me\r\nSet-Cookie: 1\r\nset-cookie: 2\r\n\
                content-length: 2\r\n\r\nok",
            )
            .await;
            assert!(
                talk.head()
                    .await
                    .expect("another")
                    .starts_with("GET /second")
            );
            talk.send("HTTP/1.1 204 No Content\r\n\r\n").await;
            talk.rest().await;
        })
        .await;
        let mesh = Setup::new(&[app.address]).start();
        let mut client = client(&mesh);
        client
            .talk
            .send(
                "POST /a?b=%20c HTTP/1.1\r\nhOST: web\r\nX-B: 1\r\nX-a: 2\r\nx-b: 3\r\n\
                Connection: keep-alive\r\nContent-Length: 5\r\n\r\nhello",
            )
            .await;
        assert_eq!(
            client.talk.until("\r\n\r\nok").await.expect("a response"),
            "HTTP/1.1 201 Quite Made\r\nsERVER: me\r\nSet-Cookie: 1\r\nset-cookie: 2\r\n\
             content-length: 2\r\n\r\nok"
        );
        client
            .talk
            .send("GET /second HTTP/1.1\r\nHost: web\r\n\r\n")
            .await;
        assert_eq!(
            client.talk.head().await.expect("a response"),
            "HTTP/1.1 204 No Content\r\n\r\n"
        );
        assert_eq!(app.connections.get(), 1);
        let ended = ["naru_responses_total", "status=\"201\"", "reason=\"\""];
        assert_eq!(mesh.metric(&ended), 1.0);
    });
}

#[test]
fn unusual_but_unambiguous_messages_are_passed_on() {
    run(async {
        for (request, passed_on) in [
            (
                "GET / HTTP/1.1\nHost: web\n\n",
                "GET / HTTP/1.1\r\nHost: web\r\n\r\n",
            ),
            ("\n\nGET / HTTP/1.0\n\n\n", "GET / HTTP/1.0\r\n\r\n"),
            (
                "GET / HTTP/1.2\r\nHost: web\r\n\r\n",
                "GET / HTTP/1.1\r\nHost: web\r\n\r\n",
            ),
            (
                "GET / HTTP/1.1\r\nHost:\r\n\r\n",
                "GET / HTTP/1.1\r\nHost:\r\n\r\n",
            ),
            (
                "GET / HTTP/1.1\r\nHost: web\r\nTE: trailers\r\nConnection: TE\r\nA:\r\n\r\n",
                "GET / HTTP/1.1\r\nHost: web\r\nTE: trailers\r\nConnection: TE\r\nA:\r\n\r\n",
            ),
        ] {
            let app = app(move |_, mut talk| async move {
                let head = talk.head().await;
                assert_eq!(head.as_deref(), Some(passed_on), "{request:?}");
                talk.send("HTTP/1.2 200 OK\r\nA:\r\nContent-Length: 0\r\n\r\n")
                    .await;
                talk.rest().await;
            })
            .await;
            let mesh = Setup::new(&[app.address]).start();
            let mut client = client(&mesh);
            client.talk.send(request).await;
            let head = client.talk.head().await.expect("a response");
            let expected = "HTTP/1.1 200 OK\r\nA:\r\nContent-Length: 0\r\n";
            assert!(head.starts_with(expected), "{request:?}: {head}");
        }
    });
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    run(async {
        let app = app(|_, mut talk| async move {
            while let Some(head) = talk.head().await {
                let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
                let length = path.len();
                talk.send(&format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{path}"
                ))
                .await;
            }
        })
        .await;
        let mesh = Setup::new(&[app.address]).start();
        let mut client = client(&mesh);
        let requests: Vec<_> = (0..50)
            .map(|n| format!("GET /{n}. HTTP/1.1\r\nHost: web\r\n\r\n"))
            .collect();
        client.talk.send(&requests.concat()).await;
        for n in 0..50 {
            let head = client.talk.until(&format!("\r\n\r\n/{n}.")).await;
            assert!(head.is_some(), "{n}");
        }
        assert_eq!(app.connections.get(), 1);
    });
}

#[test]
fn chunks_and_trailers_are_passed_on() {
    run(async {
        const BODY: &str = "5;x=y\r\nhello\r\n0\r\nX-T: 1\r\n\r\n";
        let app = app(|_, mut talk| async move {
            while talk.head().await.is_some() {
                assert_eq!(talk.until("\r\n\r\n").await.expect("a body"), BODY);
                talk.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                    .await;
                a_moment().await;
                for piece in BODY.as_bytes() {
                    talk.send_bytes(&[*piece]).await;
                }
            }
        })
        .await;
        let mesh = Setup::new(&[app.address]).start();
        super::closing::seen_open(&mesh);
        let mut client = client(&mesh);
        for _ in 0..2 {
            let request = "POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n";
            client.talk.send(&format!("{request}{BODY}")).await;
            client.talk.head().await.expect("a head");
            assert_eq!(client.talk.until("\r\n\r\n").await.expect("a body"), BODY);
        }
        assert_eq!(app.connections.get(), 1);
    });
}

#[test]
fn responses_without_a_body_keep_their_length() {
    run(async {
        for (request, response) in [
            (
                "HEAD / HTTP/1.1\r\nHost: web\r\n\r\n",
                "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n",
            ),
            (
                GET,
                "HTTP/1.1 304 Not Modified\r\nContent-Length: 100\r\n\r\n",
            ),
            (GET, "HTTP/1.1 204 No Content\r\n\r\n"),
        ] {
            let app = answering(response).await;
            let mesh = Setup::new(&[app.address]).start();
            let mut client = client(&mesh);
            for _ in 0..2 {
                client.talk.send(request).await;
                assert_eq!(client.talk.head().await.expect("a head"), response);
            }
        }
    });
}

#[test]
fn a_client_that_expects_100_gets_it_before_it_sends_the_body() {
    run(async {
        let app = app(|_, mut talk| async move {
            while talk.head().await.is_some() {
                talk.send(
                    "HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n",
                )
                .await;
                assert_eq!(talk.exactly(2).await.expect("a body"), b"hi");
                talk.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                    .await;
            }
        })
        .await;
        let mesh = Setup::new(&[app.address]).start();
        let mut client = client(&mesh);
        for _ in 0..2 {
            client
                .talk
                .send(
                    "POST / HTTP/1.1\r\nHost: web\r\nExpect: 100-continue\r\n\
                    Content-Length: 2\r\n\r\n",
                )
                .await;
            assert!(
                client
                    .talk
                    .head()
                    .await
                    .expect("hints")
                    .starts_with("HTTP/1.1 103 ")
            );
            assert!(
                client
                    .talk
                    .head()
                    .await
                    .expect("a word")
                    .starts_with("HTTP/1.1 100 ")
            );
            client.talk.send("hi").await;
            assert!(
                client
                    .talk
                    .head()
                    .await
                    .expect("a head")
                    .starts_with("HTTP/1.1 200 ")
            );
        }
    });
}

#[test]
fn a_client_refused_before_its_body_gets_connection_close() {
    run(async {
        let response = "HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n";
        let request =
            "POST / HTTP/1.1\r\nHost: web\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
        let (head, _) = ask(response, request).await;
        assert!(head.contains("Connection: close\r\n"), "{head}");
    });
}

#[test]
fn a_protocol_switch_carries_bytes_and_ends_in_both_directions() {
    run(async {
        let app = app(|_, mut talk| async move {
            let head = talk.head().await.expect("a request");
            assert!(head.contains("Upgrade: websocket\r\n"), "{head}");
            assert!(head.contains("Connection: Upgrade\r\n"), "{head}");
            talk.send(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
                Connection: Upgrade\r\n\r\nfirst",
            )
            .await;
            assert_eq!(talk.rest().await, "early late");
            talk.send("last").await;
        })
        .await;
        let mesh = Setup::new(&[app.address]).start();
        let mut client = client(&mesh);
        client
            .talk
            .send(
                "GET / HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\
                early",
            )
            .await;
        let head = client.talk.head().await.expect("a head");
        assert!(
            head.to_lowercase().contains("connection: upgrade\r\n"),
            "{head}"
        );
        client.talk.until("first").await.expect("bytes");
        client.talk.send(" late").await;
        client.talk.io.shutdown().await.expect("half a close");
        assert_eq!(client.talk.rest().await, "last");
        assert!(!client.served.await.expect("no panic"));
    });
}

#[test]
fn connect_is_refused_before_it_reaches_an_app() {
    run(async {
        let (head, _) = ask(
            "HTTP/1.1 200 Connected\r\n\r\n",
            "CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\nGET /admin HTTP/1.1\r\n",
        )
        .await;
        assert!(head.starts_with("HTTP/1.1 501 "), "{head}");
        assert!(head.contains("naru-reason: connect-method\r\n"), "{head}");
        assert!(head.contains("Connection: close\r\n"), "{head}");
    });
}

#[test]
fn http10_is_supported() {
    run(async {
        let app = app(|_, mut talk| async move {
            assert!(
                talk.head()
                    .await
                    .expect("a request")
                    .starts_with("GET / HTTP/1.0\r\n")
            );
            talk.send(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n\
                0\r\n\r\n",
            )
            .await;
        })
        .await;
        let mesh = Setup::new(&[app.address]).start();
        let mut client = client(&mesh);
        client.talk.send("GET / HTTP/1.0\r\n\r\n").await;
        let all = client.talk.rest().await;
        assert_eq!(all, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabcde");
        let (head, _) = ask(
            "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
            "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        )
        .await;
        assert_eq!(
            head,
            "HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n"
        );
    });
}

#[test]
fn a_body_that_ends_with_its_connection_ends_the_clients() {
    run(async {
        let app = app(|_, mut talk| async move {
            talk.head().await;
            talk.send("HTTP/1.0 200 OK\r\n\r\nall").await;
        })
        .await;
        let mesh = Setup::new(&[app.address]).start();
        let mut client = client(&mesh);
        client.talk.send(GET).await;
        assert_eq!(
            client.talk.rest().await,
            "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall"
        );
        assert!(!client.served.await.expect("no panic"));
    });
}

#[test]
fn large_bodies_flow_in_both_directions_at_once() {
    run(async {
        const LENGTH: usize = 3_000_000;
        let app = app(|_, mut talk| async move {
            talk.head().await.expect("a request");
            talk.send(&format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n"
            ))
            .await;
            // An echo: it would stall if either direction waited for the other.
            let mut left = LENGTH;
            while left > 0 {
                let piece = talk.exactly(left.min(10_000)).await.expect("more");
                left -= piece.len();
                talk.send_bytes(&piece).await;
            }
        })
        .await;
        let mesh = Setup::new(&[app.address]).start();
        let client = client(&mesh);
        let (mut read, mut write) = tokio::io::split(client.talk.io);
        let body: Vec<u8> = (0..LENGTH).map(|n| (n % 251) as u8).collect();
        let sent = body.clone();
        let sending = tokio::task::spawn_local(async move {
            let head = format!("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: {LENGTH}\r\n\r\n");
            write.write_all(head.as_bytes()).await.expect("sent");
            write.write_all(&sent).await.expect("sent");
            write
        });
        let mut got = Vec::new();
        // When the app starts its response, it is unknown whether it will read to the end.
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\nConnection: close\r\n\r\n");
        while got.len() < head.len() + LENGTH {
            use tokio::io::AsyncReadExt;
            assert!(read.read_buf(&mut got).await.expect("read") > 0);
        }
        assert!(got[head.len()..] == body[..]);
        sending.await.expect("no panic");
    });
}

#[test]
fn a_client_that_disconnects_ends_its_requests() {
    run(async {
        let app = app(|_, mut talk| async move {
            talk.head().await.expect("a request");
            // Only the end follows.
            assert_eq!(talk.rest().await, "");
        })
        .await;
        let mesh = Setup::new(&[app.address]).start();
        let mut client = client(&mesh);
        client.talk.send(GET).await;
        while app.connections.get() == 0 {
            a_moment().await;
        }
        drop(client.talk);
        assert!(client.served.await.expect("no panic"));
        let gone = [
            "naru_responses_total",
            "status=\"\"",
            "reason=\"client-gone\"",
        ];
        assert_eq!(mesh.metric(&gone), 1.0);
    });
}

#[test]
fn a_response_before_the_end_of_the_request_arrives() {
    run(async {
        let app = app(|_, mut talk| async move {
            talk.head().await.expect("a request");
            talk.send(
                "HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\nConnection: close\r\n\r\nmuch",
            )
            .await;
            a_moment().await;
        })
        .await;
        let mesh = Setup::new(&[app.address]).start();
        let mut client = client(&mesh);
        client
            .talk
            .send("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 100000000\r\n\r\nsome")
            .await;
        assert!(
            client
                .talk
                .until("\r\n\r\nmuch")
                .await
                .expect("a response")
                .starts_with("HTTP/1.1 413 ")
        );
        // The client may still send.
        client.talk.send("more").await;
        assert_eq!(client.talk.rest().await, "");
        drop(client.talk);
        assert!(!client.served.await.expect("no panic"));
    });
}

#[test]
fn a_disconnect_between_body_and_response_is_detected() {
    run(async {
        let app = app(|_, mut talk| async move {
            talk.head().await.expect("a request");
            talk.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
                .await;
            talk.exactly(5).await.expect("a body");
            assert_eq!(talk.rest().await, "");
        })
        .await;
        let mesh = Setup::new(&[app.address]).start();
        let mut client = client(&mesh);
        client
            .talk
            .send("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\n\r\nhe")
            .await;
        client.talk.head().await.expect("a head");
        client.talk.send("llo").await;
        a_moment().await;
        drop(client.talk);
        assert!(client.served.await.expect("no panic"));
    });
}

#[test]
fn a_browser_is_answered_by_the_rule_s_cors_filter() {
    run(async {
        let app = answering(
            "HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *\r\nContent-Length: 0\r\n\r\n",
        )
        .await;
        let mut setup = Setup::new(&[app.address]);
        setup.routes = Some(for_the_shop);
        let mesh = setup.start();
        let mut client = client(&mesh);
        for (origin, status) in [
            ("https://shop.example", "204 No Content"),
            ("https://other.example", "403 Forbidden"),
        ] {
            let asked = format!(
                "OPTIONS / HTTP/1.1\r\nHost: web\r\nOrigin: {origin}\r\n\
                 Access-Control-Request-Method: PUT\r\n\r\n"
            );
            client.talk.send(&asked).await;
            let head = client.talk.head().await.expect("a head");
            assert!(
                head.starts_with(&format!("HTTP/1.1 {status}\r\n")),
                "{head}"
            );
            assert!(head.contains("naru-reason: cors-preflight\r\n"), "{head}");
            let allowed = status.starts_with("204");
            let allow = format!("access-control-allow-origin: {origin}\r\n");
            assert_eq!(head.contains(&allow), allowed, "{head}");
            assert_eq!(head.contains("content-length"), !allowed, "{head}");
        }
        assert_eq!(app.connections.get(), 0);
        let request = "GET / HTTP/1.1\r\nHost: web\r\nOrigin: https://shop.example\r\n\r\n";
        client.talk.send(request).await;
        let head = client.talk.head().await.expect("a head");
        let allow: Vec<&str> = (head.lines())
            .filter(|line| {
                line.to_lowercase()
                    .starts_with("access-control-allow-origin")
            })
            .collect();
        assert_eq!(allow, ["access-control-allow-origin: https://shop.example"]);
    });
}

#[test]
fn the_app_gets_the_proved_identity_and_never_a_clients_own_claim() {
    run(async {
        let app = app(|_, mut talk| async move {
            while let Some(head) = talk.head().await {
                let mut lines = head.lines();
                let told = lines.find(|line| line.starts_with("x-forwarded-client-cert"));
                let told = format!("{}.", told.unwrap_or("nothing"));
                let length = told.len();
                talk.send(&format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{told}"
                ))
                .await;
            }
            talk.rest().await;
        })
        .await;
        let mesh = Setup::new(&[app.address]).start();
        let forged = "GET / HTTP/1.1\r\nHost: web\r\nx-forwarded-client-cert: URI=a\r\n\
            x_forwarded_client_cert: URI=a\r\n\r\n";
        for (client, told) in [
            (
                Some("spiffe://cluster.local/ns/a/sa/b"),
                "URI=spiffe://cluster.local/ns/a/sa/b",
            ),
            (None, "nothing"),
        ] {
            let mut client = match client {
                Some(id) => inbound_client(&mesh, id),
                None => stranger(&mesh),
            };
            client.talk.send(forged).await;
            let head = client.talk.until(&format!("{told}.")).await;
            assert!(head.is_some(), "{told}");
        }
    });
}
