//! GRPCRoutes: twins of the suite's gateway tests, with its own gRPC client and server.

use serde_json::{Value, json};

use super::echo::{Answer, Client, route, start};
use crate::kubernetes::Namespace;
use crate::turns;

/// The service and the method of the suite's client.
const SERVICE: &str = "proto.EchoTestService";

fn to(service: &str, weight: u32) -> Value {
    json!({ "name": service, "port": 7070, "weight": weight })
}

fn method(kind: &str, service: &str, method: &str) -> Value {
    json!({ "type": kind, "service": service, "method": method })
}

/// A match of one value of the header `case`.
fn case(value: &str) -> Value {
    json!({ "headers": [{ "name": "case", "value": value }] })
}

/// Twin of GRPCExactMethodMatching, GRPCRouteHeaderMatching, GRPCRouteWeight,
/// GRPCRouteRequestHeaderModifier and GRPCRouteNamedRule; in addition, cases that they omit.
#[test]
fn calls_are_matched_changed_and_shared_one_by_one() {
    let _turn = turns::beside_others();
    let namespace = Namespace::meshed("grpc");
    start(&namespace, &["v1", "v2"]);
    let with = |matches: Value, filters: Value, backends: Value| json!({ "matches": [matches], "filters": filters, "backendRefs": backends });
    let of_case = |value: &str, kind: &str, service: &str, name: &str| {
        let mut wanted = case(value);
        wanted["method"] = method(kind, service, name);
        with(wanted, json!([]), json!([to("v2", 1)]))
    };
    let request = json!([{
        "type": "RequestHeaderModifier",
        "requestHeaderModifier": {
            "set": [{ "name": "x-set", "value": "set" }],
            "add": [{ "name": "x-add", "value": "added" }],
            "remove": ["x-remove"],
        },
    }]);
    let response = json!([{
        "type": "ResponseHeaderModifier",
        "responseHeaderModifier": { "set": [{ "name": "x-answer", "value": "changed" }] },
    }]);
    let mut regular = case("regular-header");
    regular["headers"][0] =
        json!({ "type": "RegularExpression", "name": "version", "value": "2\\.[0-9]+" });
    namespace.apply(&[route(
        "GRPCRoute",
        "calls",
        "echo:7070",
        json!([
            of_case("exact", "Exact", SERVICE, "Echo"),
            of_case("other-method", "Exact", SERVICE, "Other"),
            of_case("other-service", "Exact", "proto.Other", "Echo"),
            of_case("regular", "RegularExpression", "proto\\..*Service", "(Echo|Other)"),
            of_case("regular-part", "RegularExpression", "proto", "Ech"),
            with(case("request"), request, json!([to("v2", 1)])),
            with(case("response"), response, json!([to("v2", 1)])),
            with(case("shared"), json!([]), json!([to("v1", 1), to("v2", 1), to("gone", 0)])),
            with(case("zero"), json!([]), json!([to("v1", 0), to("v2", 1)])),
            with(case("gone"), json!([]), json!([to("gone", 1)])),
            with(case("none"), json!([]), json!([])),
            with(regular, json!([]), json!([to("v2", 1)])),
            { "name": "rest", "matches": [case("named")], "backendRefs": [to("v1", 1)] },
        ]),
    )]);
    let client = Client {
        namespace: &namespace,
        deployment: "v1",
    };
    let ask = |arguments: &[&str]| client.call("grpc://echo:7070", arguments);
    let of = |value: &str| ask(&["-H", &format!("case:{value}")]);
    client.until("grpc://echo:7070", &["-H", "case:exact"], |answer| {
        answer.by == "v2"
    });
    for (case, by) in [("exact", "v2"), ("regular", "v2"), ("named", "v1")] {
        let answer = of(case);
        assert_eq!(answer.by, by, "{case}: {}", answer.text);
    }
    assert_eq!(ask(&["-H", "version:2.7"]).by, "v2");

    // The proxy's own responses have a gRPC status, with the reason.
    for (case, code, reason) in [
        ("other-method", "Unimplemented", "no-route"),
        ("other-service", "Unimplemented", "no-route"),
        ("regular-part", "Unimplemented", "no-route"),
        ("gone", "Unavailable", "backend-invalid"),
        ("none", "Unavailable", "no-backend"),
    ] {
        let answer = of(case);
        let wanted = format!("code = {code} ");
        assert!(
            answer.text.contains(&wanted) && answer.text.contains(reason),
            "{case}: {}",
            answer.text
        );
    }

    let answer = ask(&[
        "-H",
        "case:request",
        "-H",
        "x-set:mine",
        "-H",
        "x-add:mine",
        "-H",
        "x-remove:mine",
    ]);
    let header = |name: &str| answer.request.get(name).map(String::as_str);
    assert_eq!(header("x-set"), Some("set"), "{}", answer.text);
    assert_eq!(header("x-add"), Some("mine,added"), "{}", answer.text);
    assert_eq!(header("x-remove"), None, "{}", answer.text);
    let answer = of("response");
    assert_eq!(
        answer.response.get("x-answer").map(String::as_str),
        Some("changed"),
        "{}",
        answer.text
    );

    // All of them over one connection.
    let count =
        |answers: &[Answer], by: &str| answers.iter().filter(|answer| answer.by == by).count();
    let answers = client.calls("grpc://echo:7070", 200, &["-H", "case:shared"]);
    let (first, second) = (count(&answers, "v1"), count(&answers, "v2"));
    assert_eq!(first + second, 200, "{answers:?}");
    assert!((50..150).contains(&first), "{first} of 200");
    let answers = client.calls("grpc://echo:7070", 50, &["-H", "case:zero"]);
    assert_eq!(count(&answers, "v2"), 50, "{answers:?}");
}
