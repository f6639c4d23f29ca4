//! The target of the kubelet's probes, and repeated reviews of a pod.

use super::*;

#[test]
fn probes_go_to_the_sidecar_and_keep_everything_else() {
    let spec = json!({
        "initContainers": [{ "name": "own", "restartPolicy": "Always",
                "startupProbe": { "tcpSocket": { "port": 7000 } } }],
        "containers": [{
            "name": "web",
            "ports": [{ "name": "http", "containerPort": 8080 }],
            "livenessProbe": { "httpGet": { "path": "/live?x=$(HOME)", "port": "http",
                    "scheme": "HTTPS",
                "httpHeaders": [{ "name": "x-a", "value": "1" }] }, "periodSeconds": 3,
                "timeoutSeconds": 4 },
            "readinessProbe": { "grpc": { "port": 9000, "service": "shop", "mode": "TLS" },
                "failureThreshold": 7 },
            "startupProbe": { "exec": { "command": ["true"] } },
            "lifecycle": { "preStop": { "httpGet": { "path": "/bye", "port": 8080,
                        "protocol": "HTTP2" } }, "postStart": { "sleep": { "seconds": 1 } } },
        }, {
            "name": "other",
            "livenessProbe": { "httpGet": { "host": "192.0.2.1", "port": 80 } },
            "readinessProbe": { "httpGet": { "port": "no-such-port" } },
        }],
    });
    let before = pod(spec);
    let after = injected(&before);
    let web = &after["spec"]["containers"][0];
    let to = |path: &str| json!({ "path": path, "port": 15020, "scheme": "HTTP" });
    assert_eq!(
        web["livenessProbe"],
        json!({ "httpGet": to("/probe/web/liveness"), "periodSeconds": 3, "timeoutSeconds": 4 })
    );
    assert_eq!(
        web["readinessProbe"],
        json!({ "httpGet": to("/probe/web/readiness"), "failureThreshold": 7 })
    );
    assert_eq!(
        web["startupProbe"],
        before["spec"]["containers"][0]["startupProbe"]
    );
    // The path has a random part.
    let hook = &web["lifecycle"]["preStop"]["httpGet"];
    let hook_path = hook["path"].as_str().expect("a path");
    let secret = hook_path.strip_prefix("/probe/web/pre-stop/");
    assert_eq!(secret.map(str::len), Some(32), "{hook_path}");
    assert_eq!(*hook, to(hook_path));
    let again = injected(&before);
    let again = &again["spec"]["containers"][0]["lifecycle"]["preStop"]["httpGet"]["path"];
    assert_ne!(again, hook_path);
    assert_eq!(
        web["lifecycle"]["postStart"],
        json!({ "sleep": { "seconds": 1 } })
    );
    assert_eq!(
        after["spec"]["containers"][1],
        before["spec"]["containers"][1]
    );
    let own = &after["spec"]["initContainers"][2];
    assert_eq!(
        own["startupProbe"],
        json!({ "httpGet": to("/probe/own/startup") })
    );

    let sidecar = &after["spec"]["initContainers"][1];
    let probes = variable(sidecar, "NARU_PROBES").expect("probes");
    // Undo the escaping for Kubernetes' variable references.
    let probes = probes.replace("$$", "$");
    let probes = probes.replace(&hook_path["/probe/".len()..], "web/pre-stop");
    let probes: Value = serde_json::from_str(&probes).expect("JSON");
    assert_eq!(
        probes,
        json!({
            "own/startup": { "seconds": 1, "tcp": { "port": 7000 } },
            "web/liveness": { "seconds": 4, "http":
                { "port": 8080, "path": "/live?x=$(HOME)", "tls": true, "http2": false,
                    "headers": [["x-a", "1"]] } },
            "web/pre-stop": { "seconds": 30,
                "http": { "port": 8080, "path": "/bye", "tls": false, "http2": true,
                    "headers": [] } },
            "web/readiness": { "seconds": 1,
                "grpc": { "port": 9000, "service": "shop", "tls": true } },
        })
    );
}

fn completed(pod: &Value, options: &Options) -> Value {
    match decided(pod, true, options) {
        Ok(Decision::Complete(operations)) => applied(pod, &operations),
        other => panic!("{other:?}"),
    }
}

