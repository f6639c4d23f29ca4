//! Upstream connections that carry several streams, of one worker and one protocol, by endpoint:
//! finds one with room for another stream, or opens one.
//!
//! In: an endpoint. Out: a [`Lease`] on one stream of a connection to it. Streams fill up the
//! oldest connection first, so that unneeded ones become idle and end. Beyond
//! [`SharedConnection::MAX_CONNECTIONS`], and beyond its share of the streams ([`super::share`]), a
//! request waits in a bounded queue for a bounded time.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;
use tokio::time::{Instant, timeout};

use super::count::{MAX_STREAMS, Streams};
use super::share::Holder;
use super::waiting::Waiting;
use super::{Caller, Dialer};
use crate::balance::{AttemptOutcome, Endpoint};
use crate::observe::metrics::{AppConnection, PoolProtocol, PoolState, StreamLimit};
use crate::observe::reason::Reason;

/// How long downstream connections stay on separate connections to an endpoint that has broken a
/// shared one.
const APART: Duration = Duration::from_secs(600);

/// The queue position of a request: the smallest comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// By what its client and its connection hold: [`Holder::holds`].
    Holds(usize, usize),
    /// Without a share, such as a mirror's copy.
    Last,
}

/// A connection that carries several streams.
pub trait SharedConnection: Sized + 'static {
    /// Drives its frames and timers.
    type Driver: 'static;
    const PROTOCOL: PoolProtocol;
    /// Connections of one worker to one endpoint. Beyond them requests wait.
    const MAX_CONNECTIONS: usize;

    /// Opens one. It is ready for requests only once the other end is known to accept streams.
    fn open(
        dialer: &Dialer,
        endpoint: &Endpoint,
        caller: &Caller,
    ) -> impl Future<Output = Result<(Rc<Self>, Self::Driver), Reason>>;

    /// Returns when the connection has ended. The remaining streams then end with an error.
    fn drive(
        self: &Rc<Self>,
        driver: Self::Driver,
        upstreams: &Rc<EndpointConnections<Self>>,
    ) -> impl Future<Output = ()>;

    fn streams(&self) -> &Streams;

    /// Whether another stream may be started on it.
    fn has_room(&self) -> bool;

    /// Accepts no new streams. The connection ends in order once all streams have ended.
    fn stop_accepting(&self);
}

/// Upstream connections of one worker.
pub struct Pool<C: SharedConnection> {
    dialer: Rc<Dialer>,
    endpoints: RefCell<HashMap<Key, Rc<EndpointConnections<C>>, RandomState>>,
    /// Endpoints that have broken a connection shared by clients, and until when their clients get
    /// separate connections.
    apart: RefCell<HashMap<u64, Instant>>,
}

/// An endpoint's ID, and the caller of the connections to it.
type Key = (u64, Caller);

/// The connections to one endpoint.
pub struct EndpointConnections<C: SharedConnection> {
    endpoint: Arc<Endpoint>,
    caller: Caller,
    pool: Weak<Pool<C>>,
    connections: RefCell<Vec<Rc<C>>>,
    connecting: Cell<usize>,
    /// Streams on one connection, as far as is known.
    limit: Cell<usize>,
    /// Streams of all `connections`.
    leased: Cell<usize>,
    waiting: RefCell<Waiting<Result<Lease<C>, Refusal>>>,
}

/// The right to one stream. Returned when dropped.
pub struct Lease<C: SharedConnection> {
    pub connection: Rc<C>,
    upstreams: Rc<EndpointConnections<C>>,
    /// The downstream connection whose share it counts against.
    holder: Option<Rc<Holder>>,
}

/// Why no stream is available. Nothing has been sent.
#[derive(Clone, Copy, Debug)]
pub struct Refusal {
    pub reason: Reason,
    /// Another request reports the same failed connection: it counts against the endpoint once,
    /// however many requests waited for it.
    pub reported: bool,
}

impl<C: SharedConnection> Pool<C> {
    pub fn new(dialer: &Rc<Dialer>) -> Rc<Self> {
        Rc::new(Self {
            dialer: dialer.clone(),
            endpoints: RefCell::default(),
            apart: RefCell::default(),
        })
    }

