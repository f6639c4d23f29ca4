//! A peer's connection: opens a connection to the app for each one that the peer's app opens, one
//! after the other.
//!
//! Every accepted OPEN is answered, by a frame or by a reset: for the peer, an orderly close before
//! the answer proves that nothing was accepted.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::Buf;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep};

use super::connect_app;
use super::frame::{FrameError, HEADER, Kind};
use super::framed::{Framed, FramedError};
use crate::observe::reason::Reason;
use crate::route::{Logical, Protocol};
use crate::session::Session;
use crate::session::validity::Validity;
use crate::table::Destination;
use crate::wire::buffered::{Buffered, LINGER, PASS_SIZE};
use crate::wire::closing::Closing;
use crate::wire::pipe::{Pipe, pipe};

/// Why no other OPEN follows.
enum NoOpen {
    /// The peer has closed the connection, or it broke while it was idle.
    Gone,
    /// It has been idle for too long, or the proxy shuts down.
    Unwanted,
    OutOfPlace(FrameError),
}

/// Serves the peer's connection until it ends. `serve_http` carries a connection to a port that is
/// declared as HTTP.
pub async fn serve_peer<S, F>(
    session: &Session,
    io: S,
    serve_http: impl Fn(Session, Pipe) -> F,
) -> Closing<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = ()> + 'static,
{
    let drain = session.worker.drain.clone();
    let limits = &session.worker.config.limits;
    let mut peer = Buffered::new(io);
    // A peer opens a connection for an OPEN that follows at once, which is served even during a
    // shutdown. After that the connection may be idle for longer than any peer keeps it in its
    // pool.
    let mut is_new = true;
    let mut timer = pin!(sleep(limits.handshake_timeout));
    let mut leaving = pin!(drain.started());
    loop {
        let next = poll_fn(|cx| {
            let opened = poll_open(cx, &mut peer);
            let unwanted = opened.is_pending()
                && (!is_new && leaving.as_mut().poll(cx).is_ready()
                    || session.poll_validity(cx) != Validity::Valid
                    || timer.as_mut().poll(cx).is_ready());
            match unwanted {
                true => Poll::Ready(Err(NoOpen::Unwanted)),
                false => opened,
            }
        });
        match next.await {
            Ok(()) => {}
            Err(NoOpen::Gone) => return Closing::Done,
            Err(NoOpen::Unwanted) => {
                peer.close().await;
                return Closing::Done;
            }
            Err(NoOpen::OutOfPlace(error)) => {
                tracing::debug!(%error, "a peer's connection is broken off");
                return Closing::Reset(peer.io);
            }
        }
        let destination = session.destination.load().clone();
        let Destination::Logical(logical) = &*destination else {
            return Closing::Reset(peer.io);
        };
        let next = match logical.protocol {
            Protocol::Http | Protocol::Http2 => carry_http(session, &mut peer, &serve_http).await,
            Protocol::Detect | Protocol::Tcp => carry(session, logical, &mut peer).await,
        };
        match next {
            Next::Open => {}
            Next::End => {
                peer.close().await;
                return Closing::Done;
            }
            Next::Break => return Closing::Reset(peer.io),
        }
        peer.shrink();
        is_new = false;
        timer
            .as_mut()
            .reset(Instant::now() + limits.keep_alive_idle);
    }
}

/// What happens to a peer's connection after one app connection on it.
enum Next {
    Open,
    /// The rest of the app's connection is not waited for. Another OPEN behind it is sent again by
    /// the peer.
    End,
    Break,
}

impl Next {
    /// After the app's connection has been reset, or could not be opened.
    async fn after_reset<S>(mut framed: Framed, peer: &mut Buffered<S>) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        match framed.is_reusable_after_reset(peer).await {
            true => Self::Open,
            false if framed.has_reset() => Self::End,
            false => Self::Break,
        }
    }
}

/// Waits for an OPEN.
fn poll_open<S>(cx: &mut Context<'_>, peer: &mut Buffered<S>) -> Poll<Result<(), NoOpen>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        if let Some(header) = peer.read.first_chunk::<HEADER>() {
            let kind = Kind::parse(*header);
            peer.read.advance(HEADER);
            return Poll::Ready(match kind {
                Ok(Kind::Open) => Ok(()),
                Ok(kind) => Err(NoOpen::OutOfPlace(FrameError::OutOfPlace(kind))),
                Err(error) => Err(NoOpen::OutOfPlace(error)),
            });
        }
        match ready!(peer.poll_fill(cx)) {
            Ok(0) | Err(_) => return Poll::Ready(Err(NoOpen::Gone)),
            Ok(_) => {}
        }
    }
}

