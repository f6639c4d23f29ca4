//! Messages at the wrong time: the rest of a request after its response, and a response before its
//! request.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep};

use super::body::{Body, TransferError};
use super::client::Client;
use super::framing::ResponseFraming;
use crate::upstream::pool::Upstream;

/// After this time a 408 always counts as the response to the request that was sent.
const UNSOLICITED: Duration = Duration::from_secs(1);

/// The rest of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// All of it has come: the next bytes are another request.
    Whole,
    Partial,
}

/// Passes on the rest of a request whose response has been sent: the app may still read it.
/// `keep_alive`: the response has allowed another request, so the rest is waited for even if the
/// app does not read it.
pub async fn finish<S>(
    client: &mut Client<'_, S>,
    upload: &mut Body,
    upstream: &mut Upstream,
    keep_alive: bool,
) -> Rest
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let patience = client.session.worker.config.limits.header_timeout;
    let mut timer = pin!(sleep(patience));
    let mut taken = upload.taken();
    poll_fn(|cx| {
        loop {
            match upload.poll(cx, client.connection, &mut upstream.connection) {
                Poll::Ready(Ok(())) => return Poll::Ready(Rest::Whole),
                Poll::Ready(Err(TransferError::Taker)) if keep_alive => upload.refuse(),
                Poll::Ready(Err(_)) => return Poll::Ready(Rest::Partial),
                Poll::Pending if upload.is_refused() => break,
                // An app that ends its half after its response has finished with the request.
                Poll::Pending if upstream.connection.poll_fill(cx).is_pending() => break,
                Poll::Pending if keep_alive => upload.refuse(),
                Poll::Pending => return Poll::Ready(Rest::Partial),
            }
        }
        if upload.taken() != taken {
            taken = upload.taken();
            timer.as_mut().reset(Instant::now() + patience);
        }
        timer.as_mut().poll(cx).map(|()| Rest::Partial)
    })
    .await
}

/// Whether a response is a server's timeout message on an idle connection rather than a response to
/// the request: a 408 that has crossed it. Such a 408 states that no complete request was received
/// (RFC 9110 section 15.5.9).
pub fn is_unsolicited(
    status: u16,
    framing: &ResponseFraming,
    upstream: &Upstream,
    sent: Instant,
) -> bool {
    status == 408
        && !framing.keep_alive
        && upstream.reused
        && !upstream.is_mesh
        && !upstream.is_bound
        && sent.elapsed() < UNSOLICITED
}
