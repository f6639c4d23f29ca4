//! The tables as workers read them. Reading takes no lock.
//!
//! In: an address. Out: its cell. A miss goes to the control thread, where the [`super::Store`]
//! subscribes to the address; all callers that miss it wait on the same cell.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot};

use super::{Destination, DestinationCell, Inbound};
use crate::balance::{Backend, Endpoint, EndpointSet, Load, Peer, RetryBudget, next_endpoint_id};
use crate::observe::metrics::{Metrics, ServiceLabels, TcpLabels};
use crate::route::{Logical, Protocol, default_rule};
use crate::socket::Direction;

/// Number of maps over which the cells are distributed. A new destination copies one of them: with
/// 10,000 destinations some 160 pointers.
const SHARDS: usize = 64;
/// Misses queued for the control thread. Beyond that a connection waits for space.
const MAX_MISSES: usize = 1_024;
/// Bound on the cached cells for ports of the own pod. Others (a port scan) get one for the
/// connection.
const MAX_INBOUND_PORTS: usize = 1_024;

type Cells = HashMap<SocketAddr, Arc<DestinationCell>>;

/// Cheap to clone. Reading takes no lock.
#[derive(Clone, Debug)]
pub struct Tables {
    pub(super) shared: Arc<Shared>,
    misses: mpsc::Sender<Miss>,
    /// [`crate::config::Limits::discovery_timeout`]
    patience: Duration,
}

/// Written by the store and read by the workers.
#[derive(Debug)]
pub(super) struct Shared {
    shards: [ArcSwap<Cells>; SHARDS],
    hasher: RandomState,
    inbound: ArcSwap<Inbound>,
    /// Written by workers, under the lock.
    apps: ArcSwap<Cells>,
    apps_changing: Mutex<()>,
    namespace: Arc<str>,
    metrics: Metrics,
}

/// A destination that is not in the tables.
#[derive(Debug)]
pub struct Miss {
    pub address: SocketAddr,
    /// Receives the cell, which may still have to wait for the controller's answer.
    pub reply: oneshot::Sender<Arc<DestinationCell>>,
}

/// The control thread's end of the queue of misses.
pub type Misses = mpsc::Receiver<Miss>;

/// Empty tables for a pod in `namespace`, and the receiver of their misses.
pub fn tables(namespace: &str, metrics: Metrics, patience: Duration) -> (Tables, Misses) {
    let (misses, receiver) = mpsc::channel(MAX_MISSES);
    let inbound = Inbound {
        workload: "".into(),
        // All clients without an identity are rejected until the controller allows them.
        strict: true,
        ports: HashMap::new(),
    };
    let shared = Shared {
        shards: std::array::from_fn(|_| ArcSwap::default()),
        hasher: RandomState::new(),
        inbound: ArcSwap::from_pointee(inbound),
        apps: ArcSwap::default(),
        apps_changing: Mutex::new(()),
        namespace: namespace.into(),
        metrics,
    };
    let tables = Tables {
        shared: Arc::new(shared),
        misses,
        patience,
    };
    (tables, receiver)
}

impl Tables {
    /// The destination at `address`. The first call for an address subscribes to it and waits for
    /// the controller's answer, at most [`crate::config::Limits::discovery_timeout`]; after that
    /// the cell holds [`super::Destination::Unknown`] until the answer arrives.
    pub async fn destination(&self, address: SocketAddr) -> Arc<DestinationCell> {
        let address = canonical(address);
        let cell = match self.shared.cell(address) {
            Some(cell) => cell,
            None => match self.miss(address).await {
                Some(cell) => cell,
                // The bound is reached, or the proxy is shutting down.
                None => return Arc::new(DestinationCell::new(address, Destination::Unknown)),
            },
        };
        cell.touch();
        if !cell.is_known() {
            cell.known(self.patience).await;
        }
        cell
    }

    async fn miss(&self, address: SocketAddr) -> Option<Arc<DestinationCell>> {
        let (reply, answer) = oneshot::channel();
        let ask = async {
            self.misses.send(Miss { address, reply }).await.ok()?;
            answer.await.ok()
        };
        tokio::time::timeout(self.patience, ask).await.ok()?
    }

    /// The current policy for inbound connections.
    pub fn inbound(&self) -> Arc<Inbound> {
        self.shared.inbound.load_full()
    }