/// Carries one connection of the peer's app to the HTTP server.
async fn carry_http<S, F>(
    session: &Session,
    peer: &mut Buffered<S>,
    serve_http: &impl Fn(Session, Pipe) -> F,
) -> Next
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = ()> + 'static,
{
    let _busy = session.worker.drain.busy();
    let mut framed = Framed::opened();
    let (near, far) = pipe(PASS_SIZE);
    let mut near = Buffered::new(near);
    // A task of its own, as for a connection that was accepted: it sees the end, and counts it.
    let mut serving = spawn_local(serve_http(session.clone(), far));
    let mut leaving = None;
    let ended = poll_fn(|cx| {
        let ended = framed.poll(cx, &mut near, peer);
        if ended.is_ready() {
            return ended;
        }
        if leaving.is_none() && Pin::new(&mut serving).poll(cx).is_ready() {
            leaving = Some(Box::pin(sleep(LINGER)));
        }
        let is_late = leaving
            .as_mut()
            .is_some_and(|timer| timer.as_mut().poll(cx).is_ready());
        match is_late || session.poll_validity(cx) == Validity::Overdue {
            true => Poll::Ready(Err(FramedError::Peer(io::ErrorKind::TimedOut.into()))),
            false => Poll::Pending,
        }
    });
    let ended = ended.await;
    match &ended {
        Ok(()) => drop(near),
        Err(_) => near.io.break_off(),
    }
    match ended {
        Ok(()) => Next::Open,
        Err(FramedError::App | FramedError::PeerApp) => Next::after_reset(framed, peer).await,
        Err(FramedError::Peer(_) | FramedError::Stale) => Next::Break,
    }
}

/// Carries one connection of the peer's app to the app of this pod, until the grace period of the
/// peer's certificate is over.
async fn carry<S>(session: &Session, logical: &Logical, peer: &mut Buffered<S>) -> Next
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let _busy = session.worker.drain.busy();
    let metrics = session.tcp_metrics(logical);
    metrics.opened();
    let mut framed = Framed::opened();
    let mut connecting = pin!(connect_app(&session.worker, logical, session.source()));
    let connected = poll_fn(|cx| match connecting.as_mut().poll(cx) {
        Poll::Ready(connected) => Poll::Ready(connected),
        Poll::Pending => peer.poll_gone(cx).map(|()| Err(Reason::ClientGone)),
    });
    let (mut app, _in_flight) = match connected.await {
        Ok(connected) => connected,
        Err(reason) => {
            metrics.closed(Some(reason));
            return match reason {
                Reason::ClientGone => Next::Break,
                _ => Next::after_reset(framed, peer).await,
            };
        }
    };
    // A peer may have opened the connection speculatively, for an app that has sent nothing yet,
    // and then needed a connection of another protocol.
    let mut is_needed = false;
    let ended = poll_fn(|cx| {
        let ended = framed.poll(cx, &mut app, peer);
        let bytes = framed.take_bytes();
        metrics.sent(bytes.received);
        metrics.received(bytes.sent);
        is_needed |= bytes.received > 0;
        match ended {
            Poll::Pending if session.poll_validity(cx) == Validity::Overdue => {
                Poll::Ready(Err(FramedError::Peer(io::ErrorKind::TimedOut.into())))
            }
            ended => ended,
        }
    });
    let Err(broken) = ended.await else {
        metrics.closed(None);
        return Next::Open;
    };
    tracing::debug!(?broken, "an app's connection broke");
    app.io.reset();
    metrics.closed(match broken {
        FramedError::App => Some(Reason::UpstreamReset),
        FramedError::Peer(_) | FramedError::PeerApp | FramedError::Stale => {
            is_needed.then_some(Reason::ClientGone)
        }
    });
    match broken {
        FramedError::App | FramedError::PeerApp => Next::after_reset(framed, peer).await,
        FramedError::Peer(_) | FramedError::Stale => Next::Break,
    }
}
