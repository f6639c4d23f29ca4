//! The idle upstream connections of one worker, by endpoint, of a protocol in which a connection carries one thing at a time: HTTP/1,
//! and opaque TCP between sidecars. The one that was used last is used first, so that those which are not needed grow old and end.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::buffered::Buffered;
use crate::identity::Alpn;
use crate::metrics::{Metrics, PoolProtocol, PoolState};
use crate::mux;
use crate::reason::Reason;
use crate::table::{Endpoint, Peer};
use crate::upstream::streams::{Kept, Lease, Refusal};
use crate::upstream::{self, Caller, ConnectError, Stream};
use crate::worker::Worker;

/// How often idle connections are looked through for those that are over.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// How long a connection to an app may be idle: below the 5 s that Node.js and others give a client (an app that closes as a
/// request arrives costs that request).
const APP_IDLE: Duration = Duration::from_secs(4);
/// The same for a request that must not be sent twice: no server in use closes so soon.
const APP_IDLE_UNSAFE: Duration = Duration::from_secs(1);
/// How many connections that turn out to take no more streams are passed over in one attempt.
const MAX_STALE: usize = 4;

/// Idle upstream connections of one worker.
pub struct Pool {
    protocol: PoolProtocol,
    /// Where a worker has this pool.
    of: fn(&Worker) -> &Pool,
    idle: RefCell<HashMap<u64, Vec<Idle>>>,
    count: Cell<usize>,
    sweeping: Cell<bool>,
}

struct Idle {
    upstream: Upstream,
    since: Instant,
}

/// One upstream connection, while it carries an exchange or an app's connection. HTTP/1 to a sidecar has a stream of a shared one.
pub struct Upstream {
    pub connection: Buffered<Stream>,
    /// It has carried an exchange before.
    pub reused: bool,
    /// The other end is a sidecar that has proved who it is.
    pub is_mesh: bool,
    /// A login holds for it ([`crate::login`]): it is of one client, and no pool takes it.
    pub is_bound: bool,
    opened: Instant,
    /// What is sent has to be acknowledged in time.
    bounded: bool,
    counted: Counted,
}

/// What counts an upstream connection, and bounds how many there are.
enum Counted {
    /// A connection of its own.
    Own(Gauge),
    Leased(Lease<mux::Connection>),
    Kept(Kept<mux::Connection>),
    Nowhere,
}

/// Counts a connection in `naru_pool_connections` for as long as it lives.
struct Gauge {
    metrics: Metrics,
    protocol: PoolProtocol,
    state: PoolState,
}

impl Pool {
    /// `of`: where a worker has this pool.
    pub fn new(protocol: PoolProtocol, of: fn(&Worker) -> &Self) -> Self {
        Self {
            protocol,
            of,
            idle: RefCell::default(),
            count: Cell::default(),
            sweeping: Cell::default(),
        }
    }

    /// Opens a connection to `endpoint`, which can be put here.
    pub async fn connect(
        &self,
        worker: &Worker,
        endpoint: &Endpoint,
    ) -> Result<Upstream, ConnectError> {
        let alpn = match self.protocol {
            PoolProtocol::Http1 => Alpn::Http1,
            PoolProtocol::Http2 => Alpn::Http2,
            PoolProtocol::Tcp => Alpn::Tcp,
        };
        let stream = upstream::connect(worker, endpoint, alpn).await?;
        let gauge = Gauge::new(&worker.metrics, self.protocol);
        let is_mesh = matches!(endpoint.peer, Peer::Mesh(_));
        Ok(Upstream::new(stream, is_mesh, Counted::Own(gauge)))
    }

