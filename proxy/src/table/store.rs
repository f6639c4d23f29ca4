//! The one writer of the tables. Lives on the control thread.
//!
//! In: pushes from the controller (put in force by [`super::apply`]), and destinations that the
//! data path asks for. Out: tables in force, an answer to each push, and what the controller is to
//! be told ([`Outbox`]).

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
/// How many destinations make room at a time when there are too many: sorting them all is then
/// rare.
const EVICTED_AT_ONCE: usize = 500;
/// Destinations that workers can find. Those that are on their way out are subscribed to as well.
const MAX_DESTINATIONS: usize = MAX_SUBSCRIPTIONS - EVICTED_AT_ONCE;
/// How long a destination that workers no longer find is kept for those who found it just before.
const RETIRED_FOR: Duration = Duration::from_secs(1);

/// The tables, from the writer's side.
#[derive(Debug)]
pub struct Store {
    pub(super) shared: Arc<Shared>,
    pub(super) identity: Identity,
    pub(super) metrics: Metrics,
    pub(super) place: Place,
    pub(super) cells: HashMap<SocketAddr, Entry>,
    /// How many of the cells are on their way out.
    retired: usize,
    pub(super) held: HashMap<ResourceName, Held>,
    pub(super) backends: HashMap<ResourceName, Arc<Backend>>,
    pub(super) logicals: HashMap<ResourceName, Arc<Logical>>,
    /// Everything that an endpoint has learned survives as long as somebody uses it and it stays
    /// the same.
    pub(super) endpoints: HashMap<EndpointSpec, Weak<Endpoint>>,
    /// By name, with the reason: what the controller sent and is not in force.
    pub(super) rejected: BTreeMap<String, String>,
    connected: bool,
    outbox: Outbox,
}

/// A destination that is subscribed to.
#[derive(Debug)]
pub(super) struct Entry {
    pub cell: Arc<DestinationCell>,
    /// Since when workers no longer find it.
    retired: Option<Instant>,
}

/// A resource in force.
#[derive(Debug)]
pub(super) struct Held {
    pub version: u64,
    pub content: Content,
    pub since: SystemTime,
}

/// What the controller is to be told.
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

    /// The cell for `address`, subscribed to from now on. `None`: there are too many, and all of
    /// them are in use.
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
        // Held still: it was used before, and the controller has not taken it back yet.
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

    /// What the controller has not been told yet.
    pub fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }

    /// What to begin a stream with. From now on, changes go to the outbox.
    pub fn hello(&mut self) -> (Vec<String>, Vec<contract::Held>) {
        self.forget_unreachable();
        self.outbox = Outbox::default();
        self.connected = true;
        let destinations = self.cells.keys().map(SocketAddr::to_string).collect();
        // Others may have come with a certificate: then the controller is to say it again.
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

    /// The stream is over: the next one begins with a hello that says everything.
    pub fn disconnected(&mut self) {
        self.outbox = Outbox::default();
        self.connected = false;
    }

    /// Whether the controller has said how the own pod is to be reached.
    pub fn knows_inbound(&self) -> bool {
        self.held.contains_key(&ResourceName::Inbound)
    }

    /// Lets go of destinations that nobody uses. Call it each second.
    pub fn sweep(&mut self, now: Instant) {
        let mut gone = Vec::new();
        for (address, entry) in &mut self.cells {
            let in_use =
                Arc::strong_count(&entry.cell) > if entry.retired.is_some() { 1 } else { 2 };
            match entry.retired {
                // Somebody found it just before it was withdrawn.
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

    /// Withdraws the destinations that have not been used for the longest time, so that there is
    /// room in a second.
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

    /// Drops what no subscribed destination needs. The controller's own view of what this proxy
    /// needs is of the last stream and may have been lost with it.
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
                        Some(Content::StreamRoute(route)) => {
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

/// Where a route sends to: its backends and mirrors.
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
