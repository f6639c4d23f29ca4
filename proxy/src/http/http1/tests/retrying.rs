use std::time::Duration;

use super::fixture::*;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
const BUSY: &str = "HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy";

#[test]
fn a_failed_response_is_retried_with_the_whole_body() {
    run(async {
        let app = answering_hello(BUSY, OK).await;
        let mesh = Setup::new(&[app.address]).retry(&[503], 2).start();
        super::closing::seen_open(&mesh);
        let mut client = client(&mesh);
        client
            .talk
            .send("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\n\r\nhello")
            .await;
        assert_eq!(client.talk.head().await.expect("a head"), OK);
        // The discarded response has left its connection reusable.
        assert_eq!(app.connections.get(), 1);
        assert_eq!(
            mesh.metric(&["naru_retries_total", "outcome=\"sent\""]),
            1.0
        );
    });
}

#[test]
fn a_body_that_was_not_kept_is_not_sent_again() {
    run(async {
        let app = app(|_, mut talk| async move {
            while talk.head().await.is_some() {
                talk.exactly(100_000).await;
                talk.send(BUSY).await;
            }
        })
        .await;
        let mesh = Setup::new(&[app.address]).retry(&[503], 2).start();
        let mut client = client(&mesh);
        let body = "x".repeat(100_000);
        client
            .talk
            .send(&format!(
                "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 100000\r\n\r\n{body}"
            ))
            .await;
        assert_eq!(client.talk.until("busy").await.expect("a response"), BUSY);
        assert_eq!(mesh.metric(&["naru_retries_total", "body_too_large"]), 1.0);
    });
}

#[test]
fn a_request_that_was_not_sent_goes_elsewhere() {
    run(async {
        let app = answering(OK).await;
        let mesh = Setup::new(&[unused_address().await, app.address]).start();
        for _ in 0..20 {
            let mut client = client(&mesh);
            client
                .talk
                .send("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 2\r\n\r\nhi")
                .await;
            assert_eq!(client.talk.head().await.expect("a head"), OK);
        }
    });
}

#[test]
fn without_endpoints_the_reason_is_reported_and_the_connection_kept() {
    run(async {
        for (setup, reason) in [
            (Setup::new(&[]), "no-endpoint"),
            (Setup::new(&[unused_address().await]), "connect-failed"),
        ] {
            let mesh = setup.start();
            let mut client = client(&mesh);
            for _ in 0..2 {
                client
                    .talk
                    .send("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 2\r\n\r\nhi")
                    .await;
                let head = client.talk.head().await.expect("a head");
                assert_eq!(
                    head,
                    format!(
                        "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\
                         naru-reason: {reason}\r\n\r\n"
                    )
                );
            }
        }
    });
}

#[test]
fn a_pooled_connection_that_an_app_has_closed_costs_nothing() {
    run(async {
        let app = app(|number, mut talk| async move {
            talk.head().await;
            talk.send(OK).await;
            if number == 1 {
                // Reads the next request, and closes without a response.
                talk.head().await;
                return;
            }
            talk.rest().await;
        })
        .await;
        let mesh = Setup::new(&[app.address]).start();
        let mut client = client(&mesh);
        for _ in 0..2 {
            client.talk.send(GET).await;
            assert_eq!(client.talk.head().await.expect("a head"), OK);
        }
        assert_eq!(app.connections.get(), 2);
    });
}

#[test]
fn a_request_that_may_have_been_processed_is_not_repeated() {
    run(async {
        let app = app(|number, mut talk| async move {
            if number > 1 {
                return;
            }
            talk.head().await;
            talk.send(OK).await;
            talk.head().await;
        })
        .await;
        let mesh = Setup::new(&[app.address]).start();
        super::closing::seen_open(&mesh);
        let mut client = client(&mesh);
        client.talk.send(GET).await;
        assert_eq!(client.talk.head().await.expect("a head"), OK);
        client
            .talk
            .send("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 0\r\n\r\n")
            .await;
        let head = client.talk.head().await.expect("a head");
        assert!(head.contains("naru-reason: upstream-reset\r\n"), "{head}");
        assert_eq!(app.connections.get(), 1);
    });
}

#[test]
fn timeouts_are_reported_separately() {
    run(async {
        let app = app(|_, mut talk| async move {
            talk.rest().await;
        })
        .await;
        let soon = Some(Duration::from_millis(40));
        for (request, backend, reason) in [
            (soon, None, "request-timeout"),
            (None, soon, "backend-request-timeout"),
        ] {
            let mut setup = Setup::new(&[app.address]);
            setup.request_timeout = request;
            setup.backend_request_timeout = backend;
            let mesh = setup.start();
            let mut client = client(&mesh);
            client.talk.send(GET).await;
            let head = client.talk.head().await.expect("a head");
            assert!(head.starts_with("HTTP/1.1 504 "), "{head}");
            assert!(
                head.contains(&format!("naru-reason: {reason}\r\n")),
                "{head}"
            );
        }
    });
}

#[test]
fn timeouts_run_to_the_end_of_the_response() {
    run(async {
        let app = answering("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf").await;
        let mut setup = Setup::new(&[app.address]);
        setup.request_timeout = Some(Duration::from_millis(60));
        let mesh = setup.start();
        let mut client = client(&mesh);
        client.talk.send(GET).await;
        client.talk.until("half").await.expect("half");
        assert!(client.served.await.expect("no panic"));
        assert_eq!(
            mesh.metric(&["naru_responses_total", "request-timeout"]),
            1.0
        );
    });
}

#[test]
fn idle_connections_are_bounded_and_counted() {
    run(async {
        let app = answering(OK).await;
        let mut setup = Setup::new(&[app.address]);
        setup.limits.max_idle_per_endpoint = 2;
        let mesh = setup.start();
        let mut clients: Vec<_> = (0..5).map(|_| client(&mesh)).collect();
        for client in &mut clients {
            client.talk.send(GET).await;
        }
        for client in &mut clients {
            client.talk.head().await.expect("a head");
        }
        a_moment().await;
        let idle = ["naru_pool_connections", "http/1.1", "idle"];
        assert_eq!(mesh.metric(&idle), 2.0);
        assert_eq!(
            mesh.metric(&["naru_pool_connections", "http/1.1", "active"]),
            0.0
        );
    });
}