    /// The app behind an inbound port, as a destination: one cell for each address, at most
    /// MAX_INBOUND_PORTS of them.
    pub fn app(&self, address: SocketAddr) -> Arc<DestinationCell> {
        let address = canonical(address);
        if let Some(cell) = self.shared.apps.load().get(&address) {
            return cell.clone();
        }
        let _changing = self.shared.lock_apps();
        let mut apps = Cells::clone(&self.shared.apps.load());
        if let Some(cell) = apps.get(&address) {
            return cell.clone();
        }
        let logical = self.shared.app(address, &self.shared.inbound.load());
        let cell = Arc::new(DestinationCell::new(
            address,
            Destination::Logical(Arc::new(logical)),
        ));
        if apps.len() >= MAX_INBOUND_PORTS {
            apps.retain(|_, cell| in_use(cell));
        }
        if apps.len() < MAX_INBOUND_PORTS {
            apps.insert(address, cell.clone());
            self.shared.apps.store(Arc::new(apps));
        }
        cell
    }
}

#[cfg(test)]
impl Tables {
    /// How many cells of the own pod's ports are cached.
    pub(super) fn app_count(&self) -> usize {
        self.shared.apps.load().len()
    }

    /// Sets the inbound policy in place of the controller.
    pub(crate) fn set_inbound(&self, inbound: Inbound) {
        self.shared.set_inbound(inbound);
    }
}

/// Whether the cell is referenced from outside of the map that was just copied, and its copy.
fn in_use(cell: &Arc<DestinationCell>) -> bool {
    Arc::strong_count(cell) > 2
}

impl Shared {
    /// Namespace of the own pod.
    pub fn namespace(&self) -> &Arc<str> {
        &self.namespace
    }

    pub fn cell(&self, address: SocketAddr) -> Option<Arc<DestinationCell>> {
        self.shard(address).load().get(&address).cloned()
    }

    pub fn publish(&self, cell: &Arc<DestinationCell>) {
        let shard = self.shard(cell.address);
        let mut cells = Cells::clone(&shard.load());
        cells.insert(cell.address, cell.clone());
        shard.store(Arc::new(cells));
    }

    pub fn withdraw(&self, address: SocketAddr) {
        let shard = self.shard(address);
        let mut cells = Cells::clone(&shard.load());
        if cells.remove(&address).is_some() {
            shard.store(Arc::new(cells));
        }
    }

    /// Puts `inbound` in force, for new and open connections.
    pub fn set_inbound(&self, inbound: Inbound) {
        let inbound = Arc::new(inbound);
        let _changing = self.lock_apps();
        self.inbound.store(inbound.clone());
        for (address, cell) in self.apps.load().iter() {
            let declared = protocol_of(&inbound, address.port());
            let changed = match &**cell.load() {
                Destination::Logical(logical) => logical.protocol != declared,
                _ => true,
            };
            if changed {
                let logical = self.app(*address, &inbound);
                cell.store(Destination::Logical(Arc::new(logical)));
            }
        }
    }

    fn shard(&self, address: SocketAddr) -> &ArcSwap<Cells> {
        &self.shards[self.hasher.hash_one(address) as usize % SHARDS]
    }

    fn lock_apps(&self) -> std::sync::MutexGuard<'_, ()> {
        self.apps_changing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn app(&self, address: SocketAddr, inbound: &Inbound) -> Logical {
        let empty: Arc<str> = "".into();
        let port = address.port();
        let endpoint = Endpoint {
            id: next_endpoint_id(),
            address,
            peer: Peer::App,
            pod: empty.clone(),
            workload: inbound.workload.clone(),
            zone: empty.clone(),
            load: Load::default(),
        };
        let backend = Arc::new(Backend::new(
            self.namespace.clone(),
            empty.clone(),
            port,
            EndpointSet::new(vec![Arc::new(endpoint)]),
        ));
        let labels = ServiceLabels {
            namespace: self.namespace.clone(),
            service: empty.clone(),
            port,
        };
        Logical {
            namespace: self.namespace.clone(),
            service: empty.clone(),
            port,
            protocol: protocol_of(inbound, port),
            routes: None,
            opaque_routes: None,
            default_rule: Arc::new(default_rule(backend, &self.metrics, &labels)),
            budget: Arc::new(RetryBudget::default()),
            tcp: self.metrics.tcp(TcpLabels {
                direction: Direction::Inbound,
                client: empty.clone(),
                namespace: self.namespace.clone(),
                service: empty,
                port: Some(port),
            }),
        }
    }
}

fn protocol_of(inbound: &Inbound, port: u16) -> Protocol {
    inbound
        .ports
        .get(&port)
        .copied()
        .unwrap_or(Protocol::Detect)
}

/// One text for each address: IPv4-mapped addresses as IPv4, without scope and flow.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4),
        v4 => v4,
    };
    SocketAddr::new(ip, address.port())
}
