//! `/why` of connections: TLSRoutes, TCPRoutes, and ports without either.

use serde_json::Value;

use super::*;
use contract::resource::Body;

/// A Service at 10.96.0.1:80 with these routes in force, and one endpoint of its own.
fn service(
    protocol: contract::Protocol,
    http_routes: &[&str],
    opaque_routes: &[&str],
) -> Vec<contract::Resource> {
    let mut pushed = a_service_with_a_route();
    for resource in &mut pushed {
        if let Some(Body::Service(service)) = &mut resource.body {
            let names = |names: &[&str]| names.iter().map(ToString::to_string).collect();
            service.protocol = protocol.into();
            service.http_routes = names(http_routes);
            service.opaque_routes = names(opaque_routes);
        }
    }
    pushed
}

fn backend(endpoints: &str, weight: u32, invalid: &str) -> contract::OpaqueBackend {
    contract::OpaqueBackend {
        weight,
        endpoints: endpoints.to_owned(),
        invalid: invalid.to_owned(),
    }
}

fn tls_route(
    name: &str,
    hostnames: &[&str],
    backends: Vec<contract::OpaqueBackend>,
) -> contract::Resource {
    let route = contract::TlsRoute {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        hostnames: hostnames.iter().map(ToString::to_string).collect(),
        backends,
    };
    pushed(&format!("tls-route/shop/{name}"), Body::TlsRoute(route))
}

fn tcp_route(backends: Vec<contract::OpaqueBackend>) -> contract::Resource {
    let route = contract::TcpRoute {
        namespace: "shop".to_owned(),
        name: "tcp".to_owned(),
        backends,
    };
    pushed("tcp-route/shop/tcp", Body::TcpRoute(route))
}

fn with(mut updates: Vec<contract::Resource>, more: Vec<contract::Resource>) -> Fixture {
    let fixture = Fixture::new();
    updates.extend(more);
    let mut store = fixture.admin.store.lock().unwrap();
    store.subscribe("10.96.0.1:80".parse().unwrap()).unwrap();
    let answer = store.apply(contract::Push {
        sequence: 1,
        updates,
        removed: Vec::new(),
    });
    assert_eq!(answer.rejected, []);
    drop(store);
    fixture
}

fn tls_routes() -> Fixture {
    let own = || backend("endpoints/shop/web/80", 3, "");
    with(
        service(
            contract::Protocol::Http1,
            &[],
            &["tls-route/shop/a", "tls-route/shop/b", "tls-route/shop/c"],
        ),
        vec![
            tls_route(
                "a",
                &["*.example", "a.shop.example"],
                vec![
                    own(),
                    backend("", 1, "BackendNotFound: no"),
                    backend("endpoints/shop/none/80", 0, ""),
                ],
            ),
            tls_route(
                "b",
                &["*.shop.example", "a.shop.example"],
                vec![backend("endpoints/shop/none/80", 1, "")],
            ),
            tls_route(
                "c",
                &["c.example"],
                vec![backend("", 1, "RefNotPermitted: no")],
            ),
        ],
    )
}

fn tls(server_name: Value) -> Value {
    json!({
        "destination": "10.96.0.1:80",
        "connection": { "tls": true, "server_name": server_name },
    })
}

fn bytes() -> Value {
    json!({ "destination": "10.96.0.1:80", "connection": { "tls": false } })
}

