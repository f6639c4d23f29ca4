//! The status of routes.

use std::time::Duration;

use serde_json::{Value, json};

use super::echo::{Client, SOON, condition, route, start, to};
use crate::kubernetes::{Namespace, eventually, get, run, script};
use crate::turns;

const OURS: &str = "naru.dev/controller";

fn parents(namespace: &Namespace, kind: &str, name: &str) -> Vec<Value> {
    let route = get(&["-n", &namespace.0, kind, name]);
    route["status"]["parents"]
        .as_array()
        .cloned()
        .unwrap_or_default()
}

/// Our entries' conditions of a type: parent, status and reason.
fn conditions(parents: &[Value], kind: &str) -> Vec<(String, String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let ours = parents
        .iter()
        .filter(|entry| entry["controllerName"] == OURS);
    ours.flat_map(|entry| {
        let parent = &entry["parentRef"];
        let name = format!("{}:{}", text(&parent["name"]), parent["port"]);
        let all = entry["conditions"].as_array().into_iter().flatten();
        all.filter(|condition| condition["type"] == kind)
            .map(move |condition| {
                (
                    name.clone(),
                    text(&condition["status"]),
                    text(&condition["reason"]),
                )
            })
            .collect::<Vec<_>>()
    })
    .collect()
}

#[test]
fn every_parent_is_told_what_becomes_of_its_route_and_others_entries_stay() {
    let _turn = turns::beside_others();
    let namespace = Namespace::meshed("status");
    start(&namespace, &["v1"]);
    // The standard CRD requires section names if one Service is a parent twice.
    let reference = |name: &str, section: &str, port: u16| {
        json!({
            "group": "", "kind": "Service", "name": name,
            "sectionName": section, "port": port,
        })
    };
    let mut object = route(
        "HTTPRoute",
        "several",
        "echo:80",
        json!([{ "backendRefs": [to("v1")] }]),
    );
    // With the fields that the API server fills in.
    let gateway =
        json!({ "group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "edge" });
    object["spec"]["parentRefs"] = json!([
        reference("echo", "http", 80),
        reference("echo", "nothing", 81),
        reference("gone", "http", 80),
        gateway
    ]);
    namespace.apply(&[object.clone()]);
    let expect = |wanted: &[(&str, &str, &str)]| {
        eventually(&format!("{wanted:?}"), SOON, || {
            let found = parents(&namespace, "httproute", "several");
            let accepted = conditions(&found, "Accepted");
            let same = accepted.len() == wanted.len()
                && accepted
                    .iter()
                    .zip(wanted)
                    .all(|(a, b)| (&*a.0, &*a.1, &*a.2) == *b);
            match same {
                true => Ok(found),
                false => Err(json!(found).to_string()),
            }
        })
    };
    let found = expect(&[
        ("echo:80", "True", "Accepted"),
        ("echo:81", "False", "NoMatchingParent"),
        ("gone:80", "False", "NoMatchingParent"),
    ]);
    for entry in &found {
        for condition in entry["conditions"].as_array().expect("conditions") {
            assert_eq!(condition["observedGeneration"], 1, "{entry}");
        }
    }

    // Another controller's entry, for the Gateway, stays unchanged throughout.
    let foreign = json!({
        "parentRef": gateway, "controllerName": "example.com/gateway",
        "conditions": [{
            "type": "Accepted", "status": "True", "reason": "Accepted", "message": "",
            "observedGeneration": 1,
            "lastTransitionTime": "2024-01-01T00:00:00Z",
        }],
    });
    let all: Vec<Value> = found.iter().cloned().chain([foreign.clone()]).collect();
    let patch = json!({ "status": { "parents": all } }).to_string();
    let arguments = [
        "-n",
        &namespace.0,
        "patch",
        "httproute",
        "several",
        "--subresource=status",
        "--type=merge",
        "-p",
        &patch,
    ];
    run(script("kubectl").args(arguments)).expect("another controller's write");
    let theirs = || {
        let found = parents(&namespace, "httproute", "several");
        found
            .into_iter()
            .find(|entry| entry["controllerName"] != OURS)
    };
    assert_eq!(theirs().as_ref(), Some(&foreign));

    // A removed parent has no entry, and the generation is that of the change.
    object["spec"]["parentRefs"] = json!([reference("echo", "http", 80), gateway]);
    namespace.apply(&[object.clone()]);
    let found = expect(&[("echo:80", "True", "Accepted")]);
    let generation =
        get(&["-n", &namespace.0, "httproute", "several"])["metadata"]["generation"].clone();
    assert_eq!(generation, 2);
    let ours = found
        .iter()
        .find(|entry| entry["controllerName"] == OURS)
        .expect("ours");
    assert_eq!(ours["conditions"][0]["observedGeneration"], 2);
    assert_eq!(theirs().as_ref(), Some(&foreign));

    // Without a change nothing is written, whatever else changes.
    let version = || {
        get(&["-n", &namespace.0, "httproute", "several"])["metadata"]["resourceVersion"].clone()
    };
    let before = version();
    namespace.apply(&[super::echo::service("other", json!({ "app": "other" }))]);
    namespace.kubectl(&["scale", "deployment/v1", "--replicas=2"]);
    namespace.rolled_out("deployment/v1");
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(version(), before);

    // Our entry is removed with the last reference to a Service.
    object["spec"]["parentRefs"] = json!([gateway]);
    namespace.apply(&[object.clone()]);
    eventually("only the other's entry is left", SOON, || {
        match parents(&namespace, "httproute", "several") {
            found if found == [foreign.clone()] => Ok(()),
            found => Err(json!(found).to_string()),
        }
    });
}

/// Twin of HTTPRouteInvalidNonExistentBackendRef and similar tests: the verdict on references.
#[test]
fn a_route_is_told_of_references_that_do_not_hold() {
    let _turn = turns::beside_others();
    let namespace = Namespace::meshed("refs");
    start(&namespace, &["v1"]);
    let elsewhere = json!({ "name": "v3", "namespace": "default", "port": 80 });
    let kind = json!({ "group": "example.com", "kind": "Bucket", "name": "v1", "port": 80 });
    let port = json!({ "name": "v1", "port": 81 });
    for (name, backend, reason) in [
        ("right", to("v1"), "ResolvedRefs"),
        ("gone", to("gone"), "BackendNotFound"),
        ("port", port, "BackendNotFound"),
        ("elsewhere", elsewhere, "RefNotPermitted"),
        ("kind", kind, "InvalidKind"),
    ] {
        namespace.apply(&[route(
            "HTTPRoute",
            name,
            "echo:80",
            json!([{ "backendRefs": [backend] }]),
        )]);
        let status = if reason == "ResolvedRefs" {
            "True"
        } else {
            "False"
        };
        let found = condition(&namespace, "HTTPRoute", name, "ResolvedRefs");
        assert!(found.is(status, reason), "{name}: {found:?}");
        // The route stays in force: requests to the invalid backend are refused.
        let found = condition(&namespace, "HTTPRoute", name, "Accepted");
        assert!(found.is("True", "Accepted"), "{name}: {found:?}");
    }
}

#[test]
fn a_route_that_asks_for_what_is_not_supported_is_not_half_applied() {
    let _turn = turns::beside_others();
    let namespace = Namespace::meshed("unsupported");
    start(&namespace, &["v1", "v2"]);
    let client = Client {
        namespace: &namespace,
        deployment: "v1",
    };
    let plain = json!([{ "backendRefs": [to("v1")] }]);
    namespace.apply(&[route("HTTPRoute", "filtered", "echo:80", plain.clone())]);
    client.until("http://echo", &[], |answer| answer.by == "v1");

    let extension = json!({
        "type": "ExtensionRef",
        "extensionRef": { "group": "example.com", "kind": "Filter", "name": "mine" },
    });
    let mut backend = to("v2");
    backend["filters"] = json!([extension]);
    for rules in [
        json!([{ "filters": [extension], "backendRefs": [to("v2")] }]),
        json!([
            { "backendRefs": [backend] },
            { "matches": [{ "path": { "value": "/x" } }], "backendRefs": [to("v2")] },
        ]),
    ] {
        namespace.apply(&[route("HTTPRoute", "filtered", "echo:80", rules)]);
        let found = condition(&namespace, "HTTPRoute", "filtered", "Accepted");
        assert!(found.is("False", "UnsupportedValue"), "{found:?}");
        assert!(found.message.contains("ExtensionRef"), "{found:?}");
        // Neither the route nor its previous version is in force: the Service's own pods respond.
        eventually("both of the Service's pods answer", SOON, || {
            let answers = client.calls("http://echo/x", 40, &[]);
            let by = |name: &str| answers.iter().any(|answer| answer.by == name);
            match by("v1") && by("v2") {
                true => Ok(()),
                false => Err(format!("{answers:?}")),
            }
        });
    }
    namespace.apply(&[route("HTTPRoute", "filtered", "echo:80", plain)]);
    let found = condition(&namespace, "HTTPRoute", "filtered", "Accepted");
    assert!(found.is("True", "Accepted"), "{found:?}");
    client.until("http://echo", &[], |answer| answer.by == "v1");
}
