//! `naru why` and `naru routes` with a running sidecar: their answers match its behaviour.

use http::Request;
use naru_tests::programs;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::apps::{Answer, App, ask};
use crate::mesh::{Mesh, NAMESPACE, Sidecar, cluster_ip};
use crate::process::eventually;
use crate::streams::{self, Greeter, bytes_behind_front, greeting, is_reset, tls_greeting};

/// Exit code, and the output of both streams.
async fn naru(arguments: &[&str]) -> (i32, String) {
    let mut command = Command::new(programs().join("naru"));
    command.args(arguments).env_clear();
    let output = command.output().await.expect("naru");
    let text = [output.stdout, output.stderr].concat();
    let code = output.status.code().expect("an exit code");
    (code, String::from_utf8(text).expect("text"))
}

async fn why(client: &Sidecar, arguments: &[&str]) -> (i32, String) {
    let from = format!("--from=http://{}", client.admin);
    naru(&[&["why", &from], arguments].concat()).await
}

/// A request of the client's app to `web`.
async fn get(client: &Sidecar, path: &str, version: Option<&str>) -> Answer {
    let mut request = Request::get(path).header("host", "web");
    if let Some(version) = version {
        request = request.header("version", version);
    }
    let request = request.body(String::new()).expect("a request");
    ask(client.calls("web"), request).await.expect("an answer")
}

fn backend(name: &str, weight: u32) -> Value {
    json!({ "name": name, "port": 80, "weight": weight })
}

fn route(rules: &Value) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {
            "name": "split",
            "namespace": NAMESPACE,
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {
            "parentRefs": [{ "group": "", "kind": "Service", "name": "web" }],
            "rules": rules,
        },
    })
}

/// `web` and `canary`, each with a pod, a route with several rules, and a client.
async fn shop(mesh: &Mesh) -> (Vec<(App, Sidecar)>, Sidecar) {
    let mut running = Vec::new();
    for (number, name) in [(1, "web"), (2, "canary")] {
        mesh.service(name, Some("http"), &[number]);
        let app = App::named(mesh.app(number), name).await;
        running.push((app, mesh.sidecar(name, number, &[]).await));
    }
    mesh.put(&route(&json!([
        {
            "name": "canary",
            "matches": [{
                "path": { "value": "/api" },
                "headers": [{ "name": "Version", "value": "2" }],
            }],
            "filters": [{ "type": "URLRewrite", "urlRewrite": {
                "path": { "type": "ReplacePrefixMatch", "replacePrefixMatch": "/v2" },
            } }],
            "backendRefs": [backend("canary", 1)],
        },
        {
            "name": "moved",
            "matches": [{ "path": { "type": "Exact", "value": "/old" } }],
            "filters": [{ "type": "RequestRedirect", "requestRedirect": {
                "path": { "type": "ReplaceFullPath", "replaceFullPath": "/new" }, "statusCode": 301,
            } }],
        },
        {
            "name": "api",
            "matches": [{ "path": { "value": "/api" } }],
            "backendRefs": [backend("web", 3), backend("gone", 1)],
        },
        {
            "name": "broken",
            "matches": [{ "path": { "value": "/broken" } }],
            "backendRefs": [backend("gone", 1)],
        },
    ])));
    let client = mesh.sidecar("client", 3, &["web"]).await;
    eventually("the route is in force", async || {
        get(&client, "/old", None).await.status == 301
    })
    .await;
    (running, client)
}

