//! HTTPRoutes, as seen by clients and backends.

use serde_json::{Value, json};

use super::echo::{Client, SOON, condition, route, start, to};
use crate::kubernetes::{Namespace, apply, eventually, kubectl};
use crate::objects::{deployment, pod_spec, shell};
use crate::turns;

/// A rule for one exact path.
fn at(path: &str, mut rule: Value) -> Value {
    rule["matches"] = json!([{ "path": { "type": "Exact", "value": path } }]);
    rule
}

/// A rule that redirects one exact path or a prefix.
fn redirect(kind: &str, path: &str, redirect: Value) -> Value {
    json!({
        "matches": [{ "path": { "type": kind, "value": path } }],
        "filters": [{ "type": "RequestRedirect", "requestRedirect": redirect }],
    })
}

/// Twin of HTTPRouteRedirectHostAndStatus, RedirectPath, RedirectPort, RedirectScheme and 303, 307,
/// 308; checks the complete `Location`.
#[test]
fn a_redirect_says_where_in_full() {
    let _turn = turns::beside_others();
    let namespace = Namespace::meshed("redirects");
    start(&namespace, &["v1"]);
    let prefix =
        |to: &str| json!({ "path": { "type": "ReplacePrefixMatch", "replacePrefixMatch": to } });
    let mut host_and_path = json!({ "hostname": "example.org" });
    host_and_path["path"] = prefix("/new")["path"].clone();
    let full = json!({
        "path": { "type": "ReplaceFullPath", "replaceFullPath": "/full" }, "statusCode": 301,
    });
    namespace.apply(&[route(
        "HTTPRoute",
        "redirects",
        "echo",
        json!([
            redirect("Exact", "/host", json!({ "hostname": "example.org" })),
            redirect(
                "Exact",
                "/status",
                json!({ "hostname": "example.org", "statusCode": 301 })
            ),
            redirect("PathPrefix", "/prefix", prefix("/new")),
            redirect("PathPrefix", "/strip", prefix("/")),
            redirect("PathPrefix", "/host-and-path", host_and_path),
            redirect("PathPrefix", "/all", full),
            redirect("Exact", "/port", json!({ "port": 8083 })),
            redirect(
                "Exact",
                "/port-and-host",
                json!({ "port": 8083, "hostname": "example.org", "statusCode": 302 }),
            ),
            redirect("Exact", "/https", json!({ "scheme": "https" })),
            redirect(
                "Exact",
                "/https-and-port",
                json!({ "scheme": "https", "port": 8443 })
            ),
            redirect(
                "Exact",
                "/other",
                json!({
                    "statusCode": 303,
                    "path": { "type": "ReplaceFullPath", "replaceFullPath": "/seen" },
                }),
            ),
            redirect(
                "Exact",
                "/temporary",
                json!({ "statusCode": 307 , "hostname": "example.org"})
            ),
            redirect(
                "Exact",
                "/permanent",
                json!({ "statusCode": 308 , "hostname": "example.org"})
            ),
        ]),
    )]);
    let client = Client {
        namespace: &namespace,
        deployment: "v1",
    };
    client.until("http://echo/host", &[], |answer| answer.status == 302);
    for (url, status, location) in [
        ("http://echo/host", 302, "http://example.org/host"),
        (
            "http://echo/host?a=b&c",
            302,
            "http://example.org/host?a=b&c",
        ),
        // Without a scheme the request's port is kept, here the Service's.
        ("http://echo:8080/host", 302, "http://example.org:8080/host"),
        ("http://echo/status", 301, "http://example.org/status"),
        ("http://echo/prefix/a/b?c=d", 302, "http://echo/new/a/b?c=d"),
        ("http://echo/prefix", 302, "http://echo/new"),
        ("http://echo/strip/a", 302, "http://echo/a"),
        ("http://echo/strip", 302, "http://echo/"),
        (
            "http://echo/host-and-path/a",
            302,
            "http://example.org/new/a",
        ),
        ("http://echo/all/of/it", 301, "http://echo/full"),
        ("http://echo/port", 302, "http://echo:8083/port"),
        (
            "http://echo/port-and-host",
            302,
            "http://example.org:8083/port-and-host",
        ),
        ("http://echo/https", 302, "https://echo/https"),
        ("http://echo:8080/https", 302, "https://echo/https"),
        (
            "http://echo/https-and-port",
            302,
            "https://echo:8443/https-and-port",
        ),
        ("http://echo/other", 303, "http://echo/seen"),
        ("http://echo/temporary", 307, "http://example.org/temporary"),
        ("http://echo/permanent", 308, "http://example.org/permanent"),
    ] {
        let answer = client.call(url, &[]);
        let found = (answer.status, answer.location(), &*answer.by);
        assert_eq!(found, (status, location, ""), "{url}: {}", answer.text);
    }
}

