//! Routes of all kinds, converted to the form of an HTTPRoute. In: a route as written. Out: the
//! fields that routing tables need, or why the API server would reject it.
//!
//! # Floors
//!
//! ```text
//! grpc opaque        reduced to the form of an HTTPRoute
//! http               rules, matches, backends
//! filters
//! cors
//! checks             checks that all of them share
//! ```

mod checks;
mod cors;
mod filters;
mod grpc;
mod http;
mod opaque;

pub use grpc::grpc_route;
pub use http::http_route;
pub use opaque::{tcp_route, tls_route};
