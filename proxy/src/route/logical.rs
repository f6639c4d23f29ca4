//! The logical destination of a connection: a Service port with everything that routes decide about
//! it.

use std::sync::Arc;

use super::opaque::OpaqueRoutes;
use super::{Routes, Rule};
use crate::balance::RetryBudget;
use crate::observe::metrics::TcpMetrics;

/// A Service port with its routes. A pod called by its own address, and the app behind an inbound
/// port, are represented likewise: without routes, with one backend of one endpoint.
#[derive(Debug)]
pub struct Logical {
    /// Namespace of the Service or pod.
    pub namespace: Arc<str>,
    /// Name of the Service; empty for a pod.
    pub service: Arc<str>,
    pub port: u16,
    pub protocol: Protocol,
    /// Rules in order of precedence. `None`: no route is attached, and `default_rule` applies to
    /// every request.
    pub routes: Option<Routes>,
    /// Routes for connections, which then stay opaque. `None`: no such route is attached.
    pub opaque_routes: Option<OpaqueRoutes>,
    /// No matches, no filters, the Service's own pods.
    pub default_rule: Arc<Rule>,
    pub budget: Arc<RetryBudget>,
    /// For connections that are not HTTP.
    pub tcp: Arc<TcpMetrics>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Detected by the first bytes.
    Detect,
    /// HTTP, whose version is detected by the client's HTTP/2 preface.
    Http,
    /// HTTP/2 with prior knowledge.
    Http2,
    Tcp,
}

impl Protocol {
    /// The name in output and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Detect => "detect",
            Self::Http => "http",
            Self::Http2 => "http2",
            Self::Tcp => "tcp",
        }
    }
}
