//! The admin port without a socket, and once with a socket.

mod connections;

use super::*;
use crate::identity::testing::{Authority, Leaf, TRUST_DOMAIN};
use crate::observe::metrics::Metrics;
use crate::table::tables;
use http_body_util::Full;
use naru_contract as contract;
use serde_json::json;
use std::net::Ipv4Addr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

struct Fixture {
    admin: Admin,
    authority: Authority,
    _layer: Box<dyn std::any::Any>,
}

impl Fixture {
    fn new() -> Self {
        let authority = Authority::new("a");
        let identity = Identity::new(TRUST_DOMAIN, vec![authority.anchor()]).unwrap();
        let metrics = Metrics::new("shop", "web-1");
        let (tables, _) = tables("shop", metrics.clone(), Duration::ZERO);
        let store = Store::new(&tables, identity.clone(), metrics.clone());
        let (layer, log) = LogFilter::for_tests();
        let inbound = crate::workers::places(&crate::config::Limits::default());
        let rendered = metrics.clone();
        let admin = Admin {
            identity,
            scrapes: Scrapes::new(move || rendered.render().map_err(|error| error.to_string())),
            inbound,
            store: Arc::new(Mutex::new(store)),
            tables,
            health: Arc::default(),
            log,
            probes: Arc::default(),
            socket_mark: None,
            client_addresses: Default::default(),
            client_address: Default::default(),
        };
        Self {
            admin,
            authority,
            _layer: Box::new(layer),
        }
    }

