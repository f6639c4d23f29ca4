//! Injection: a pod is given its sidecar when it is created.
//!
//! ```text
//! API server ─▶ serve (TLS, HTTP) ─▶ review ─▶ patch (pure)
//!                    ▲                           ├─ settings    what the annotations ask for
//!               certificate                      ├─ containers  init container, sidecar, volume
//!                                                └─ probes      to the sidecar's admin port
//! ```
//!
//! A pod that has its sidecar already comes again when another webhook has changed it, or as a copy
//! that a user made of another pod (`kubectl debug --copy-to`). Then it is given what is missing:
//! probes of containers that came later, labels.
//!
//! In: a pod as it is about to be created. Out: the operations that give it a sidecar; or that it
//! is left as it is, with the reason; or a refusal. All operations of one pod are applied together
//! or not at all, so that no pod is half injected.
//!
//! # Floors
//!
//! ```text
//! serve                   HTTPS, as the API server calls it
//! review                  what is asked for, and answered
//! containers              the patch
//! pod_resources settings  what the sidecar may use, and is told
//! options probes          flags; probes that go to the sidecar
//! certificate             what the webhook shows to the API server
//! address operations      ground
//! ```

mod address;
mod certificate;
mod containers;
mod operations;
mod options;
mod pod_resources;
mod probes;
mod review;
mod serve;
mod settings;
#[cfg(test)]
mod tests;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use serde_json::json;

pub use certificate::{Certificate, CertificateError};
pub use containers::{ANCHORS_CONFIG_MAP, ANCHORS_KEY};
pub use operations::Operation;
pub use options::{InjectArgs, PullPolicy, Redirection, Resources};
pub use review::{Answer, answer};
pub use serve::{Injected, serve};

use crate::annotations;
use operations::{Path, add, remove, set_key};
use settings::Settings;

/// The label by which everybody knows that a pod has a sidecar.
pub(crate) const INJECTED_LABEL: &str = "naru.dev/injected";
/// Whether this pod is to have a sidecar, whatever its namespace says.
const INJECT_ANNOTATION: &str = "naru.dev/inject";
/// Why a pod has none although it was to have one.
const SKIPPED_ANNOTATION: &str = "naru.dev/skipped";
/// By what a pod's connections are redirected, where that is not its own init container: the node's
/// CNI plugin reads this.
const REDIRECTION_ANNOTATION: &str = "naru.dev/redirection";
/// Whether addresses in 240.0.0.0/4 are in use; for the CNI plugin too.
const CLASS_E_ANNOTATION: &str = "naru.dev/class-e-in-use";
const INIT_CONTAINER: &str = "naru-init";
const SIDECAR: &str = "naru-proxy";
/// The sidecar's program in its image.
const PROGRAM: &str = "/usr/local/bin/naru-proxy";
/// The user that the sidecar runs as. Its connections are not redirected.
const PROXY_UID: i64 = 1337;
/// The user that looks whether connections are redirected: any but the sidecar's.
const VERIFY_UID: i64 = 65_532;
const OUTBOUND_PORT: i32 = 15001;
const INBOUND_PORT: i32 = 15006;
const ADMIN_PORT: i32 = 15020;
/// The container that `kubectl logs` and `kubectl exec` take when none is named.
const DEFAULT_CONTAINER_ANNOTATION: &str = "kubectl.kubernetes.io/default-container";
/// By these Prometheus is told, in many clusters, what to scrape.
const SCRAPE_ANNOTATIONS: &str = "prometheus.io/";
/// A pod that the kubelet runs by itself, of which the API server has only a picture.
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// What all pods have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    pub image: String,
    pub pull_policy: PullPolicy,
    /// The controller's gRPC address, as HOST:PORT.
    pub controller: String,
    pub controller_identity: String,
    /// The sidecar is an init container that goes on running. Without: a plain container, the first
    /// one.
    pub native_sidecars: bool,
    pub redirection: Redirection,
    /// Pods, nodes or others have addresses in 240.0.0.0/4.
    pub class_e_in_use: bool,
    pub log: String,
    pub resources: Resources,
}

/// What becomes of a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// It gets a sidecar.
    Inject(Vec<Operation>),
    /// It has one already, and gets what is missing besides.
    Complete(Vec<Operation>),
    /// It has one already, or is to have none.
    Leave(Vec<Operation>),
    /// It was to have one, and cannot.
    Skip {
        reason: &'static str,
        operations: Vec<Operation>,
    },
}

