//! `naru why` and `naru routes` on a real cluster, over a port that the API server forwards.

use serde_json::{Value, json};

use crate::kubernetes::{Namespace, READY, eventually, kubectl, scratch, script};
use crate::objects::{deployment, pod_spec, server, service};
use crate::turns;

/// Exit code, and the output of both streams.
fn naru(arguments: &[&str]) -> (i32, String) {
    let output = script("naru").args(arguments).output();
    let output = output.expect("tests/cluster/naru");
    let text = [output.stdout, output.stderr].concat();
    let code = output.status.code().expect("an exit code");
    (code, String::from_utf8(text).expect("text"))
}

/// Waits until a command exits with that code and prints all of this.
fn eventually_said(arguments: &[&str], code: i32, parts: &[&str]) {
    eventually(&format!("{arguments:?}"), READY, || {
        let (found, said) = naru(arguments);
        let lacking = parts.iter().find(|part| !said.contains(**part));
        match (found == code, lacking) {
            (true, None) => Ok(()),
            (_, lacking) => Err(format!("{found}, without {lacking:?}: {said}")),
        }
    });
}

fn route(name: &str, service: &Value, rules: Value) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": { "name": name },
        "spec": { "parentRefs": [service], "rules": rules },
    })
}

fn backend(name: &str) -> Value {
    json!({ "name": name, "namespace": "why", "port": 80 })
}

#[test]
fn a_request_is_explained_by_the_sidecar_of_its_client() {
    let _turn = turns::beside_others();
    let namespace = Namespace::meshed("why");
    let consumer = Namespace::meshed("why-consumer");
    namespace.apply(&[
        deployment("canary", 1, pod_spec(server())),
        service("canary"),
        deployment("client", 1, pod_spec(server())),
    ]);
    consumer.apply(&[deployment("client", 1, pod_spec(server()))]);
    namespace.serve_web(2);
    for (namespace, what) in [
        (&namespace, "deployment/canary"),
        (&namespace, "deployment/client"),
        (&consumer, "deployment/client"),
    ] {
        namespace.rolled_out(what);
    }
    let web = json!({ "group": "", "kind": "Service", "name": "web", "namespace": "why" });
    namespace.apply(&[
        route(
            "split",
            &web,
            json!([
                {
                    "name": "canary",
                    "matches": [{ "headers": [{ "name": "version", "value": "2" }] }],
                    "backendRefs": [backend("canary")],
                },
                {
                    "name": "api", "matches": [{ "path": { "value": "/api" } }],
                    "backendRefs": [backend("web")],
                },
            ]),
        ),
        // A filter that Naru does not support.
        route(
            "refused",
            &web,
            json!([{ "backendRefs": [backend("web")], "filters": [{
                "type": "ExtensionRef",
                "extensionRef": { "group": "example.com", "kind": "Nothing", "name": "x" },
            }] }]),
        ),
    ]);

    let from = ["--from=deployment/client", "--namespace=why"];
    let why = |more: &[&'static str]| [&["why"][..], &from, more].concat();
    eventually_said(
        &why(&["-H", "version: 2", "http://web/"]),
        0,
        &[
            "port 80 of Service why/web (http)",
            "HTTPRoute why/split, rule canary takes it",
            "why/canary:80, 1 endpoint",
        ],
    );
    eventually_said(
        &why(&["http://web.why.svc.cluster.local/api/x"]),
        0,
        &[
            "rule api takes it",
            "why/web:80, 2 endpoints",
            "the request has none",
        ],
    );
    eventually_said(
        &why(&["http://web/"]),
        1,
        &[
            "no rule takes it: the sidecar answers 404, no-route",
            "the path is /",
        ],
    );
    eventually_said(
        &["routes", "web", "--namespace=why"],
        0,
        &[
            "for clients in namespace why",
            "HTTPRoute why/split",
            "HTTPRoute why/refused",
            "not Accepted (UnsupportedValue)",
        ],
    );

    // Consumer routes apply to their own clients.
    consumer.apply(&[route(
        "own",
        &web,
        json!([{ "name": "all", "backendRefs": [backend("canary")] }]),
    )]);
    eventually_said(
        &["why", "--from=why-consumer", "http://web.why/"],
        0,
        &["HTTPRoute why-consumer/own, rule all takes it"],
    );
    eventually_said(
        &["routes", "--from=why-consumer", "web.why"],
        0,
        &["why-consumer/own", "take its place, as why-consumer/own"],
    );
    eventually_said(&why(&["http://web/"]), 1, &["no-route"]);

    // A TLS connection to a port that the Service does not have.
    eventually_said(&why(&["https://web/"]), 1, &["not in the mesh", "only 80"]);

    // Questions without an answer.
    for (arguments, told) in [
        (why(&["http://nobody/"]), "has no Service nobody"),
        (
            vec![
                "why",
                "--from=deployment/nobody",
                "--namespace=why",
                "http://web/",
            ],
            "no pod that runs",
        ),
    ] {
        let (code, said) = naru(&arguments);
        assert!(code == 2 && said.contains(told), "{code} {said}");
    }
}

#[test]
fn a_user_who_may_not_forward_ports_gets_the_missing_permissions() {
    let _turn = turns::beside_others();
    let namespace = Namespace::meshed("why-rights");
    namespace.serve_web(1);
    namespace.kubectl(&[
        "create",
        "rolebinding",
        "why-joe",
        "--clusterrole=view",
        "--user=joe",
    ]);
    // As a user with read access: the kubeconfig is the administrator's, with impersonation.
    let kubeconfig = scratch("joe.kubeconfig");
    let view = kubectl(&["config", "view", "--raw", "--flatten", "-o", "json"]);
    let mut config: Value = serde_json::from_str(&view).expect("JSON");
    config["users"][0]["user"]["as"] = "joe".into();
    std::fs::write(&kubeconfig, config.to_string()).expect("a file");
    let kubeconfig_flag = format!("--kubeconfig={kubeconfig}");
    let why = [
        "why",
        &kubeconfig_flag,
        "--from=deployment/web",
        "--namespace=why-rights",
        "http://web/",
    ];
    let (code, said) = naru(&why);
    assert!(
        code == 2 && said.contains("pods/portforward in why-rights"),
        "{code} {said}"
    );
    // Exactly the permissions that the message names.
    namespace.kubectl(&[
        "create",
        "role",
        "why-forward",
        "--verb=get,create",
        "--resource=pods/portforward",
    ]);
    namespace.kubectl(&[
        "create",
        "rolebinding",
        "why-forward",
        "--role=why-forward",
        "--user=joe",
    ]);
    eventually_said(
        &why,
        0,
        &["no route is in force", "why-rights/web:80, 1 endpoint"],
    );
    let _of_this_test = std::fs::remove_file(kubeconfig);
}