    async fn ask(&self, method: Method, path: &str, body: &str, local: bool) -> (u16, String) {
        let request = Request::builder().method(method).uri(path);
        let request = request
            .body(Full::new(Bytes::from(body.to_owned())))
            .unwrap();
        let here = Ipv4Addr::LOCALHOST.into();
        let answer = self
            .admin
            .answer(
                request,
                Caller {
                    local,
                    here,
                    peer: here,
                },
            )
            .await;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn get(&self, path: &str) -> (u16, String) {
        self.ask(Method::GET, path, "", true).await
    }
}

/// How many reasons there are for not being ready.
async fn missing(fixture: &Fixture) -> usize {
    let (status, body) = fixture.get("/ready").await;
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    let reasons = body["reasons"].as_array().unwrap().len();
    assert_eq!(status, if reasons == 0 { 200 } else { 503 });
    assert_eq!(body["ready"], reasons == 0);
    reasons
}

#[tokio::test]
async fn ready_lists_what_is_missing_until_the_proxy_is_ready() {
    let fixture = Fixture::new();
    let reasons = || missing(&fixture);
    assert_eq!(reasons().await, 3);
    let (chain, key) = fixture
        .authority
        .issue(&Leaf::new("spiffe://cluster.local/ns/shop/sa/web"));
    fixture.admin.identity.set_certificate(chain, key).unwrap();
    assert_eq!(reasons().await, 2);
    fixture.admin.health.listening();
    assert_eq!(reasons().await, 1);
    let inbound = contract::Resource {
        name: "inbound".to_owned(),
        version: 1,
        body: Some(contract::resource::Body::Inbound(
            contract::Inbound::default(),
        )),
    };
    fixture.admin.store.lock().unwrap().apply(contract::Push {
        sequence: 1,
        updates: vec![inbound],
        removed: Vec::new(),
    });
    assert_eq!(reasons().await, 0);
    fixture.admin.inbound.exhausted();
    assert_eq!(reasons().await, 1);
    let fixture = Fixture {
        admin: Admin {
            inbound: crate::workers::places(&crate::config::Limits::default()),
            ..fixture.admin.clone()
        },
        ..fixture
    };
    let reasons = || missing(&fixture);
    fixture.admin.health.worker_lost();
    fixture.admin.health.draining();
    assert_eq!(reasons().await, 2);
    assert_eq!(fixture.get("/live").await.0, 200);
}

#[tokio::test]
async fn the_log_filter_can_be_changed_from_this_machine_only() {
    let fixture = Fixture::new();
    let put = |body, local| fixture.ask(Method::PUT, "/log", body, local);
    assert_eq!(put("debug", false).await.0, 403);
    assert_eq!(fixture.get("/log").await, (200, "info\n".to_owned()));
    assert_eq!(put("naru_proxy=debug,warn\n", true).await.0, 200);
    assert_eq!(fixture.get("/log").await.1, "naru_proxy=debug,warn\n");
    let (status, error) = put("naru=loud", true).await;
    assert_eq!(status, 400);
    assert!(error.contains("MODULE=LEVEL"), "{error}");
    assert_eq!(put(&"x".repeat(MAX_BODY + 1), true).await.0, 400);
    assert_eq!(fixture.get("/log").await.1, "naru_proxy=debug,warn\n");
    for path in ["/config", "/log"] {
        assert_eq!(fixture.ask(Method::GET, path, "", false).await.0, 403);
        assert_eq!(fixture.get(path).await.0, 200);
    }
}

#[tokio::test]
async fn an_unknown_path_lists_the_known_ones() {
    let fixture = Fixture::new();
    let (status, body) = fixture.get("/").await;
    assert_eq!(status, 404);
    for path in ["/metrics", "/ready", "/live", "/config", "/why", "/log"] {
        assert!(body.contains(path), "{body}");
    }
    assert_eq!(fixture.ask(Method::POST, "/metrics", "", true).await.0, 405);
}

#[tokio::test]
async fn metrics_are_scraped_over_a_socket() {
    let fixture = Fixture::new();
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(serve(listener, places(), fixture.admin.clone()));
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(
        answer.contains("content-type: text/plain; version=0.0.4"),
        "{answer}"
    );
    assert!(answer.contains("naru_proxy_info{"), "{answer}");
    server.abort();
}

#[test]
fn loopback_is_recognized_in_every_notation() {
    for (address, expected) in [
        ("127.0.0.1", true),
        ("127.8.8.8", true),
        ("::1", true),
        ("::ffff:127.0.0.1", true),
        ("10.0.0.1", false),
        ("::ffff:10.0.0.1", false),
        ("fd00::1", false),
    ] {
        assert_eq!(is_loopback(address.parse().unwrap()), expected, "{address}");
    }
}

fn pushed(name: &str, body: contract::resource::Body) -> contract::Resource {
    contract::Resource {
        name: name.to_owned(),
        version: 1,
        body: Some(body),
    }
}

/// The controller's resources for a Service whose route splits requests under `/a`, and for one of
/// its two backends.
fn a_service_with_a_route() -> Vec<contract::Resource> {
    use contract::resource::Body;
    let destination = contract::Destination {
        target: Some(contract::destination::Target::Service(
            "service/shop/shop/web/80".to_owned(),
        )),
    };
    let service = contract::Service {
        namespace: "shop".to_owned(),
        name: "web".to_owned(),
        port: 80,
        protocol: contract::Protocol::Http1.into(),
        opaque_routes: Vec::new(),
        http_routes: vec!["http-route/shop/split".to_owned()],
        endpoints: "endpoints/shop/web/80".to_owned(),
        retry_budget: None,
    };
    let backend = |endpoints: &str, weight, invalid: &str| contract::HttpBackend {
        weight,
        endpoints: endpoints.to_owned(),
        invalid: invalid.to_owned(),
        filters: Vec::new(),
    };
    let rule = contract::HttpRule {
        name: "most".to_owned(),
        matches: vec![contract::HttpMatch {
            path: Some(contract::PathMatch {
                kind: contract::PathMatchKind::Prefix.into(),
                value: "/a".to_owned(),
            }),
            headers: vec![contract::NamedMatch {
                name: "version".to_owned(),
                value: "2".to_owned(),
                regular_expression: false,
            }],
            ..Default::default()
        }],
        backends: vec![
            backend("endpoints/shop/web/80", 3, ""),
            backend("", 1, "BackendNotFound: there is no Service shop/gone"),
        ],
        request_timeout_ms: 1_500,
        ..Default::default()
    };
    let route = contract::HttpRoute {
        namespace: "shop".to_owned(),
        name: "split".to_owned(),
        rules: vec![rule],
    };
    let endpoint = contract::Endpoint {
        ip: Bytes::from_static(&[10, 0, 0, 1]),
        port: 8080,
        ..Default::default()
    };
    let endpoints = contract::Endpoints {
        namespace: "shop".to_owned(),
        service: "web".to_owned(),
        port: 80,
        endpoints: vec![endpoint],
        ..Default::default()
    };
    vec![
        pushed("destination/10.96.0.1:80", Body::Destination(destination)),
        pushed("service/shop/shop/web/80", Body::Service(service)),
        pushed("http-route/shop/split", Body::HttpRoute(route)),
        pushed("endpoints/shop/web/80", Body::Endpoints(endpoints)),
    ]
}

impl Fixture {
    fn with_a_route() -> Self {
        let fixture = Self::new();
        let mut store = fixture.admin.store.lock().unwrap();
        store.subscribe("10.96.0.1:80".parse().unwrap()).unwrap();
        let answer = store.apply(contract::Push {
            sequence: 1,
            updates: a_service_with_a_route(),
            removed: Vec::new(),
        });
        assert_eq!(answer.rejected, []);
        drop(store);
        fixture
    }

