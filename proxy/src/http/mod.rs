//! Requests: HTTP/1 and HTTP/2 between a client and an endpoint, and what both have in common.

pub mod deadlines;
pub mod http1;
pub mod http2;
pub mod login;
pub mod mirror;
pub mod reader;
pub mod record;
pub mod retry;
pub mod strict;
