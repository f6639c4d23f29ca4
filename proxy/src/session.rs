//! The facts that hold for one downstream connection, whatever protocol is found on it.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Context;
use std::time::Duration;

use crate::metrics::{Direction, RequestLabels, RequestMetrics, TcpLabels, TcpMetrics};
use crate::route::Rule;
use crate::table::{DestinationCell, Logical};
use crate::upstream::share::ClientKey;
use crate::validity::{Expiry, Validity};
use crate::worker::Worker;

/// A `client` that has proved no identity.
pub const UNAUTHENTICATED: &str = "unauthenticated";

/// One downstream connection.
#[derive(Clone)]
pub struct Session {
    pub worker: Rc<Worker>,
    pub direction: Direction,
    /// Inbound: the peer's SPIFFE ID or [`UNAUTHENTICATED`]. Outbound: empty.
    pub client: Arc<str>,
    /// The client's address, where it has proved no identity and its address is known.
    source: Option<IpAddr>,
    /// Of the certificate that the client has shown.
    expiry: Option<Rc<Expiry>>,
    /// Loaded anew for each request.
    pub destination: Arc<DestinationCell>,
    /// Inbound only: series are by client and port there, not by rule.
    inbound: Option<(Arc<RequestMetrics>, Arc<TcpMetrics>)>,
}

impl Session {
    pub fn outbound(worker: Rc<Worker>, destination: Arc<DestinationCell>) -> Self {
        Self {
            source: None,
            worker,
            direction: Direction::Outbound,
            expiry: None,
            client: Arc::from(""),
            destination,
            inbound: None,
        }
    }

    /// `source`: the client's address, where it is known.
    pub fn inbound(
        worker: Rc<Worker>,
        destination: Arc<DestinationCell>,
        client: Arc<str>,
        source: Option<IpAddr>,
    ) -> Self {
        let namespace: Arc<str> = worker.config.namespace.as_str().into();
        let empty: Arc<str> = "".into();
        let port = labelled_port(&worker, destination.address.port());
        let requests = worker.metrics.request(RequestLabels {
            direction: Direction::Inbound,
            client: client.clone(),
            namespace: namespace.clone(),
            service: empty.clone(),
            port,
            route: empty.clone(),
            rule: empty.clone(),
            backend: empty.clone(),
        });
        let tcp = worker.metrics.tcp(TcpLabels {
            direction: Direction::Inbound,
            client: client.clone(),
            namespace,
            service: empty,
            port,
        });
        Self {
            source,
            expiry: None,
            worker,
            direction: Direction::Inbound,
            client,
            destination,
            inbound: Some((requests, tcp)),
        }
    }

    /// Whether the client is from outside and has proved no identity.
    pub fn is_stranger(&self) -> bool {
        self.direction == Direction::Inbound && &*self.client == UNAUTHENTICATED
    }

    /// The client's certificate holds for so long from now.
    pub fn expiring(mut self, left: Duration) -> Self {
        let (client, metrics) = (self.client.clone(), self.worker.metrics.clone());
        let grace = self.worker.config.limits.drain_timeout;
        let overdue = move || {
            tracing::info!(
                client = &*client,
                "a connection ends: its certificate has expired"
            );
            metrics.connection_expired();
        };
        self.expiry = Some(Rc::new(Expiry::start(left, grace, overdue)));
        self
    }

    /// What the client's certificate still allows. The task of `cx` is woken when that changes.
    pub fn poll_validity(&self, cx: &Context<'_>) -> Validity {
        let expiry = self.expiry.as_ref();
        expiry.map_or(Validity::Valid, |expiry| expiry.poll(cx))
    }

    /// Whose share of an endpoint's streams it takes from.
    pub fn client_key(&self) -> ClientKey {
        match self.direction {
            Direction::Outbound => ClientKey::App,
            Direction::Inbound if self.is_stranger() => ClientKey::Address(self.source),
            Direction::Inbound => ClientKey::Peer(self.client.clone()),
        }
    }

    /// Whether it is a sidecar's, and carries what many clients behind that ask for.
    pub fn is_shared(&self) -> bool {
        self.direction == Direction::Inbound && &*self.client != UNAUTHENTICATED
    }

    /// Whether the client has no identity and, by now, needs one: strictness may have come after the client.
    pub fn is_unwelcome(&self) -> bool {
        self.is_stranger() && self.worker.tables.inbound().strict
    }

    /// Where a request is counted: by rule and backend (by the rule alone where it reaches none) on the outbound
    /// side, by client and port on the inbound side.
    pub fn request_metrics(&self, rule: &Rule, backend: Option<usize>) -> Arc<RequestMetrics> {
        match (&self.inbound, backend) {
            (Some((requests, _)), _) => requests.clone(),
            (None, Some(index)) if index < rule.backends.len() => {
                rule.backends[index].metrics.clone()
            }
            (None, _) => rule.metrics.clone(),
        }
    }

    /// Where requests are counted for which no destination is known.
    pub fn unknown_metrics(&self) -> Arc<RequestMetrics> {
        let empty: Arc<str> = "".into();
        let port = self.destination.address.port();
        let (namespace, port) = match self.direction {
            Direction::Inbound => (
                self.worker.config.namespace.as_str().into(),
                labelled_port(&self.worker, port),
            ),
            // Whether there is anything at that address is not known either.
            Direction::Outbound => (empty.clone(), 0),
        };
        self.worker.metrics.request(RequestLabels {
            direction: self.direction,
            client: self.client.clone(),
            namespace,
            service: empty.clone(),
            port,
            route: empty.clone(),
            rule: empty.clone(),
            backend: empty,
        })
    }

    /// Where a connection that is not HTTP is counted.
    pub fn tcp_metrics(&self, logical: &Logical) -> Arc<TcpMetrics> {
        match &self.inbound {
            Some((_, tcp)) => tcp.clone(),
            None => logical.tcp.clone(),
        }
    }
}

/// The `port` of inbound series: 0, for none, where it is neither declared nor one on which the app
/// listens.
fn labelled_port(worker: &Worker, port: u16) -> u16 {
    let is_real = worker.tables.inbound().ports.contains_key(&port) || worker.listening.is(port);
    if is_real { port } else { 0 }
}
