//! The namespaces layer: the real redirect rules and whole meshes, in network namespaces.
//!
//! Needs root and the programs that `tests/run` installs. What is absent makes a test fail with a
//! word on what to install; no test passes by doing nothing.

#![allow(clippy::disallowed_methods)] // A test has its thread to itself, and may sleep.

mod client_address;
mod cni;
mod grpc;
mod http;
mod mesh;
mod metrics;
mod postgres;
mod push;
mod redirect;
mod sandbox;
mod shown;
mod tcp;
mod wire;
