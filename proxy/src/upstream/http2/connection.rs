//! One upstream connection: opened, kept alive, aged and ended. One task drives its frames and its
//! timers.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Ping, PingPong};
use tokio::task::coop::has_budget_remaining;
use tokio::time::{Instant, Sleep, sleep, timeout_at};

use super::paced::{Paced, Turn};
use super::{
    CONNECTION_WINDOW, MAX_FRAME, MAX_RESET_STREAMS, MAX_SEND_BUFFER, RESET_STREAM_MEMORY,
    SMALL_FRAMES, SMALL_WINDOW, STREAM_WINDOW,
};
use crate::balance::{Endpoint, Peer};
use crate::identity::Alpn;
use crate::memory::Budget;
use crate::observe::metrics::PoolProtocol;
use crate::observe::reason::Reason;
use crate::upstream::count::{MAX_STREAMS, Streams};
use crate::upstream::streams::{self, EndpointConnections};
use crate::upstream::{Caller, Dialer, Stream};

/// The shortest interval between checks of the clock.
const MIN_TICK: Duration = Duration::from_millis(50);

/// The part of a connection that its streams see.
pub struct Http2Connection {
    /// `None`: no new streams. The connection ends in order once all handles are dropped and all
    /// streams have ended.
    sender: RefCell<Option<SendRequest<Bytes>>>,
    streams: Streams,
}

/// The frames of a connection, and its timers.
pub struct Driver {
    frames: h2::client::Connection<Paced<Stream>, Bytes>,
    turn: Turn,
    memory: Budget,
    /// The peer is given small windows, since memory is short.
    is_short: bool,
    /// The endpoint has no sidecar.
    is_apps: bool,
    ping: Option<PingPong>,
    asked: Option<Instant>,
    last_asked: Instant,
    opened: Instant,
    /// How many streams the peer allows, as last seen.
    limit: usize,
    /// The next check of the clock.
    tick: Pin<Box<Sleep>>,
    tick_every: Duration,
    /// `tick` has been polled: it wakes the task.
    is_armed: bool,
    /// The interval between pings.
    ping_every: Duration,
    /// How long the answer to a ping may take, however much the peer is sending.
    ping_patience: Duration,
    pool_idle: Duration,
    pool_age: Duration,
}

/// Connects to `endpoint`, and waits for its SETTINGS: they limit the number of streams, and
/// confirm HTTP/2 before a request is sent.
async fn open(
    dialer: &Dialer,
    endpoint: &Endpoint,
    caller: &Caller,
) -> Result<(Rc<Http2Connection>, Driver), Reason> {
    let limits = &dialer.limits;
    let deadline = Instant::now() + dialer.patience(endpoint);
    let stream = dialer
        .connect(endpoint, caller.source(), Alpn::Http2)
        .await
        .map_err(|error| {
            tracing::debug!(%error, address = %endpoint.address, "no connection to an endpoint");
            error.reason
        })?;
    let turn = Turn::new();
    let handshake =
        settings(limits.max_header_bytes).handshake::<_, Bytes>(Paced::new(stream, &turn));
    let greeted = async {
        let (sender, mut frames) = handshake.await?;
        greeting(&mut frames, &turn).await?;
        Ok::<_, h2::Error>((sender, frames))
    };
    let (sender, mut frames) = match timeout_at(deadline, greeted).await {
        Ok(Ok(parts)) => parts,
        Ok(Err(error)) => {
            tracing::debug!(%error, address = %endpoint.address, "HTTP/2 handshake failed");
            return Err(match error.is_io() {
                true => Reason::ConnectFailed,
                // The server at this address speaks another protocol.
                false => Reason::UpstreamProtocolError,
            });
        }
        Err(_) => return Err(Reason::ConnectTimeout),
    };
    let ping = matches!(endpoint.peer, Peer::Mesh(_))
        .then(|| frames.ping_pong())
        .flatten();
    let now = Instant::now();
    // Only sidecars get pings: other servers (gRPC's among them) close the connections of clients
    // that ping more often than every five minutes.
    let ping_every = limits.peer_timeout / 2;
    let tick_every = ping_every
        .min(limits.pool_idle / 2)
        .min(limits.pool_age / 2)
        .max(MIN_TICK);
    let connection = Rc::new(Http2Connection {
        sender: RefCell::new(Some(sender)),
        streams: Streams::default(),
    });
    let driver = Driver {
        frames,
        turn,
        memory: dialer.memory.clone(),
        is_short: false,
        is_apps: !matches!(endpoint.peer, Peer::Mesh(_)),
        ping,
        asked: None,
        last_asked: now,
        opened: now,
        limit: 0,
        tick: Box::pin(sleep(tick_every)),
        tick_every,
        is_armed: false,
        ping_every,
        ping_patience: limits.peer_timeout,
        pool_idle: limits.pool_idle,
        pool_age: limits.pool_age,
    };
    Ok((connection, driver))
}

/// Waits for the peer's SETTINGS.
async fn greeting(
    frames: &mut h2::client::Connection<Paced<Stream>, Bytes>,
    turn: &Turn,
) -> Result<(), h2::Error> {
    poll_fn(|cx| {
        turn.begin();
        if let Poll::Ready(end) = Pin::new(&mut *frames).poll(cx) {
            return Poll::Ready(end.and(Err(h2::Reason::NO_ERROR.into())));
        }
        match frames.max_concurrent_send_streams() {
            0 => Poll::Pending,
            _ => Poll::Ready(Ok(())),
        }
    })
    .await
}

