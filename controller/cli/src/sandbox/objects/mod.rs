//! The desired state from the manifests, as Kubernetes objects. In: files. Out: Services, workloads
//! and pods, independent of how they are run.
//!
//! # Floors
//!
//! ```text
//! manifest           the directory of manifests
//! services           addresses of Services, and the pods behind them
//! pod                one pod of a workload
//! workload           the desired pods of workloads
//! template names     what the pods of a workload share; their names
//! ```

pub mod manifest;
pub mod names;
mod pod;
mod services;
mod template;
mod workload;

pub use manifest::Objects;
pub use pod::{Pod, PodState};
pub use services::{ClusterIps, Member, Service};
pub use template::{Action, Container, Facts, PROXY_UID, Probe};
pub use workload::{Desired, Existing, Kind, next_steps};

#[cfg(test)]
pub use pod::tests::pod as example_pod;
