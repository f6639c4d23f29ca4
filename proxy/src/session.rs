//! The facts that hold for one downstream connection, whatever protocol is found on it.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use crate::client_address::Source;
use crate::config::ClientAddress;
use crate::forwarded::Forwarded;
use crate::metrics::{Direction, RequestLabels, RequestMetrics, TcpLabels, TcpMetrics};
use crate::route::Rule;
use crate::table::{DestinationCell, Logical};
use crate::upstream::Caller;
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
    /// Inbound: where the client's connection came from.
    pub address: Option<SocketAddr>,
    /// Inbound: what the app sees opaque connections come from.
    pub source: Source,
    /// Inbound: what requests tell the app of the client.
    pub forwarded: Option<Arc<Forwarded>>,
    /// Loaded anew for each request.
    pub destination: Arc<DestinationCell>,
    /// Inbound only: series are by client and port there, not by rule.
    inbound: Option<(Arc<RequestMetrics>, Arc<TcpMetrics>)>,
}

impl Session {
    pub fn outbound(worker: Rc<Worker>, destination: Arc<DestinationCell>) -> Self {
        Self {
            worker,
            direction: Direction::Outbound,
            client: Arc::from(""),
            address: None,
            source: Source::default(),
            forwarded: None,
            destination,
            inbound: None,
        }
    }

    pub fn inbound(
        worker: Rc<Worker>,
        destination: Arc<DestinationCell>,
        client: Arc<str>,
    ) -> Self {
        let namespace: Arc<str> = worker.config.namespace.as_str().into();
        let empty: Arc<str> = "".into();
        let port = destination.address.port();
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
            worker,
            direction: Direction::Inbound,
            client,
            address: None,
            source: Source::default(),
            forwarded: None,
            destination,
            inbound: Some((requests, tcp)),
        }
    }

    /// The same, of a client at this address.
    pub fn at(mut self, address: Option<SocketAddr>) -> Self {
        self.address = address;
        let config = &self.worker.config;
        if let Some(address) = address {
            self.source = self.worker.client_addresses.of(address.ip());
            let port = self.destination.address.port();
            self.source.told = Some(address).filter(|_| config.proxy_protocol.contains(&port));
        }
        let own = self.worker.identity.id().map(|own| own.to_string());
        let client = (&*self.client != UNAUTHENTICATED).then_some(&*self.client);
        let ip = address.map(|address| address.ip());
        let forwarded = Forwarded::new(own.as_deref(), client, ip, &config.forwarded);
        self.forwarded = Some(Arc::new(forwarded));
        self
    }

    /// For whom upstream connections are that carry its requests.
    pub fn caller(&self) -> Caller {
        let source = match (self.worker.config.client_address, self.address) {
            (ClientAddress::Hide, Some(address)) => Source {
                told: self.source.told,
                ..self.worker.client_addresses.nobody(address.ip())
            },
            _ => self.source,
        };
        Caller { source, login: 0 }
    }

    /// Whether the client has no identity and, by now, needs one: strictness may have come after the client.
    pub fn is_unwelcome(&self) -> bool {
        self.direction == Direction::Inbound
            && &*self.client == UNAUTHENTICATED
            && self.worker.tables.inbound().strict
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
        let namespace = match self.direction {
            Direction::Inbound => self.worker.config.namespace.as_str().into(),
            Direction::Outbound => empty.clone(),
        };
        self.worker.metrics.request(RequestLabels {
            direction: self.direction,
            client: self.client.clone(),
            namespace,
            service: empty.clone(),
            port: self.destination.address.port(),
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
