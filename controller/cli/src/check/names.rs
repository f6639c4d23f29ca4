//! Names of an installation's objects, labels and annotations. The chart and the controller use the
//! same.

pub const CONTROLLER: &str = "naru-controller";
pub const WEBHOOK_CONFIGURATION: &str = "naru-injector";
/// A namespace's label, and a pod's annotation.
pub const INJECT: &str = "naru.dev/inject";
pub const INJECTED_LABEL: &str = "naru.dev/injected";
pub const SKIPPED_ANNOTATION: &str = "naru.dev/skipped";
/// Prefix of the annotations that exclude traffic from the mesh.
pub const SKIP_ANNOTATIONS: &str = "naru.dev/skip-";
pub const SIDECAR: &str = "naru-proxy";
pub const INIT_CONTAINER: &str = "naru-init";
pub const ANCHORS_CONFIG_MAP: &str = "naru-trust-anchors";
pub const ANCHORS_KEY: &str = "trust-anchors.pem";
/// `controllerName` in the status of routes.
pub const CONTROLLER_NAME: &str = "naru.dev/controller";
/// The label with the version of the chart that created an object.
pub const VERSION_LABEL: &str = "app.kubernetes.io/version";
