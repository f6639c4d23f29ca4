//! Mirrored requests, and cross-origin requests.

use serde_json::{Value, json};

use super::echo::{Client, SOON, condition, route, start, to};
use crate::kubernetes::{Namespace, eventually, sum};
use crate::turns;

fn mirror(service: &str, share: Value) -> Value {
    let mut mirror = json!({ "backendRef": to(service) });
    if let Value::Object(share) = share {
        mirror.as_object_mut().expect("an object").extend(share);
    }
    json!({ "type": "RequestMirror", "requestMirror": mirror })
}

fn at(path: &str, filters: Value) -> Value {
    json!({
        "matches": [{ "path": { "type": "Exact", "value": path } }],
        "filters": filters,
        "backendRefs": [to("v1")],
    })
}

/// Twin of HTTPRouteRequestMirror, RequestMultipleMirrors and RequestPercentageMirror; in addition,
/// broken mirrors do not affect requests.
#[test]
fn mirrors_get_what_the_backend_gets_and_nobody_waits_for_them() {
    let _turn = turns::beside_others();
    let namespace = Namespace::meshed("mirrors");
    start(&namespace, &["v1", "v2", "v3"]);
    let dead = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "dead" },
        "spec": {
            "selector": { "app": "nobody" },
            "ports": [{ "port": 80, "targetPort": 8080, "appProtocol": "http" }],
        },
    });
    namespace.apply(&[
        dead,
        route(
            "HTTPRoute",
            "mirrors",
            "echo:80",
            json!([
                at("/one", json!([mirror("v2", json!({}))])),
                at(
                    "/two",
                    json!([mirror("v2", json!({})), mirror("v3", json!({}))])
                ),
                at("/none", json!([mirror("v2", json!({ "percent": 0 }))])),
                at(
                    "/half",
                    json!([mirror(
                        "v2",
                        json!({ "fraction": { "numerator": 1, "denominator": 2 } })
                    )])
                ),
                at(
                    "/dead",
                    json!([mirror("dead", json!({})), mirror("v2", json!({}))])
                ),
            ]),
        ),
    ]);
    let client = Client {
        namespace: &namespace,
        deployment: "v1",
    };
    // Requests that a Deployment's sidecar has accepted.
    let got = |deployment: &str| {
        let pods = namespace.pod_names(&format!("app={deployment}"));
        let metrics = namespace.metrics(&pods[0], 15020);
        sum(&metrics, "naru_requests_total", &["direction=\"inbound\""]) as usize
    };
    client.until("http://echo/none", &[], |answer| answer.by == "v1");
    for (path, sent, second, third) in [
        ("one", 20, 20, 0),
        ("two", 20, 20, 20),
        ("none", 20, 0, 0),
        ("dead", 20, 20, 0),
    ] {
        let before = (got("v2"), got("v3"));
        let answers = client.calls(&format!("http://echo/{path}"), sent, &[]);
        let good = answers.iter().filter(|answer| answer.by == "v1").count();
        assert_eq!(good, sent, "{path}: {answers:?}");
        eventually(&format!("{path}'s mirrors have got it"), SOON, || {
            match (got("v2") - before.0, got("v3") - before.1) {
                found if found == (second, third) => Ok(()),
                found => Err(format!("{found:?}")),
            }
        });
    }
    // Half of 200: less than 50 or more than 150 happens once in 10^13 times.
    let before = got("v2");
    let answers = client.calls("http://echo/half", 200, &[]);
    assert_eq!(
        answers.iter().filter(|answer| answer.by == "v1").count(),
        200
    );
    eventually("a half is mirrored", SOON, || match got("v2") - before {
        half if (50..150).contains(&half) => Ok(()),
        other => Err(other.to_string()),
    });

    // gRPC calls, one by one.
    let grpc = |service: &str| json!({ "name": service, "port": 7070 });
    let filter = json!({ "type": "RequestMirror", "requestMirror": { "backendRef": grpc("v3") } });
    let rule = json!({ "filters": [filter], "backendRefs": [grpc("v1")] });
    namespace.apply(&[route("GRPCRoute", "mirrors", "echo:7070", json!([rule]))]);
    client.until("grpc://echo:7070", &[], |answer| {
        answer.by == "v1" && got("v3") > 20
    });
    let before = got("v3");
    let answers = client.calls("grpc://echo:7070", 20, &[]);
    let good = answers.iter().filter(|answer| answer.by == "v1").count();
    assert_eq!(good, 20, "{answers:?}");
    eventually("the calls are mirrored", SOON, || {
        match got("v3") - before {
            20 => Ok(()),
            other => Err(other.to_string()),
        }
    });

    // A slow mirror: the backend's response arrives, and the mirror's is discarded.
    let answer = client.call("http://echo/one?delay=1s", &[]);
    assert_eq!(answer.by, "v1", "{}", answer.text);
    // A missing mirror is reported, and the route stays in force.
    namespace.apply(&[route(
        "HTTPRoute",
        "mirrors",
        "echo:80",
        json!([at("/gone", json!([mirror("gone", json!({}))]))]),
    )]);
    client.until("http://echo/gone", &[], |answer| answer.by == "v1");
    let found = condition(&namespace, "HTTPRoute", "mirrors", "ResolvedRefs");
    assert!(found.is("False", "BackendNotFound"), "{found:?}");
}