#[test]
fn probes_of_containers_from_a_later_webhook_are_redirected_as_well() {
    let later = json!({
        "name": "later",
        "livenessProbe": { "httpGet": { "path": "/a$b", "port": 9000 } },
        "readinessProbe": { "tcpSocket": { "port": 9001 }, "periodSeconds": 3 },
        "lifecycle": { "preStop": { "httpGet": { "path": "/bye", "port": 9000 } } },
    });
    let with_probe = pod(json!({ "containers": [{
        "name": "web", "readinessProbe": { "httpGet": { "path": "/$", "port": 8080 } },
        "lifecycle": { "preStop": { "httpGet": { "path": "/bye", "port": 8080 } } },
    }] }));
    for native_sidecars in [true, false] {
        let options = Options {
            native_sidecars,
            ..options()
        };
        for before in [&with_probe, &simple()] {
            let mut changed = injected_with(before, &options);
            let containers = changed["spec"]["containers"]
                .as_array_mut()
                .expect("a list");
            containers.insert(0, later.clone());
            let after = completed(&changed, &options);
            let list = if native_sidecars {
                "initContainers"
            } else {
                "containers"
            };
            let ours = after["spec"][list].as_array().expect("a list").iter();
            let ours: Vec<_> = ours.filter(|c| c["name"] == "naru-proxy").collect();
            let probes = probes_of(ours[0]);
            assert_eq!(probes["later/liveness"]["http"]["path"], "/a$b");
            assert_eq!(probes["later/readiness"]["tcp"]["port"], 9001);
            let own = if before == &simple() {
                Value::Null
            } else {
                json!("/$")
            };
            assert_eq!(probes["web/readiness"]["http"]["path"], own);
            let added = &after["spec"]["containers"][0];
            assert_eq!(
                added["readinessProbe"]["httpGet"]["path"],
                "/probe/later/readiness"
            );
            assert_eq!(added["readinessProbe"]["periodSeconds"], 3);
            assert_eq!(added["readinessProbe"]["tcpSocket"], Value::Null);
            let hook = added["lifecycle"]["preStop"]["httpGet"]["path"].as_str();
            assert!(hook.is_some_and(|path| path.starts_with("/probe/later/pre-stop/")));
            // Everything else is unchanged, and a third review changes nothing.
            let web = |pod: &Value| {
                let containers = pod["spec"]["containers"].as_array().expect("a list");
                containers.iter().find(|c| c["name"] == "web").cloned()
            };
            assert_eq!(web(&after), web(&changed));
            let again = decided(&after, true, &options);
            assert_eq!(again, Ok(Decision::Leave(Vec::new())));
        }
    }
}

#[test]
fn a_probe_that_must_succeed_before_the_sidecar_starts_is_not_redirected() {
    let first = json!({
        "name": "first",
        "restartPolicy": "Always",
        "startupProbe": { "httpGet": { "path": "/up", "port": 9000 } },
        "livenessProbe": { "httpGet": { "path": "/live", "port": 9000 } },
        "lifecycle": {
            "postStart": { "httpGet": { "path": "/begin", "port": 9000 } },
            "preStop": { "httpGet": { "path": "/end", "port": 9000 } },
        },
    });
    let mut changed = injected(&simple());
    let list = changed["spec"]["initContainers"].as_array_mut();
    list.expect("a list").insert(0, first.clone());
    let after = completed(&changed, &options());
    let container = &after["spec"]["initContainers"][0];
    assert_eq!(container["startupProbe"], first["startupProbe"]);
    assert_eq!(
        container["lifecycle"]["postStart"],
        first["lifecycle"]["postStart"]
    );
    assert_eq!(
        container["livenessProbe"]["httpGet"]["path"],
        "/probe/first/liveness"
    );
    let again = decided(&after, true, &options());
    assert_eq!(again, Ok(Decision::Leave(Vec::new())));
}

#[test]
fn conflicts_from_a_later_webhook_are_refused_as_in_the_first_review() {
    let with = |container: Value| {
        let mut pod = injected(&simple());
        let containers = pod["spec"]["containers"].as_array_mut().expect("a list");
        containers.push(container);
        decided(&pod, true, &options()).expect_err("a refusal")
    };
    let port = with(json!({ "name": "b", "ports": [{ "containerPort": 15006 }] }));
    assert!(matches!(port, Refusal::Port { port: 15006, .. }));
    let user = with(json!({ "name": "b", "securityContext": { "runAsUser": 1337 } }));
    assert_eq!(user, Refusal::User("b".to_owned()));
    let mut unreadable = injected(&simple());
    let env = unreadable["spec"]["initContainers"][1]["env"].as_array_mut();
    env.expect("variables")
        .push(json!({ "name": "NARU_PROBES", "value": "[]" }));
    unreadable["spec"]["containers"][0]["livenessProbe"] = json!({ "tcpSocket": { "port": 1 } });
    let refusal = decided(&unreadable, true, &options());
    assert!(matches!(refusal, Err(Refusal::Probes(_))), "{refusal:?}");
}

#[test]
fn a_copy_of_a_pod_gets_back_what_kubectl_drops() {
    for options in [options(), by_cni()] {
        let mut copy = injected_with(&simple(), &options);
        let original = copy["metadata"].clone();
        // As `kubectl debug --copy-to` makes it.
        copy["metadata"] = json!({ "name": "copy" });
        for by_namespace in [true, false] {
            let Ok(Decision::Complete(operations)) = decided(&copy, by_namespace, &options) else {
                panic!("nothing is put back");
            };
            let after = applied(&copy, &operations);
            assert_eq!(after["metadata"]["labels"], original["labels"]);
            assert_eq!(after["metadata"]["annotations"], original["annotations"]);
            assert_eq!(after["spec"], copy["spec"]);
        }
    }
}
