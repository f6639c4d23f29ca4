//! Redirection by a chained CNI plugin, so that no container of a pod needs a right.
//!
//! ```text
//! container runtime ──ADD, annotations──▶ plugin ──▶ rules in the new pod's network namespace
//!        ▲ reads                            ▲ copies
//! node: net.d/….conflist ◀──chains── agent ─┴▶ bin/naru-cni
//!                                    agent ◀──asks── naru-init of a pod whose rules are missing ──▶ rules
//! ```
//!
//! * [`plugin`] is `naru-cni`, run by the container runtime for each pod. What it needs to know of
//!   a pod it is told by the runtime: its annotations (the capability
//!   `io.kubernetes.cri.pod-annotations`: containerd 1.5, CRI-O 1.28). So it needs no API server,
//!   no token on the node's disk, and no agent; pods start as fast, and as surely, as without it.
//!   Pods that are not injected for it are passed on as they are.
//! * [`agent`] is `naru-proxy cni-install`, one a node: [`node`] keeps the program and its
//!   [`chain`] entry where they belong, whoever rewrites them, and takes them away when Naru is
//!   uninstalled ([`uninstalled`]). On a mere restart or upgrade it leaves them: pods that start
//!   meanwhile are redirected as ever.
//! * **A pod whose rules are missing** (it started before the plugin was there, or somebody took it
//!   away) is stopped by its `naru-init`, which proves without any right that connections are
//!   redirected ([`crate::node::redirect::verify`]). It asks for its rules, and the agent sets them
//!   ([`repair`]): no pod is deleted, and nobody needs a right at the API server. The agent adds
//!   rules where there are none and changes none, so a pod that runs cannot ask its way out of the
//!   mesh.
//!
//! What the runtime's plugins and the agent do is in a pod's own network namespace ([`namespace`]),
//! never in the host's.
//!
//! # Floors
//!
//! ```text
//! agent plugin        the node's agent; what the container runtime calls
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
/// By this the runtime is asked for a pod's annotations, and they come under the same name.
const ANNOTATIONS_CAPABILITY: &str = "io.kubernetes.cri.pod-annotations";
