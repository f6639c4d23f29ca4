//! Connections to sidecars that carry the HTTP/1 of many clients: the end that opens streams of
//! [`super::mux`].

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Interval, MissedTickBehavior, Sleep, interval, sleep};

use super::count::{MAX_STREAMS, Streams};
use super::mux::{Driver, MuxConnection, Side, Stopped, Stream};
use super::streams::{self, EndpointConnections};
use super::{Caller, Dialer};
use crate::balance::Endpoint;
use crate::identity::Alpn;
use crate::observe::metrics::PoolProtocol;
use crate::observe::reason::Reason;

/// The shortest interval between checks of the clock.
const MIN_TICK: Duration = Duration::from_millis(50);

/// The client's end of a connection, with its timers.
pub struct SidecarDriver {
    driver: Driver<super::Stream>,
    opened: Instant,
    tick: Interval,
    liveness: Liveness,
    pool_idle: Duration,
    pool_age: Duration,
}

impl streams::SharedConnection for MuxConnection {
    type Driver = SidecarDriver;
    const PROTOCOL: PoolProtocol = PoolProtocol::Http1;
    // A protocol upgraded from HTTP/1 holds its stream for as long as it lives.
    const MAX_CONNECTIONS: usize = 256;

    async fn open(
        dialer: &Dialer,
        endpoint: &Endpoint,
        caller: &Caller,
    ) -> Result<(Rc<Self>, SidecarDriver), Reason> {
        let limits = &dialer.limits;
        let stream = dialer
            .connect(endpoint, caller.source(), Alpn::Http1)
            .await
            .map_err(|error| {
                tracing::debug!(
                    %error,
                    address = %endpoint.address,
                    "no connection to an endpoint"
                );
                error.reason
            })?;
        // The peer always reads, whatever happens to its streams: data that its kernel does not
        // acknowledge in time has not arrived.
        stream.await_acknowledgements(Some(limits.peer_timeout));
        let driver = Driver::new(Side::Client, stream);
        let tick = limits.pool_idle.min(limits.pool_age) / 2;
        let mut tick = interval(tick.max(MIN_TICK));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let connection = driver.connection.clone();
        let upstream = SidecarDriver {
            driver,
            opened: Instant::now(),
            tick,
            liveness: Liveness::new(limits.connect_timeout / 4),
            pool_idle: limits.pool_idle,
            pool_age: limits.pool_age,
        };
        Ok((connection, upstream))
    }

    async fn drive(
        self: &Rc<Self>,
        mut upstream: SidecarDriver,
        upstreams: &Rc<EndpointConnections<Self>>,
    ) {
        match poll_fn(|cx| upstream.poll(cx, self, upstreams)).await {
            Stopped::Ended => {}
            Stopped::Unused => upstream.driver.end().await,
        }
    }

    fn streams(&self) -> &Streams {
        &self.exchanges
    }

    fn has_room(&self) -> bool {
        !self.is_leaving() && self.exchanges.count() < MAX_STREAMS
    }

    fn stop_accepting(&self) {
        self.leave();
    }
}

impl SidecarDriver {
    /// Ready when the connection has ended, or must be ended.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        connection: &Rc<MuxConnection>,
        upstreams: &Rc<EndpointConnections<MuxConnection>>,
    ) -> Poll<Stopped> {
        let mut refuse = |stream: Stream| drop(stream);
        if self.driver.poll(cx, &mut refuse).is_ready() {
            return Poll::Ready(Stopped::Ended);
        }
        while self.tick.poll_tick(cx).is_ready() {
            let now = Instant::now();
            let unused = connection.is_unused();
            let idle_since = connection.exchanges.idle_since().filter(|_| unused);
            let idle = idle_since.is_some_and(|at| now.duration_since(at) >= self.pool_idle);
            if idle || now.duration_since(self.opened) >= self.pool_age {
                connection.leave();
            }
        }
        if self.liveness.poll_lost(cx, connection, &mut self.driver) {
            tracing::debug!("a peer does not answer: it gets no new streams");
            connection.leave();
        }
        if connection.is_leaving() {
            upstreams.retire(connection);
        }
        match connection.is_finished() {
            true => Poll::Ready(Stopped::Unused),
            false => Poll::Pending,
        }
    }
}

/// Whether the peer is alive while exchanges wait for it. A pod that has vanished refuses nothing,
/// and its streams would be given one request after the other until sent data is overdue
/// ([`crate::config::Limits::peer_timeout`]). A new connection detects this sooner.
struct Liveness {
    timer: Pin<Box<Sleep>>,
    /// Silence before a ping, and how long the pong may take. The peer's proxy sends it,
    /// independently of its app.
    patience: Duration,
    watching: bool,
    asked: bool,
}

impl Liveness {
    fn new(patience: Duration) -> Self {
        Self {
            timer: Box::pin(sleep(patience)),
            patience,
            watching: false,
            asked: false,
        }
    }

    /// True: the peer has not answered a ping in time.
    fn poll_lost<S>(
        &mut self,
        cx: &mut Context<'_>,
        connection: &MuxConnection,
        driver: &mut Driver<S>,
    ) -> bool {
        if connection.is_leaving() || connection.exchanges.count() == 0 {
            self.watching = false;
            return false;
        }
        if !std::mem::replace(&mut self.watching, true) {
            self.restart(driver);
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            if self.asked && !driver.received_bytes {
                return true;
            }
            let quiet = !driver.received_bytes;
            self.restart(driver);
            if quiet {
                self.asked = true;
                connection.ping();
            }
        }
        false
    }

    fn restart<S>(&mut self, driver: &mut Driver<S>) {
        driver.received_bytes = false;
        self.asked = false;
        self.timer.as_mut().reset(Instant::now() + self.patience);
    }
}
