//! Where objects come from. In: directories of manifests, or a Kubernetes API server. Out: one
//! [`Event`] for each object that changed, reduced to what routing tables are made from. Nothing
//! behind this module knows Kubernetes' own types.
//!
//! # Floors
//!
//! ```text
//! cluster manifests   watch, for ever
//! parse               one text or object
//! objects             what the rest of the controller sees
//! ```

mod cluster;
mod manifests;
mod objects;
pub(crate) mod parse;

pub use cluster::cluster;
pub use manifests::manifests;
pub use objects::*;
pub use parse::milliseconds;

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
