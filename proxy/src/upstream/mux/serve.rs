//! The two ends of a connection: the one that serves its streams, and the one that opens them.

use std::cell::Cell;
use std::future::poll_fn;
use std::io::ErrorKind;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Interval, MissedTickBehavior, Sleep, interval, sleep, timeout};

use super::MAX_OPEN;
use super::connection::{Connection, Over, Side};
use super::driver::Driver;
use super::stream::Stream;
use crate::balance::Endpoint;
use crate::http::http1;
use crate::identity::Alpn;
use crate::observe::metrics::PoolProtocol;
use crate::observe::reason::Reason;
use crate::session::Session;
use crate::session::validity::Validity;
use crate::session::worker::Worker;
use crate::upstream;
use crate::upstream::Caller;
use crate::upstream::streams::{self, MAX_STREAMS, Pool, Streams, Upstreams};

/// How long the end of a connection may take.
const LINGER: Duration = Duration::from_secs(2);
/// How long a connection that came late is waited on for its first stream, when the proxy shuts down.
const FIRST_REQUEST: Duration = Duration::from_secs(1);
/// How often the clock is looked at, at most.
const MIN_TICK: Duration = Duration::from_millis(50);

/// Serves the streams of a peer's connection until it ends: HTTP/1.1 on each of them.
pub async fn serve<S>(session: Session, downstream: S)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let worker = session.worker.clone();
    let mut driver = Driver::new(Side::Server, downstream);
    let connection = driver.connection.clone();
    let live = Rc::new(Cell::new(0));
    let leaving = connection.clone();
    let mut accept = |stream: Stream| {
        // A task may outlive its stream while its app takes nothing.
        if live.get() >= 2 * MAX_OPEN {
            leaving.leave();
            return stream.refuse();
        }
        let (session, live) = (session.clone(), Live::new(&live));
        tokio::task::spawn_local(async move {
            // What is left of a stream is broken off as it is dropped.
            drop(http1::serve(session, stream).await);
            drop(live);
        });
    };
    // A peer that has just come has its first request on the way.
    let mut draining = pin!(async {
        worker.drain.started().await;
        sleep(FIRST_REQUEST).await;
    });
    let idle = worker.config.limits.keep_alive_idle;
    let mut timer = pin!(sleep(idle));
    let mut was_used = false;
    let over = poll_fn(|cx| {
        if driver.poll(cx, &mut accept).is_ready() {
            return Poll::Ready(true);
        }
        let validity = session.poll_validity(cx);
        if !connection.is_leaving() {
            let drained = draining.as_mut().poll(cx).is_ready();
            if drained
                || validity != Validity::Valid
                || worker.drain.is_draining() && connection.was_used()
            {
                connection.leave();
            }
        }
        if !connection.is_unused() {
            was_used = true;
        } else if std::mem::take(&mut was_used) {
            timer.as_mut().reset(Instant::now() + idle);
        }
        if connection.is_unused() && timer.as_mut().poll(cx).is_ready() {
            connection.leave();
        }
        if validity == Validity::Overdue {
            let in_order = connection.is_unused();
            if !in_order {
                // What is under way may have reached the app: an end in order would say the
                // opposite, and have it sent again.
                connection.finish(Over::Broken(ErrorKind::TimedOut));
            }
            return Poll::Ready(!in_order);
        }
        match connection.is_finished() {
            true => Poll::Ready(false),
            false => Poll::Pending,
        }
    });
    if !over.await {
        end(driver).await;
    }
}

/// Counts a stream's task.
struct Live(Rc<Cell<usize>>);

