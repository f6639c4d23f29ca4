//! Redirection by a chained CNI plugin, so that no container of a pod needs privileges.
//!
//! ```text
//! container runtime ──ADD, annotations──▶ plugin ──▶ rules in the new pod's network namespace
//!        ▲ reads                            ▲ copies
//! node: net.d/….conflist ◀──chains── agent ─┴▶ bin/naru-cni
//!                                    agent ◀──asks── naru-init of a pod without rules ──▶ rules
//! ```
//!
//! * [`plugin`] is `naru-cni`, run by the container runtime for each pod. The runtime passes it the
//!   pod's annotations (the capability `io.kubernetes.cri.pod-annotations`: containerd 1.5, CRI-O
//!   1.28). So it needs no API server, no token on the node's disk, and no agent; pods start as
//!   fast and as reliably as without it. Pods that are not injected for it are passed on unchanged.
//! * [`agent`] is `naru-proxy cni-install`, one a node: [`node`] keeps the program and its
//!   [`chain`] entry in place when others rewrite them, and removes both when Naru is uninstalled
//!   ([`uninstalled`]). On a mere restart or upgrade they stay: pods that start in the meantime are
//!   still redirected.
//! * **A pod whose rules are missing** (it started before the plugin was installed, or after its
//!   removal) is stopped by its `naru-init`, which proves without privileges that connections are
//!   redirected ([`crate::node::redirect::verify`]). It requests its rules, and the agent installs
//!   them ([`repair`]): no pod is deleted, and no permission at the API server is needed. The agent
//!   adds rules only where there are none, so a running pod cannot request its way out of the mesh.
//!
//! The plugin and the agent install rules in a pod's own network namespace ([`namespace`]), never
//! in the host's.
//!
//! # Floors
//!
//! ```text
//! agent plugin        the node's agent; the program that the container runtime calls
//! repair              pods that started without rules
//! report namespace
//! node uninstalled
//! chain
//! ```

pub mod agent;
mod chain;
mod namespace;
mod node;
pub mod plugin;
mod repair;
mod report;
mod uninstalled;

pub use report::Report;

/// The plugin's name: its program in the node's folder of plugins, and its type in a network's
/// configuration.
pub const PLUGIN: &str = "naru-cni";
/// The capability that requests a pod's annotations, and the key under which they arrive.
const ANNOTATIONS_CAPABILITY: &str = "io.kubernetes.cri.pod-annotations";
