//! The shares of the streams to an endpoint: held by downstream connections, and by the clients
//! that these belong to.
//!
//! In: a connection takes a stream, or returns it. Out: whether it may take another. No request is
//! refused as long as half of an endpoint's streams are free. Beyond that, the remaining share of a
//! connection shrinks with what its client holds and with what is left for the others, so that the
//! first request of another connection, and of another client, finds a stream:
//!
//! ```text
//! held by the connection + held by its client < SHARE × free
//! ```
//!
//! One connection alone gets 60 % of the streams, several of one client 75 % together.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::identity::SpiffeId;

/// A client may hold this many times as many streams as it leaves free.
const SHARE: usize = 3;
/// Number of known clients above which those without connections are removed.
const SWEEP_ABOVE: usize = 64;

/// Distinguishes clients.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ClientKey {
    /// The app in this pod.
    App,
    /// A workload with this identity.
    Peer(SpiffeId),
    /// A client without an identity, at this address.
    Address(IpAddr),
}

/// The clients with connections to one worker.
#[derive(Debug)]
pub struct Clients {
    known: RefCell<HashMap<ClientKey, Weak<Held>>>,
    sweep_above: Cell<usize>,
}

/// Distinguishes downstream connections that need upstream connections of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DownstreamId(u64);

/// One downstream connection.
#[derive(Debug)]
pub struct Holder {
    /// `None`: not assigned yet.
    id: Cell<Option<DownstreamId>>,
    connection: Held,
    client: Rc<Held>,
}

/// Streams, by endpoint. A list: few connections use more than a few endpoints.
#[derive(Debug, Default)]
struct Held(RefCell<Vec<(u64, usize)>>);

impl Default for Clients {
    fn default() -> Self {
        Self {
            known: RefCell::default(),
            sweep_above: Cell::new(SWEEP_ABOVE),
        }
    }
}

impl Clients {
    /// A new connection of the client `key`.
    pub fn connection(&self, key: ClientKey) -> Rc<Holder> {
        let mut known = self.known.borrow_mut();
        if known.len() > self.sweep_above.get() {
            known.retain(|_, client| client.strong_count() > 0);
            self.sweep_above.set((2 * known.len()).max(SWEEP_ABOVE));
        }
        let entry = known.entry(key).or_default();
        let client = entry.upgrade().unwrap_or_else(|| {
            let client = Rc::default();
            *entry = Rc::downgrade(&client);
            client
        });
        Rc::new(Holder {
            id: Cell::new(None),
            connection: Held::default(),
            client,
        })
    }
}

impl Holder {
    pub fn id(&self) -> DownstreamId {
        let id = self.id.get().unwrap_or_else(DownstreamId::next);
        self.id.set(Some(id));
        id
    }

    pub fn take(&self, endpoint: u64) {
        self.connection.take(endpoint);
        self.client.take(endpoint);
    }

    pub fn give_back(&self, endpoint: u64) {
        self.connection.give_back(endpoint);
        self.client.give_back(endpoint);
    }

    /// Whether the connection may take one of the `free` streams to `endpoint`.
    pub fn may_take(&self, endpoint: u64, free: usize) -> bool {
        within(self.connection.of(endpoint), self.client.of(endpoint), free)
    }

    /// How many streams to `endpoint` the client holds, and the connection: the fewest come first.
    pub fn holds(&self, endpoint: u64) -> (usize, usize) {
        (self.client.of(endpoint), self.connection.of(endpoint))
    }

    pub fn is_of_client_of(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.client, &other.client)
    }
}

impl DownstreamId {
    /// An ID that no other connection has.
    pub fn next() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Self(LAST.fetch_add(1, Ordering::Relaxed))
    }
}

/// Whether a connection that holds `connection` of its client's `client` places may take one of the
/// `free` ones.
pub fn within(connection: usize, client: usize, free: usize) -> bool {
    connection + client < SHARE * free
}

impl Held {
    fn of(&self, endpoint: u64) -> usize {
        let held = self.0.borrow();
        let found = held.iter().find(|(id, _)| *id == endpoint);
        found.map_or(0, |(_, streams)| *streams)
    }

    fn take(&self, endpoint: u64) {
        let mut held = self.0.borrow_mut();
        match held.iter_mut().find(|(id, _)| *id == endpoint) {
            Some((_, streams)) => *streams += 1,
            None => held.push((endpoint, 1)),
        }
    }

    fn give_back(&self, endpoint: u64) {
        let mut held = self.0.borrow_mut();
        let Some(at) = held.iter().position(|(id, _)| *id == endpoint) else {
            return;
        };
        held[at].1 -= 1;
        // The entry of the only endpoint is kept: the next request is most likely for it.
        if held[at].1 == 0 && held.len() > 1 {
            held.swap_remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::testing::spiffe_id;

    /// Lets every connection take as many streams as it may, in turns. Returns how many each has,
    /// and how many are free.
    fn fill(connections: &[Rc<Holder>], streams: usize) -> (Vec<usize>, usize) {
        let mut free = streams;
        loop {
            let before = free;
            for holder in connections {
                if holder.may_take(1, free) {
                    holder.take(1);
                    free -= 1;
                }
            }
            if free == before {
                let held = connections.iter().map(|holder| holder.holds(1).1);
                return (held.collect(), free);
            }
        }
    }

    #[test]
    fn one_client_leaves_streams_for_others_and_for_its_next_connection() {
        for connections in [1, 4, 100] {
            let clients = Clients::default();
            let key = || ClientKey::Peer(spiffe_id("spiffe://t/greedy"));
            let greedy: Vec<_> = (0..connections)
                .map(|_| clients.connection(key()))
                .collect();
            let (held, free) = fill(&greedy, 3_200);
            let (most, least) = (held.iter().max(), held.iter().min());
            assert!(most <= least.map(|least| least + 1).as_ref(), "{held:?}");
            assert!(held.iter().sum::<usize>() >= 3_200 * 59 / 100, "{held:?}");
            assert!(clients.connection(key()).may_take(1, free), "{free}");
            let other = clients.connection(ClientKey::Address([10, 0, 0, 1].into()));
            let (held, _) = fill(&[other], free);
            assert!(held[0] > 300, "{held:?}");
        }
    }

    #[test]
    fn a_single_client_may_use_most_of_an_endpoint_with_few_streams() {
        let clients = Clients::default();
        let (held, _) = fill(&[clients.connection(ClientKey::App)], 32);
        assert_eq!(held, [20]);
    }

    #[test]
    fn returned_streams_are_not_held_and_endpoints_are_separate() {
        let clients = Clients::default();
        let holder = clients.connection(ClientKey::App);
        holder.take(1);
        holder.take(2);
        holder.take(2);
        assert_eq!((holder.holds(1), holder.holds(2)), ((1, 1), (2, 2)));
        holder.give_back(2);
        holder.give_back(1);
        assert_eq!((holder.holds(1), holder.holds(2)), ((0, 0), (1, 1)));
    }

    #[test]
    fn clients_without_connections_are_removed() {
        let clients = Clients::default();
        for number in 0..10 * SWEEP_ABOVE as u32 {
            let address = IpAddr::from(number.to_be_bytes());
            clients.connection(ClientKey::Address(address));
        }
        assert!(clients.known.borrow().len() <= SWEEP_ABOVE + 1);
    }
}
