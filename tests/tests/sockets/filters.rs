//! Effects of a route's filters other than modifications of requests.

use http::Request;
use serde_json::json;

use crate::apps::{self, App};
use crate::mesh::{Mesh, split};
use crate::process::eventually;

#[tokio::test]
async fn mirrored_requests_use_mutual_tls_and_their_responses_are_discarded() {
    let mesh = Mesh::start().await;
    let app = App::named(mesh.app(1), "web").await;
    let shadow = App::start(mesh.app(2), |_| async {
        (http::StatusCode::INTERNAL_SERVER_ERROR, "unseen".to_owned())
    })
    .await;
    for (name, number) in [("web", 1), ("shadow", 2)] {
        mesh.service(name, Some("http"), &[number]);
    }
    let mut route = split("web", &[("web", 1)]);
    let mirror = |service: &str| {
        json!({
            "type": "RequestMirror",
            "requestMirror": { "backendRef": { "name": service, "port": 80 } },
        })
    };
    // A missing mirror does not affect the others.
    route["spec"]["rules"][0]["filters"] = json!([mirror("shadow"), mirror("gone")]);
    mesh.put(&route);
    let _web = mesh.sidecar("web", 1, &[]).await;
    let mirrored = mesh.sidecar("shadow", 2, &[]).await;
    let client = mesh.sidecar("client", 3, &["web"]).await;

    let answer = client.get("web").await;
    assert_eq!((answer.status, &*answer.body), (200, "web"), "{answer:?}");
    let answered = [
        "service=\"web\"",
        "route=\"shop/web\"",
        "rule=\"split\"",
        "mirror=\"shop/shadow:80\"",
        "result=\"answered\"",
    ];
    let copies = "naru_mirrored_requests_total";
    eventually("the copy is answered", async || {
        client.metric(copies, &answered).await == 1.0
    })
    .await;
    assert_eq!((app.requests(), shadow.requests()), (1, 1));
    let named = [
        "direction=\"inbound\"",
        "client=\"spiffe://cluster.local/ns/shop/sa/client\"",
    ];
    assert_eq!(mirrored.metric("naru_requests_total", &named).await, 1.0);
    let outbound = ["direction=\"outbound\""];
    assert_eq!(client.metric("naru_requests_total", &outbound).await, 1.0);

    // A failing mirror affects no request.
    drop(mirrored);
    for _ in 0..10 {
        assert_eq!(client.get("web").await.body, "web");
    }
    eventually("the copies have failed", async || {
        client.metric(copies, &["result=\"failed\""]).await == 10.0
    })
    .await;
    assert_eq!((app.requests(), shadow.requests()), (11, 1));
}

#[tokio::test]
async fn a_browser_s_preflight_is_answered_by_its_route() {
    let mesh = Mesh::start().await;
    let app = App::named(mesh.app(1), "web").await;
    mesh.service("web", Some("http"), &[1]);
    let mut route = split("web", &[("web", 1)]);
    route["spec"]["rules"][0]["filters"] = json!([{
        "type": "CORS",
        "cors": {
            "allowOrigins": ["https://*.example.com"],
            "allowMethods": ["PUT"],
            "allowCredentials": true,
            "maxAge": 600,
        },
    }]);
    mesh.put(&route);
    let _web = mesh.sidecar("web", 1, &[]).await;
    let client = mesh.sidecar("client", 2, &["web"]).await;

    let ask = async |method: &str, origin: &str| {
        let request = Request::builder()
            .method(method)
            .uri("/")
            .header("host", "web")
            .header("origin", origin)
            .header("access-control-request-method", "PUT");
        let request = request.body(String::new()).expect("a request");
        let asking = apps::ask(client.calls("web"), request).await;
        asking.expect("an answer")
    };
    let allowed = ask("OPTIONS", "https://shop.example.com").await;
    assert_eq!((allowed.status, allowed.reason()), (204, "cors-preflight"));
    for (name, value) in [
        ("access-control-allow-origin", "https://shop.example.com"),
        ("access-control-allow-methods", "PUT"),
        ("access-control-allow-credentials", "true"),
        ("access-control-max-age", "600"),
    ] {
        assert_eq!(allowed.headers[name], value);
    }
    let denied = ask("OPTIONS", "https://example.org").await;
    assert_eq!((denied.status, denied.reason()), (403, "cors-preflight"));
    assert!(!denied.headers.contains_key("access-control-allow-origin"));
    assert_eq!(app.requests(), 0);

    let answer = ask("GET", "https://shop.example.com").await;
    assert_eq!((&*answer.body, app.requests()), ("web", 1));
    let origin = &answer.headers["access-control-allow-origin"];
    assert_eq!(origin, "https://shop.example.com");
    for status in ["204", "403"] {
        let status = format!("status=\"{status}\"");
        let labels = ["service=\"web\"", "reason=\"cors-preflight\"", &status];
        let counted = client.metric("naru_responses_total", &labels).await;
        assert_eq!(counted, 1.0, "{status}");
    }
}