    /// An idle connection to `endpoint` that is still open. `idempotent`: a request whose connection turns out to be closed may be
    /// sent again.
    pub fn take(&self, worker: &Worker, endpoint: &Endpoint, idempotent: bool) -> Option<Upstream> {
        let mut idle = self.idle.borrow_mut();
        let connections = idle.get_mut(&endpoint.id)?;
        let now = Instant::now();
        let mut found = None;
        while let Some(mut last) = connections.pop() {
            self.count.set(self.count.get() - 1);
            if last.is_over(worker, now) || !last.upstream.connection.is_quiet() {
                continue;
            }
            if !idempotent && !last.upstream.is_mesh && last.idle(now) > APP_IDLE_UNSAFE {
                // Good enough for others. Those below it have been idle for longer still.
                self.count.set(self.count.get() + 1);
                connections.push(last);
                break;
            }
            last.upstream.reused = true;
            if last.upstream.counted.set_active() {
                found = Some(last.upstream);
                break;
            }
        }
        if connections.is_empty() {
            idle.remove(&endpoint.id);
        }
        found
    }

    /// Takes back a connection whose exchange is complete in both directions.
    pub fn put(&self, worker: &Rc<Worker>, endpoint: &Endpoint, mut upstream: Upstream) {
        let limits = &worker.config.limits;
        let now = Instant::now();
        let too_old = now.duration_since(upstream.opened) >= limits.pool_age;
        let unfit = too_old || upstream.is_bound;
        if unfit || !upstream.connection.read.is_empty() || self.count.get() >= limits.max_idle {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        let connections = idle.entry(endpoint.id).or_default();
        if connections.len() >= limits.max_idle_per_endpoint {
            return;
        }
        upstream.connection.shrink();
        upstream.counted.set_idle();
        connections.push(Idle {
            upstream,
            since: now,
        });
        self.count.set(self.count.get() + 1);
        drop(idle);
        if !self.sweeping.replace(true) {
            tokio::task::spawn_local(sweep(Rc::downgrade(worker), self.of));
        }
    }

    /// Ends what is idle to an endpoint that is out of reach.
    pub fn forget(&self, endpoint: u64) {
        if let Some(connections) = self.idle.borrow_mut().remove(&endpoint) {
            self.count.set(self.count.get() - connections.len());
        }
    }

    /// Ends what is over. False: nothing is left.
    fn sweep(&self, worker: &Worker) -> bool {
        let now = Instant::now();
        let mut left = 0;
        self.idle.borrow_mut().retain(|_, connections| {
            connections.retain_mut(|idle| {
                !idle.is_over(worker, now) && idle.upstream.connection.is_quiet()
            });
            left += connections.len();
            !connections.is_empty()
        });
        self.count.set(left);
        self.sweeping.set(left > 0);
        left > 0
    }
}

/// Runs while there is anything to look through.
async fn sweep(worker: Weak<Worker>, of: fn(&Worker) -> &Pool) {
    loop {
        sleep(SWEEP_EVERY).await;
        let Some(worker) = worker.upgrade() else {
            return;
        };
        if !of(&worker).sweep(&worker) {
            return;
        }
    }
}

impl Idle {
    fn idle(&self, now: Instant) -> Duration {
        now.duration_since(self.since)
    }

    fn is_over(&self, worker: &Worker, now: Instant) -> bool {
        let limits = &worker.config.limits;
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
            bounded: false,
            counted,
        }
    }

    /// Whether what is sent from now on fits into any receiver's buffer: if a sidecar's kernel does not acknowledge that, the pod is
    /// out of reach. More than that may wait for its reader.
    pub fn expect_acknowledgement(&mut self, worker: &Worker, fits: bool) {
        let bounded = self.is_mesh && fits;
        if bounded != self.bounded {
            let bound = bounded.then_some(worker.config.limits.peer_timeout);
            self.connection.io.await_acknowledgements(bound);
            self.bounded = bounded;
        }
    }
}

/// Opens a stream to a sidecar, for HTTP/1 exchanges, which can be put into the pool for these.
pub async fn open_stream(
    worker: &Rc<Worker>,
    endpoint: &Arc<Endpoint>,
) -> Result<Upstream, Refusal> {
    for _ in 0..MAX_STALE {
        let lease = worker
            .http1_streams
            .acquire(worker, endpoint, Caller::default())
            .await?;
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
    /// False: the connection is not to be used any more.
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
