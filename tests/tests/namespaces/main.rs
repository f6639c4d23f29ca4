//! The namespaces layer: the real redirect rules and whole meshes, in network namespaces.
//!
//! Needs root and the programs that `tests/run` installs. A missing program fails the test with a
//! message on how to install it; no test is skipped.

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
