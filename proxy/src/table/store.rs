//! The single writer of the tables, on the control thread.
//!
//! In: pushes from the controller (applied by [`super::apply`]), and destinations requested by the
//! data path. Out: tables in force, an answer to each push, and messages for the controller
//! ([`Outbox`]).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use naru_contract as contract;
use naru_contract::http_filter::Kind;
use naru_contract::{MAX_SUBSCRIPTIONS, ResourceName};
use tokio::time::Instant;
use tracing::warn;

use super::decode::{Content, EndpointSpec, Target};
use super::locality::Place;
use super::tables::{Shared, canonical};
use super::{Destination, DestinationCell, Tables};
use crate::balance::{Backend, Endpoint, EndpointSet};
use crate::identity::Identity;
use crate::observe::metrics::Metrics;
use crate::route::Logical;

/// How long a destination may go unused before its subscription ends.
const DESTINATION_IDLE: Duration = Duration::from_secs(600);
/// How many destinations are evicted at a time when there are too many: sorting them all is then
/// rare.
const EVICTED_AT_ONCE: usize = 500;
/// Bound on destinations that workers can find. Retired ones are subscribed to as well.
const MAX_DESTINATIONS: usize = MAX_SUBSCRIPTIONS - EVICTED_AT_ONCE;
/// How long a retired destination is kept for workers that looked it up just before.
const RETIRED_FOR: Duration = Duration::from_secs(1);

/// The tables, from the writer's side.
#[derive(Debug)]
pub struct Store {
    pub(super) shared: Arc<Shared>,
    pub(super) identity: Identity,
    pub(super) metrics: Metrics,
    pub(super) place: Place,
    pub(super) cells: HashMap<SocketAddr, Entry>,
    /// How many of the cells are retired.
    retired: usize,
    pub(super) held: HashMap<ResourceName, Held>,
    pub(super) backends: HashMap<ResourceName, Arc<Backend>>,
    pub(super) logicals: HashMap<ResourceName, Arc<Logical>>,
    /// An endpoint's state survives as long as the endpoint is in use and its spec is unchanged.
    pub(super) endpoints: HashMap<EndpointSpec, Weak<Endpoint>>,
    /// Resources that were rejected, by name, with the reason.
    pub(super) rejected: BTreeMap<String, String>,
    connected: bool,
    outbox: Outbox,
}

/// A subscribed destination.
#[derive(Debug)]
pub(super) struct Entry {
    pub cell: Arc<DestinationCell>,
    /// When it was withdrawn from lookups.
    retired: Option<Instant>,
}

/// A resource in force.
#[derive(Debug)]
pub(super) struct Held {
    pub version: u64,
    pub content: Content,
    pub since: SystemTime,
}

/// Pending messages for the controller.
#[derive(Debug, Default)]
pub struct Outbox {
    pub subscribe: BTreeSet<SocketAddr>,
    pub unsubscribe: BTreeSet<SocketAddr>,
}

impl Outbox {
    pub fn is_empty(&self) -> bool {
        self.subscribe.is_empty() && self.unsubscribe.is_empty()
    }
}

impl Store {
    /// The writer of `tables`.
    pub fn new(tables: &Tables, identity: Identity, metrics: Metrics) -> Self {
        Self {
            shared: tables.shared.clone(),
            identity,
            metrics,
            place: Place::default(),
            cells: HashMap::new(),
            retired: 0,
            held: HashMap::new(),
            backends: HashMap::new(),
            logicals: HashMap::new(),
            endpoints: HashMap::new(),
            rejected: BTreeMap::new(),
            connected: false,
            outbox: Outbox::default(),
        }
    }

    /// The cell for `address`, subscribed to from now on. `None`: the bound is reached, and all
    /// destinations are in use.
    pub fn subscribe(&mut self, address: SocketAddr) -> Option<Arc<DestinationCell>> {
        let address = canonical(address);
        if let Some(entry) = self.cells.get_mut(&address) {
            if entry.retired.take().is_some() {
                self.retired -= 1;
                self.shared.publish(&entry.cell);
            }
            return Some(entry.cell.clone());
        }
        if self.cells.len() >= MAX_DESTINATIONS && self.retired == 0 {
            self.evict();
        }
        if self.cells.len() >= MAX_SUBSCRIPTIONS {
            return None;
        }
        // Its content may still be held: it was used before, and the controller has not removed it
        // yet.
        let held = self.destination(address, None);
        let cell = Arc::new(DestinationCell::new(
            address,
            held.unwrap_or(Destination::Unknown),
        ));
        self.shared.publish(&cell);
        self.cells.insert(
            address,
            Entry {
                cell: cell.clone(),
                retired: None,
            },
        );
        if self.connected && !self.outbox.unsubscribe.remove(&address) {
            self.outbox.subscribe.insert(address);
        }
        Some(cell)
    }

