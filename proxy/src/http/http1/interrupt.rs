//! What ends a wait of a request early: its client, or a deadline.

use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite};

use super::client::Client;
use crate::balance::AttemptOutcome;
use crate::http::deadlines::Deadlines;
use crate::observe::reason::Reason;
use crate::upstream::pool::Upstream;

/// Why a wait ended early.
pub enum Interrupt {
    ClientGone,
    Timeout(Reason),
    /// The client has not read its response for too long.
    ReaderStopped,
    /// The memory budget has no room for the waiting data.
    NoMemory,
    /// The connection of the client's login broke.
    LoginLost,
    /// The client's body violates the chunked coding.
    BadRequest,
}

impl Interrupt {
    /// A deadline has passed.
    pub fn timeout(reason: Reason) -> Self {
        match reason {
            Reason::ClientGone => Self::ClientGone,
            reason => Self::Timeout(reason),
        }
    }

    /// How it counts for the endpoint.
    pub fn outcome(&self) -> AttemptOutcome {
        match self {
            Self::ClientGone
            | Self::ReaderStopped
            | Self::NoMemory
            | Self::LoginLost
            | Self::BadRequest => AttemptOutcome::Cancelled,
            Self::Timeout(_) => AttemptOutcome::TimedOut,
        }
    }
}

/// Ready when `upstream` must no longer be waited for. The client has sent all of its request:
/// if it ends its half, that is passed on, as an app without a proxy would see it.
pub fn poll_waiting<S>(
    deadlines: &mut Deadlines,
    cx: &mut Context<'_>,
    client: &mut Client<'_, S>,
    upstream: &mut Upstream,
) -> Poll<Interrupt>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let interrupted = poll_interrupt(deadlines, cx, client);
    if interrupted.is_pending() && client.connection.has_ended() {
        // An error here shows again when the connection is read.
        let _ = upstream.connection.poll_end(cx);
    }
    interrupted
}

/// Waits for `future`, unless the client disconnects or a deadline passes first.
pub async fn wait_for<S, F: Future>(
    deadlines: &mut Deadlines,
    client: &mut Client<'_, S>,
    future: F,
) -> Result<F::Output, Interrupt>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut future = pin!(future);
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Ok(output)),
        Poll::Pending => poll_interrupt(deadlines, cx, client).map(Err),
    })
    .await
}

fn poll_interrupt<S>(
    deadlines: &mut Deadlines,
    cx: &mut Context<'_>,
    client: &mut Client<'_, S>,
) -> Poll<Interrupt>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if client.connection.poll_broken(cx).is_ready() {
        return Poll::Ready(Interrupt::ClientGone);
    }
    if client.connection.has_ended() {
        deadlines.half_closed();
    }
    deadlines.poll(cx).map(Interrupt::timeout)
}