    async fn why(&self, question: serde_json::Value) -> serde_json::Value {
        let asked = question.to_string();
        let (status, answer) = self.ask(Method::POST, "/why", &asked, true).await;
        assert_eq!(status, 200, "{answer}");
        serde_json::from_str(&answer).unwrap()
    }
}

fn request(path: &str, headers: serde_json::Value) -> serde_json::Value {
    json!({
        "destination": "10.96.0.1:80",
        "request": { "method": "GET", "path": path, "authority": "web", "headers": headers },
    })
}

#[tokio::test]
async fn why_shows_the_rule_that_matches_a_request_and_the_outcome_for_its_backends() {
    let fixture = Fixture::with_a_route();
    let said = fixture
        .why(request("/a/b", json!([["Version", "2"]])))
        .await;
    assert_eq!(said["target"], "service");
    assert_eq!(said["client_namespace"], "shop");
    assert_eq!(
        said["service"],
        json!({ "namespace": "shop", "name": "web", "port": 80, "protocol": "http" })
    );
    assert_eq!(
        said["routes"],
        json!([{ "kind": "HTTPRoute", "name": "shop/split" }])
    );
    assert_eq!(
        said["matches"],
        json!([{ "rule": 0, "matches": "path /a/…, header version = \"2\"", "verdict": "takes" }])
    );
    let rule = &said["rules"][0];
    assert_eq!(rule["rule"], "most");
    assert_eq!(rule["request_timeout_ms"], 1_500);
    assert_eq!(rule["backends"][0]["service"], "shop/web:80");
    assert_eq!(rule["backends"][0]["endpoints"], 1);
    assert_eq!(
        rule["backends"][1]["invalid"],
        "BackendNotFound: there is no Service shop/gone"
    );
    let outcome = &said["outcome"];
    assert_eq!(outcome["forwarded"], true);
    assert!(outcome["reason"].is_null(), "{outcome}");
    assert_eq!(outcome["backends"][0]["share"], 0.75);
    assert_eq!(outcome["backends"][0]["request"]["path"], "/a/b");
    assert_eq!(outcome["backends"][1]["reason"], "backend-invalid");
    assert_eq!(outcome["backends"][1]["status"], 500);
}

#[tokio::test]
async fn why_shows_which_condition_a_request_fails() {
    let fixture = Fixture::with_a_route();
    for (path, headers, part, has) in [
        ("/b", json!([]), "path", json!("/b")),
        ("/a", json!([]), "header", json!(null)),
        ("/a", json!([["version", "1"]]), "header", json!("1")),
    ] {
        let said = fixture.why(request(path, headers)).await;
        let told = &said["matches"][0];
        assert_eq!(told["verdict"], "unmet");
        assert_eq!((&told["part"], &told["has"]), (&json!(part), &has));
        let outcome = &said["outcome"];
        assert_eq!(outcome["reason"], "no-route");
        assert_eq!(outcome["status"], 404);
        assert_eq!(outcome["forwarded"], false);
    }
    // gRPC has statuses of its own.
    let grpc = request("/b", json!([["content-type", "application/grpc"]]));
    let outcome = &fixture.why(grpc).await["outcome"];
    assert_eq!(
        (&outcome["status"], &outcome["grpc_status"]),
        (&json!(200), &json!(12))
    );
    // The same by name, and with no request at all.
    let said = fixture.why(json!({ "destination": "web.shop:80" })).await;
    assert_eq!(said["routes"][0]["name"], "shop/split");
    assert!(said["outcome"].is_null() && said["matches"][0]["verdict"].is_null());
}

#[tokio::test]
async fn of_a_great_many_matches_the_one_that_applies_is_always_shown() {
    let fixture = Fixture::with_a_route();
    let path = |kind: contract::PathMatchKind, value: &str| contract::HttpMatch {
        path: Some(contract::PathMatch {
            kind: kind.into(),
            value: value.to_owned(),
        }),
        ..Default::default()
    };
    let exact = |number| path(contract::PathMatchKind::Exact, &format!("/{number}"));
    let mut matches: Vec<_> = (0..1_100).map(exact).collect();
    matches.push(path(contract::PathMatchKind::Prefix, "/"));
    let rule = contract::HttpRule {
        matches,
        ..Default::default()
    };
    let route = contract::HttpRoute {
        namespace: "shop".to_owned(),
        name: "split".to_owned(),
        rules: vec![rule],
    };
    let body = contract::resource::Body::HttpRoute(route);
    fixture.admin.store.lock().unwrap().apply(contract::Push {
        sequence: 2,
        updates: vec![pushed("http-route/shop/split", body)],
        removed: Vec::new(),
    });
    let said = fixture.why(request("/a", json!([]))).await;
    let matches = said["matches"].as_array().unwrap();
    assert_eq!(matches.len(), 1_001);
    assert_eq!(said["matches_left_out"], 100);
    assert_eq!(matches.last().unwrap()["verdict"], "takes");
    assert_eq!(said["outcome"]["reason"], "no-backend");
}

#[tokio::test]
async fn why_distinguishes_destinations_outside_the_mesh_from_unknown_ones() {
    let fixture = Fixture::with_a_route();
    let mut question = request("/", json!([]));
    question["destination"] = json!("10.96.0.2:80");
    let said = fixture.why(question.clone()).await;
    assert_eq!(said["target"], "unknown");
    assert_eq!(said["outcome"]["reason"], "destination-unknown");
    {
        let mut store = fixture.admin.store.lock().unwrap();
        store.subscribe("10.96.0.2:80".parse().unwrap()).unwrap();
        store.apply(contract::Push {
            sequence: 2,
            updates: vec![pushed(
                "destination/10.96.0.2:80",
                contract::resource::Body::Destination(contract::Destination { target: None }),
            )],
            removed: Vec::new(),
        });
    }
    let said = fixture.why(question).await;
    assert_eq!(said["target"], "passthrough");
    assert_eq!(said["outcome"]["forwarded"], false);
}

#[tokio::test]
async fn invalid_questions_and_remote_clients_are_rejected() {
    let fixture = Fixture::with_a_route();
    let asked = request("/", json!([])).to_string();
    assert_eq!(
        fixture.ask(Method::POST, "/why", &asked, false).await.0,
        403
    );
    assert_eq!(fixture.get("/why").await.0, 405);
    let with = |field: &str, value: serde_json::Value| {
        let mut asked = request("/", json!([]));
        asked["request"][field] = value;
        asked
    };
    for (wrong, told) in [
        (json!({}), "destination"),
        (json!({ "destination": "web" }), "IP:PORT"),
        (json!({ "destination": "a.b.c:80" }), "IP:PORT"),
        (with("method", json!("G T")), "method"),
        (with("method", json!("CONNECT")), "method"),
        (with("path", json!("a")), "path"),
        (with("path", json!("/a b")), "path"),
        (with("headers", json!([["a b", "c"]])), "headers"),
        (
            with("headers", json!([["a", "b\n"], ["c", "d\ne"]])),
            "headers",
        ),
        (with("headers", json!(vec![["a", "b"]; 101])), "headers"),
        (with("pth", json!("/")), "pth"),
        (with("path", json!("/".repeat(MAX_QUESTION))), "limit"),
    ] {
        let asked = wrong.to_string();
        let (status, answer) = fixture.ask(Method::POST, "/why", &asked, true).await;
        assert_eq!(status, 400, "{asked}");
        assert!(answer.contains(told), "{answer} does not say {told}");
    }
    let unknown = json!({ "destination": "cart.shop:80" }).to_string();
    assert_eq!(
        fixture.ask(Method::POST, "/why", &unknown, true).await.0,
        404
    );
}
