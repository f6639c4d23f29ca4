//! The way to the Kubernetes API server, and what several parts of the controller ask it.
//!
//! # Floors
//!
//! ```text
//! sidecars            the pods that have one
//! client              the connection
//! ```

mod client;
#[cfg(test)]
pub(crate) mod fake_api;
pub mod sidecars;

pub use client::{Error, client};
