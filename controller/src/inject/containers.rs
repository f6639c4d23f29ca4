//! The containers and the volume that injection adds to a pod, each with the least privileges.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec};
use serde_json::{Map, Value, json};

use super::names::{ADMIN_PORT, INIT_CONTAINER, PROGRAM, PROXY_UID, SIDECAR, VERIFY_UID};
use super::operations::{Operation, Path, add, replace};
use super::options::{Options, Redirection, Resources};
use super::probes::Target;
use super::refusal::Refusal;
use super::settings::Settings;

/// Holds the pod's token and the trust anchors.
pub const VOLUME: &str = "naru-identity";
const MOUNTED: &str = "/var/run/naru";
/// The mount path of the API server's own token in every container without a mount there. Neither
/// of our containers calls the API server.
const API_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// The ConfigMap with the trust anchors, and its key. The controller maintains one in each
/// namespace.
pub const ANCHORS_CONFIG_MAP: &str = "naru-trust-anchors";
pub const ANCHORS_KEY: &str = "trust-anchors.pem";
const TOKEN: &str = "token";
/// The audience of the token.
const AUDIENCE: &str = "naru.dev";
/// The app's endpoint for each probe.
const PROBES: &str = "NARU_PROBES";
/// Lifetime of a token, in seconds. The kubelet renews it in time.
const TOKEN_SECONDS: u32 = 3_600;
/// How long a sidecar may take to become ready before the kubelet restarts it, in seconds: as long
/// as pulling and starting a controller on a new node takes.
const START_SECONDS: u32 = 120;
/// The default `terminationGracePeriodSeconds` of Kubernetes.
const GRACE_SECONDS: i64 = 30;

pub fn volume() -> Value {
    json!({
        "name": VOLUME,
        "projected": {
            "sources": [
                { "serviceAccountToken": { "audience": AUDIENCE, "expirationSeconds": TOKEN_SECONDS,
                        "path": TOKEN } },
                { "configMap": { "name": ANCHORS_CONFIG_MAP,
                        "items": [{ "key": ANCHORS_KEY, "path": ANCHORS_KEY }] } },
            ],
        },
    })
}

