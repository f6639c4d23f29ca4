//! Metrics of the data path. Handles are resolved once for each source, destination and route, and then incremented
//! as owned atomics.

use std::sync::Arc;
use std::time::Duration;

use crate::reason::Reason;

/// The registry. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    Inbound,
    Outbound,
}

/// What tells one series of requests from another. Empty where it does not apply.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RequestLabels {
    pub direction: Direction,
    /// Inbound: SPIFFE ID of the peer, or `unauthenticated`.
    pub client: Arc<str>,
    pub namespace: Arc<str>,
    pub service: Arc<str>,
    pub port: u16,
    /// `namespace/name`
    pub route: Arc<str>,
    pub rule: Arc<str>,
    /// `namespace/service:port`
    pub backend: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TcpLabels {
    pub direction: Direction,
    pub client: Arc<str>,
    pub namespace: Arc<str>,
    pub service: Arc<str>,
    pub port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HttpVersion {
    Http1,
    Http2,
}

#[derive(Debug)]
pub struct RequestMetrics {}

#[derive(Debug)]
pub struct TcpMetrics {}

impl Metrics {
    pub fn request(&self, labels: RequestLabels) -> Arc<RequestMetrics> {
        let _ = labels;
        todo!()
    }

    pub fn tcp(&self, labels: TcpLabels) -> Arc<TcpMetrics> {
        let _ = labels;
        todo!()
    }

    pub fn upstream_connect(&self, reason: Option<Reason>) {
        let _ = reason;
        todo!()
    }

    pub fn handshake(&self, direction: Direction, reason: Option<Reason>) {
        let _ = (direction, reason);
        todo!()
    }
}

impl RequestMetrics {
    pub fn begin(&self, version: HttpVersion) {
        let _ = version;
        todo!()
    }

    /// The request has ended. `status`: of the response, if there was one; `reason`: if the proxy made it or broke it off.
    pub fn end(&self, status: Option<u16>, reason: Option<Reason>, elapsed: Duration) {
        let _ = (status, reason, elapsed);
        todo!()
    }

    pub fn retry(&self, outcome: RetryOutcome) {
        let _ = outcome;
        todo!()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RetryOutcome {
    Sent,
    BudgetExhausted,
    LimitReached,
    BodyTooLarge,
}

impl TcpMetrics {
    pub fn opened(&self) {
        todo!()
    }
    /// `reason`: none where both sides ended the connection in order.
    pub fn closed(&self, reason: Option<Reason>) {
        let _ = reason;
        todo!()
    }
    /// Bytes from the downstream to the upstream.
    pub fn sent(&self, bytes: u64) {
        let _ = bytes;
        todo!()
    }
    /// Bytes from the upstream to the downstream.
    pub fn received(&self, bytes: u64) {
        let _ = bytes;
        todo!()
    }
}