/// Twin of HTTPRouteRewriteHost, RewritePath, ResponseHeaderModifier,
/// RequestHeaderModifierBackendWeights, MethodMatching and NamedRule; in addition, regular
/// expressions, which the suite does not cover.
#[test]
fn filters_and_matches_do_to_a_request_what_they_say() {
    let _turn = turns::beside_others();
    let namespace = Namespace::meshed("filters");
    start(&namespace, &["v1", "v2"]);
    let rewrite = |path: &str, rewrite: Value| {
        json!({
            "matches": [{ "path": { "type": "PathPrefix", "value": path } }],
            "filters": [{ "type": "URLRewrite", "urlRewrite": rewrite }],
            "backendRefs": [to("v1")],
        })
    };
    let prefix = |to: &str| json!({ "type": "ReplacePrefixMatch", "replacePrefixMatch": to });
    let response = json!({
        "type": "ResponseHeaderModifier",
        "responseHeaderModifier": {
            "set": [{ "name": "X-Set", "value": "set" }],
            "add": [{ "name": "X-Add", "value": "added" }],
            "remove": ["X-Remove"],
        },
    });
    let mut response_of_backend = to("v1");
    response_of_backend["filters"] = json!([response]);
    let mut request_of_backend = to("v2");
    request_of_backend["filters"] = json!([{
        "type": "RequestHeaderModifier",
        "requestHeaderModifier": { "set": [{ "name": "x-backend", "value": "v2" }] },
    }]);
    let regular = |path: &str| json!({ "path": { "type": "RegularExpression", "value": path } });
    namespace.apply(&[route(
        "HTTPRoute",
        "filters",
        "echo:80",
        json!([
            rewrite("/host", json!({ "hostname": "one.example.org" })),
            rewrite("/prefix", json!({ "path": prefix("/new") })),
            rewrite("/strip", json!({ "path": prefix("/") })),
            rewrite(
                "/full",
                json!({
                    "path": { "type": "ReplaceFullPath", "replaceFullPath": "/one" },
                    "hostname": "two.example.org",
                }),
            ),
            at("/response", json!({ "filters": [response], "backendRefs": [to("v1")] })),
            at("/response-of-backend", json!({ "backendRefs": [response_of_backend] })),
            at("/request-of-backend", json!({ "backendRefs": [request_of_backend] })),
            {
                "name": "posts", "matches": [{ "path": { "value": "/method" }, "method": "POST" }],
                "backendRefs": [to("v1")],
            },
            {
                "matches": [{ "path": { "value": "/method" }, "method": "DELETE" }],
                "backendRefs": [to("v2")],
            },
            { "matches": [regular("/users/[0-9]+")], "backendRefs": [to("v1")] },
            { "matches": [regular("/users/[a-z]+(/.*)?")], "backendRefs": [to("v2")] },
            {
                "matches": [{
                    "path": { "value": "/values" },
                    "headers": [{
                        "type": "RegularExpression", "name": "X-Version", "value": "2\\.[0-9]+",
                    }],
                    "queryParams": [{
                        "type": "RegularExpression", "name": "user", "value": "(ann|bob)",
                    }],
                }],
                "backendRefs": [to("v2")],
            },
        ]),
    )]);
    let client = Client {
        namespace: &namespace,
        deployment: "v1",
    };
    client.until("http://echo/users/1", &[], |answer| answer.by == "v1");
    let seen = |url: &str, arguments: &[&str]| {
        let answer = client.call(url, arguments);
        assert_eq!(answer.status, 200, "{url}: {}", answer.text);
        answer
    };
    for (url, host, path) in [
        ("http://echo/host/a?b=c", "one.example.org", "/host/a?b=c"),
        ("http://echo/prefix/a/b?c=d", "echo", "/new/a/b?c=d"),
        ("http://echo/prefix", "echo", "/new"),
        ("http://echo/strip/a", "echo", "/a"),
        ("http://echo/strip", "echo", "/"),
        ("http://echo/full/of/it?a=b", "two.example.org", "/one?a=b"),
    ] {
        let answer = seen(url, &[]);
        assert_eq!(
            (&*answer.host, &*answer.path),
            (host, path),
            "{url}: {}",
            answer.text
        );
    }

    let own = "headers=x-set:app,x-add:app,x-remove:app";
    for path in ["response", "response-of-backend"] {
        let answer = seen(&format!("http://echo/{path}?{own}"), &[]);
        let header = |name: &str| answer.response.get(name).map(String::as_str);
        assert_eq!(header("x-set"), Some("set"), "{}", answer.text);
        assert_eq!(header("x-add"), Some("app,added"), "{}", answer.text);
        assert_eq!(header("x-remove"), None, "{}", answer.text);
    }
    let answer = seen("http://echo/request-of-backend", &["-H", "x-backend:mine"]);
    assert_eq!(
        answer.request.get("x-backend").map(String::as_str),
        Some("v2")
    );

    for (url, arguments, by) in [
        ("http://echo/method", &["--method=POST"][..], "v1"),
        ("http://echo/method", &["--method=DELETE"], "v2"),
        ("http://echo/users/17", &[], "v1"),
        ("http://echo/users/ann", &[], "v2"),
        ("http://echo/users/ann/cart", &[], "v2"),
        (
            "http://echo/values?user=bob",
            &["-H", "x-version:2.1"],
            "v2",
        ),
    ] {
        assert_eq!(seen(url, arguments).by, by, "{url}");
    }
    // A regular expression must match the whole value; no other rule matches.
    for (url, arguments) in [
        ("http://echo/method", &["--method=PUT"][..]),
        ("http://echo/users/17x", &[]),
        ("http://echo/values?user=bobby", &["-H", "x-version:2.1"]),
        ("http://echo/values?user=bob", &["-H", "x-version:12.1"]),
    ] {
        let answer = client.call(url, arguments);
        assert_eq!(
            (answer.status, answer.reason()),
            (404, "no-route"),
            "{url}: {}",
            answer.text
        );
    }
    // A rule's name appears in the metrics.
    let pods = namespace.pod_names("app=v1");
    let metrics = namespace.metrics(&pods[0], 15020);
    assert!(
        metrics.lines().any(|line| line.contains("rule=\"posts\"")),
        "{metrics}"
    );
}