    /// A stream to `endpoint`. `holder`: the downstream connection whose share it counts against,
    /// if that can have several streams.
    pub async fn acquire(
        self: &Rc<Self>,
        endpoint: &Arc<Endpoint>,
        caller: &Caller,
        holder: Option<&Rc<Holder>>,
    ) -> Result<Lease<C>, Refusal> {
        let alone = holder.filter(|_| self.are_apart(endpoint.id));
        let alone = alone.map(|holder| caller.alone(holder.id()));
        let caller = alone.as_ref().unwrap_or(caller);
        let upstreams = self.upstreams(endpoint, caller);
        if let Some(lease) = upstreams.lease(holder) {
            return Ok(lease);
        }
        // Boxed: few requests wait, and all would reserve space for it.
        let waiting = Box::pin(upstreams.wait(&self.dialer, endpoint, holder));
        waiting.await
    }

    fn upstreams(
        self: &Rc<Self>,
        endpoint: &Arc<Endpoint>,
        caller: &Caller,
    ) -> Rc<EndpointConnections<C>> {
        let key = (endpoint.id, caller.clone());
        if let Some(upstreams) = self.endpoints.borrow().get(&key) {
            return upstreams.clone();
        }
        let upstreams = Rc::new(EndpointConnections {
            endpoint: endpoint.clone(),
            caller: caller.clone(),
            pool: Rc::downgrade(self),
            connections: RefCell::default(),
            connecting: Cell::new(0),
            limit: Cell::new(MAX_STREAMS),
            leased: Cell::new(0),
            waiting: RefCell::default(),
        });
        self.endpoints.borrow_mut().insert(key, upstreams.clone());
        upstreams
    }

    /// The endpoint has violated the protocol, and with that broken a connection shared by clients:
    /// for a while, each downstream connection gets a separate one.
    pub fn keep_apart(&self, endpoint: u64) {
        let now = Instant::now();
        let mut apart = self.apart.borrow_mut();
        apart.retain(|_, until| *until > now);
        apart.insert(endpoint, now + APART);
    }

    fn are_apart(&self, endpoint: u64) -> bool {
        let apart = self.apart.borrow();
        !apart.is_empty()
            && apart
                .get(&endpoint)
                .is_some_and(|until| *until > Instant::now())
    }

    /// Allows no new streams on the connections to an endpoint that is out of reach.
    pub fn forget(&self, endpoint: u64) {
        self.retire_all(|key| key.0 == endpoint);
    }

    /// Allows no new streams on the connections of a caller that is gone.
    pub fn leave(&self, caller: &Caller) {
        self.retire_all(|key| key.1 == *caller);
    }

    fn retire_all(&self, of: impl Fn(&Key) -> bool) {
        let endpoints = self.endpoints.borrow();
        let found = endpoints.iter().filter(|(key, _)| of(key));
        let found: Vec<_> = found.map(|(_, upstreams)| upstreams.clone()).collect();
        drop(endpoints);
        for upstreams in found {
            let connections = upstreams.connections.borrow().clone();
            for connection in &connections {
                upstreams.retire(connection);
            }
        }
    }

    /// Drops the entry of an endpoint without connections and requests.
    fn tidy(&self, key: Key) {
        let mut endpoints = self.endpoints.borrow_mut();
        if endpoints.get(&key).is_some_and(|u| u.is_unused()) {
            endpoints.remove(&key);
        }
    }
}

impl Refusal {
    pub fn of(reason: Reason) -> Self {
        Self {
            reason,
            reported: false,
        }
    }

    /// A limit of the pool has been reached.
    fn by(dialer: &Dialer, protocol: PoolProtocol, limit: StreamLimit) -> Self {
        dialer.metrics.stream_refused(protocol, limit);
        Self::of(Reason::Overload)
    }

    /// How it counts for the endpoint.
    pub fn outcome(&self) -> AttemptOutcome {
        match AttemptOutcome::no_connection(self.reason) {
            AttemptOutcome::ConnectFailed if self.reported => AttemptOutcome::Cancelled,
            outcome => outcome,
        }
    }
}

impl<C: SharedConnection> EndpointConnections<C> {
    fn is_unused(&self) -> bool {
        self.connections.borrow().is_empty()
            && self.connecting.get() == 0
            && self.waiting.borrow().is_empty()
    }

