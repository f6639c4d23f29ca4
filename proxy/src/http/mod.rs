//! Requests: HTTP/1 and HTTP/2 between a client and an endpoint.
//!
//! In: a connection of which is known what it carries, and its session. Out: each request, routed,
//! sent to an endpoint and answered, or answered here. Both protocols have the same files for the
//! same steps:
//!
//! ```text
//! serve      a connection: one request after the other, or its streams
//! exchange   a request: decided, answered, counted, logged
//! forward    its attempts: which endpoint, whether once more, until when
//! attempt    one of them: the head sent, the response's head awaited
//! body       bodies both ways
//! mirror     a copy for a mirror
//! reply      an answer of the proxy's own
//! ```
//!
//! What they share is beside them.
//!
//! # Floors
//!
//! ```text
//! http1 http2
//! mirror                      copies of requests, for mirrors
//! deadlines retry             until when, and whether once more
//! record                      how a request ended, and its log line
//! login                       what holds for a connection and not for a request
//! reader strict               clients that do not read; what is refused
//! ```

pub mod deadlines;
pub mod http1;
pub mod http2;
pub mod login;
pub mod mirror;
pub mod reader;
pub mod record;
pub mod retry;
pub mod strict;
