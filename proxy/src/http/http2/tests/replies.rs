use std::sync::{Arc, Mutex};

use http::{HeaderValue, Response};

use crate::observe::access_log::AccessLog;
use crate::observe::metrics::Metrics;
use crate::route::{
    Filter, HeaderModifier, Match, PathMatch, PathModifier, Redirect, Rewrite, RouteRule, Routes,
};
use crate::table::Destination;
use crate::testing::mesh::*;

#[test]
fn a_missing_endpoint_is_reported() {
    run(async {
        let mesh = Setup::new(&[]).start();
        let client = mesh.client().await;
        let got = call(&client, get("/"), b"").await.expect("a response");
        assert_eq!(
            (got.status, got.header("naru-reason")),
            (503, "no-endpoint")
        );
        let got = call(&client, grpc("/shop.Cart/Add"), b"message")
            .await
            .expect("a response");
        assert_eq!(
            (got.status, got.header("naru-reason")),
            (200, "no-endpoint")
        );
        assert_eq!(got.header("content-type"), "application/grpc");
        assert_eq!(got.header("grpc-status"), "14");
        assert_eq!(got.header("grpc-message"), "naru: no-endpoint");
        assert_eq!(
            mesh.metric(&["naru_responses_total{", "no-endpoint", "\"503\""]),
            1.0
        );
    });
}

#[test]
fn a_failed_connect_is_reported() {
    run(async {
        let mesh = Setup::new(&[unused_address().await]).start();
        let client = mesh.client().await;
        let got = call(&client, get("/"), b"").await.expect("a response");
        assert_eq!(
            (got.status, got.header("naru-reason")),
            (503, "connect-failed")
        );
    });
}

#[test]
fn requests_to_a_removed_destination_are_refused() {
    run(async {
        let app = answering(200, "").await;
        let mesh = Setup::new(&[app.address]).start();
        let client = mesh.client().await;
        assert_eq!(
            call(&client, get("/"), b"")
                .await
                .expect("a response")
                .status,
            200
        );
        mesh.cell.store(Destination::Unknown);
        let got = call(&client, get("/"), b"").await.expect("a response");
        assert_eq!(
            (got.status, got.header("naru-reason")),
            (503, "destination-unknown")
        );
    });
}

#[test]
fn a_request_without_a_matching_rule_is_answered() {
    run(async {
        let app = answering(200, "taken").await;
        let mut setup = Setup::new(&[app.address]);
        setup.routes = Some(|rule| {
            let only = Match {
                path: PathMatch::prefix("/shop"),
                ..Match::default()
            };
            Routes::new(vec![RouteRule {
                matches: vec![only],
                rule: rule.into(),
            }])
        });
        let mesh = setup.start();
        let client = mesh.client().await;
        let got = call(&client, get("/shop/1"), b"")
            .await
            .expect("a response");
        assert_eq!(got.body, b"taken");
        let got = call(&client, get("/shops"), b"").await.expect("a response");
        assert_eq!((got.status, got.header("naru-reason")), (404, "no-route"));
        let got = call(&client, grpc("/a.B/C"), b"")
            .await
            .expect("a response");
        assert_eq!((got.status, got.header("grpc-status")), (200, "12"));
    });
}

fn to_all(rule: crate::route::Rule) -> Routes {
    Routes::new(vec![RouteRule {
        matches: Vec::new(),
        rule: rule.into(),
    }])
}

#[test]
fn a_redirect_is_a_complete_response() {
    run(async {
        let mut setup = Setup::new(&[]);
        setup.routes = Some(|mut rule| {
            let seen = HeaderModifier {
                set: vec![("x-seen".into(), "1".into())],
                ..HeaderModifier::default()
            };
            rule.filters = vec![
                Filter::ResponseHeaders(seen),
                Filter::Redirect(Redirect {
                    scheme: None,
                    hostname: None,
                    path: Some(PathModifier::ReplacePrefix("/new".into())),
                    port: Some(8080),
                    status: 308,
                }),
            ];
            to_all(rule)
        });
        let mesh = setup.start();
        let client = mesh.client().await;
        let got = call(&client, get("/old?a=b"), b"")
            .await
            .expect("a response");
        assert_eq!((got.status, got.header("naru-reason")), (308, "redirect"));
        assert_eq!(got.header("location"), "http://web:8080/new/old?a=b");
        assert_eq!(got.header("x-seen"), "1");
        let got = call(&client, grpc("/a.B/C"), b"")
            .await
            .expect("a response");
        assert_eq!((got.status, got.header("grpc-status")), (200, "12"));
    });
}