impl Live {
    fn new(live: &Rc<Cell<usize>>) -> Self {
        live.set(live.get() + 1);
        Self(live.clone())
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Ends a connection so that the peer sees that it was ended, and not broken.
async fn end<S: AsyncRead + AsyncWrite + Unpin>(mut driver: Driver<S>) {
    let ending = async {
        poll_fn(|cx| driver.poll_shutdown(cx)).await?;
        poll_fn(|cx| driver.poll_drained(cx)).await;
        Ok::<_, std::io::Error>(())
    };
    let ended = timeout(LINGER, ending).await;
    // For streams that were about to be opened.
    driver.connection.finish(match ended {
        Ok(Ok(())) => Over::InOrder,
        Ok(Err(error)) => Over::Broken(error.kind()),
        Err(_) => Over::Broken(std::io::ErrorKind::TimedOut),
    });
}

/// The client's end of a connection, and the times at which something is due.
pub struct Upstream {
    driver: Driver<upstream::Stream>,
    opened: Instant,
    tick: Interval,
    liveness: Liveness,
    pool_idle: Duration,
    pool_age: Duration,
}

impl streams::Connection for Connection {
    type Driver = Upstream;
    const PROTOCOL: PoolProtocol = PoolProtocol::Http1;
    // What HTTP/1 upgrades to holds a stream for as long as it lives.
    const MAX_CONNECTIONS: usize = 256;

    async fn open(
        worker: &Worker,
        endpoint: &Endpoint,
        caller: &Caller,
    ) -> Result<(Rc<Self>, Upstream), Reason> {
        let limits = &worker.config.limits;
        let stream = upstream::connect(worker, endpoint, caller.source(), Alpn::Http1)
            .await
            .map_err(|error| {
                tracing::debug!(%error, address = %endpoint.address, "no connection to an endpoint");
                error.reason
            })?;
        // The peer always reads, whatever becomes of its streams: what its kernel does not acknowledge in time has not arrived.
        stream.await_acknowledgements(Some(limits.peer_timeout));
        let driver = Driver::new(Side::Client, stream);
        let tick = limits.pool_idle.min(limits.pool_age) / 2;
        let mut tick = interval(tick.max(MIN_TICK));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let connection = driver.connection.clone();
        let upstream = Upstream {
            driver,
            opened: Instant::now(),
            tick,
            liveness: Liveness::new(limits.connect_timeout / 4),
            pool_idle: limits.pool_idle,
            pool_age: limits.pool_age,
        };
        Ok((connection, upstream))
    }

    async fn drive(self: &Rc<Self>, mut upstream: Upstream, upstreams: &Rc<Upstreams<Self>>) {
        let over = poll_fn(|cx| upstream.poll(cx, self, upstreams)).await;
        if !over {
            end(upstream.driver).await;
        }
    }

    fn pool(worker: &Worker) -> &Pool<Self> {
        &worker.http1_streams
    }

    fn streams(&self) -> &Streams {
        &self.exchanges
    }

    fn has_room(&self) -> bool {
        !self.is_leaving() && self.exchanges.count() < MAX_STREAMS
    }

    fn take_no_more(&self) {
        self.leave();
    }
}

impl Upstream {
    /// Ready when the connection has ended (true), or is to be.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        connection: &Rc<Connection>,
        upstreams: &Rc<Upstreams<Connection>>,
    ) -> Poll<bool> {
        let mut refuse = |stream: Stream| drop(stream);
        if self.driver.poll(cx, &mut refuse).is_ready() {
            return Poll::Ready(true);
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
            true => Poll::Ready(false),
            false => Poll::Pending,
        }
    }
}

/// Whether the peer is there, while exchanges wait for it. A pod that has vanished refuses nothing, and its streams would be given one
/// request after the other until what was sent is overdue ([`crate::config::Limits::peer_timeout`]). A new connection finds out sooner.
struct Liveness {
    timer: Pin<Box<Sleep>>,
    /// Silence before the peer is asked, and how long its answer may take. It is its proxy that answers, not its app.
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

    /// True: the peer was asked, and has not answered in time.
    fn poll_lost<S>(
        &mut self,
        cx: &mut Context<'_>,
        connection: &Connection,
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
            if self.asked && !driver.heard {
                return true;
            }
            let quiet = !driver.heard;
            self.restart(driver);
            if quiet {
                self.asked = true;
                connection.ping();
            }
        }
        false
    }

    fn restart<S>(&mut self, driver: &mut Driver<S>) {
        driver.heard = false;
        self.asked = false;
        self.timer.as_mut().reset(Instant::now() + self.patience);
    }
}
