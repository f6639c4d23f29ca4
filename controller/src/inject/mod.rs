//! Injection: adds a sidecar to a pod when it is created.
//!
//! ```text
//! API server ─▶ serve (TLS, HTTP) ─▶ review ─▶ patch (pure)
//!                    ▲                           ├─ settings    what the annotations ask for
//!               certificate                      ├─ containers  init container, sidecar, volume
//!                                                └─ probes      to the sidecar's admin port
//! ```
//!
//! An injected pod is reviewed again after another webhook has changed it, or as a copy that a user
//! made of another pod (`kubectl debug --copy-to`). Only missing parts are added then: probes of
//! later containers, labels.
//!
//! In: a pod before its creation. Out: the operations that add a sidecar; or none, with the reason;
//! or a refusal. All operations of one pod are applied together or not at all, so that no pod is
//! half injected.
//!
//! # Floors
//!
//! ```text
//! serve                   the webhook's HTTPS server
//! review                  the API server's request and the response
//! containers              the containers that the patch adds
//! pod_resources settings  the sidecar's resources; its settings
//! options probes          flags; probes that are redirected to the sidecar
//! certificate             the webhook's serving certificate
//! refusal                 why a pod is not admitted
//! address names operations  listen addresses; names; JSON patch operations
//! ```

mod address;
mod certificate;
mod containers;
mod names;
mod operations;
mod options;
mod pod_resources;
mod probes;
mod refusal;
mod review;
mod serve;
mod settings;
#[cfg(test)]
mod tests;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use serde_json::json;

pub use certificate::{Certificate, CertificateError};
pub use containers::{ANCHORS_CONFIG_MAP, ANCHORS_KEY};
pub(crate) use names::INJECTED_LABEL;
pub use operations::Operation;
pub use options::{InjectArgs, Options, PullPolicy, Redirection, Resources};
pub use refusal::Refusal;
pub use review::{Answer, answer};
pub use serve::{Injected, serve};

use crate::annotations;
use names::{
    ADMIN_PORT, CLASS_E_ANNOTATION, INBOUND_PORT, INIT_CONTAINER, INJECT_ANNOTATION, OUTBOUND_PORT,
    PROGRAM, PROXY_UID, REDIRECTION_ANNOTATION, SIDECAR, SKIPPED_ANNOTATION, annotation, is_ours,
};
use operations::{Path, add, remove, set_key};
use settings::Settings;

/// The default container of `kubectl logs` and `kubectl exec`.
const DEFAULT_CONTAINER_ANNOTATION: &str = "kubectl.kubernetes.io/default-container";
/// The common annotations for scraping by Prometheus.
const SCRAPE_ANNOTATIONS: &str = "prometheus.io/";
/// A static pod of a kubelet, which the API server only mirrors.
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// The decision on a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// It gets a sidecar.
    Inject(Vec<Operation>),
    /// The pod already has a sidecar, and gets the missing parts.
    Complete(Vec<Operation>),
    /// The pod already has a sidecar, or should have none.
    Leave(Vec<Operation>),
    /// The pod should have a sidecar, but cannot.
    Skip {
        reason: &'static str,
        operations: Vec<Operation>,
    },
}

/// Decides on `pod`. `by_namespace`: pods of the namespace get sidecars by default; otherwise only
/// those that opt in.
pub fn decide(pod: &Pod, by_namespace: bool, options: &Options) -> Result<Decision, Refusal> {
    let asked = settings::read(pod, INJECT_ANNOTATION, annotations::inject)?;
    let asked = asked.unwrap_or(by_namespace);
    let spec = pod.spec.clone().unwrap_or_default();
    match (has_sidecar(&spec), asked) {
        (Ok(true), _) => complete(pod, &spec, options),
        // Without injection, containers may have our names.
        (_, false) => Ok(Decision::Leave(without_label(pod))),
        (Err(refusal), true) => Err(refusal),
        (Ok(false), true) => match cannot(pod, &spec, options) {
            Some(reason) => {
                let mut operations = without_label(pod);
                operations.extend(set_key(
                    Path::root().key("metadata").key("annotations"),
                    pod.metadata.annotations.is_some(),
                    [(SKIPPED_ANNOTATION, reason.to_owned())],
                ));
                Ok(Decision::Skip { reason, operations })
            }
            None => inject(pod, &spec, options).map(Decision::Inject),
        },
    }
}