    fn lease(self: &Rc<Self>, holder: Option<&Rc<Holder>>) -> Option<Lease<C>> {
        if !self.may_take(holder.map(|holder| &**holder)) {
            return None;
        }
        let connection = self.connection_with_room()?;
        Some(self.begin(connection, holder.cloned()))
    }

    /// Waits for a stream.
    async fn wait(
        self: &Rc<Self>,
        dialer: &Dialer,
        endpoint: &Endpoint,
        holder: Option<&Rc<Holder>>,
    ) -> Result<Lease<C>, Refusal> {
        let receiver = self.waiting.borrow_mut().join(holder);
        let Some(receiver) = receiver else {
            return Err(Refusal::by(dialer, C::PROTOCOL, StreamLimit::Queue));
        };
        self.open_for_waiting();
        let limits = &dialer.limits;
        // Opening a connection has its own timeout; the first one to an app has a long one.
        let opening = match self.connections.borrow().is_empty() {
            true => dialer.patience(endpoint),
            false => limits.connect_timeout,
        };
        match timeout(limits.stream_wait.saturating_add(opening), receiver).await {
            Ok(Ok(answer)) => answer,
            // The sender is dropped without an answer only when the worker ends.
            Ok(Err(_)) => Err(Refusal::of(Reason::ShuttingDown)),
            Err(_) => Err(Refusal::by(dialer, C::PROTOCOL, StreamLimit::Wait)),
        }
    }

    fn connection_with_room(&self) -> Option<Rc<C>> {
        let connections = self.connections.borrow();
        connections.iter().find(|c| c.has_room()).cloned()
    }

    fn begin(self: &Rc<Self>, connection: Rc<C>, holder: Option<Rc<Holder>>) -> Lease<C> {
        self.count(connection.streams().begin(), 1);
        if !connection.streams().retired.get() {
            self.leased.set(self.leased.get() + 1);
        }
        if let Some(holder) = &holder {
            holder.take(self.endpoint.id);
        }
        Lease {
            connection,
            upstreams: self.clone(),
            holder,
        }
    }

    /// Whether another stream is within the share of `holder`.
    fn may_take(&self, holder: Option<&Holder>) -> bool {
        let streams = C::MAX_CONNECTIONS * self.limit.get();
        let leased = self.leased.get();
        let free = streams.saturating_sub(leased);
        // With half of the streams free, every client is within its share.
        leased < free || holder.is_none_or(|holder| holder.may_take(self.endpoint.id, free))
    }