/// Twin of HTTPRouteWeight, InvalidNonExistentBackendRef, InvalidCrossNamespaceBackendRef,
/// InvalidBackendRefUnknownKind, PartiallyInvalidViaInvalidReferenceGrant, NoBackendRefs,
/// ReferenceGrant.
#[test]
fn backends_get_their_share_and_those_that_can_not_be_used_get_it_refused() {
    let _turn = turns::beside_others();
    let namespace = Namespace::meshed("backends");
    let other = Namespace::meshed("backends-other");
    start(&namespace, &["v1", "v2"]);
    start(&other, &["v3"]);
    let weighted = |service: &str, weight: u32| {
        let mut backend = to(service);
        backend["weight"] = weight.into();
        backend
    };
    let elsewhere = json!({ "name": "v3", "namespace": other.0, "port": 80 });
    let unknown = json!({ "group": "example.com", "kind": "Bucket", "name": "v1", "port": 80 });
    namespace.apply(&[route(
        "HTTPRoute",
        "backends",
        "echo:80",
        json!([
            at(
                "/zero",
                json!({ "backendRefs": [weighted("v1", 0), weighted("v2", 1)] })
            ),
            at("/none", json!({ "backendRefs": [weighted("v1", 0)] })),
            at("/nothing", json!({})),
            at("/gone", json!({ "backendRefs": [to("gone")] })),
            at("/kind", json!({ "backendRefs": [unknown] })),
            at(
                "/part",
                json!({ "backendRefs": [weighted("v1", 1), weighted("gone", 1)] })
            ),
            at("/elsewhere", json!({ "backendRefs": [elsewhere] })),
        ]),
    )]);
    let client = Client {
        namespace: &namespace,
        deployment: "v1",
    };
    client.until("http://echo/zero", &[], |answer| answer.by == "v2");
    let answers = client.calls("http://echo/zero", 50, &[]);
    assert_eq!(answers.len(), 50);
    assert!(
        answers.iter().all(|answer| answer.by == "v2"),
        "{answers:?}"
    );
    for (path, reason) in [
        ("none", "no-backend"),
        ("nothing", "no-backend"),
        ("gone", "backend-invalid"),
        ("kind", "backend-invalid"),
        ("elsewhere", "backend-invalid"),
    ] {
        let answer = client.call(&format!("http://echo/{path}"), &[]);
        assert_eq!(
            (answer.status, answer.reason()),
            (500, reason),
            "{path}: {}",
            answer.text
        );
    }
    // A share each: all of 200 go to the same side with a probability of 10^-60.
    let answers = client.calls("http://echo/part", 200, &[]);
    let good = answers.iter().filter(|answer| answer.by == "v1").count();
    let refused = |answer: &&super::echo::Answer| {
        answer.status == 500 && answer.reason() == "backend-invalid"
    };
    let bad = answers.iter().filter(refused).count();
    assert_eq!(good + bad, 200, "{answers:?}");
    assert!((50..150).contains(&good), "{good} of 200");

    let found = condition(&namespace, "HTTPRoute", "backends", "ResolvedRefs");
    assert_eq!(found.status, "False", "{found:?}");
    apply(&[json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "ReferenceGrant",
        "metadata": { "name": "backends", "namespace": other.0 },
        "spec": {
            "from": [{
                "group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": namespace.0,
            }],
            "to": [{ "group": "", "kind": "Service", "name": "v3" }],
        },
    })]);
    client.until("http://echo/elsewhere", &[], |answer| answer.by == "v3");
    kubectl(&["-n", &other.0, "delete", "referencegrant", "backends"]);
    client.until("http://echo/elsewhere", &[], |answer| {
        answer.reason() == "backend-invalid"
    });
}

