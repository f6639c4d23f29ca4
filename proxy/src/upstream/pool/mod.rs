//! The idle upstream connections of one worker, by endpoint, of protocols in which a connection
//! carries one exchange at a time: HTTP/1, and opaque TCP between sidecars. The most recently used
//! connection is used first, so that unneeded ones age and end.
//!
//! # Floors
//!
//! ```text
//! watch
//! tcp_info
//! ```

mod tcp_info;
#[cfg(test)]
mod tests;
mod watch;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;
use tokio::time::{Instant, sleep};

use crate::balance::{Endpoint, Peer};
use crate::config::Limits;
use crate::identity::Alpn;
use crate::observe::metrics::{AppConnection, Metrics, PoolProtocol, PoolState};
use crate::observe::reason::Reason;
use crate::upstream::client_address::SourceAddress;
use crate::upstream::streams::{self, Kept, Lease, Refusal};
use crate::upstream::{Caller, ConnectError, Dialer, Stream, mux};
use crate::wire::buffered::Buffered;
use tcp_info::TcpInfo;
pub use watch::Watched;

/// How often idle connections are checked for those that have ended. Also how soon they give way to
/// connections that wait.
const SWEEP_EVERY: Duration = Duration::from_millis(250);
/// How long a connection to an app may be idle: below the 5 s that Node.js and others give a client
/// (an app that closes as a request arrives costs that request).
const APP_IDLE: Duration = Duration::from_secs(4);
/// The limit for a request that cannot be sent twice. How long apps keep connections is learned:
/// see [`crate::balance::Habits`].
const APP_IDLE_UNSAFE: Duration = Duration::from_secs(1);
/// How long the first response on a new connection may take before idle ones are closed, in case
/// the server has no thread left for it.
pub const STARVED_AFTER: Duration = Duration::from_millis(100);
/// How long a connection that the app has closed is polled for the fate of the bytes sent after
/// that: see [`Upstream::took_nothing`]. The kernel of this machine knows at once, unless it is
/// busy.
const TELLING: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_millis(1),
    Duration::from_millis(5),
    Duration::from_millis(20),
];
/// How many connections that turn out to accept no more streams are skipped in one attempt.
const MAX_STALE: usize = 4;

/// Idle upstream connections of one worker.
pub struct Pool {
    protocol: PoolProtocol,
    dialer: Rc<Dialer>,
    /// Keys are numbers of the proxy's own and its clients' addresses, and few: a cheap hash with a
    /// random seed suffices.
    idle: RefCell<HashMap<Key, Vec<Idle>, RandomState>>,
    count: Cell<usize>,
    sweeping: Cell<bool>,
}

/// An endpoint's ID, and the caller of the connections to it.
type Key = (u64, Caller);

struct Idle {
    upstream: Upstream,
    since: Instant,
}

/// One upstream connection, while it carries an exchange or an app's connection. For HTTP/1 to a
/// sidecar it is a stream of a shared one.
pub struct Upstream {
    pub connection: Buffered<Stream>,
    /// It has carried an exchange before.
    pub reused: bool,
    /// The other end is a sidecar that has proved its identity.
    pub is_mesh: bool,
    /// A login applies to it ([`crate::http::login`]): it belongs to one client, and is never
    /// pooled.
    pub is_bound: bool,
    opened: Instant,
    /// Set for HTTP/1.1 to an endpoint without a sidecar. Other connections serve every caller.
    pub watched: Option<Watched>,
    /// Sent data must be acknowledged in time.
    bounded: bool,
    counted: Counted,
}

/// The counter of an upstream connection, which also limits their number.
enum Counted {
    /// A separate connection.
    Own(Gauge),
    Leased(Lease<mux::MuxConnection>),
    Kept(Kept<mux::MuxConnection>),
    Nowhere,
}

/// Counts a connection in `naru_pool_connections` for as long as it lives.
struct Gauge {
    metrics: Metrics,
    protocol: PoolProtocol,
    state: PoolState,
}

impl Pool {
    pub fn new(protocol: PoolProtocol, dialer: &Rc<Dialer>) -> Rc<Self> {
        Rc::new(Self {
            protocol,
            dialer: dialer.clone(),
            idle: RefCell::default(),
            count: Cell::default(),
            sweeping: Cell::default(),
        })
    }

