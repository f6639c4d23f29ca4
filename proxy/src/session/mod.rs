//! The facts that hold for one downstream connection, whatever its protocol.
//!
//! # Floors
//!
//! ```text
//! worker                      what the connections of one worker share
//! mirroring                   how many copies for mirrors are in progress
//! client forwarded validity   who the client is; headers that name it; its certificate's expiry
//! ```

pub mod client;
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
use crate::identity::SpiffeId;
use crate::observe::metrics::{RequestLabels, RequestMetrics, TcpLabels, TcpMetrics};
use crate::route::{HeaderFields, Logical, Rule};
use crate::session::client::ClientIdentity;
use crate::session::forwarded::Forwarded;
use crate::session::validity::{Expiry, Validity};
use crate::session::worker::Worker;
use crate::socket::Direction;
use crate::table::DestinationCell;
use crate::upstream::Caller;
use crate::upstream::client_address::SourceAddress;
use crate::upstream::share::ClientKey;

/// One downstream connection.
#[derive(Clone)]
pub struct Session {
    pub worker: Rc<Worker>,
    pub client: ClientIdentity,
    /// Expiry of the certificate that the client has presented.
    expiry: Option<Rc<Expiry>>,
    /// `None`: the client is the app in this pod.
    inbound: Option<Rc<Inbound>>,
    /// Loaded again for each request.
    pub destination: Arc<DestinationCell>,
}