    /// Records a protocol violation of the endpoint on one of the connections.
    pub fn offended(&self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.dialer.metrics.app_connection(AppConnection::Offended);
            pool.keep_apart(self.endpoint.id);
        }
    }

    /// Records the stream limit that a connection's peer has announced.
    pub fn learn_limit(self: &Rc<Self>, streams: usize) {
        self.limit.set(streams.clamp(1, MAX_STREAMS));
        self.serve_waiting();
        self.open_for_waiting();
    }

    /// Opens as many connections as the waiting requests will fill, within the bound.
    fn open_for_waiting(self: &Rc<Self>) {
        let Some(pool) = self.pool.upgrade() else {
            return;
        };
        let is_full =
            || self.connecting.get() + self.connections.borrow().len() >= C::MAX_CONNECTIONS;
        if is_full() {
            return;
        }
        let waiting = self.waiting.borrow();
        let needed = waiting.count(|holder| self.may_take(holder));
        drop(waiting);
        let needed = needed.div_ceil(self.limit.get());
        while self.connecting.get() < needed && !is_full() {
            self.connecting.set(self.connecting.get() + 1);
            let upstreams = self.clone();
            let pool = pool.clone();
            tokio::task::spawn_local(async move {
                let opened = C::open(&pool.dialer, &upstreams.endpoint, &upstreams.caller).await;
                upstreams.connecting.set(upstreams.connecting.get() - 1);
                match opened {
                    Ok((connection, driver)) => {
                        upstreams.add(connection.clone());
                        drop(pool);
                        connection.drive(driver, &upstreams).await;
                        upstreams.closed(&connection);
                    }
                    Err(reason) => upstreams.failed(reason),
                }
            });
        }
    }

    fn add(self: &Rc<Self>, connection: Rc<C>) {
        self.connections.borrow_mut().push(connection);
        self.gauge(PoolState::Idle, 1);
        self.serve_waiting();
    }

    /// Hands free streams to the waiting requests.
    fn serve_waiting(self: &Rc<Self>) {
        let id = self.endpoint.id;
        while let Some(connection) = self.connection_with_room() {
            let next = self.waiting.borrow_mut().next(|holder| {
                let rank = holder.map_or(Rank::Last, |holder| {
                    let (client, connection) = holder.holds(id);
                    Rank::Holds(client, connection)
                });
                self.may_take(holder).then_some(rank)
            });
            let Some((next, holder)) = next else {
                return;
            };
            // If this request has just given up, the lease is dropped and goes to the next one.
            drop(next.send(Ok(self.begin(connection, holder))));
        }
    }

    /// A connection could not be opened: the next one would most likely fail as well.
    fn failed(self: &Rc<Self>, reason: Reason) {
        let waiting = self.waiting.borrow_mut().take();
        let mut refusal = Refusal::of(reason);
        for waiter in waiting {
            // A request that has given up needs no answer.
            if waiter.send(Err(refusal)).is_ok() {
                refusal.reported = true;
            }
        }
        self.tidy();
    }

    /// Allows no new streams on this connection. It ends with its last one.
    pub fn retire(self: &Rc<Self>, connection: &Rc<C>) {
        connection.stop_accepting();
        let mut connections = self.connections.borrow_mut();
        let before = connections.len();
        connections.retain(|other| !Rc::ptr_eq(other, connection));
        if connections.len() < before {
            drop(connections);
            let streams = connection.streams();
            streams.retired.set(true);
            self.leased.set(self.leased.get() - streams.count());
            let state = match connection.streams().count() {
                0 => PoolState::Idle,
                _ => PoolState::Active,
            };
            self.gauge(state, -1);
            self.open_for_waiting();
        }
    }

    fn closed(self: &Rc<Self>, connection: &Rc<C>) {
        self.retire(connection);
        self.tidy();
    }

    fn tidy(&self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.tidy((self.endpoint.id, self.caller.clone()));
        }
    }

    /// `streams`: how many a pooled connection had before a stream was started, or has after one
    /// has ended.
    fn count(&self, streams: usize, change: i64) {
        if streams == 0 {
            self.gauge(PoolState::Active, change);
            self.gauge(PoolState::Idle, -change);
        }
    }

    fn gauge(&self, state: PoolState, change: i64) {
        if let Some(pool) = self.pool.upgrade() {
            let metrics = &pool.dialer.metrics;
            metrics.pool_connections(C::PROTOCOL, state, change);
        }
    }
}

/// A stream that is kept for the next exchange, and idle.
pub struct Kept<C: SharedConnection> {
    pub connection: Rc<C>,
    upstreams: Rc<EndpointConnections<C>>,
}

impl<C: SharedConnection> Kept<C> {
    /// The right to use the stream again. `None`: its connection must not be used any more.
    pub fn lease(self) -> Option<Lease<C>> {
        if !self.connection.has_room() {
            return None;
        }
        Some(self.upstreams.begin(self.connection, None))
    }
}

impl<C: SharedConnection> Lease<C> {
    /// The exchange has ended, and its stream is kept.
    pub fn keep(&self) -> Kept<C> {
        Kept {
            connection: self.connection.clone(),
            upstreams: self.upstreams.clone(),
        }
    }

    /// The connection turned out to accept no more streams.
    pub fn retire(&self) {
        self.upstreams.retire(&self.connection);
    }
}

impl<C: SharedConnection> Drop for Lease<C> {
    fn drop(&mut self) {
        let streams = self.connection.streams();
        let left = streams.end();
        if !streams.retired.get() {
            self.upstreams.leased.set(self.upstreams.leased.get() - 1);
            self.upstreams.count(left, -1);
        }
        if let Some(holder) = &self.holder {
            holder.give_back(self.upstreams.endpoint.id);
        }
        if !self.upstreams.waiting.borrow().is_empty() {
            self.upstreams.serve_waiting();
        }
    }
}
