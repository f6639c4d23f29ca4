//! Where objects come from. In: directories of manifests, or a Kubernetes API server. Out: one
//! [`Event`] for each object that changed, reduced to what routing tables are made from. Nothing
//! behind this module knows Kubernetes' own types.

mod cluster;
mod cors;
mod duration;
mod files;
mod gateway;
mod grpc_route;
mod http_filter;
mod http_route;
mod kubernetes;
mod locate;
mod objects;
pub(crate) mod parse;
mod policy;
mod problem;
mod stream_route;
mod watch;

pub use cluster::cluster;
pub use duration::milliseconds;
pub use objects::*;
pub use watch::manifests;

/// What happened to the cluster's objects.
#[derive(Clone, Debug, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly every event is an Apply, and none is kept"
)]
pub enum Event {
    Apply(Object),
    Delete(ObjectKey),
    /// Everything that there was at the start has been listed.
    Synced,
}