#[test]
fn filters_change_the_request_and_the_response() {
    run(async {
        let app = app(|mut call| async move {
            let request = &call.request;
            assert_eq!(request.uri(), "http://other/v2/items?q");
            assert_eq!(request.headers()["x-added"], "1");
            assert!(!request.headers().contains_key("x-removed"));
            answer(&mut call.respond, 200, "");
        })
        .await;
        let mut setup = Setup::new(&[app.address]);
        setup.routes = Some(|mut rule| {
            rule.filters = vec![
                Filter::RequestHeaders(HeaderModifier {
                    add: vec![("x-added".into(), "1".into())],
                    remove: vec!["x-removed".into()],
                    ..HeaderModifier::default()
                }),
                Filter::Rewrite(Rewrite {
                    hostname: Some("other".into()),
                    path: Some(PathModifier::ReplaceFull("/v2/items".into())),
                }),
                Filter::ResponseHeaders(HeaderModifier {
                    set: vec![("x-set".into(), "2".into())],
                    ..HeaderModifier::default()
                }),
            ];
            to_all(rule)
        });
        let mesh = setup.start();
        let client = mesh.client().await;
        let mut request = get("/v1/items?q");
        let headers = request.headers_mut();
        headers.insert("x-removed", HeaderValue::from_static("1"));
        let got = call(&client, request, b"").await.expect("a response");
        assert_eq!((got.status, got.header("x-set")), (200, "2"));
    });
}

#[test]
fn a_host_that_contradicts_the_authority_is_rejected() {
    run(async {
        let app = answering(200, "").await;
        let mesh = Setup::new(&[app.address]).start();
        let client = mesh.client().await;
        let mut request = get("/");
        request
            .headers_mut()
            .insert("host", HeaderValue::from_static("WEB"));
        let got = call(&client, request, b"").await.expect("a response");
        assert_eq!(got.status, 200);
        let mut request = get("/");
        request
            .headers_mut()
            .insert("host", HeaderValue::from_static("admin"));
        let got = call(&client, request, b"").await.expect("a response");
        assert_eq!(
            (got.status, got.header("naru-reason")),
            (400, "bad-request")
        );
    });
}

/// The output of the log writer.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Written {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("a lock").extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn each_request_leaves_a_line_in_the_access_log() {
    let written = Written::default();
    let (log, writer) = AccessLog::start(Metrics::default(), written.clone()).expect("a thread");
    run(async {
        let app = answering(201, "").await;
        let mut setup = Setup::new(&[unused_address().await, app.address]);
        setup.access_log = log;
        let mesh = setup.start();
        let client = mesh.client().await;
        for _ in 0..10 {
            let got = call(&client, get("/a?secret"), b"")
                .await
                .expect("a response");
            assert_eq!(got.status, 201);
        }
        mesh.cell.store(Destination::Unknown);
        call(&client, get("/"), b"").await.expect("a response");
    });
    assert!(writer.finish(std::time::Duration::from_secs(5)));
    let text = String::from_utf8(written.0.lock().expect("a lock").clone()).expect("text");
    let lines: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(lines.len(), 11);
    for line in &lines[..10] {
        assert_eq!(line["method"], "GET");
        assert_eq!(line["authority"], "web");
        assert_eq!(line["path"], "/a");
        assert_eq!(line["service"], "web");
        assert_eq!(line["status"], 201);
        assert!(line["endpoint"].is_string());
    }
    assert!(lines.iter().any(|line| line["attempts"] == 2));
    assert_eq!(lines[10]["reason"], "destination-unknown");
    assert_eq!(lines[10]["attempts"], 0);
    assert!(!text.contains("secret"));
}

#[test]
fn a_browser_is_answered_by_the_rule_s_cors_filter() {
    run(async {
        let app = app(|mut call| async move {
            let response = Response::builder()
                .header("access-control-allow-origin", "*")
                .body(());
            let response = response.expect("a head");
            call.respond.send_response(response, true).expect("sent");
        })
        .await;
        let mut setup = Setup::new(&[app.address]);
        setup.routes = Some(for_the_shop);
        let mesh = setup.start();
        let client = mesh.client().await;
        let ask = |method: &str, origin: &'static str| {
            let mut asked = request(method, "/");
            let headers = asked.headers_mut();
            headers.insert("origin", HeaderValue::from_static(origin));
            let wanted = HeaderValue::from_static("PUT");
            headers.insert("access-control-request-method", wanted);
            call(&client, asked, b"")
        };
        for (origin, status) in [
            ("https://shop.example", 204),
            ("https://other.example", 403),
        ] {
            let got = ask("OPTIONS", origin).await.expect("a response");
            assert_eq!(
                (got.status, got.header("naru-reason")),
                (status, "cors-preflight")
            );
            let allowed = got.header("access-control-allow-origin");
            assert_eq!(allowed == origin, status == 204);
        }
        assert_eq!(app.calls.get(), 0);
        let got = ask("GET", "https://shop.example")
            .await
            .expect("a response");
        let allowed: Vec<_> = got
            .headers
            .get_all("access-control-allow-origin")
            .iter()
            .collect();
        assert_eq!(allowed, ["https://shop.example"]);
        assert_eq!(got.header("vary"), "Origin");
    });
}