    /// Opens a connection to `endpoint` that can be put into this pool.
    pub async fn connect(
        &self,
        endpoint: &Endpoint,
        source: SourceAddress,
    ) -> Result<Upstream, ConnectError> {
        let alpn = match self.protocol {
            PoolProtocol::Http1 => Alpn::Http1,
            PoolProtocol::Http2 => Alpn::Http2,
            PoolProtocol::Tcp => Alpn::Tcp,
        };
        let stream = self.dialer.connect(endpoint, source, alpn).await?;
        let gauge = Gauge::new(&self.dialer.metrics, self.protocol);
        let is_mesh = matches!(endpoint.peer, Peer::Mesh(_));
        let counted = Counted::Own(gauge);
        Ok(Upstream::new(stream, is_mesh, counted))
    }

    /// An idle connection to `endpoint` that is still open. `repeatable`: the request may be sent
    /// again if the connection turns out to be closed.
    pub fn take(&self, endpoint: &Endpoint, caller: &Caller, repeatable: bool) -> Option<Upstream> {
        let key = (endpoint.id, caller.clone());
        let mut idle = self.idle.borrow_mut();
        let connections = idle.get_mut(&key)?;
        let now = Instant::now();
        let mut found = None;
        while let Some(mut last) = connections.pop() {
            self.count.set(self.count.get() - 1);
            if last.is_over(&self.dialer.limits, now) || !last.is_quiet() {
                continue;
            }
            if !repeatable && !last.upstream.is_mesh {
                let oldest = connections.first().unwrap_or(&last);
                if last.idle(now) > oldest.trusted_idle(endpoint, now) {
                    // Good enough for other requests. Those below it have been idle for longer
                    // still.
                    self.count.set(self.count.get() + 1);
                    connections.push(last);
                    break;
                }
                if !last.upstream.entrust(endpoint) {
                    continue;
                }
            }
            if (last.upstream.watched.as_ref()).is_some_and(|watched| !watched.set_in_use()) {
                continue;
            }
            last.upstream.reused = true;
            if last.upstream.counted.set_active() {
                found = Some(last.upstream);
                break;
            }
        }
        if connections.is_empty() {
            idle.remove(&key);
        }
        found
    }

    /// Takes back a connection whose exchange is complete in both directions.
    pub fn put(self: &Rc<Self>, endpoint: &Endpoint, mut upstream: Upstream) {
        let limits = &self.dialer.limits;
        let now = Instant::now();
        let too_old = now.duration_since(upstream.opened) >= limits.pool_age;
        let unfit = too_old || upstream.is_bound;
        if unfit || !upstream.connection.read.is_empty() || self.count.get() >= limits.max_idle {
            return;
        }
        if upstream.is_starving_others() {
            self.dialer.metrics.app_connection(AppConnection::Starved);
            return;
        }
        let mut idle = self.idle.borrow_mut();
        let caller = upstream.watched.as_ref().map(Watched::caller);
        let key = (endpoint.id, caller.cloned().unwrap_or_default());
        let connections = idle.entry(key).or_default();
        if connections.len() >= limits.max_idle_per_endpoint {
            return;
        }
        upstream.connection.shrink();
        let mut newest = Idle {
            upstream,
            since: now,
        };
        if !newest.settle() {
            return;
        }
        newest.upstream.counted.set_idle();
        connections.push(newest);
        self.count.set(self.count.get() + 1);
        drop(idle);
        if !self.sweeping.replace(true) {
            tokio::task::spawn_local(sweep(Rc::downgrade(self)));
        }
    }

    /// Closes the idle connections to an endpoint that is out of reach.
    pub fn forget(&self, endpoint: u64) {
        self.idle.borrow_mut().retain(|key, connections| {
            let keep = key.0 != endpoint;
            if !keep {
                self.count.set(self.count.get() - connections.len());
            }
            keep
        });
    }