/// Whether a pod has a sidecar created by Naru.
pub(crate) fn is_sidecar(spec: &PodSpec) -> bool {
    let mut containers = (spec.init_containers.iter().flatten()).chain(&spec.containers);
    containers.any(|container| {
        let program = container.command.iter().flatten().next();
        container.name == SIDECAR && program.map(String::as_str) == Some(PROGRAM)
    })
}

/// Both of our containers exist. One of them alone, or another container of that name, was not
/// created by Naru.
fn has_sidecar(spec: &PodSpec) -> Result<bool, Refusal> {
    let init = spec.init_containers.iter().flatten();
    let all = || init.clone().chain(&spec.containers);
    let ours = |name: &str| {
        all().find(|container| container.name == name).map(|found| {
            let command = found.command.iter().flatten().next();
            command.map(String::as_str) == Some(PROGRAM)
        })
    };
    match (ours(INIT_CONTAINER), ours(SIDECAR)) {
        (None, None) => Ok(false),
        (Some(true), Some(true)) => Ok(true),
        (Some(_), None) => Err(Refusal::ContainerName(INIT_CONTAINER)),
        (Some(false), _) => Err(Refusal::ContainerName(INIT_CONTAINER)),
        (None, Some(_)) | (_, Some(false)) => Err(Refusal::ContainerName(SIDECAR)),
    }
}

/// Why a pod cannot have a sidecar, if that is due to its nature rather than a mistake.
fn cannot(pod: &Pod, spec: &PodSpec, options: &Options) -> Option<&'static str> {
    let of_job = || {
        let mut owners = pod.metadata.owner_references.iter().flatten();
        owners.any(|owner| owner.kind == "Job")
    };
    if annotation(pod, MIRROR_ANNOTATION).is_some() {
        Some("a static pod cannot be changed by its API server")
    } else if spec.host_network == Some(true) {
        Some("a pod in the host's network has no network of its own to redirect")
    } else if spec.os.as_ref().is_some_and(|os| os.name == "windows") {
        Some("sidecars run on Linux only")
    } else if spec.dns_policy.as_deref() == Some("Default") {
        Some(
            "with dnsPolicy Default the sidecar does not find its controller, a name of the \
             cluster",
        )
    } else if !options.native_sidecars && of_job() {
        Some("a Job would never complete: this cluster has no native sidecars")
    } else {
        None
    }
}

/// A pod without a sidecar must not have the label of one with a sidecar.
fn without_label(pod: &Pod) -> Vec<Operation> {
    let labels = pod.metadata.labels.iter().flatten();
    let path = Path::root().key("metadata").key("labels");
    labels
        .filter(|(name, _)| *name == INJECTED_LABEL)
        .map(|(name, _)| remove(path.key(name)))
        .collect()
}

/// The missing parts of an injected pod: none, if it is unchanged since its injection.
fn complete(pod: &Pod, spec: &PodSpec, options: &Options) -> Result<Decision, Refusal> {
    check_containers(spec)?;
    let mut operations = metadata(pod, spec, options);
    let mut moved = Vec::new();
    let probes = probes::redirect(spec, &mut moved);
    if !probes.is_empty() {
        let (at, sidecar) = probes::sidecar(spec).ok_or(Refusal::ContainerName(SIDECAR))?;
        operations.extend(moved);
        operations.push(containers::more_probes(at, sidecar, &probes)?);
    }
    Ok(match operations.is_empty() {
        true => Decision::Leave(operations),
        false => Decision::Complete(operations),
    })
}

/// The missing label and annotations of a pod with a sidecar.
fn metadata(pod: &Pod, spec: &PodSpec, options: &Options) -> Vec<Operation> {
    let metadata = Path::root().key("metadata");
    let labels = pod.metadata.labels.as_ref();
    let label = labels.and_then(|labels| labels.get(INJECTED_LABEL));
    let label =
        (label.map(String::as_str) != Some("true")).then(|| (INJECTED_LABEL, "true".to_owned()));
    let mut operations = set_key(metadata.key("labels"), labels.is_some(), label);
    let given = pod.metadata.annotations.as_ref();
    let has = |name: &str, value: &str| {
        given.is_some_and(|given| given.get(name).is_some_and(|given| given == value))
    };
    let annotations = annotations(pod, spec, options).into_iter();
    operations.extend(set_key(
        metadata.key("annotations"),
        given.is_some(),
        annotations.filter(|(name, value)| !has(name, value)),
    ));
    operations
}

