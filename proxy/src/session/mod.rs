//! The facts that hold for one downstream connection, whatever its protocol.
//!
//! # Floors
//!
//! ```text
//! worker                      what the connections of one worker share
//! mirroring                   how many copies for mirrors are in progress
//! forwarded validity          the client as headers name it; its certificate's expiry
//! ```

pub mod forwarded;
pub mod mirroring;
pub mod validity;
pub mod worker;

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Context;
use std::time::Duration;

use crate::config::ClientAddress;
use crate::observe::metrics::{RequestLabels, RequestMetrics, TcpLabels, TcpMetrics};
use crate::route::{HeaderFields, Logical, Rule};
use crate::session::forwarded::Forwarded;
use crate::session::validity::{Expiry, Validity};
use crate::session::worker::Worker;
use crate::socket::Direction;
use crate::table::DestinationCell;
use crate::upstream::Caller;
use crate::upstream::client_address::SourceAddress;
use crate::upstream::share::ClientKey;

/// A `client` that has proved no identity.
pub const UNAUTHENTICATED: &str = "unauthenticated";

/// One downstream connection.
#[derive(Clone)]
pub struct Session {
    pub worker: Rc<Worker>,
    pub direction: Direction,
    /// Inbound: the peer's SPIFFE ID or [`UNAUTHENTICATED`]. Outbound: empty.
    pub client: Arc<str>,
    /// Expiry of the certificate that the client has presented.
    expiry: Option<Rc<Expiry>>,
    /// Inbound: the source of the connection, and how the app sees it.
    origin: Option<Rc<Origin>>,
    /// Loaded again for each request.
    pub destination: Arc<DestinationCell>,
    /// Inbound only: there, series are by client and port rather than by rule.
    inbound: Option<(Arc<RequestMetrics>, Arc<TcpMetrics>)>,
}

/// The source of an inbound connection. Separate from the session since few steps need it.
struct Origin {
    address: IpAddr,
    /// The source that the app sees for opaque connections.
    bytes: SourceAddress,
    /// The source that the app sees for connections with requests.
    requests: Option<Arc<SourceAddress>>,
    forwarded: Forwarded,
}

impl Session {
    pub fn outbound(worker: Rc<Worker>, destination: Arc<DestinationCell>) -> Self {
        Self {
            worker,
            direction: Direction::Outbound,
            expiry: None,
            client: Arc::from(""),
            origin: None,
            destination,
            inbound: None,
        }
    }

    /// `address`: the client's. The app sees it, and it distinguishes clients without an identity.
    pub fn inbound(
        worker: Rc<Worker>,
        destination: Arc<DestinationCell>,
        client: Arc<str>,
        address: SocketAddr,
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
        let origin = Origin::new(&worker, &client, address, destination.address.port());
        Self {
            expiry: None,
            worker,
            direction: Direction::Inbound,
            client,
            origin: Some(Rc::new(origin)),
            destination,
            inbound: Some((requests, tcp)),
        }
    }

    /// Whether the client is from outside and has proved no identity.
    pub fn is_stranger(&self) -> bool {
        self.direction == Direction::Inbound && &*self.client == UNAUTHENTICATED
    }

    /// The client's certificate is valid for `left` from now.
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

    /// What the validity of the client's certificate still allows. The task of `cx` is woken when
    /// that changes.
    pub fn poll_validity(&self, cx: &Context<'_>) -> Validity {
        let expiry = self.expiry.as_ref();
        expiry.map_or(Validity::Valid, |expiry| expiry.poll(cx))
    }

    /// The key for the fair sharing of an endpoint's streams.
    pub fn client_key(&self) -> ClientKey {
        match &self.origin {
            None => ClientKey::App,
            Some(origin) if self.is_stranger() => ClientKey::Address(origin.address),
            Some(_) => ClientKey::Peer(self.client.clone()),
        }
    }

    /// Whether the connection is a sidecar's, and carries the requests of many clients behind it.
    pub fn is_shared(&self) -> bool {
        self.direction == Direction::Inbound && &*self.client != UNAUTHENTICATED
    }

    /// The source that the app sees for its opaque connections.
    pub fn source(&self) -> SourceAddress {
        let origin = self.origin.as_ref();
        origin.map_or(SourceAddress::default(), |origin| origin.bytes)
    }

