//! Why a pod is not admitted.

use super::names::{INIT_CONTAINER, PROXY_UID, SIDECAR};

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
