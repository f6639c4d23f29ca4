//! Kubernetes objects for several tests: of the shop's image, hardened to a platform team's
//! standards.

use serde_json::{Value, json};

/// A container of the shop's image: `shop ARGUMENTS…`.
pub fn shop(arguments: &[&str]) -> Value {
    json!({
        "name": "shop", "image": "naru/shop:dev", "command": ["shop"], "args": arguments,
        "securityContext": {
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
        },
        "resources": {
            "requests": { "cpu": "10m", "memory": "16Mi" }, "limits": { "memory": "128Mi" },
        },
    })
}

/// A container that runs one line of shell.
pub fn shell(name: &str, line: &str) -> Value {
    json!({
        "name": name, "image": "naru.test/busybox:1", "command": ["sh", "-c", line],
        "securityContext": {
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
        },
    })
}

/// A container that answers `/healthz` on the port `http`, 8080.
pub fn server() -> Value {
    let mut container = shop(&["catalog", "--listen", "[::]:8080"]);
    container["ports"] = json!([{ "name": "http", "containerPort": 8080 }]);
    container["readinessProbe"] =
        json!({ "httpGet": { "path": "/healthz", "port": "http" }, "periodSeconds": 1 });
    container
}

/// A pod's spec with one container, for user 65532.
pub fn pod_spec(container: Value) -> Value {
    json!({
        "terminationGracePeriodSeconds": 15,
        "automountServiceAccountToken": false,
        "securityContext": {
            "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532,
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "containers": [container],
    })
}

/// A Deployment with the label `app: NAME`.
pub fn deployment(name: &str, replicas: u32, spec: Value) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": name },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": { "app": name } },
            "template": { "metadata": { "labels": { "app": name } }, "spec": spec },
        },
    })
}

/// The Service of a Deployment of [`server`], on port 80.
pub fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": name },
        "spec": {
            "selector": { "app": name },
            "ports": [{ "name": "http", "port": 80, "targetPort": "http", "appProtocol": "http" }],
        },
    })
}

/// A Job with the label `job: NAME` that sends this many requests to a URL's `/healthz` at this
/// rate. It succeeds if every response is good, including the first.
pub fn calling_job(name: &str, url: &str, rate: &str, requests: &str) -> Value {
    let mut spec = pod_spec(shop(&[
        "load",
        "--url",
        url,
        "--paths",
        "/healthz",
        "--rate",
        rate,
        "--requests",
        requests,
    ]));
    spec["restartPolicy"] = "Never".into();
    json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": { "name": name },
        "spec": {
            "backoffLimit": 0,
            "template": { "metadata": { "labels": { "job": name } }, "spec": spec },
        },
    })
}