    /// A new connection to `endpoint` is being opened: closes the oldest idle ones if they would
    /// occupy the server's threads that it needs.
    pub fn give_way(&self, endpoint: &Endpoint) {
        for _ in 0..endpoint.load.habits.excess() {
            let mut idle = self.idle.borrow_mut();
            let of_endpoint = idle
                .iter_mut()
                .filter(|(key, connections)| key.0 == endpoint.id && !connections.is_empty());
            // The first of each caller has been idle the longest.
            let oldest = of_endpoint.min_by_key(|(_, idle)| idle.first().map(|idle| idle.since));
            let Some((_, connections)) = oldest else {
                return;
            };
            let over = connections.remove(0);
            self.count.set(self.count.get() - 1);
            self.dialer.metrics.app_connection(AppConnection::Starved);
            idle.retain(|_, connections| !connections.is_empty());
            drop(idle);
            drop(over);
        }
    }

    /// The first response on `upstream`, a new connection to `endpoint`, is late: closes idle
    /// connections if they may be the cause.
    pub fn make_room(&self, endpoint: &Endpoint, upstream: &Upstream) {
        if upstream.watched.as_ref().is_some_and(Watched::waits) {
            let idle = self.idle.borrow();
            let of_endpoint = idle.iter().filter(|(key, _)| key.0 == endpoint.id);
            let count: usize = of_endpoint.map(|(_, connections)| connections.len()).sum();
            drop(idle);
            for _ in 0..count {
                self.dialer.metrics.app_connection(AppConnection::Starved);
            }
            self.forget(endpoint.id);
        }
    }

    /// Closes idle connections that are no longer usable. False: the pool is empty.
    fn sweep(&self) -> bool {
        let now = Instant::now();
        let mut left = 0;
        self.idle.borrow_mut().retain(|_, connections| {
            connections.retain_mut(|idle| {
                if idle.upstream.is_starving_others() {
                    self.dialer.metrics.app_connection(AppConnection::Starved);
                    return false;
                }
                !idle.is_over(&self.dialer.limits, now) && idle.is_quiet()
            });
            left += connections.len();
            !connections.is_empty()
        });
        self.count.set(left);
        self.sweeping.set(left > 0);
        left > 0
    }
}

/// Runs while the pool has idle connections.
async fn sweep(pool: Weak<Pool>) {
    loop {
        sleep(SWEEP_EVERY).await;
        let Some(pool) = pool.upgrade() else {
            return;
        };
        if !pool.sweep() {
            return;
        }
    }
}

impl Idle {
    fn idle(&self, now: Instant) -> Duration {
        now.duration_since(self.since)
    }

    /// Marks it as idle. False: it has already been closed.
    fn settle(&mut self) -> bool {
        let Some(watched) = &self.upstream.watched else {
            return true;
        };
        watched.set_idle(self.since.into_std());
        let waker = watched.waker();
        let is_quiet = self.upstream.connection.is_quiet_for(&waker);
        if !is_quiet {
            waker.wake();
        }
        is_quiet
    }

    fn is_quiet(&mut self) -> bool {
        match &self.upstream.watched {
            // Bytes on its socket wake the watch, so no read is needed.
            Some(watched) => !watched.is_over(),
            None => self.upstream.connection.is_quiet(),
        }
    }

    /// How long a connection to `endpoint` may have been idle to carry a request that cannot be
    /// sent twice. This connection, the longest idle one, is evidence for it.
    fn trusted_idle(&self, endpoint: &Endpoint, now: Instant) -> Duration {
        let habits = &endpoint.load.habits;
        let idle = self.idle(now);
        if habits.is_news(idle) && self.upstream.tcp_info().is_some_and(TcpInfo::is_open) {
            habits.saw_open(idle);
        }
        habits.trusted_idle().min(APP_IDLE_UNSAFE)
    }

    fn is_over(&self, limits: &Limits, now: Instant) -> bool {
        let longest = match self.upstream.is_mesh {
            true => limits.pool_idle,
            false => limits.pool_idle.min(APP_IDLE),
        };
        self.upstream.counted.is_leaving()
            || self.idle(now) >= longest
            || now.duration_since(self.upstream.opened) >= limits.pool_age
    }
}

impl Upstream {
    fn new(stream: Stream, is_mesh: bool, counted: Counted) -> Self {
        Self {
            connection: Buffered::new(stream),
            reused: false,
            is_mesh,
            is_bound: false,
            opened: Instant::now(),
            watched: None,
            bounded: false,
            counted,
        }
    }

    /// Watches an endpoint without a sidecar, to learn its habits.
    pub fn watched(mut self, watched: Watched) -> Self {
        self.watched = Some(watched);
        self
    }

