//! Names that injection gives and reads: annotations, containers, users, ports.

use k8s_openapi::api::core::v1::Pod;

/// The label that marks pods with a sidecar.
pub const INJECTED_LABEL: &str = "naru.dev/injected";
/// Whether this pod gets a sidecar; overrides its namespace.
pub const INJECT_ANNOTATION: &str = "naru.dev/inject";
/// Why a pod that should have a sidecar has none.
pub const SKIPPED_ANNOTATION: &str = "naru.dev/skipped";
/// How the pod's connections are redirected, unless by its own init container: the CNI plugin on
/// the node reads this.
pub const REDIRECTION_ANNOTATION: &str = "naru.dev/redirection";
/// Whether addresses in 240.0.0.0/4 are in use; the CNI plugin reads this, too.
pub const CLASS_E_ANNOTATION: &str = "naru.dev/class-e-in-use";
pub const INIT_CONTAINER: &str = "naru-init";
pub const SIDECAR: &str = "naru-proxy";
/// The sidecar's program in its image.
pub const PROGRAM: &str = "/usr/local/bin/naru-proxy";
/// The sidecar's user. Its connections are not redirected.
pub const PROXY_UID: i64 = 1337;
/// The user that verifies the redirection: any but the sidecar's.
pub const VERIFY_UID: i64 = 65_532;
pub const OUTBOUND_PORT: i32 = 15001;
pub const INBOUND_PORT: i32 = 15006;
pub const ADMIN_PORT: i32 = 15020;

/// The value of a pod's annotation.
pub fn annotation<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    let annotations = pod.metadata.annotations.as_ref()?;
    annotations.get(name).map(String::as_str)
}

/// Whether the name is one of our containers'. The caller has verified that we created it.
pub fn is_ours(name: &str) -> bool {
    [INIT_CONTAINER, SIDECAR].contains(&name)
}