/// Every match with its route and its verdict.
fn verdicts(said: &Value) -> Vec<(String, String, String)> {
    let matches = said["matches"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    matches
        .map(|one| {
            let rule = &said["rules"][one["rule"].as_u64().unwrap() as usize];
            let verdict = match one["verdict"].as_str() {
                Some("outranked") => text(&one["by"]),
                Some("unmet") => format!("{} {}", text(&one["part"]), one["has"]),
                verdict => verdict.unwrap_or_default().to_owned(),
            };
            (text(&rule["route"]), text(&one["matches"]), verdict)
        })
        .collect()
}

#[tokio::test]
async fn of_the_matching_server_names_the_winner_is_shown_with_its_outcome() {
    let fixture = tls_routes();
    let said = fixture.why(tls(json!("A.Shop.example."))).await;
    let expected = [
        ("shop/a", "SNI a.shop.example", "takes"),
        ("shop/b", "SNI a.shop.example", "older-route"),
        ("shop/c", "SNI c.example", "server-name \"a.shop.example\""),
        ("shop/b", "SNI *.shop.example", "exact-name"),
        ("shop/a", "SNI *.example", "exact-name"),
    ]
    .map(|(route, matches, verdict)| (route.to_owned(), matches.to_owned(), verdict.to_owned()));
    assert_eq!(verdicts(&said), expected);
    assert_eq!(said["rules"][0]["kind"], "TLSRoute");
    let kinds = said["routes"].as_array().unwrap().iter();
    assert!(kinds.clone().all(|route| route["kind"] == "TLSRoute"));
    assert_eq!(kinds.len(), 3);
    let outcome = &said["outcome"];
    assert_eq!(outcome["forwarded"], true);
    assert!(outcome["reason"].is_null() && outcome["status"].is_null());
    assert_eq!(
        outcome["backends"],
        json!([
            { "backend": 0, "share": 0.75 },
            { "backend": 1, "share": 0.25, "reason": "backend-invalid" },
        ])
    );

    let said = fixture.why(tls(json!("b.shop.example"))).await;
    let told: Vec<_> = verdicts(&said).into_iter().map(|one| one.2).collect();
    let other = "server-name \"b.shop.example\"";
    assert_eq!(told, [other, other, other, "takes", "longer-name"]);
    assert_eq!(said["outcome"]["reason"], "no-endpoint");
    assert_eq!(said["outcome"]["forwarded"], false);

    // Without a connection, the answer lists the routes.
    let said = fixture.why(json!({ "destination": "web.shop:80" })).await;
    assert_eq!(said["matches"].as_array().unwrap().len(), 5);
    assert!(said["outcome"].is_null() && said["matches"][0]["verdict"].is_null());
    assert_eq!(said["rules"][0]["backends"][0]["endpoints"], 1);
    assert_eq!(
        said["rules"][0]["backends"][1]["invalid"],
        "BackendNotFound: no"
    );
}

#[tokio::test]
async fn a_connection_that_no_tls_route_matches_ends_with_the_data_path_s_reason() {
    let fixture = tls_routes();
    let request = json!({
        "destination": "10.96.0.1:80",
        "request": { "method": "GET", "path": "/", "authority": "a.shop.example" },
    });
    for (question, reason, lacks) in [
        (tls(json!("example")), "no-route", "server-name \"example\""),
        (tls(json!(null)), "no-route", "server-name null"),
        (
            tls(json!("c.example")),
            "backend-invalid",
            "server-name \"c.example\"",
        ),
        (bytes(), "no-client-hello", "client-hello null"),
        // An HTTP request is not a ClientHello either, whatever its host.
        (request, "no-client-hello", "client-hello null"),
    ] {
        let said = fixture.why(question.clone()).await;
        let outcome = &said["outcome"];
        assert_eq!(outcome["reason"], reason, "{question}");
        assert_eq!(outcome["forwarded"], false);
        assert!(outcome["status"].is_null(), "{outcome}");
        assert_eq!(verdicts(&said)[0].2, lacks, "{question}");
    }
}

#[tokio::test]
async fn a_tcp_route_matches_every_connection() {
    let of = |backends| {
        let service = service(contract::Protocol::Http1, &[], &["tcp-route/shop/tcp"]);
        with(service, vec![tcp_route(backends)])
    };
    let request = json!({
        "destination": "10.96.0.1:80",
        "request": { "method": "GET", "path": "/", "authority": "web" },
    });
    let fixture = of(vec![backend("endpoints/shop/web/80", 1, "")]);
    for question in [tls(json!("a.example")), tls(json!(null)), bytes(), request] {
        let said = fixture.why(question).await;
        let told = verdicts(&said);
        let expected = ["shop/tcp", "every connection", "takes"].map(str::to_owned);
        assert_eq!(told, [expected.into()]);
        assert_eq!(said["rules"][0]["kind"], "TCPRoute");
        assert_eq!(
            said["outcome"]["backends"],
            json!([{ "backend": 0, "share": 1.0 }])
        );
    }
    for (backends, reason) in [
        (vec![], "no-backend"),
        (vec![backend("endpoints/shop/web/80", 0, "")], "no-backend"),
        (
            vec![backend("", 1, "BackendNotFound: no")],
            "backend-invalid",
        ),
        (
            vec![backend("endpoints/shop/none/80", 1, "")],
            "no-endpoint",
        ),
    ] {
        let said = of(backends).why(bytes()).await;
        assert_eq!(said["outcome"]["reason"], reason);
        assert_eq!(said["outcome"]["forwarded"], false);
    }
}

#[tokio::test]
async fn without_connection_routes_bytes_go_to_the_pods_of_the_service_if_the_port_may_carry_them()
{
    use contract::Protocol::{Detect, Http1, Http2, Tcp};
    for (protocol, reason, status, forwarded) in [
        (Detect, json!(null), json!(null), true),
        (Tcp, json!(null), json!(null), true),
        (Http1, json!("bad-request"), json!(400), false),
        (Http2, json!(null), json!(null), false),
    ] {
        let fixture = with(service(protocol, &["http-route/shop/split"], &[]), vec![]);
        for question in [tls(json!("a.example")), bytes()] {
            let said = fixture.why(question).await;
            let outcome = &said["outcome"];
            assert_eq!((&outcome["reason"], &outcome["status"]), (&reason, &status));
            assert_eq!(outcome["forwarded"], forwarded, "{protocol:?}");
            assert_eq!(
                said["rules"].as_array().unwrap().len(),
                usize::from(forwarded)
            );
            if forwarded {
                assert_eq!(said["rules"][0]["route"], "");
                assert_eq!(said["rules"][0]["backends"][0]["service"], "shop/web:80");
            }
        }
    }
    let mut unknown = bytes();
    unknown["destination"] = json!("10.96.0.2:80");
    let fixture = with(service(Detect, &[], &[]), vec![]);
    let said = fixture.why(unknown).await;
    assert_eq!(said["outcome"]["reason"], "destination-unknown");
    assert!(said["outcome"]["status"].is_null());
}

#[tokio::test]
async fn a_question_about_an_impossible_connection_is_rejected() {
    let fixture = tls_routes();
    let mut both = request("/", json!([]));
    both["connection"] = json!({ "tls": false });
    let mut plain = bytes();
    plain["connection"]["server_name"] = json!("a.example");
    for (wrong, told) in [
        (both, "connection"),
        (plain, "only asked for in TLS"),
        (tls(json!("")), "server_name"),
        (tls(json!("a b")), "server_name"),
        (tls(json!("é")), "server_name"),
        (tls(json!("a".repeat(256))), "server_name"),
    ] {
        let asked = wrong.to_string();
        let (status, answer) = fixture.ask(Method::POST, "/why", &asked, true).await;
        assert_eq!(status, 400, "{asked}");
        assert!(answer.contains(told), "{answer} does not say {told}");
    }
}
