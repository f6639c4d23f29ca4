//! A downstream connection: accepts its streams and starts a task for each, until the client
//! disconnects, the proxy shuts down, or the connection has been idle for too long.

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::server::Connection;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::coop::has_budget_remaining;
use tokio::time::{Instant, Sleep, sleep, timeout};

use super::downstream::Downstream;
use super::head::HEAD_ROOM;
use super::meter::{Meter, Metered};
use super::{MAX_ERROR_RESETS, MAX_PENDING_RESETS, STRANGER_WINDOW, request};
use crate::session::Session;
use crate::session::validity::Validity;
use crate::socket::Direction;
use crate::upstream::http2::paced::{Paced, Turn};
use crate::upstream::http2::{
    CONNECTION_WINDOW, MAX_FRAME, MAX_RESET_STREAMS, MAX_SEND_BUFFER, RESET_STREAM_MEMORY,
    SMALL_FRAMES, STREAM_WINDOW,
};

/// How long a client may take to disconnect after a GOAWAY and its last stream.
const HANG_UP: Duration = Duration::from_secs(10);

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
    let downstream = Rc::new(Downstream::new(session, turn.clone(), meter));
    accept_streams(&downstream, connection, &turn).await;
    let caller = downstream.caller();
    if caller.login.is_some() {
        downstream.session.worker.http2_pool.leave(&caller);
    }
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

/// Events of the connection's task other than streams.
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
    // The app's own connections are exempt: it may need them to finish.
    let mut draining = pin!(async {
        match downstream.session.direction() {
            Direction::Inbound => worker.drain.started().await,
            Direction::Outbound => std::future::pending().await,
        }
    });
    let mut timer = pin!(sleep(keep_alive_idle));
    // A timer that has been polled once wakes this task, and is polled again only then: polling it
    // each turn would cost as much as a request's metrics.
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
                            begin(downstream, request, respond);
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
            // Without coop budget no waker was registered.
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

/// Minimum between two checks of the clock, so that a stopped clock never causes a busy loop.
const MIN_TIMER: Duration = Duration::from_millis(10);

fn rearm(timer: std::pin::Pin<&mut Sleep>, after: Duration) {
    timer.reset(Instant::now() + after);
}

/// Starts the task of a stream.
fn begin(
    downstream: &Rc<Downstream>,
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
) {
    downstream.meter.accepted();
    // h2 counts a stream until it is closed, and its task may outlive that by a turn.
    let limit = downstream
        .session
        .worker
        .config
        .limits
        .max_concurrent_streams;
    if downstream.live.get() >= limit.saturating_mul(2) {
        respond.send_reset(h2::Reason::REFUSED_STREAM);
        return;
    }
    let admission = downstream.admit(request.headers());
    downstream.live.set(downstream.live.get() + 1);
    let downstream = downstream.clone();
    // Boxed: tokio copies a task's future four times over its life.
    tokio::task::spawn_local(Box::pin(async move {
        let ended = request::run(&downstream, request, respond, admission).await;
        downstream.live.set(downstream.live.get() - 1);
        downstream.active.set(ended);
    }));
}