    /// The messages that have not been sent yet.
    pub fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }

    /// The content of a stream's hello. Later changes go to the outbox.
    pub fn hello(&mut self) -> (Vec<String>, Vec<contract::Held>) {
        self.forget_unreachable();
        self.outbox = Outbox::default();
        self.connected = true;
        let destinations = self.cells.keys().map(SocketAddr::to_string).collect();
        // Other anchors may have come with a certificate: then they are requested from the
        // controller again.
        let others = |held: &Held| match &held.content {
            Content::TrustAnchors(anchors) => !self.identity.trusts(&anchors.certificates),
            _ => false,
        };
        let held = self.held.iter().filter(|(_, held)| !others(held));
        let held = held.map(|(name, held)| contract::Held {
            name: name.to_string(),
            version: held.version,
        });
        (destinations, held.collect())
    }

    /// The stream has ended: the next one begins with a complete hello.
    pub fn disconnected(&mut self) {
        self.outbox = Outbox::default();
        self.connected = false;
    }

    /// Whether the controller has sent the inbound policy of the own pod.
    pub fn knows_inbound(&self) -> bool {
        self.held.contains_key(&ResourceName::Inbound)
    }

    /// Removes unused destinations. Call it each second.
    pub fn sweep(&mut self, now: Instant) {
        let mut gone = Vec::new();
        for (address, entry) in &mut self.cells {
            let in_use =
                Arc::strong_count(&entry.cell) > if entry.retired.is_some() { 1 } else { 2 };
            match entry.retired {
                // A worker found it just before it was withdrawn.
                Some(_) if in_use => {
                    entry.retired = None;
                    self.retired -= 1;
                    self.shared.publish(&entry.cell);
                }
                Some(since)
                    if now.duration_since(since) >= RETIRED_FOR
                        && self.outbox.unsubscribe.len() + gone.len() < MAX_SUBSCRIPTIONS =>
                {
                    gone.push(*address);
                }
                None if !in_use
                    && now.duration_since(entry.cell.last_used()) >= DESTINATION_IDLE =>
                {
                    entry.retired = Some(now);
                    self.retired += 1;
                    self.shared.withdraw(*address);
                }
                _ => {}
            }
        }
        for address in gone {
            self.cells.remove(&address);
            self.retired -= 1;
            if self.connected && !self.outbox.subscribe.remove(&address) {
                self.outbox.unsubscribe.insert(address);
            }
        }
        self.endpoints
            .retain(|_, endpoint| endpoint.strong_count() > 0);
    }

    /// Withdraws the destinations that have been unused for the longest time, so that there is
    /// space after [`RETIRED_FOR`].
    fn evict(&mut self) {
        let mut idle: Vec<_> = self
            .cells
            .values()
            .filter(|entry| Arc::strong_count(&entry.cell) == 2)
            .map(|entry| (entry.cell.last_used(), entry.cell.address))
            .collect();
        idle.sort();
        idle.truncate(EVICTED_AT_ONCE);
        warn!(
            subscribed = self.cells.len(),
            evicted = idle.len(),
            "too many destinations; evicting the least recently used"
        );
        for (_, address) in idle {
            if let Some(entry) = self.cells.get_mut(&address) {
                entry.retired = Some(Instant::now());
                self.retired += 1;
                self.shared.withdraw(address);
            }
        }
    }

    /// Removes resources that no subscribed destination needs. The controller's own view of this
    /// proxy's needs belongs to the last stream and may be lost with it.
    fn forget_unreachable(&mut self) {
        let mut needed = HashSet::from([ResourceName::TrustAnchors, ResourceName::Inbound]);
        for address in self.cells.keys() {
            let destination = ResourceName::Destination(*address);
            if let Some(Content::Destination(Target::Service(service))) = self.content(&destination)
                && needed.insert(service.clone())
                && let Some(Content::Service(content)) = self.content(service)
            {
                needed.insert(content.endpoints.clone());
                for name in content.routes() {
                    match self.content(name) {
                        Some(Content::HttpRoute(route)) => {
                            needed.extend(endpoints_of(route));
                        }
                        Some(Content::OpaqueRoute(route)) => {
                            let backends = route.backends.iter();
                            needed.extend(backends.filter_map(|b| b.endpoints.clone().ok()));
                        }
                        _ => {}
                    }
                    needed.insert(name.clone());
                }
            }
            needed.insert(destination);
        }
        self.held.retain(|name, _| needed.contains(name));
        self.logicals.retain(|name, _| needed.contains(name));
        self.rejected.clear();
    }

    pub(super) fn content(&self, name: &ResourceName) -> Option<&Content> {
        self.held.get(name).map(|held| &held.content)
    }

    pub(super) fn backend_set(&self, name: &ResourceName) -> Option<Arc<EndpointSet>> {
        self.backends
            .get(name)
            .map(|backend| backend.endpoints().clone())
    }
}

/// The endpoints of a route: its backends and mirrors.
fn endpoints_of(route: &contract::HttpRoute) -> impl Iterator<Item = ResourceName> {
    let mirrors = |filters: &'_ [contract::HttpFilter]| -> Vec<String> {
        let kinds = filters.iter().filter_map(|filter| filter.kind.as_ref());
        let named = kinds.filter_map(|kind| match kind {
            Kind::Mirror(mirror) => Some(mirror.endpoints.clone()),
            _ => None,
        });
        named.collect()
    };
    let names = route.rules.iter().flat_map(move |rule| {
        let of_backends = (rule.backends.iter()).flat_map(move |backend| {
            let mut names = mirrors(&backend.filters);
            names.push(backend.endpoints.clone());
            names
        });
        mirrors(&rule.filters).into_iter().chain(of_backends)
    });
    names.filter_map(|name| name.parse().ok())
}
