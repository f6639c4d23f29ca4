//! What the Gateway API's suite asks of gateways alone, asked of the mesh, with the suite's own
//! apps: twins of its tests, and what it does not ask at all.

mod attachment;
mod convergence;
mod echo;
mod filters;
mod grpc;
mod http;
mod l4;
mod status;
