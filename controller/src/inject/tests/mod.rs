//! The tests apply the patches and check the resulting pods.

mod decision;
mod probes;
mod review;
mod sidecar;

use json_patch::Patch;
use serde_json::{Value, from_value};

use super::names::VERIFY_UID;
use super::*;

pub(super) fn options() -> Options {
    Options {
        image: "naru-proxy:1".to_owned(),
        pull_policy: PullPolicy::IfNotPresent,
        controller: "naru-controller.naru-system.svc:15010".to_owned(),
        controller_identity: "spiffe://cluster.local/ns/naru-system/sa/naru-controller".to_owned(),
        native_sidecars: true,
        redirection: Redirection::Init,
        class_e_in_use: false,
        log: "info".to_owned(),
        resources: Resources {
            cpu_request: "20m".to_owned(),
            cpu_limit: String::new(),
            memory_request: "32Mi".to_owned(),
            memory_limit: "256Mi".to_owned(),
        },
    }
}

fn by_cni() -> Options {
    Options {
        redirection: Redirection::Cni,
        ..options()
    }
}

fn pod(spec: Value) -> Value {
    json!({ "metadata": { "generateName": "web-" }, "spec": spec })
}

fn simple() -> Value {
    pod(json!({ "containers": [{ "name": "web", "image": "web:1" }] }))
}

fn annotated(pod: &Value, annotations: Value) -> Value {
    let mut pod = pod.clone();
    pod["metadata"]["annotations"] = annotations;
    pod
}

fn decided(pod: &Value, by_namespace: bool, options: &Options) -> Result<Decision, Refusal> {
    decide(
        &from_value(pod.clone()).expect("a pod"),
        by_namespace,
        options,
    )
}

fn applied(pod: &Value, operations: &[Operation]) -> Value {
    let patch: Patch =
        from_value(serde_json::to_value(operations).expect("JSON")).expect("a patch");
    let mut pod = pod.clone();
    json_patch::patch(&mut pod, &patch).expect("a patch that fits");
    // The patched pod is a valid Pod: every field that the patch adds has the right name.
    let typed: Pod = from_value(pod.clone()).expect("a pod");
    let again = serde_json::to_value(typed).expect("JSON");
    assert_eq!(again["spec"], pod["spec"]);
    pod
}

fn injected_with(pod: &Value, options: &Options) -> Value {
    match decided(pod, true, options) {
        Ok(Decision::Inject(operations)) => applied(pod, &operations),
        other => panic!("{other:?}"),
    }
}

fn injected(pod: &Value) -> Value {
    injected_with(pod, &options())
}

fn names(containers: &Value) -> Vec<&str> {
    let containers = containers.as_array().expect("containers");
    containers
        .iter()
        .filter_map(|c| c["name"].as_str())
        .collect()
}

fn variable(container: &Value, name: &str) -> Option<String> {
    let env = container["env"].as_array().expect("variables");
    let found = env.iter().find(|variable| variable["name"] == name)?;
    Some(found["value"].as_str().expect("a value").to_owned())
}

/// The sidecar's probe list, by name.
fn probes_of(sidecar: &Value) -> Value {
    let probes = variable(sidecar, "NARU_PROBES").expect("probes");
    serde_json::from_str(&probes.replace("$$", "$")).expect("JSON")
}
