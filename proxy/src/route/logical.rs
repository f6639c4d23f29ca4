//! What a connection was made to: a Service port with everything that routes decide about it.

use std::sync::Arc;

use super::opaque::StreamRoutes;
use super::{Routes, Rule};
use crate::balance::RetryBudget;
use crate::observe::metrics::TcpMetrics;

/// A Service port with its routes. A pod that is dialled by its own address, and the app behind an
/// inbound port, are one as well: no routes, one backend with one endpoint.
#[derive(Debug)]
pub struct Logical {
    /// Namespace of the Service or pod.
    pub namespace: Arc<str>,
    /// Name of the Service; empty where there is none.
    pub service: Arc<str>,
    pub port: u16,
    pub protocol: Protocol,
    /// Rules in order of precedence. `None`: no route is attached, and `default_rule` takes every
    /// request.
    pub routes: Option<Routes>,
    /// Routes for connections, which are not looked into then. `None`: none is attached.
    pub stream_routes: Option<StreamRoutes>,
    /// No matches, no filters, the Service's own pods.
    pub default_rule: Arc<Rule>,
    pub budget: Arc<RetryBudget>,
    /// For connections that are not HTTP.
    pub tcp: Arc<TcpMetrics>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Told by the first bytes.
    Detect,
    /// HTTP, its version told by whether the client sends the HTTP/2 preface.
    Http,
    /// HTTP/2 with prior knowledge.
    Http2,
    Tcp,
}

impl Protocol {
    /// The word for people and programs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Detect => "detect",
            Self::Http => "http",
            Self::Http2 => "http2",
            Self::Tcp => "tcp",
        }
    }
}
