//! Precedence of routes, and the clients that they apply to.

use serde_json::{Value, json};

use super::echo::{Answer, Client, condition, route, start, to};
use crate::kubernetes::{Namespace, kubectl};
use crate::turns;

/// A rule that adds the name of its route to responses.
fn marked(name: &str, matches: Value, backend: Value) -> Value {
    json!({
        "matches": matches,
        "filters": [{
            "type": "ResponseHeaderModifier",
            "responseHeaderModifier": { "set": [{ "name": "x-route", "value": name }] },
        }],
        "backendRefs": [backend],
    })
}

/// A route without matches that adds its name to responses.
fn all(name: &str, parent: &str, backend: Value) -> Value {
    route(
        "HTTPRoute",
        name,
        parent,
        json!([marked(name, json!([]), backend)]),
    )
}

fn mark(answer: &Answer) -> &str {
    answer.response.get("x-route").map_or("", String::as_str)
}

/// GEP-1294: consumer routes replace the producer's for clients in their own namespace only.
#[test]
fn a_consumers_routes_hold_for_its_own_namespace_alone() {
    let _turn = turns::beside_others();
    let producer = Namespace::meshed("producer");
    let consumer = Namespace::meshed("consumer");
    let third = Namespace::meshed("third");
    start(&producer, &["v1", "v2"]);
    start(&consumer, &["v3"]);
    start(&third, &["v4"]);
    let url = format!("http://echo.{}", producer.0);
    let parent = format!("{}/echo", producer.0);
    let producers = Client {
        namespace: &producer,
        deployment: "v1",
    };
    let consumers = Client {
        namespace: &consumer,
        deployment: "v3",
    };
    let thirds = Client {
        namespace: &third,
        deployment: "v4",
    };

    producer.apply(&[all("producer", "echo:80", to("v1"))]);
    for client in [&producers, &consumers, &thirds] {
        client.until(&url, &[], |answer| {
            (mark(answer), &*answer.by) == ("producer", "v1")
        });
    }
    // Backends in the Service's namespace or the route's own need no grant.
    let mut elsewhere = to("v2");
    elsewhere["namespace"] = producer.0.clone().into();
    let path = json!([{ "path": { "value": "/theirs" } }]);
    let rules = json!([
        marked("consumer", path, elsewhere),
        marked("own", json!([{ "path": { "value": "/own" } }]), to("v3"))
    ]);
    consumer.apply(&[route("HTTPRoute", "consumer", &parent, rules)]);
    let of = |path: &str| format!("{url}{path}");
    consumers.until(&of("/theirs"), &[], |answer| {
        (mark(answer), &*answer.by) == ("consumer", "v2")
    });
    assert_eq!(consumers.call(&of("/own"), &[]).by, "v3");
    // They replace the producer's routes rather than merge with them.
    let answer = consumers.call(&of("/other"), &[]);
    assert_eq!(
        (answer.status, answer.reason()),
        (404, "no-route"),
        "{}",
        answer.text
    );
    for client in [&producers, &thirds] {
        let answer = client.call(&of("/theirs"), &[]);
        assert_eq!(
            (mark(&answer), &*answer.by),
            ("producer", "v1"),
            "{}",
            answer.text
        );
    }
    // The same on each port: the route has no port, so it applies to all of them.
    let answer = consumers.call(&format!("{url}:8080/other"), &[]);
    assert_eq!(answer.status, 404, "{}", answer.text);
    assert_eq!(mark(&thirds.call(&format!("{url}:8080/other"), &[])), "");
    let found = condition(&consumer, "HTTPRoute", "consumer", "Accepted");
    assert!(found.is("True", "Accepted"), "{found:?}");

    consumer.kubectl(&["delete", "httproute", "consumer"]);
    consumers.until(&of("/other"), &[], |answer| mark(answer) == "producer");
}