/// Twin of HTTPRouteCORS.
#[test]
fn requests_of_other_origins_are_answered_as_the_route_says() {
    let _turn = turns::beside_others();
    let namespace = Namespace::meshed("cors");
    start(&namespace, &["v1"]);
    let cors = |cors: Value| json!([{ "type": "CORS", "cors": cors }]);
    namespace.apply(&[route(
        "HTTPRoute",
        "cors",
        "echo:80",
        json!([
            at(
                "/exact",
                cors(json!({
                    "allowOrigins": ["https://www.foo.com", "https://*.bar.com"],
                    "allowMethods": ["GET", "OPTIONS"],
                    "allowHeaders": ["x-header-1", "x-header-2"],
                    "exposeHeaders": ["x-header-3"],
                    "allowCredentials": true,
                    "maxAge": 3600,
                }))
            ),
            at(
                "/any",
                cors(
                    json!({ "allowOrigins": ["*"], "allowMethods": ["*"], "allowHeaders": ["*"] })
                )
            ),
        ]),
    )]);
    let client = Client {
        namespace: &namespace,
        deployment: "v1",
    };
    client.until("http://echo/exact", &[], |answer| answer.by == "v1");
    let ask = |path: &str, origin: &str, preflight: bool| {
        let origin = format!("Origin:{origin}");
        let mut arguments = vec!["-H", &*origin];
        if preflight {
            arguments.extend([
                "--method=OPTIONS",
                "-H",
                "Access-Control-Request-Method:GET",
            ]);
        }
        client.call(&format!("http://echo/{path}"), &arguments)
    };
    for (path, origin, allowed) in [
        ("exact", "https://www.foo.com", Some("https://www.foo.com")),
        ("exact", "https://a.b.bar.com", Some("https://a.b.bar.com")),
        ("exact", "https://foo.com", None),
        ("exact", "http://www.foo.com", None),
        ("exact", "https://bar.com.evil.org", None),
        ("any", "https://whoever.org", Some("*")),
    ] {
        for preflight in [true, false] {
            let answer = ask(path, origin, preflight);
            let header = |name: &str| {
                answer
                    .response
                    .get(&format!("access-control-{name}"))
                    .map(String::as_str)
            };
            assert_eq!(
                header("allow-origin"),
                allowed,
                "{path} {origin} {preflight}: {}",
                answer.text
            );
            // The app gets all requests except preflights.
            let by = if preflight { "" } else { "v1" };
            if allowed.is_some() {
                assert_eq!(
                    answer.by, by,
                    "{path} {origin} {preflight}: {}",
                    answer.text
                );
            }
            if allowed.is_some() && path == "exact" {
                assert_eq!(header("allow-credentials"), Some("true"), "{}", answer.text);
            }
            if allowed.is_some() && path == "exact" && preflight {
                assert_eq!(header("max-age"), Some("3600"), "{}", answer.text);
                let methods = header("allow-methods").unwrap_or_default();
                assert!(
                    methods.contains("GET") && methods.contains("OPTIONS"),
                    "{}",
                    answer.text
                );
                let headers = header("allow-headers").unwrap_or_default();
                assert!(
                    headers.contains("x-header-1") && headers.contains("x-header-2"),
                    "{}",
                    answer.text
                );
            }
            if allowed.is_some() && path == "exact" && !preflight {
                assert_eq!(
                    header("expose-headers"),
                    Some("x-header-3"),
                    "{}",
                    answer.text
                );
            }
        }
    }
    // The app's own CORS headers are replaced.
    let answer = client.call(
        "http://echo/exact?headers=access-control-allow-origin:*",
        &["-H", "Origin:https://www.foo.com"],
    );
    let origin = answer
        .response
        .get("access-control-allow-origin")
        .map(String::as_str);
    assert_eq!(origin, Some("https://www.foo.com"), "{}", answer.text);
}
