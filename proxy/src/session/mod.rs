//! The facts that hold for one downstream connection, whatever protocol is found on it.
//!
//! # Floors
//!
//! ```text
//! worker                      what the connections of one worker have in common
//! mirroring                   how many copies of requests it has under way
//! forwarded validity          what the app is told of the client; its certificate's end
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
use crate::upstream::client_address::Source;
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
    /// Of the certificate that the client has shown.
    expiry: Option<Rc<Expiry>>,
    /// Inbound: where it comes from, and what the app learns of that.
    origin: Option<Rc<Origin>>,
    /// Loaded anew for each request.
    pub destination: Arc<DestinationCell>,
    /// Inbound only: series are by client and port there, not by rule.
    inbound: Option<(Arc<RequestMetrics>, Arc<TcpMetrics>)>,
}

/// Where an inbound connection comes from. Apart from the session: few steps need it.
struct Origin {
    address: IpAddr,
    /// What the app sees opaque connections come from.
    bytes: Source,
    /// What it sees connections with requests come from.
    requests: Option<Arc<Source>>,
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

    /// `address`: the client's. The app sees it, and clients without an identity are told apart by
    /// it.
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
        match &self.origin {
            None => ClientKey::App,
            Some(origin) if self.is_stranger() => ClientKey::Address(origin.address),
            Some(_) => ClientKey::Peer(self.client.clone()),
        }
    }

    /// Whether it is a sidecar's, and carries what many clients behind that ask for.
    pub fn is_shared(&self) -> bool {
        self.direction == Direction::Inbound && &*self.client != UNAUTHENTICATED
    }

    /// What the app sees its opaque connections come from.
    pub fn source(&self) -> Source {
        let origin = self.origin.as_ref();
        origin.map_or(Source::default(), |origin| origin.bytes)
    }

    /// For whom upstream connections are that carry its requests.
    pub fn caller(&self) -> Caller {
        let origin = self.origin.as_ref();
        Caller {
            source: origin.and_then(|origin| origin.requests.clone()),
            login: 0,
        }
    }

    /// Writes into a request what the app is told of the client.
    pub fn introduce(&self, head: &mut impl HeaderFields) {
        if let Some(origin) = &self.origin {
            origin.forwarded.write(head);
        }
    }

    /// Whether the client has no identity and, by now, needs one: strictness may have come after
    /// the client.
    pub fn is_unwelcome(&self) -> bool {
        self.is_stranger() && self.worker.tables.inbound().strict
    }

    /// Where a request is counted: by rule and backend (by the rule alone where it reaches none) on
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

impl Origin {
    /// `port`: the app's.
    fn new(worker: &Worker, client: &str, address: SocketAddr, port: u16) -> Self {
        let (config, addresses) = (&worker.config, &worker.client_addresses);
        let told = config.proxy_protocol.contains(&port).then_some(address);
        let mut bytes = addresses.of(address.ip());
        let mut requests = match config.client_address {
            ClientAddress::Preserve => bytes,
            ClientAddress::Hide => addresses.stand_in(address.ip()),
        };
        (bytes.told, requests.told) = (told, told);
        let own = worker.identity.id().map(|own| own.to_string());
        let client = (client != UNAUTHENTICATED).then_some(client);
        let (ip, fields) = (Some(address.ip()), &config.forwarded);
        Self {
            address: address.ip().to_canonical(),
            bytes,
            requests: (requests != Source::default()).then(|| Arc::new(requests)),
            forwarded: Forwarded::new(own.as_deref(), client, ip, fields),
        }
    }
}

/// The `port` of inbound series: 0, for none, where it is neither declared nor one on which the app
/// listens.
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
    fn a_client_is_never_seen_as_the_pod_itself() {
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
