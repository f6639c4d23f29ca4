//! The way to the Kubernetes API server, and what several parts of the controller ask it.

mod client;
#[cfg(test)]
pub(crate) mod fake_api;
pub mod sidecars;

pub use client::{Error, client};