/// Gateway API's rules of precedence: the exact path, then the longest prefix, then the method, the
/// most headers, the most query parameters, the oldest route, and the first by namespace and name.
#[test]
fn of_several_routes_the_one_that_the_specification_says_wins() {
    let _turn = turns::beside_others();
    let namespace = Namespace::meshed("precedence");
    start(&namespace, &["v1"]);
    let one = |name: &str, wanted: Value| {
        route(
            "HTTPRoute",
            name,
            "echo:80",
            json!([marked(name, json!([wanted]), to("v1"))]),
        )
    };
    let path = |kind: &str, value: &str| json!({ "path": { "type": kind, "value": value } });
    let with = |field: &str, value: Value| {
        let mut wanted = path("PathPrefix", "/a");
        wanted[field] = value;
        wanted
    };
    let header = |name: &str| json!({ "name": name, "value": "1" });
    // The routes with lower precedence are older.
    for (name, wanted) in [
        ("prefix", path("PathPrefix", "/a")),
        ("query", with("queryParams", json!([header("q")]))),
        (
            "queries",
            with("queryParams", json!([header("q"), header("r")])),
        ),
        ("header", with("headers", json!([header("h")]))),
        (
            "headers",
            with("headers", json!([header("h"), header("i")])),
        ),
        ("method", with("method", json!("POST"))),
        ("longer", path("PathPrefix", "/a/b")),
        ("exact", path("Exact", "/a/b/c")),
    ] {
        namespace.apply(&[one(name, wanted)]);
        // `creationTimestamp` has a resolution of a second.
        std::thread::sleep(std::time::Duration::from_millis(1100));
    }
    let client = Client {
        namespace: &namespace,
        deployment: "v1",
    };
    client.until("http://echo/a/b/c", &[], |answer| mark(answer) == "exact");
    let (h, i) = (["-H", "h:1"], ["-H", "i:1"]);
    for (url, arguments, wanted) in [
        ("http://echo/a", [].to_vec(), "prefix"),
        ("http://echo/a?q=1", [].to_vec(), "query"),
        ("http://echo/a?q=1&r=1", [].to_vec(), "queries"),
        ("http://echo/a?q=1&r=1", h.to_vec(), "header"),
        ("http://echo/a?q=1&r=1", [h, i].concat(), "headers"),
        (
            "http://echo/a?q=1&r=1",
            [&h[..], &i, &["--method=POST"]].concat(),
            "method",
        ),
        (
            "http://echo/a/b?q=1",
            [&h[..], &["--method=POST"]].concat(),
            "longer",
        ),
        (
            "http://echo/a/b/c?q=1",
            [&h[..], &["--method=POST"]].concat(),
            "exact",
        ),
        ("http://echo/a/b/cd", [].to_vec(), "longer"),
    ] {
        let answer = client.call(url, &arguments);
        assert_eq!(
            mark(&answer),
            wanted,
            "{url} {arguments:?}: {}",
            answer.text
        );
    }

    // For equal matches: the oldest, whatever its name.
    namespace.apply(&[all("old", "echo:8080", to("v1"))]);
    client.until("http://echo:8080", &[], |answer| mark(answer) == "old");
    std::thread::sleep(std::time::Duration::from_millis(1100));
    namespace.apply(&[all("new", "echo:8080", to("v1"))]);
    let found = condition(&namespace, "HTTPRoute", "new", "Accepted");
    assert!(found.is("True", "Accepted"), "{found:?}");
    assert_eq!(mark(&client.call("http://echo:8080", &[])), "old");
    namespace.kubectl(&["delete", "httproute", "old"]);
    client.until("http://echo:8080", &[], |answer| mark(answer) == "new");
    namespace.kubectl(&["delete", "httproute", "new"]);
    // With the same age: by name. One list is created within one second, except by bad luck.
    for attempt in 1..=5 {
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": [
            all("b-twin", "echo:8080", to("v1")), all("a-twin", "echo:8080", to("v1")),
        ] });
        namespace.apply(list["items"].as_array().expect("two"));
        let age = |name: &str| {
            namespace.get(&["httproute", name])["metadata"]["creationTimestamp"].clone()
        };
        if age("a-twin") == age("b-twin") {
            break;
        }
        assert!(attempt < 5, "never within one second");
        namespace.kubectl(&["delete", "httproute", "a-twin", "b-twin"]);
    }
    client.until("http://echo:8080", &[], |answer| mark(answer) == "a-twin");
}

/// On one port of a Service only one kind of route is in force: GRPCRoute before HTTPRoute.
#[test]
fn of_two_kinds_of_routes_on_a_port_the_more_specific_is_in_force() {
    let _turn = turns::beside_others();
    let namespace = Namespace::meshed("kinds");
    start(&namespace, &["v1"]);
    let client = Client {
        namespace: &namespace,
        deployment: "v1",
    };
    let http = all("http", "echo", to("v1"));
    namespace.apply(&[http]);
    client.until("http://echo", &[], |answer| mark(answer) == "http");
    let grpc = json!([{ "backendRefs": [{ "name": "v1", "port": 7070 }] }]);
    namespace.apply(&[
        route("GRPCRoute", "grpc", "echo:7070", grpc),
        all("lost", "echo:7070", to("v1")),
    ]);
    let found = condition(&namespace, "GRPCRoute", "grpc", "Accepted");
    assert!(found.is("True", "Accepted"), "{found:?}");
    let found = condition(&namespace, "HTTPRoute", "lost", "Accepted");
    assert!(found.is("False", "Conflicted"), "{found:?}");
    assert!(found.message.contains("GRPCRoute"), "{found:?}");
    // It stays in force on the Service's other ports.
    let found = condition(&namespace, "HTTPRoute", "http", "Accepted");
    assert!(found.is("True", "Accepted"), "{found:?}");
    assert_eq!(mark(&client.call("http://echo", &[])), "http");
    assert_eq!(client.call("grpc://echo:7070", &[]).by, "v1");
    kubectl(&["-n", &namespace.0, "delete", "grpcroute", "grpc"]);
    let found = condition(&namespace, "HTTPRoute", "lost", "Accepted");
    assert!(
        found.status == "True" || found.reason == "Conflicted",
        "{found:?}"
    );
}