/// Sets the redirect rules, as root: only root can use a capability without file capabilities,
/// which would require privilege escalation. If the node's CNI plugin sets them, this verifies that
/// it has, without any privilege.
pub fn init(settings: &Settings, options: &Options) -> Value {
    let environment = [
        ("NARU_PROXY_UID", PROXY_UID.to_string()),
        (
            "NARU_SKIP_INBOUND_PORTS",
            settings.skip_inbound_ports.clone(),
        ),
        (
            "NARU_SKIP_OUTBOUND_PORTS",
            settings.skip_outbound_ports.clone(),
        ),
        (
            "NARU_SKIP_OUTBOUND_CIDRS",
            settings.skip_outbound_cidrs.clone(),
        ),
        (
            "NARU_CLASS_E_IN_USE",
            match settings.class_e_in_use {
                true => "true".to_owned(),
                false => String::new(),
            },
        ),
    ];
    let environment = environment
        .into_iter()
        .filter(|(_, value)| !value.is_empty());
    let (command, user, capabilities) = match options.redirection {
        Redirection::Init => (
            json!([PROGRAM, "init"]),
            0,
            json!({ "drop": ["ALL"], "add": ["NET_ADMIN"] }),
        ),
        Redirection::Cni => (
            json!([PROGRAM, "init", "--verify"]),
            verifier(settings),
            json!({ "drop": ["ALL"] }),
        ),
    };
    json!({
        "name": INIT_CONTAINER,
        "image": options.image,
        "imagePullPolicy": options.pull_policy.as_str(),
        "command": command,
        "env": environment.map(variable).collect::<Vec<_>>(),
        "resources": resources(&settings.resources),
        "securityContext": {
            "runAsUser": user,
            "runAsGroup": user,
            "runAsNonRoot": user != 0,
            "privileged": false,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": capabilities,
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        // Shows an error in the pod's status.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [mounted(API_TOKEN)],
    })
}

/// The user that verifies the redirection: one whose own connections are redirected. If no outbound
/// connections are, the sidecar's user verifies it with inbound ones.
fn verifier(settings: &Settings) -> i64 {
    let mut networks = settings.skip_outbound_cidrs.split(',');
    match networks.any(|network| network.ends_with("/0")) {
        true => PROXY_UID,
        false => VERIFY_UID,
    }
}

pub fn sidecar(
    spec: &PodSpec,
    settings: &Settings,
    probes: &BTreeMap<String, Target>,
    options: &Options,
) -> Value {
    let field = |name: &str, path: &str| {
        let from = json!({ "fieldRef": { "fieldPath": path } });
        json!({ "name": name, "valueFrom": from })
    };
    let mut environment = vec![
        field("NARU_NAMESPACE", "metadata.namespace"),
        field("NARU_POD", "metadata.name"),
    ];
    let grace = spec.termination_grace_period_seconds;
    let texts = [
        ("NARU_CONTROLLER", options.controller.clone()),
        (
            "NARU_CONTROLLER_IDENTITY",
            options.controller_identity.clone(),
        ),
        ("NARU_TRUST_ANCHORS", format!("{MOUNTED}/{ANCHORS_KEY}")),
        ("NARU_TOKEN", format!("{MOUNTED}/{TOKEN}")),
        ("NARU_LOG", settings.log.clone()),
        // The pod's own grace period: after it the kubelet kills the sidecar.
        (
            "NARU_DRAIN_TIMEOUT",
            format!("{}s", grace.unwrap_or(GRACE_SECONDS).max(0)),
        ),
    ];
    environment.extend(texts.into_iter().map(variable));
    if settings.access_log {
        environment.push(variable(("NARU_ACCESS_LOG", "true".to_owned())));
    }
    if let Some(client_address) = settings.client_address {
        environment.push(variable(("NARU_CLIENT_ADDRESS", client_address.to_owned())));
    }
    if !settings.forwarded_headers.is_empty() {
        let fields = settings.forwarded_headers.clone();
        environment.push(variable(("NARU_FORWARDED_HEADERS", fields)));
    }
    if !settings.proxy_protocol.is_empty() {
        let ports = settings.proxy_protocol.clone();
        environment.push(variable(("NARU_PROXY_PROTOCOL", ports)));
    }
    if !probes.is_empty() {
        environment.push(variable((PROBES, json!(probes).to_string())));
    }
    let asked = |path: &str, more: Value| {
        let mut probe = json!({ "httpGet": { "path": path, "port": ADMIN_PORT } });
        merge(&mut probe, more);
        probe
    };
    let mut container = json!({
        "name": SIDECAR,
        "image": options.image,
        "imagePullPolicy": options.pull_policy.as_str(),
        "command": [PROGRAM, "run"],
        "env": environment,
        "ports": [{ "name": "naru-admin", "containerPort": ADMIN_PORT, "protocol": "TCP" }],
        "startupProbe": asked("/ready",
            json!({ "periodSeconds": 1, "failureThreshold": START_SECONDS })),
        "readinessProbe": asked("/ready", json!({ "periodSeconds": 5, "timeoutSeconds": 2 })),
        "livenessProbe": asked("/live", json!({ "periodSeconds": 10, "timeoutSeconds": 5 })),
        "resources": resources(&settings.resources),
        "securityContext": {
            "runAsUser": PROXY_UID,
            "runAsGroup": PROXY_UID,
            "runAsNonRoot": true,
            "privileged": false,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [mounted(MOUNTED), mounted(API_TOKEN)],
    });
    let lifecycle = match options.native_sidecars {
        // The kubelet waits for the startup probe before it starts the next container.
        true => json!({ "restartPolicy": "Always" }),
        // The kubelet starts the next container after this hook.
        false => json!({ "lifecycle": { "postStart": { "exec": {
            "command": [PROGRAM, "wait", "--timeout", format!("{START_SECONDS}s")],
        } } } }),
    };
    merge(&mut container, lifecycle);
    container
}

/// Adds endpoints to the sidecar's probe list. `at`: its path.
pub fn more_probes(
    at: Path,
    sidecar: &Container,
    probes: &BTreeMap<String, Target>,
) -> Result<Operation, Refusal> {
    let mut variables = sidecar.env.iter().flatten();
    let variable_at = variables.position(|variable| variable.name == PROBES);
    let mut all = json!({});
    if let Some(index) = variable_at {
        let value = sidecar
            .env
            .as_ref()
            .and_then(|env| env[index].value.as_deref());
        let value = value.unwrap_or_default().replace("$$", "$");
        all = serde_json::from_str(&value).map_err(|error| Refusal::Probes(error.to_string()))?;
        if !all.is_object() {
            return Err(Refusal::Probes("it is no object of JSON".to_owned()));
        }
    }
    merge(&mut all, json!(probes));
    let value = variable((PROBES, all.to_string()));
    let at = at.key("env");
    Ok(match (variable_at, &sidecar.env) {
        (Some(index), _) => replace(at.index(index), value),
        (None, Some(_)) => add(at.key("-"), value),
        (None, None) => add(at, json!([value])),
    })
}

fn mounted(at: &str) -> Value {
    json!({ "name": VOLUME, "mountPath": at, "readOnly": true })
}

fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}

/// `$` starts a reference in a variable's value, and `$$` is a literal `$`.
fn variable((name, value): (&str, String)) -> Value {
    json!({ "name": name, "value": value.replace('$', "$$") })
}

fn resources(resources: &Resources) -> Value {
    let both = |cpu: &str, memory: &str| -> Map<String, Value> {
        [("cpu", cpu), ("memory", memory)]
            .into_iter()
            .filter(|(_, quantity)| !quantity.is_empty())
            .map(|(name, quantity)| (name.to_owned(), quantity.into()))
            .collect()
    };
    json!({
        "requests": both(&resources.cpu_request, &resources.memory_request),
        "limits": both(&resources.cpu_limit, &resources.memory_limit),
    })
}
