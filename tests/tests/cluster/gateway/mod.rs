//! The Gateway API suite's tests for gateways, applied to the mesh with the suite's own apps: twins
//! of its tests, and cases that it does not cover.

mod attachment;
mod convergence;
mod echo;
mod filters;
mod grpc;
mod http;
mod l4;
mod status;