/// Why a pod is not admitted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("naru: the annotation {name}: {value:?}: {problem}")]
    Annotation {
        name: &'static str,
        value: String,
        problem: String,
    },
    #[error(
        "naru: the pod has a container named {0} that Naru has not created: rename it, or set \
         the annotation naru.dev/inject: disabled"
    )]
    ContainerName(&'static str),
    #[error(
        "naru: the pod has a volume named {0}, which the sidecar needs: rename it, or set the \
         annotation naru.dev/inject: disabled"
    )]
    VolumeName(&'static str),
    #[error(
        "naru: the container {container} listens on port {port}, which the sidecar needs: choose \
         another port, or set the annotation naru.dev/inject: disabled"
    )]
    Port { container: String, port: i32 },
    #[error(
        "naru: the container {0} runs as user {PROXY_UID}, which is the sidecar's: its traffic \
         would pass the mesh by. Choose another runAsUser, or set the annotation naru.dev/inject: \
         disabled"
    )]
    User(String),
    #[error(
        "naru: the variable NARU_PROBES of the container {SIDECAR} cannot be read: {0}. Make the \
         pod without the containers {INIT_CONTAINER} and {SIDECAR}: it gets its own"
    )]
    Probes(String),
    #[error("naru: the object in the review is not a pod: {0}")]
    NoPod(String),
}

/// What to do with `pod`. `by_namespace`: the namespace's pods are to have sidecars; otherwise only
/// those that say so.
pub fn decide(pod: &Pod, by_namespace: bool, options: &Options) -> Result<Decision, Refusal> {
    let asked = settings::read(pod, INJECT_ANNOTATION, annotations::inject)?;
    let asked = asked.unwrap_or(by_namespace);
    let spec = pod.spec.clone().unwrap_or_default();
    match (has_sidecar(&spec), asked) {
        (Ok(true), _) => complete(pod, &spec, options),
        // Whose containers have our names is its own affair.
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

fn annotation<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    let annotations = pod.metadata.annotations.as_ref()?;
    annotations.get(name).map(String::as_str)
}

/// Whether a pod has our sidecar.
pub(crate) fn is_sidecar(spec: &PodSpec) -> bool {
    let mut containers = (spec.init_containers.iter().flatten()).chain(&spec.containers);
    containers.any(|container| {
        let program = container.command.iter().flatten().next();
        container.name == SIDECAR && program.map(String::as_str) == Some(PROGRAM)
    })
}

/// Both containers of ours are there. One of them alone, or another container of that name, is not
/// ours.
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

/// What keeps a pod from having a sidecar, where that is the nature of the pod and no mistake in
/// it.
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

/// A pod without a sidecar must not be taken for one that has one.
fn without_label(pod: &Pod) -> Vec<Operation> {
    let labels = pod.metadata.labels.iter().flatten();
    let path = Path::root().key("metadata").key("labels");
    labels
        .filter(|(name, _)| *name == INJECTED_LABEL)
        .map(|(name, _)| remove(path.key(name)))
        .collect()
}

/// What a pod that has a sidecar lacks besides: nothing, if it is unchanged since it was
/// injected.
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

/// The label and the annotations of a pod with a sidecar, as far as it lacks them.
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
    // Paths of probes are those of the pod as it came: they go before containers are inserted.
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
        // Before the pod's own: they have the network that its containers have.
        match spec.init_containers {
            Some(_) => operations.extend([add(inits.index(0), sidecar), add(inits.index(0), init)]),
            None => operations.push(add(inits, json!([init, sidecar]))),
        }
    } else {
        // After the pod's own, which would find connections redirected to a sidecar that does not
        // run yet.
        operations.push(match spec.init_containers {
            Some(_) => add(inits.key("-"), init),
            None => add(inits, json!([init])),
        });
        operations.push(add(at.key("containers").index(0), sidecar));
    }
    Ok(operations)
}

/// What a pod's own containers may not have beside a sidecar.
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

/// Whether a container's name is one of ours. That it is ours, [`has_sidecar`] has seen.
fn is_ours(name: &str) -> bool {
    [INIT_CONTAINER, SIDECAR].contains(&name)
}

/// Annotations for others, unless the pod has its own; and for the CNI plugin.
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
    // Another one of the pod's own would have the plugin do what no container of it expects.
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
