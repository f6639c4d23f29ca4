//! The life cycle of a pod: its namespaces and files, its sidecar and its containers. In: a [`Pod`]
//! and the node's services for it ([`Kubelet`]). Out: [`Event`]s.
//!
//! # Floors
//!
//! ```text
//! life               a pod from its first process to its last
//! sidecar            redirect rules, and the sidecar
//! supervise          one container: started, restarted, stopped
//! files probe        the files that a container sees; its probes
//! backoff kubelet
//! ```
//!
//! [`Pod`]: super::objects::Pod

mod backoff;
mod files;
mod kubelet;
mod life;
mod probe;
mod sidecar;
mod supervise;

pub use kubelet::{Event, Kubelet, Status};
pub use life::live;
pub use sidecar::PROXY_ADMIN_PORT;