#[tokio::test]
async fn why_matches_the_behaviour() {
    let mesh = Mesh::start().await;
    let (_running, client) = shop(&mesh).await;

    // The canary: its backend, its rule, and the mismatches of the other rules.
    let url = format!("http://{}/api/x?y", cluster_ip("web"));
    let (code, said) = why(&client, &["-H", "version: 2", &url]).await;
    assert_eq!(code, 0, "{said}");
    for part in [
        "is port 80 of Service shop/web (http)",
        "HTTPRoute shop/split, rule canary takes it",
        "100 %    shop/canary:80, 1 endpoint",
        "as /v2/x?y for host",
        "it would, but the other wants more headers",
        "the path is /api/x",
    ] {
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(get(&client, "/api/x", Some("2")).await.body, "canary");

    // By name, after its app has called it; one backend of two can't be used.
    let (code, said) = why(&client, &["http://web/api/x"]).await;
    assert_eq!(code, 0, "{said}");
    for part in [
        "rule api takes it",
        "75 %     shop/web:80, 1 endpoint",
        "25 %     can't be used: BackendNotFound",
        "the sidecar answers 500, backend-invalid",
        "header Version = \"2\": the request has none",
    ] {
        assert!(said.contains(part), "{said}");
    }

    for (path, reason) in [("/nowhere", "no-route"), ("/broken", "backend-invalid")] {
        let (code, said) = why(&client, &[&format!("http://web.shop.svc{path}")]).await;
        let real = get(&client, path, None).await;
        assert_eq!(real.reason(), reason);
        let expected = format!("the sidecar answers {}, {reason}", real.status);
        assert!(code == 1 && said.contains(&expected), "{code} {said}");
    }

    let real = get(&client, "/old", None).await;
    let location = real.headers["location"].to_str().expect("text");
    let (code, said) = why(&client, &["http://web/old"]).await;
    let expected = format!("the sidecar answers 301, redirect, to {location}");
    assert!(code == 1 && said.contains(&expected), "{code} {said}");
}

#[tokio::test]
async fn why_follows_the_tables_and_reports_what_it_does_not_know() {
    let mesh = Mesh::start().await;
    let (running, client) = shop(&mesh).await;
    let to_web = async |arguments: &[&str]| {
        let (code, said) = why(
            &client,
            &[&["--output=json", "http://web/api"], arguments].concat(),
        )
        .await;
        let said: Value = serde_json::from_str(&said).unwrap_or_else(|_| panic!("{code} {said}"));
        (code, said)
    };
    let (code, said) = to_web(&[]).await;
    assert_eq!(code, 0, "{said:#}");
    assert_eq!(said["answer"]["routes"][0]["name"], "shop/split");

    // Without endpoints.
    mesh.endpoints("web", &[]);
    eventually("there is no endpoint", async || {
        let (code, said) = to_web(&[]).await;
        let reasons = &said["answer"]["outcome"]["backends"];
        code == 1
            && reasons[0]["reason"] == "no-endpoint"
            && reasons[1]["reason"] == "backend-invalid"
    })
    .await;
    // No rule matches another method.
    mesh.put(&route(&json!([{
        "matches": [{ "method": "GET" }], "backendRefs": [backend("canary", 1)],
    }])));
    eventually("the new route is in force", async || {
        let (code, said) = to_web(&["-X", "PUT"]).await;
        let lacks = &said["answer"]["matches"][0];
        code == 1 && lacks["part"] == "method" && lacks["wanted"] == "GET"
    })
    .await;
    assert_eq!(to_web(&[]).await.0, 0);
    // An address that the app has never called: the sidecar subscribes to it.
    let url = format!("http://{}/", cluster_ip("canary"));
    let (code, said) = why(&client, &[&url]).await;
    let told = said.contains("no route is in force for it");
    assert!(code == 0 && told, "{code} {said}");
    drop(running);

    // A destination outside the mesh, a Service that the app has not called, and invalid arguments.
    let (code, said) = why(&client, &["http://10.1.2.3/"]).await;
    assert!(
        code == 1 && said.contains("10.1.2.3:80 is not in the mesh"),
        "{code} {said}"
    );
    for (arguments, told) in [
        (&["http://cart/"][..], "has not called that Service yet"),
        (&["ftp://web/"], "https, tls, tcp"),
        (&["tls://web"], "names no port"),
        (&["tcp://web:80/api"], "no path"),
        (
            &["--server-name=web", "tcp://web:80"],
            "only https:// and tls://",
        ),
        (&["--server-name=a b", "tls://web:80"], "server_name"),
        (&["-H", "version", "http://web/"], "NAME: VALUE"),
        (&["-X", "G T", "http://web/"], "method"),
        (&["http://www.example.com/"], "not the name of a Service"),
    ] {
        let (code, said) = why(&client, arguments).await;
        assert!(code == 2 && said.contains(told), "{code} {said}");
    }
    let (code, said) = naru(&["why", "--from=http://127.0.0.1:1", "http://web/"]).await;
    assert!(code == 2 && said.contains("127.0.0.1:1"), "{code} {said}");
}

#[tokio::test]
async fn routes_lists_the_routes_in_force_in_order_of_precedence() {
    let mesh = Mesh::start().await;
    let (_running, client) = shop(&mesh).await;
    let from = format!("--from=http://{}", client.admin);
    let (code, said) = naru(&["routes", &from, "web.shop"]).await;
    assert_eq!(code, 0, "{said}");
    assert!(
        said.contains("Service shop/web for clients in namespace shop"),
        "{said}"
    );
    let rows: Vec<&str> = said.lines().collect();
    let row = |rule: &str| {
        let row = rows
            .iter()
            .position(|line| line.contains(&format!(" {rule} ")));
        row.unwrap_or_else(|| panic!("no {rule}: {said}"))
    };
    let rules = ["moved", "broken", "canary", "api"].map(row);
    assert!(rules.is_sorted(), "{said}");
    assert!(rows[rules[0]].contains("path = /old"), "{said}");
    assert!(
        rows[rules[0]].contains("redirect with 301, path /new"),
        "{said}"
    );
    assert!(
        rows[rules[3]].contains("weight 3: shop/web:80, 1 endpoint"),
        "{said}"
    );
    assert!(
        rows[rules[3] + 1].contains("weight 1: can't be used"),
        "{said}"
    );

    let (code, said) = naru(&["routes", &from, "--output=json", "web"]).await;
    assert_eq!(code, 0, "{said}");
    let said: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(said["service"], "shop/web");
    let port = &said["ports"][0];
    assert_eq!(port["port"], 80);
    assert_eq!(port["answer"]["rules"][0]["rule"], "moved");
    let (code, said) = naru(&["routes", &from, "cart.shop"]).await;
    assert!(
        code == 2 && said.contains("has not called"),
        "{code} {said}"
    );
}

/// Runs a command, and asserts that its output contains every part.
async fn told(client: &Sidecar, arguments: &[&str], expected: i32, parts: &[&str]) {
    let (code, said) = why(client, arguments).await;
    assert_eq!(code, expected, "{said}");
    for part in parts {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[tokio::test]
async fn why_and_routes_match_the_behaviour_for_connections() {
    let mesh = Mesh::start().await;
    let mut apps = Vec::new();
    for (name, number, hostname) in [("a", 1, "a.example"), ("b", 2, "x.b.example")] {
        mesh.service(name, None, &[number]);
        let app = Greeter::tls(mesh.app(number), name, hostname).await;
        apps.push((app, mesh.sidecar(name, number, &[]).await));
    }
    mesh.service("front", Some("http"), &[]);
    for (name, hostnames, backends) in [
        ("a", json!(["a.example"]), &[("a", 3), ("gone", 1)]),
        (
            "b",
            json!(["*.b.example", "*.example"]),
            &[("b", 1), ("a", 0)],
        ),
    ] {
        let hostnames = json!({ "hostnames": hostnames });
        mesh.put(&streams::route("TLSRoute", name, hostnames, backends));
    }
    let client = mesh.sidecar("client", 3, &["front"]).await;
    let front = client.calls("front");
    let address = format!("tls://{}:80", cluster_ip("front"));

    let parts = [
        "TLS to tls://",
        "is port 80 of Service shop/front (bytes, which go where TLSRoutes say)",
        "TLSRoute shop/b takes it (SNI *.b.example)",
        "100 %    shop/b:80, 1 endpoint",
        "the client asks for x.b.example",
        "it would, but the other has a longer name",
    ];
    told(&client, &["--server-name=x.b.example", &address], 0, &parts).await;
    let proof = apps[1].0.certificate.as_ref().expect("a certificate");
    let reached = tls_greeting(front, "x.b.example", proof).await;
    assert_eq!(reached.expect("a greeting"), "b");
    // By name, after its app has called it; one backend of two can't be used.
    let parts = [
        "TLSRoute shop/a takes it (SNI a.example)",
        "75 %     shop/a:80, 1 endpoint",
        "25 %     can't be used: BackendNotFound",
        "the sidecar ends the connection, backend-invalid",
        "it would, but the other has the exact name",
    ];
    told(
        &client,
        &["--server-name=A.Example", "https://front:80/"],
        0,
        &parts,
    )
    .await;

    let parts = ["no route takes it: the sidecar ends the connection, no-route"];
    told(&client, &["https://front:80/"], 1, &parts).await;
    told(&client, &[&address], 1, &[parts[0], "without SNI"]).await;
    assert!(is_reset(tls_greeting(front, "front", proof).await));
    let parts = [
        "the sidecar ends the connection, no-client-hello",
        "does not begin with a TLS ClientHello",
    ];
    told(&client, &["tcp://front:80"], 1, &parts).await;
    told(&client, &["http://front/"], 1, &parts).await;

    let from = format!("--from=http://{}", client.admin);
    let (code, said) = naru(&["routes", &from, "front"]).await;
    let lines: Vec<String> = said
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    let expected = [
        "port 80 (bytes, which go where TLSRoutes say)",
        "ROUTE TAKES BACKENDS",
        "TLSRoute shop/a SNI a.example weight 3: shop/a:80, 1 endpoint",
        "weight 1: can't be used: BackendNotFound",
        "TLSRoute shop/b SNI *.b.example weight 1: shop/b:80, 1 endpoint",
        "weight 0: shop/a:80, 1 endpoint",
        "TLSRoute shop/b SNI *.example weight 1: shop/b:80, 1 endpoint",
    ];
    let begin = lines.iter().position(|line| line == expected[0]);
    let begin = begin.unwrap_or_else(|| panic!("{code} {said}"));
    for (line, expected) in lines[begin..].iter().zip(expected) {
        assert!(line.starts_with(expected), "{expected}: {said}");
    }
    assert_eq!(code, 0);

    // Without any route: opaque connections go to the Service's own pods.
    let own = format!("tls://{}:80", cluster_ip("a"));
    let parts = [
        "told by the first bytes",
        "goes to its own pods",
        "100 %    shop/a:80, 1 endpoint",
    ];
    told(&client, &[&own], 0, &parts).await;
}

#[tokio::test]
async fn why_reports_that_a_tcp_route_matches_everything() {
    let mesh = Mesh::start().await;
    let (client, _behind) = bytes_behind_front(&mesh).await;
    let front = client.calls("front");
    let tcp = |backend| streams::route("TCPRoute", "tcp", json!({}), &[(backend, 1)]);
    let parts = [
        "(bytes, which go where TCPRoutes say)",
        "TCPRoute shop/tcp takes it (every connection)",
        "100 %    shop/bytes:80, 1 endpoint",
    ];
    for url in [
        "tcp://front:80",
        "tls://front:80",
        "https://front:80/a",
        "http://front/a",
    ] {
        told(&client, &[url], 0, &parts).await;
    }
    for (backend, reason) in [("gone", "backend-invalid"), ("front", "no-endpoint")] {
        mesh.put(&tcp(backend));
        let expected = format!("the sidecar ends the connection, {reason}");
        eventually(reason, async || {
            let (code, said) = why(&client, &["tcp://front:80"]).await;
            code == 1 && said.contains(&expected)
        })
        .await;
        assert!(is_reset(greeting(front).await), "{reason}");
    }
    // A more specific kind is in force instead, and its connections are inspected for SNI.
    mesh.put(&streams::route(
        "HTTPRoute",
        "http",
        json!({}),
        &[("web", 1)],
    ));
    eventually("the HTTPRoute is in force", async || {
        let (code, said) = why(&client, &["http://front/a"]).await;
        code == 0 && said.contains("HTTPRoute shop/http, rule split takes it")
    })
    .await;
    let parts = [
        "it is not HTTP, which the port is declared to carry",
        "answers 400, bad-request",
    ];
    told(&client, &["tls://front:80"], 1, &parts).await;
}
