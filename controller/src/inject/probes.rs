//! The kubelet's probes. They are sent from the node without an identity, and strict mode would
//! reject them.
//!
//! In: the pod's containers. Out: operations that redirect each probe to the sidecar's admin port,
//! and the app's endpoint for each of them (`NARU_PROBES`). All other fields of a probe are
//! unchanged, as are probes that run a program in the container or go to another host.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Container, GRPCAction, HTTPGetAction, PodSpec, Probe, TCPSocketAction,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Serialize;
use serde_json::{Value, json};

use super::names::{ADMIN_PORT, SIDECAR, is_ours};
use super::operations::{Operation, Path, add, remove, replace};

/// The path prefix of probes on the sidecar's admin port.
const PATH: &str = "/probe/";
/// The sidecar's timeout for the app, in seconds, if a probe has none: Kubernetes' own default.
const PROBE_SECONDS: i32 = 1;
/// The sidecar's timeout for a lifecycle hook, in seconds, which is that of the kubelet.
const HOOK_SECONDS: i32 = 30;

/// The app's endpoint for a probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Target {
    seconds: i32,
    #[serde(flatten)]
    action: Action,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Action {
    Http(Http),
    Tcp {
        port: u16,
    },
    Grpc {
        port: u16,
        service: String,
        tls: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Http {
    port: u16,
    path: String,
    tls: bool,
    http2: bool,
    headers: Vec<(String, String)>,
}

/// Redirects every probe of `spec` to the sidecar, except those that already go there. The targets
/// are named by their paths after `/probe/`.
pub fn redirect(spec: &PodSpec, operations: &mut Vec<Operation>) -> BTreeMap<String, Target> {
    let mut targets = BTreeMap::new();
    let lists = [
        spec.init_containers.as_deref().unwrap_or_default(),
        &spec.containers,
    ];
    for (at, container) in containers(spec).filter(|(_, c)| !is_ours(&c.name)) {
        let starts_first = lists.iter().any(|list| is_before_sidecar(list, container));
        of_container(container, at, starts_first, &mut targets, operations);
    }
    targets
}

/// Whether the kubelet starts `container` before the sidecar, as it does if a later webhook has
/// inserted it there.
fn is_before_sidecar(list: &[Container], container: &Container) -> bool {
    let position = |name: &str| list.iter().position(|other| other.name == name);
    match (position(&container.name), position(SIDECAR)) {
        (Some(container), Some(sidecar)) => container < sidecar,
        _ => false,
    }
}

/// The sidecar of an injected pod, and its path.
pub fn sidecar(spec: &PodSpec) -> Option<(Path, &Container)> {
    containers(spec).find(|(_, container)| container.name == SIDECAR)
}

fn containers(spec: &PodSpec) -> impl Iterator<Item = (Path, &Container)> {
    let init = spec.init_containers.as_deref().unwrap_or_default();
    let lists = [("initContainers", init), ("containers", &spec.containers)];
    lists.into_iter().flat_map(|(list, containers)| {
        let at = Path::root().key("spec").key(list);
        let containers = containers.iter().enumerate();
        containers.map(move |(index, container)| (at.index(index), container))
    })
}

/// `starts_first`: the kubelet starts the sidecar only after this container's startup probe and
/// postStart hook have succeeded, so they must not go through the sidecar.
fn of_container(
    container: &Container,
    at: Path,
    starts_first: bool,
    targets: &mut BTreeMap<String, Target>,
    operations: &mut Vec<Operation>,
) {
    let probes = [
        ("livenessProbe", "liveness", &container.liveness_probe),
        ("readinessProbe", "readiness", &container.readiness_probe),
        ("startupProbe", "startup", &container.startup_probe),
    ];
    for (key, kind, probe) in probes {
        let Some(probe) = probe else { continue };
        if starts_first && kind == "startup" {
            continue;
        }
        let Some((handler, action)) = action(probe, container) else {
            continue;
        };
        let seconds = probe.timeout_seconds.unwrap_or(PROBE_SECONDS).max(1);
        let name = format!("{}/{kind}", container.name);
        let at = at.key(key);
        if handler == "httpGet" {
            operations.push(replace(at.key(handler), to_sidecar(&name)));
        } else {
            operations.push(remove(at.key(handler)));
            operations.push(add(at.key("httpGet"), to_sidecar(&name)));
        }
        targets.insert(name, Target { seconds, action });
    }
    let lifecycle = container.lifecycle.as_ref();
    let hooks = [
        (
            "postStart",
            "post-start",
            lifecycle.and_then(|l| l.post_start.as_ref()),
        ),
        (
            "preStop",
            "pre-stop",
            lifecycle.and_then(|l| l.pre_stop.as_ref()),
        ),
    ];
    for (key, kind, hook) in hooks {
        if starts_first && kind == "post-start" {
            continue;
        }
        let Some(action) = hook.and_then(|hook| http(hook.http_get.as_ref()?, container)) else {
            continue;
        };
        // A probe is harmless, but a hook has side effects, so its path is a secret that only the
        // kubelet gets.
        let name = format!("{}/{kind}/{:032x}", container.name, rand::random::<u128>());
        let at = at.key("lifecycle").key(key).key("httpGet");
        operations.push(replace(at, to_sidecar(&name)));
        let seconds = HOOK_SECONDS;
        targets.insert(name, Target { seconds, action });
    }
}

fn to_sidecar(name: &str) -> Value {
    json!({ "path": format!("{PATH}{name}"), "port": ADMIN_PORT, "scheme": "HTTP" })
}

/// The field that defines the probe's action, and the sidecar's equivalent.
fn action(probe: &Probe, container: &Container) -> Option<(&'static str, Action)> {
    if let Some(get) = &probe.http_get {
        Some(("httpGet", http(get, container)?))
    } else if let Some(TCPSocketAction { host, port, .. }) = &probe.tcp_socket {
        let port = here(host).then(|| number(port, container))??;
        Some(("tcpSocket", Action::Tcp { port }))
    } else if let Some(GRPCAction {
        port,
        service,
        mode,
    }) = &probe.grpc
    {
        let port = u16::try_from(*port).ok()?;
        let service = service.clone().unwrap_or_default();
        let tls = mode.as_deref() == Some("TLS");
        Some(("grpc", Action::Grpc { port, service, tls }))
    } else {
        None
    }
}

fn http(get: &HTTPGetAction, container: &Container) -> Option<Action> {
    let port = here(&get.host).then(|| number(&get.port, container))??;
    let path = get.path.as_deref().unwrap_or_default();
    if i32::from(port) == ADMIN_PORT && path.starts_with(PATH) {
        return None;
    }
    let headers = get.http_headers.iter().flatten();
    Some(Action::Http(Http {
        port,
        path: get.path.clone().unwrap_or_default(),
        tls: get.scheme.as_deref() == Some("HTTPS"),
        http2: get.protocol.as_deref() == Some("HTTP2"),
        headers: headers
            .map(|header| (header.name.clone(), header.value.clone()))
            .collect(),
    }))
}

/// The probe goes to the pod itself.
fn here(host: &Option<String>) -> bool {
    host.as_deref().unwrap_or_default().is_empty()
}

/// A port's number. An unknown name stays, so that the kubelet reports it.
fn number(port: &IntOrString, container: &Container) -> Option<u16> {
    let named = |name: &str| {
        let mut ports = container.ports.iter().flatten();
        ports.find(|port| port.name.as_deref() == Some(name))
    };
    match port {
        IntOrString::Int(number) => u16::try_from(*number).ok(),
        IntOrString::String(name) => match name.parse() {
            Ok(number) => Some(number),
            Err(_) => u16::try_from(named(name)?.container_port).ok(),
        },
    }
}