/// Twin of HTTPRouteTimeoutRequest, TimeoutBackendRequest, Retry, RetryConnectionError.
#[test]
fn time_limits_and_retries_hold() {
    let _turn = turns::beside_others();
    let namespace = Namespace::meshed("limits");
    start(&namespace, &["v1", "v2"]);
    let slow = json!({ "name": "v2", "port": 80 });
    namespace.apply(&[route("HTTPRoute", "limits", "echo:80", json!([
        at("/request", json!({ "backendRefs": [slow], "timeouts": { "request": "500ms" } })),
        at(
            "/backend",
            json!({
                "backendRefs": [slow], "timeouts": { "request": "4s", "backendRequest": "500ms" },
            }),
        ),
        at("/unlimited", json!({ "backendRefs": [slow], "timeouts": { "request": "0s" } })),
        at(
            "/retried",
            json!({
                "backendRefs": [slow],
                "retry": { "codes": [503], "attempts": 3, "backoff": "10ms" },
            }),
        ),
        at("/once", json!({ "backendRefs": [slow], "retry": { "codes": [503], "attempts": 0 } })),
    ]))]);
    let client = Client {
        namespace: &namespace,
        deployment: "v1",
    };
    client.until("http://echo/unlimited", &[], |answer| answer.by == "v2");
    for (path, reason) in [
        ("request", "request-timeout"),
        ("backend", "backend-request-timeout"),
    ] {
        let answer = client.call(&format!("http://echo/{path}?delay=3s"), &[]);
        assert_eq!(
            (answer.status, answer.reason()),
            (504, reason),
            "{path}: {}",
            answer.text
        );
    }
    let answer = client.call("http://echo/unlimited?delay=1s", &[]);
    assert_eq!(answer.by, "v2", "{}", answer.text);
    // The backend's sidecar counts its requests.
    let asked = || {
        let pods = namespace.pod_names("app=v2");
        let metrics = namespace.metrics(&pods[0], 15020);
        crate::kubernetes::sum(&metrics, "naru_requests_total", &["direction=\"inbound\""]) as u64
    };
    for (path, attempts) in [("retried", 4), ("once", 1)] {
        let before = asked();
        let answer = client.call(&format!("http://echo/{path}?codes=503"), &[]);
        assert_eq!(
            (answer.status, &*answer.by),
            (503, "v2"),
            "{path}: {}",
            answer.text
        );
        assert_eq!(asked() - before, attempts, "{path}");
    }

    // One of the Service's pods accepts connections, and closes them without a response.
    let closing = shell("echo", "while :; do nc -l -p 8080 -e true; done");
    let mut object = deployment("closing", 1, pod_spec(closing));
    object["spec"]["template"]["metadata"]["labels"]["part-of"] = "echo".into();
    namespace.apply(&[object]);
    namespace.rolled_out("deployment/closing");
    let mut rule = at("/closed", json!({ "backendRefs": [to("echo")] }));
    namespace.apply(&[route("HTTPRoute", "limits", "echo:80", json!([rule]))]);
    eventually("a request fails of it", SOON, || {
        let answers = client.calls("http://echo/closed", 5, &[]);
        match answers.iter().any(|answer| answer.status == 503) {
            true => Ok(()),
            false => Err(format!("{answers:?}")),
        }
    });
    rule["retry"] = json!({ "attempts": 3 });
    namespace.apply(&[route("HTTPRoute", "limits", "echo:80", json!([rule]))]);
    eventually("no request fails of it any more", SOON, || {
        let answers = client.calls("http://echo/closed", 20, &[]);
        match answers.len() == 20 && answers.iter().all(|answer| answer.status == 200) {
            true => Ok(()),
            false => Err(format!("{answers:?}")),
        }
    });
}