    /// The caller whose upstream connections carry its requests.
    pub fn caller(&self) -> Caller {
        let origin = self.origin.as_ref();
        Caller {
            source: origin.and_then(|origin| origin.requests.clone()),
            login: 0,
        }
    }

    /// Writes the client's identity and address into a request.
    pub fn introduce(&self, head: &mut impl HeaderFields) {
        if let Some(origin) = &self.origin {
            origin.forwarded.write(head);
        }
    }

    /// Whether the client has no identity and now needs one: strict mode may have been enabled
    /// after the client connected.
    pub fn is_unwelcome(&self) -> bool {
        self.is_stranger() && self.worker.tables.inbound().strict
    }

    /// The series of a request: by rule and backend (by the rule alone if it reaches no backend) on
    /// the outbound side, by client and port on the inbound side.
    pub fn request_metrics(&self, rule: &Rule, backend: Option<usize>) -> Arc<RequestMetrics> {
        match (&self.inbound, backend) {
            (Some((requests, _)), _) => requests.clone(),
            (None, Some(index)) if index < rule.backends.len() => {
                rule.backends[index].metrics.clone()
            }
            (None, _) => rule.metrics.clone(),
        }
    }

    /// The series of requests without a known destination.
    pub fn unknown_metrics(&self) -> Arc<RequestMetrics> {
        let empty: Arc<str> = "".into();
        let port = self.destination.address.port();
        let (namespace, port) = match self.direction {
            Direction::Inbound => (
                self.worker.config.namespace.as_str().into(),
                labelled_port(&self.worker, port),
            ),
            // Whether the address exists is not known either.
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

    /// The series of a connection that is not HTTP.
    pub fn tcp_metrics(&self, logical: &Logical) -> Arc<TcpMetrics> {
        match &self.inbound {
            Some((_, tcp)) => tcp.clone(),
            None => logical.tcp.clone(),
        }
    }
}

impl Origin {
    /// `port`: the app's.
    fn new(worker: &Worker, client: &str, address: SocketAddr, port: u16) -> Self {
        let (config, addresses) = (&worker.config, &worker.client_addresses);
        let proxy_header = config.proxy_protocol.contains(&port).then_some(address);
        let mut bytes = addresses.of(address.ip());
        let mut requests = match config.client_address {
            ClientAddress::Preserve => bytes,
            ClientAddress::Hide => addresses.stand_in(address.ip()),
        };
        (bytes.proxy_header, requests.proxy_header) = (proxy_header, proxy_header);
        let own = worker.identity.id().map(|own| own.to_string());
        let client = (client != UNAUTHENTICATED).then_some(client);
        let (ip, fields) = (Some(address.ip()), &config.forwarded);
        Self {
            address: address.ip().to_canonical(),
            bytes,
            requests: (requests != SourceAddress::default()).then(|| Arc::new(requests)),
            forwarded: Forwarded::new(own.as_deref(), client, ip, fields),
        }
    }
}

/// The `port` of inbound series: 0, for none, unless it is declared or the app listens on it.
fn labelled_port(worker: &Worker, port: u16) -> u16 {
    let is_real = worker.tables.inbound().ports.contains_key(&port) || worker.listening.is(port);
    if is_real { port } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::metrics::Shown;
    use crate::testing::mesh::{CLIENT, Setup, run};
    use crate::upstream::client_address::ClientAddresses;

    #[test]
    fn a_client_never_appears_as_the_pod_itself() {
        run(async {
            let mut setup = Setup::new(&[]);
            setup.client_addresses = ClientAddresses::all();
            let mesh = setup.start();
            for (address, shown) in [
                ("10.1.2.3:4", Shown::Client),
                ("[fd00::7]:4", Shown::Client),
                ("93.184.1.9:4", Shown::Hidden),
                ("[fe80::1]:4", Shown::Hidden),
            ] {
                for client in [CLIENT, UNAUTHENTICATED] {
                    let (worker, cell) = (mesh.worker.clone(), mesh.cell.clone());
                    let address = address.parse().expect("an address");
                    let session = Session::inbound(worker, cell, client.into(), address);
                    assert_eq!(session.source().shows(), shown, "{address}");
                    assert_eq!(session.caller().source(), session.source());
                }
            }
            let outbound = Session::outbound(mesh.worker.clone(), mesh.cell.clone());
            assert_eq!(outbound.caller(), Caller::default());
        });
    }
}