/// The series and the source of an inbound connection. Separate from the session, which is cloned
/// for each stream.
struct Inbound {
    /// By client and port: the rule is always the same.
    request_metrics: Arc<RequestMetrics>,
    tcp_metrics: Arc<TcpMetrics>,
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
            client: ClientIdentity::App,
            expiry: None,
            inbound: None,
            destination,
        }
    }

    /// Of a client from outside that has proved no identity. `address`: the client's. The app sees
    /// it, and it distinguishes such clients.
    pub fn unauthenticated(
        worker: Rc<Worker>,
        destination: Arc<DestinationCell>,
        address: SocketAddr,
    ) -> Self {
        let client = ClientIdentity::Unauthenticated;
        Self::inbound(worker, destination, client, address)
    }

    /// Of a peer that has proved to be `id`. `address`: the client's, which the app sees.
    pub fn peer(
        worker: Rc<Worker>,
        destination: Arc<DestinationCell>,
        id: SpiffeId,
        address: SocketAddr,
    ) -> Self {
        Self::inbound(worker, destination, ClientIdentity::Peer(id), address)
    }

    fn inbound(
        worker: Rc<Worker>,
        destination: Arc<DestinationCell>,
        client: ClientIdentity,
        address: SocketAddr,
    ) -> Self {
        let inbound = Inbound::new(&worker, &client, address, destination.address.port());
        Self {
            worker,
            client,
            expiry: None,
            inbound: Some(Rc::new(inbound)),
            destination,
        }
    }

    pub fn direction(&self) -> Direction {
        self.client.direction()
    }

    /// Whether the client is from outside and has proved no identity.
    pub fn is_stranger(&self) -> bool {
        matches!(self.client, ClientIdentity::Unauthenticated)
    }

    /// The client's certificate is valid for `left` from now.
    pub fn expiring(mut self, left: Duration) -> Self {
        let (client, metrics) = (self.client.clone(), self.worker.metrics.clone());
        let grace = self.worker.config.limits.drain_timeout;
        let overdue = move || {
            tracing::info!(
                client = client.as_str(),
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
        match (&self.inbound, self.client.spiffe_id()) {
            (None, _) => ClientKey::App,
            (Some(_), Some(id)) => ClientKey::Peer(id.clone()),
            (Some(inbound), None) => ClientKey::Address(inbound.address),
        }
    }

    /// Whether the connection is a sidecar's, and carries the requests of many clients behind it.
    pub fn is_shared(&self) -> bool {
        matches!(self.client, ClientIdentity::Peer(_))
    }

    /// The source that the app sees for its opaque connections.
    pub fn source(&self) -> SourceAddress {
        let inbound = self.inbound.as_ref();
        inbound.map_or(SourceAddress::default(), |inbound| inbound.bytes)
    }

    /// The caller whose upstream connections carry its requests.
    pub fn caller(&self) -> Caller {
        let inbound = self.inbound.as_ref();
        Caller {
            source: inbound.and_then(|inbound| inbound.requests.clone()),
            login: None,
        }
    }

    /// Writes the client's identity and address into a request.
    pub fn introduce(&self, head: &mut impl HeaderFields) {
        if let Some(inbound) = &self.inbound {
            inbound.forwarded.write(head);
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
            (Some(inbound), _) => inbound.request_metrics.clone(),
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
        let (namespace, port) = match self.direction() {
            Direction::Inbound => (
                self.worker.config.namespace.as_str().into(),
                labelled_port(&self.worker, port),
            ),
            // Whether the address exists is not known either.
            Direction::Outbound => (empty.clone(), None),
        };
        self.worker.metrics.request(RequestLabels {
            direction: self.direction(),
            client: self.client.label(),
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
            Some(inbound) => inbound.tcp_metrics.clone(),
            None => logical.tcp.clone(),
        }
    }
}

impl Inbound {
    /// `port`: the app's.
    fn new(worker: &Worker, client: &ClientIdentity, address: SocketAddr, port: u16) -> Self {
        let label = client.label();
        let namespace: Arc<str> = worker.config.namespace.as_str().into();
        let empty: Arc<str> = "".into();
        let labelled = labelled_port(worker, port);
        let request_metrics = worker.metrics.request(RequestLabels {
            direction: Direction::Inbound,
            client: label.clone(),
            namespace: namespace.clone(),
            service: empty.clone(),
            port: labelled,
            route: empty.clone(),
            rule: empty.clone(),
            backend: empty.clone(),
        });
        let tcp_metrics = worker.metrics.tcp(TcpLabels {
            direction: Direction::Inbound,
            client: label,
            namespace,
            service: empty,
            port: labelled,
        });
        let (config, addresses) = (&worker.config, &worker.client_addresses);
        let proxy_header = config.proxy_protocol.contains(&port).then_some(address);
        let mut bytes = addresses.of(address.ip());
        let mut requests = match config.client_address {
            ClientAddress::Preserve => bytes,
            ClientAddress::Hide => addresses.stand_in(address.ip()),
        };
        (bytes.proxy_header, requests.proxy_header) = (proxy_header, proxy_header);
        let (own, client) = (worker.identity.id(), client.spiffe_id());
        let (ip, fields) = (Some(address.ip()), &config.forwarded);
        Self {
            request_metrics,
            tcp_metrics,
            address: address.ip().to_canonical(),
            bytes,
            requests: (requests != SourceAddress::default()).then(|| Arc::new(requests)),
            forwarded: Forwarded::new(own.as_ref(), client, ip, fields),
        }
    }
}

/// The `port` of inbound series, if it is declared or the app listens on it.
fn labelled_port(worker: &Worker, port: u16) -> Option<u16> {
    let is_real = worker.tables.inbound().ports.contains_key(&port) || worker.listening.is(port);
    is_real.then_some(port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::testing::spiffe_id;
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
                let clients = [
                    ClientIdentity::Peer(spiffe_id(CLIENT)),
                    ClientIdentity::Unauthenticated,
                ];
                for client in clients {
                    let (worker, cell) = (mesh.worker.clone(), mesh.cell.clone());
                    let address = address.parse().expect("an address");
                    let session = Session::inbound(worker, cell, client, address);
                    assert_eq!(session.source().shows(), shown, "{address}");
                    assert_eq!(session.caller().source(), session.source());
                }
            }
            let outbound = Session::outbound(mesh.worker.clone(), mesh.cell.clone());
            assert_eq!(outbound.caller(), Caller::default());
        });
    }
}