fn settings(max_header_bytes: usize) -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_header_list_size(u32::try_from(max_header_bytes).unwrap_or(u32::MAX))
        .max_send_buffer_size(MAX_SEND_BUFFER)
        // Until the peer's SETTINGS announce the limit.
        .initial_max_send_streams(0)
        .max_concurrent_reset_streams(MAX_RESET_STREAMS)
        .reset_stream_duration(RESET_STREAM_MEMORY)
        // Each costs only one of the streams that the proxy has opened.
        .max_local_error_reset_streams(None)
        .data_frame_budget(SMALL_FRAMES)
        .enable_push(false);
    builder
}

impl Http2Connection {
    /// A handle for one request.
    pub fn sender(&self) -> Option<SendRequest<Bytes>> {
        self.sender.borrow().clone()
    }
}

impl streams::SharedConnection for Http2Connection {
    type Driver = Driver;
    const PROTOCOL: PoolProtocol = PoolProtocol::Http2;
    const MAX_CONNECTIONS: usize = 32;

    async fn open(
        dialer: &Dialer,
        endpoint: &Endpoint,
        caller: &Caller,
    ) -> Result<(Rc<Self>, Self::Driver), Reason> {
        open(dialer, endpoint, caller).await
    }

    async fn drive(self: &Rc<Self>, mut driver: Driver, upstreams: &Rc<EndpointConnections<Self>>) {
        poll_fn(|cx| driver.poll(cx, self, upstreams)).await;
    }

    fn streams(&self) -> &Streams {
        &self.streams
    }

    fn has_room(&self) -> bool {
        let streams = self.streams.count();
        streams < MAX_STREAMS
            && self
                .sender
                .borrow()
                .as_ref()
                .is_some_and(|sender| streams < sender.current_max_send_streams())
    }

    fn stop_accepting(&self) {
        self.sender.borrow_mut().take();
    }
}

impl Driver {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        connection: &Rc<Http2Connection>,
        upstreams: &Rc<EndpointConnections<Http2Connection>>,
    ) -> Poll<()> {
        self.adapt_windows();
        self.turn.begin();
        if let Poll::Ready(end) = Pin::new(&mut self.frames).poll(cx) {
            if let Err(error) = end {
                tracing::debug!(%error, "an upstream HTTP/2 connection broke");
                if self.is_apps && error.is_go_away() && error.is_library() {
                    upstreams.offended();
                }
            }
            return Poll::Ready(());
        }
        let limit = self.frames.max_concurrent_send_streams();
        if limit != self.limit {
            self.limit = limit;
            upstreams.learn_limit(limit);
        }
        if let Some(ping) = &mut self.ping
            && let Poll::Ready(answer) = ping.poll_pong(cx)
        {
            match answer {
                Ok(_) => self.asked = None,
                Err(_) => self.ping = None,
            }
        }
        while self.is_due(cx) {
            let now = Instant::now();
            self.tick.as_mut().reset(now + self.tick_every);
            if self.is_mute(now) {
                tracing::debug!("an upstream HTTP/2 connection no longer answers");
                return Poll::Ready(());
            }
            let idle_since = connection.streams.idle_since();
            let idle = idle_since.is_some_and(|at| now.duration_since(at) >= self.pool_idle);
            if idle || now.duration_since(self.opened) >= self.pool_age {
                upstreams.retire(connection);
                // Poll the frames once more, so that h2 sends a GOAWAY.
                cx.waker().wake_by_ref();
            }
        }
        Poll::Pending
    }

    /// Whether the timers must be checked. A timer that has been polled once wakes the task, and is
    /// polled again only then.
    fn is_due(&mut self, cx: &mut Context<'_>) -> bool {
        if self.is_armed && !self.tick.is_elapsed() {
            return false;
        }
        let due = self.tick.as_mut().poll(cx).is_ready();
        // Without coop budget no waker was registered.
        self.is_armed = !due && has_budget_remaining();
        due
    }

    /// Reduces how much the peer may send ahead of its readers while memory is short.
    fn adapt_windows(&mut self) {
        let (changes, window) = match self.is_short {
            false => (self.memory.is_tight(), SMALL_WINDOW),
            true => (self.memory.is_calm(), STREAM_WINDOW),
        };
        // Fails while the peer has not acknowledged the last change: the next turn tries again.
        if changes && self.frames.set_initial_window_size(window).is_ok() {
            self.is_short = !self.is_short;
        }
    }

    /// Whether the answer to the last ping is overdue. Sends the next ping when it is due.
    fn is_mute(&mut self, now: Instant) -> bool {
        if let Some(asked) = self.asked {
            return now.duration_since(asked) >= self.ping_patience;
        }
        if let Some(ping) = &mut self.ping
            && now.duration_since(self.last_asked) >= self.ping_every
            && ping.send_ping(Ping::opaque()).is_ok()
        {
            self.asked = Some(now);
            self.last_asked = now;
        }
        false
    }
}
