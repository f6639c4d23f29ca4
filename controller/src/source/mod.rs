//! The source of objects. In: directories of manifests, or a Kubernetes API server. Out: one
//! [`Event`] for each changed object, reduced to the fields that routing tables need. Kubernetes'
//! own types are confined to this module.
//!
//! # Floors
//!
//! ```text
//! cluster manifests   the two sources, watched
//! parse               one text or object
//! objects             the reduced objects for the rest of the controller
//! ```

mod cluster;
mod manifests;
mod objects;
pub(crate) mod parse;

pub use cluster::cluster;
pub use manifests::manifests;
pub use objects::*;
pub use parse::milliseconds;

/// An event of the cluster's objects.
#[derive(Clone, Debug, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly every event is an Apply, and none is kept"
)]
pub enum Event {
    Apply(Object),
    Delete(ObjectKey),
    /// All initial objects have been listed.
    Synced,
}
