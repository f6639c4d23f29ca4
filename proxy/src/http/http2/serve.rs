//! A downstream connection: takes its streams and starts a task for each, until the client goes, the proxy shuts down, or
//! nothing has happened for too long.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::server::Connection;
use http::HeaderMap;
use http::header::{AUTHORIZATION, PROXY_AUTHORIZATION};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::coop::has_budget_remaining;
use tokio::time::{Instant, Sleep, sleep, timeout};

use super::head::HEAD_ROOM;
use super::meter::{Meter, Metered};
use super::{MAX_ERROR_RESETS, MAX_PENDING_RESETS, STRANGER_WINDOW, exchange};
use crate::http::login;
use crate::memory::{self, Charge, Use};
use crate::observe::reason::Reason;
use crate::session::Session;
use crate::session::validity::Validity;
use crate::socket::Direction;
use crate::upstream::Caller;
use crate::upstream::http2::paced::{Paced, Turn};
use crate::upstream::http2::{
    CONNECTION_WINDOW, MAX_FRAME, MAX_RESET_STREAMS, MAX_SEND_BUFFER, RESET_STREAM_MEMORY,
    SMALL_FRAMES, STREAM_WINDOW,
};
use crate::upstream::share::{self, Holder};

/// Streams that a client may give up within [`RAPID`] and before their response, in each
/// [`CALM_WINDOW`]. A client that opens streams to reset them makes us work for nothing
/// (CVE-2023-44487): beyond this its connection is served more slowly. A sidecar's is not: it
/// carries the requests of many, and that sidecar counts for each.
const MAX_RAPID_RESETS: u32 = 2_000;
/// Longer deadlines than this are missed in numbers when a server is slow.
const RAPID: Duration = Duration::from_millis(10);
const CALM_WINDOW: Duration = Duration::from_secs(10);
/// What each such stream beyond the limit costs its connection: a hundred times what it costs us.
const PAUSE: Duration = Duration::from_millis(1);
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// How long a client that was told to go (GOAWAY) and has no stream left may take to hang up.
const HANG_UP: Duration = Duration::from_secs(10);

/// What the streams of one downstream connection share.
pub(super) struct Downstream {
    pub session: Session,
    /// Whose share the streams to endpoints count against.
    pub holder: Rc<Holder>,
    /// Whether the client takes what it is sent.
    pub turn: Turn,
    /// Stream tasks that run.
    live: Cell<u32>,
    /// When a stream last ended.
    active: Cell<Instant>,
    rapid_resets: Cell<u32>,
    /// Those beyond the limit that the connection has not been slowed down for.
    excess: Cell<u32>,
    window_began: Cell<Instant>,
    /// Its own, once its client has logged in on it: see [`Caller`].
    login: Cell<u64>,
    pub meter: Rc<Meter>,
}

/// Serves the streams of one downstream connection until it ends.
pub async fn serve<S>(session: Session, downstream: S)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let limits = &session.worker.config.limits;
    let meter = Meter::new(&session.worker.metrics, session.is_shared());
    let turn = Turn::new();
    let io = Paced::new(Metered::new(downstream, &meter), &turn);
    let handshake = settings(&session).handshake::<_, Bytes>(io);
    let connection = match timeout(limits.header_timeout, handshake).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            tracing::debug!(%error, "HTTP/2 handshake with a client failed");
            return;
        }
        Err(_) => {
            tracing::debug!("a client took too long for its HTTP/2 handshake");
            return;
        }
    };
    let now = Instant::now();
    let downstream = Rc::new(Downstream {
        holder: session.worker.clients.connection(session.client_key()),
        session,
        turn: turn.clone(),
        live: Cell::new(0),
        active: Cell::new(now),
        rapid_resets: Cell::new(0),
        excess: Cell::new(0),
        window_began: Cell::new(now),
        login: Cell::new(0),
        meter,
    });
    accept_streams(&downstream, connection, &turn).await;
    let caller = downstream.caller();
    if caller.login != 0 {
        downstream.session.worker.http2_pool.leave(&caller);
    }
}

/// Whether a request carries credentials that hold for its connection.
pub(super) fn logs_in(headers: &HeaderMap) -> bool {
    [AUTHORIZATION, PROXY_AUTHORIZATION].iter().any(|name| {
        let mut values = headers.get_all(name).iter();
        values.any(|value| login::is_of_connection(value.as_bytes()))
    })
}

fn settings(session: &Session) -> h2::server::Builder {
    let limits = &session.worker.config.limits;
    let connection_window = match session.is_stranger() {
        true => STRANGER_WINDOW,
        false => CONNECTION_WINDOW,
    };
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(connection_window)
        .max_frame_size(MAX_FRAME)
        .max_concurrent_streams(limits.max_concurrent_streams)
        .max_header_list_size(
            u32::try_from(limits.max_header_bytes.saturating_mul(HEAD_ROOM)).unwrap_or(u32::MAX),
        )
        .max_send_buffer_size(MAX_SEND_BUFFER)
        .max_concurrent_reset_streams(MAX_RESET_STREAMS)
        .reset_stream_duration(RESET_STREAM_MEMORY)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(Some(MAX_ERROR_RESETS))
        .enable_connect_protocol();
    if session.is_shared() {
        builder
            .max_local_error_reset_streams(None)
            .data_frame_budget(SMALL_FRAMES);
    }
    builder
}

/// What the connection's task is woken for, other than streams.
enum Event {
    Failed(h2::Error),
    Closed,
    Draining,
    Timer,
}