    fn is_starving_others(&self) -> bool {
        let watched = self.watched.as_ref();
        watched.is_some_and(Watched::is_starving_others)
    }

    /// Prepares it for a request that cannot be sent twice. False: the endpoint has closed it.
    fn entrust(&mut self, endpoint: &Endpoint) -> bool {
        let Some(info) = self.tcp_info() else {
            return true;
        };
        if let Some(watched) = &self.watched {
            // Across a network, data that arrived may not have been acknowledged yet.
            let is_own = endpoint.peer == Peer::App;
            watched.set_acknowledged(info.acknowledged.filter(|_| is_own));
        }
        info.is_open()
    }

    /// Whether the kernel shows that nothing of a request that cannot be sent twice has reached the
    /// own app: the app had closed the connection before, and all bytes after that were refused and
    /// unacknowledged.
    pub async fn took_nothing(&self) -> bool {
        let before = self.watched.as_ref().and_then(Watched::acknowledged);
        if before.is_none() {
            return false;
        }
        for wait in TELLING {
            if !wait.is_zero() {
                sleep(wait).await;
            }
            match self.tcp_info() {
                Some(info) if info.acknowledged == before && info.is_over() => return true,
                Some(info) if info.acknowledged == before => {}
                _ => return false,
            }
        }
        false
    }

    fn tcp_info(&self) -> Option<TcpInfo> {
        TcpInfo::of(self.connection.io.tcp()?)
    }

    /// `fits`: whether the data sent from now on fits into any receiver's buffer: if a sidecar's
    /// kernel does not acknowledge that, the pod is out of reach. More data may wait for its
    /// reader.
    pub fn expect_acknowledgement(&mut self, limits: &Limits, fits: bool) {
        let bounded = self.is_mesh && fits;
        if bounded != self.bounded {
            let bound = bounded.then_some(limits.peer_timeout);
            self.connection.io.await_acknowledgements(bound);
            self.bounded = bounded;
        }
    }
}

/// Opens a stream to a sidecar for HTTP/1 exchanges. It can be put into the HTTP/1 pool.
pub async fn open_stream(
    streams: &Rc<streams::Pool<mux::MuxConnection>>,
    endpoint: &Arc<Endpoint>,
) -> Result<Upstream, Refusal> {
    for _ in 0..MAX_STALE {
        let lease = streams.acquire(endpoint, &Caller::default(), None).await?;
        match lease.connection.open_stream() {
            Some(stream) => {
                let stream = Stream::Multiplexed(stream);
                return Ok(Upstream::new(stream, true, Counted::Leased(lease)));
            }
            None => lease.retire(),
        }
    }
    Err(Refusal::of(Reason::ConnectFailed))
}

impl Counted {
    /// False: the connection must not be used any more.
    fn set_active(&mut self) -> bool {
        *self = match std::mem::replace(self, Self::Nowhere) {
            Self::Own(mut gauge) => {
                gauge.set(PoolState::Active);
                Self::Own(gauge)
            }
            Self::Kept(kept) => kept.lease().map_or(Self::Nowhere, Self::Leased),
            other => other,
        };
        !matches!(self, Self::Nowhere)
    }

    fn set_idle(&mut self) {
        match self {
            Self::Own(gauge) => gauge.set(PoolState::Idle),
            Self::Leased(lease) => *self = Self::Kept(lease.keep()),
            Self::Kept(_) | Self::Nowhere => {}
        }
    }

    fn is_leaving(&self) -> bool {
        matches!(self, Self::Kept(kept) if kept.connection.is_leaving())
    }
}

impl Gauge {
    fn new(metrics: &Metrics, protocol: PoolProtocol) -> Self {
        metrics.pool_connections(protocol, PoolState::Active, 1);
        Self {
            metrics: metrics.clone(),
            protocol,
            state: PoolState::Active,
        }
    }

    fn set(&mut self, state: PoolState) {
        self.metrics.pool_connections(self.protocol, self.state, -1);
        self.metrics.pool_connections(self.protocol, state, 1);
        self.state = state;
    }
}

impl Drop for Gauge {
    fn drop(&mut self) {
        self.metrics.pool_connections(self.protocol, self.state, -1);
    }
}
