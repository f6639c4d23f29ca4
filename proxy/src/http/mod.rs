//! Requests: HTTP/1 and HTTP/2 between a client and an endpoint.
//!
//! In: a connection whose protocol is known, and its session. Out: each request, routed, sent to an
//! endpoint and answered, or answered by the proxy. Both protocols have the same files for the same
//! steps:
//!
//! ```text
//! serve      a connection: one request after the other, or its streams
//! request    one request, from its head to the end of its response
//! forward    sent to an endpoint, and answered
//! attempt    one try: the head sent, the response's head awaited
//! body       bodies both ways
//! mirror     a copy for a mirror
//! reply      an answer of the proxy's own
//! ```
//!
//! The decisions about a request are the same for both: [`exchange`] decides, counts and logs, and
//! [`attempts`] tries endpoints. A policy is added there, once, and applies to HTTP/1.1, HTTP/2 and
//! gRPC.
//!
//! # Floors
//!
//! ```text
//! http1 http2
//! mirror                      copies of requests, for mirrors
//! attempts                    the attempts of a request: endpoint, retry, wait
//! deadlines retry exchange    timeouts; retry conditions; decision, metrics and log
//! login                       credentials that apply to a connection (NTLM, Negotiate)
//! reader strict               clients that stop reading; requests that are rejected
//! ```

mod attempts;
pub mod deadlines;
pub mod exchange;
pub mod http1;
pub mod http2;
pub mod login;
pub mod mirror;
pub mod reader;
pub mod retry;
pub mod strict;