async fn accept_streams<S>(
    downstream: &Rc<Downstream>,
    mut connection: Connection<Paced<Metered<S>>, Bytes>,
    turn: &Turn,
) where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let worker = downstream.session.worker.clone();
    let keep_alive_idle = worker.config.limits.keep_alive_idle;
    // The app's own connections are left alone: it may need them to finish.
    let mut draining = pin!(async {
        match downstream.session.direction {
            Direction::Inbound => worker.drain.started().await,
            Direction::Outbound => std::future::pending().await,
        }
    });
    let mut timer = pin!(sleep(keep_alive_idle));
    // What has been polled once wakes this task, and is polled again only then: each turn would
    // cost as much as a request's metrics.
    let mut armed = false;
    let mut leaving = false;
    let mut slowed = false;
    let mut slow = pin!(sleep(Duration::ZERO));
    loop {
        let event = poll_fn(|cx| {
            turn.begin();
            if let Some(pause) = downstream.take_pause() {
                slowed = true;
                rearm(slow.as_mut(), pause);
            }
            slowed = slowed && slow.as_mut().poll(cx).is_pending();
            while !slowed && let Poll::Ready(accepted) = connection.poll_accept(cx) {
                match accepted {
                    Some(Ok((request, respond))) => {
                        if downstream.session.is_unwelcome() {
                            tracing::debug!("a client without an identity is refused");
                            connection.abrupt_shutdown(h2::Reason::INADEQUATE_SECURITY);
                        } else {
                            downstream.begin(request, respond);
                        }
                    }
                    Some(Err(error)) => return Poll::Ready(Event::Failed(error)),
                    None => return Poll::Ready(Event::Closed),
                }
            }
            let validity = downstream.session.poll_validity(cx);
            let may_drain = !armed || worker.drain.is_draining();
            let drains = !leaving && may_drain && draining.as_mut().poll(cx).is_ready();
            if drains || !leaving && validity != Validity::Valid {
                return Poll::Ready(Event::Draining);
            }
            if validity == Validity::Overdue {
                return Poll::Ready(Event::Closed);
            }
            if armed && !timer.is_elapsed() {
                return Poll::Pending;
            }
            let fired = timer.as_mut().poll(cx);
            // Without budget nothing was registered.
            armed = has_budget_remaining();
            fired.map(|()| Event::Timer)
        })
        .await;
        armed = false;
        match event {
            Event::Draining => {
                leaving = true;
                connection.graceful_shutdown();
                rearm(timer.as_mut(), HANG_UP);
            }
            Event::Timer => {
                let unused = downstream.live.get() == 0;
                if unused && leaving {
                    return;
                }
                let idle = downstream.active.get().elapsed();
                if unused && idle >= keep_alive_idle {
                    leaving = true;
                    connection.graceful_shutdown();
                }
                let next = match leaving {
                    true => HANG_UP,
                    false => keep_alive_idle.saturating_sub(idle).max(MIN_TIMER),
                };
                rearm(timer.as_mut(), next);
            }
            Event::Failed(error) => {
                tracing::debug!(%error, "a client's HTTP/2 connection broke");
                return;
            }
            Event::Closed => return,
        }
    }
}

/// Between two looks at the clock, so that one that does not advance never spins.
const MIN_TIMER: Duration = Duration::from_millis(10);

fn rearm(timer: std::pin::Pin<&mut Sleep>, after: Duration) {
    timer.reset(Instant::now() + after);
}

impl Downstream {
    /// Starts the task of a stream.
    fn begin(
        self: &Rc<Self>,
        request: http::Request<h2::RecvStream>,
        mut respond: h2::server::SendResponse<Bytes>,
    ) {
        self.meter.accepted();
        // h2 counts a stream until it is closed, and its task may outlive that by a turn.
        let limit = self.session.worker.config.limits.max_concurrent_streams;
        if self.live.get() >= limit.saturating_mul(2) {
            respond.send_reset(h2::Reason::REFUSED_STREAM);
            return;
        }
        let admission = self.admit(request.headers());
        self.live.set(self.live.get() + 1);
        let downstream = self.clone();
        // Boxed: tokio copies what it is given four times over the life of a task.
        tokio::task::spawn_local(Box::pin(async move {
            let ended = exchange::run(&downstream, request, respond, admission).await;
            downstream.live.set(downstream.live.get() - 1);
            downstream.active.set(ended);
        }));
    }

    /// For whom the upstream connections of this one are.
    pub fn caller(&self) -> Caller {
        Caller {
            login: self.login.get(),
            ..self.session.caller()
        }
    }

    /// From now on it shares no upstream connection: its client logs in on its own.
    pub fn bind(&self) {
        if self.login.get() == 0 {
            self.login.set(share::next_id());
        }
    }

    /// Charges a stream, or says why it is refused.
    fn admit(&self, head: &HeaderMap) -> Result<Charge, Reason> {
        let memory = &self.session.worker.memory;
        let charge = memory.charge(Use::Stream, memory::of_stream(head));
        charge.ok_or(Reason::Overload)
    }

    /// The client has given up a stream before its response.
    pub fn given_up(&self, began: Instant) {
        let now = Instant::now();
        if now.duration_since(began) >= RAPID || self.session.is_shared() {
            return;
        }
        if now.duration_since(self.window_began.get()) >= CALM_WINDOW {
            self.window_began.set(now);
            self.rapid_resets.set(0);
        }
        self.rapid_resets
            .set(self.rapid_resets.get().saturating_add(1));
        if self.rapid_resets.get() > MAX_RAPID_RESETS {
            self.excess.set(self.excess.get() + 1);
        }
    }

    /// How long the connection is to wait before anything more is read from it.
    fn take_pause(&self) -> Option<Duration> {
        let excess = self.excess.take();
        if excess == 0 {
            return None;
        }
        tracing::debug!(excess, "a client opens streams only to reset them");
        self.session.worker.metrics.http2_slowed();
        Some((PAUSE * excess).min(MAX_PAUSE))
    }
}
