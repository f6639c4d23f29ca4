//! The kubelet's probes of pods in strict mode.

use std::time::Duration;

use serde_json::{Value, json};

use crate::kubernetes::{Namespace, READY, eventually, pod_ready};
use crate::objects::{deployment, pod_spec, server, service, shop};
use crate::turns;

/// A server with every kind of probe that it supports.
fn probed() -> Value {
    let mut container = server();
    let often = |mut probe: Value| {
        probe["periodSeconds"] = 1.into();
        probe
    };
    container["startupProbe"] =
        often(json!({ "httpGet": { "path": "/healthz", "port": 8080 }, "failureThreshold": 60 }));
    container["readinessProbe"] =
        often(json!({ "httpGet": { "path": "/healthz", "port": "http" } }));
    container["livenessProbe"] = often(json!({ "tcpSocket": { "port": "http" } }));
    container
}

#[test]
fn probes_work_in_strict_mode() {
    let _turn = turns::beside_others();
    let namespace = Namespace::meshed("strict");
    namespace.kubectl(&["annotate", "namespace", "strict", "naru.dev/mtls=strict"]);
    let mut failing = probed();
    // Nothing listens on this port.
    failing["readinessProbe"]["httpGet"]["port"] = 8081.into();
    namespace.apply(&[
        deployment("web", 1, pod_spec(probed())),
        service("web"),
        deployment("failing", 1, pod_spec(failing)),
    ]);
    namespace.rolled_out("deployment/web");

    // A client without an identity.
    let mut spec = pod_spec(shop(&[
        "load",
        "--url",
        "http://web",
        "--paths",
        "/healthz",
        "--rate",
        "10",
        "--requests",
        "10",
    ]));
    spec["restartPolicy"] = "Never".into();
    namespace.apply(&[json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "stranger", "annotations": { "naru.dev/inject": "disabled" } },
        "spec": spec,
    })]);
    eventually("the stranger is done", READY, || {
        let phase = namespace.get(&["pod", "stranger"])["status"]["phase"].clone();
        match phase.as_str() {
            Some("Failed") => Ok(()),
            Some("Succeeded") => panic!("a stranger was let in"),
            _ => Err(phase.to_string()),
        }
    });
    let said = namespace.kubectl(&["logs", "stranger"]);
    assert!(said.contains("ok 0, failed 10"), "{said}");

    // A probe fails if the app fails it.
    std::thread::sleep(Duration::from_secs(5));
    let pods = namespace.pods("app=failing");
    assert!(pods.iter().all(|pod| !pod_ready(pod)), "{pods:?}");
    let restarts = |app: &str| {
        let pods = namespace.pods(&format!("app={app}"));
        pods[0]["status"]["containerStatuses"][0]["restartCount"].as_u64()
    };
    assert_eq!((restarts("web"), restarts("failing")), (Some(0), Some(0)));
}
