//! The client of the Kubernetes API server, and queries that several parts of the controller share.
//!
//! # Floors
//!
//! ```text
//! sidecars            pods with a sidecar
//! client              the client of the API server
//! ```

mod client;
#[cfg(test)]
pub(crate) mod fake_api;
pub mod sidecars;

pub use client::{Error, client};