fn inject(pod: &Pod, spec: &PodSpec, options: &Options) -> Result<Vec<Operation>, Refusal> {
    check_containers(spec)?;
    let mut volumes = spec.volumes.iter().flatten();
    if volumes.any(|volume| volume.name == containers::VOLUME) {
        return Err(Refusal::VolumeName(containers::VOLUME));
    }
    let mut settings = Settings::of(pod, options)?;
    settings.resources = pod_resources::fit(spec, settings.resources);
    let mut operations = metadata(pod, spec, options);
    // Paths of probes refer to the original pod, so they are patched before containers are
    // inserted.
    let probes = probes::redirect(spec, &mut operations);
    let at = Path::root().key("spec");
    operations.push(match spec.volumes {
        Some(_) => add(at.key("volumes").key("-"), containers::volume()),
        None => add(at.key("volumes"), json!([containers::volume()])),
    });
    let init = containers::init(&settings, options);
    let sidecar = containers::sidecar(spec, &settings, &probes, options);
    let inits = at.key("initContainers");
    if options.native_sidecars {
        // Before the pod's own init containers, so that they have the same network as its
        // containers.
        match spec.init_containers {
            Some(_) => operations.extend([add(inits.index(0), sidecar), add(inits.index(0), init)]),
            None => operations.push(add(inits, json!([init, sidecar]))),
        }
    } else {
        // After the pod's own init containers, whose connections would otherwise be redirected
        // before the sidecar runs.
        operations.push(match spec.init_containers {
            Some(_) => add(inits.key("-"), init),
            None => add(inits, json!([init])),
        });
        operations.push(add(at.key("containers").index(0), sidecar));
    }
    Ok(operations)
}

/// Restrictions on a pod's own containers next to a sidecar.
fn check_containers(spec: &PodSpec) -> Result<(), Refusal> {
    let of_pod = spec.security_context.as_ref().and_then(|c| c.run_as_user);
    for container in spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
        .filter(|container| !is_ours(&container.name))
    {
        let own = container.security_context.as_ref();
        if own.and_then(|context| context.run_as_user).or(of_pod) == Some(PROXY_UID) {
            return Err(Refusal::User(container.name.clone()));
        }
        let ours = |port: &i32| [OUTBOUND_PORT, INBOUND_PORT, ADMIN_PORT].contains(port);
        let ports = container.ports.iter().flatten();
        let tcp = ports.filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP");
        if let Some(port) = tcp.map(|port| port.container_port).find(ours) {
            let container = container.name.clone();
            return Err(Refusal::Port { container, port });
        }
    }
    Ok(())
}

/// Annotations for other programs, unless the pod has its own; and for the CNI plugin.
fn annotations(pod: &Pod, spec: &PodSpec, options: &Options) -> Vec<(&'static str, String)> {
    let redirection = options.redirection;
    let given = || {
        pod.metadata
            .annotations
            .iter()
            .flatten()
            .map(|(name, _)| name)
    };
    let mut annotations = Vec::new();
    // Overwrites the pod's own value, with which the plugin would contradict the init container.
    if redirection == Redirection::Cni || given().any(|given| given == REDIRECTION_ANNOTATION) {
        annotations.push((REDIRECTION_ANNOTATION, redirection.as_str().to_owned()));
    }
    if options.class_e_in_use && !given().any(|given| given == CLASS_E_ANNOTATION) {
        annotations.push((CLASS_E_ANNOTATION, "true".to_owned()));
    }
    let mut own = spec.containers.iter().filter(|c| !is_ours(&c.name));
    if let Some(Container { name, .. }) = own.next()
        && !given().any(|given| given == DEFAULT_CONTAINER_ANNOTATION)
    {
        annotations.push((DEFAULT_CONTAINER_ANNOTATION, name.clone()));
    }
    if !given().any(|given| given.starts_with(SCRAPE_ANNOTATIONS)) {
        annotations.extend([
            ("prometheus.io/scrape", "true".to_owned()),
            ("prometheus.io/port", ADMIN_PORT.to_string()),
            ("prometheus.io/path", "/metrics".to_owned()),
        ]);
    }
    annotations
}