/// Twin of HTTPRouteBackendProtocolH2C and BackendProtocolWebSocket.
#[test]
fn a_backend_is_spoken_to_as_its_port_declares() {
    let _turn = turns::beside_others();
    let namespace = Namespace::meshed("protocols");
    start(&namespace, &["v1"]);
    let declared = |name: &str, protocol: &str| {
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": name },
            "spec": {
                "selector": { "app": "v1" },
                "ports": [{ "port": 80, "targetPort": 8080, "appProtocol": protocol }],
            },
        })
    };
    namespace.apply(&[
        declared("h2c", "kubernetes.io/h2c"),
        declared("ws", "kubernetes.io/ws"),
        route(
            "HTTPRoute",
            "protocols",
            "echo:80",
            json!([
                at("/h2c", json!({ "backendRefs": [to("h2c")] })),
                at("/ws", json!({ "backendRefs": [to("ws")] })),
            ]),
        ),
    ]);
    let client = Client {
        namespace: &namespace,
        deployment: "v1",
    };
    client.until("http://echo/h2c", &[], |answer| answer.by == "v1");
    // HTTP/2 with prior knowledge; the gRPC tests cover the same with gRPC.
    let answer = client.call("http://echo/h2c", &["--http2"]);
    assert!(answer.text.contains("Proto=HTTP/2.0"), "{}", answer.text);
    let answer = client.call("ws://echo/ws", &["--msg=hello"]);
    assert!(answer.text.contains("Echo=hello"), "{}", answer.text);
    assert_eq!(
        answer.request.get("upgrade").map(String::as_str),
        Some("websocket"),
        "{}",
        answer.text
    );
}
