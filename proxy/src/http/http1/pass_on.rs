//! A response that is passed on to the client, to the end of both bodies.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite};

use super::attempt::write_head;
use super::body::{Body, TransferError};
use super::client::{After, Client};
use super::framing::{Framing, ResponseFraming};
use super::head::{Response, Version};
use super::interrupt::{Interrupt, poll_waiting};
use super::untimely::{Rest, finish};
use crate::balance::InFlight;
use crate::http::deadlines::Deadlines;
use crate::http::exchange::End;
use crate::http::reader::Reader;
use crate::memory::{UNCHARGED, Use};
use crate::observe::reason::{REASON_HEADER, Reason};
use crate::route::Rule;
use crate::upstream::pool::Upstream;

const EXPECTATION_FAILED: u16 = 417;

/// A response, and the connection that it came on.
pub struct Answered {
    pub upstream: Upstream,
    pub in_flight: InFlight,
    pub framing: ResponseFraming,
}

/// How the rule changes a response.
pub struct Changes<'a> {
    pub rule: &'a Rule,
    /// Index into the rule's backends.
    pub backend: usize,
    /// The origin that may read the response, by a CORS filter.
    pub origin: Option<&'a str>,
}

/// How the bodies ended, once the response had started.
enum Fate {
    Complete,
    Truncated(Reason),
    Interrupted(Interrupt),
}

/// Passes on the whole response, and the rest of the request.
pub async fn pass_on<S>(
    changes: Changes<'_>,
    deadlines: &mut Deadlines,
    client: &mut Client<'_, S>,
    response: &mut Response,
    answered: Answered,
    mut upload: Body,
) -> (End, After)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Answered {
        mut upstream,
        in_flight,
        framing,
    } = answered;
    upload.keep_no_more();
    // Only a proxy sends reasons, and only a sidecar is known to be a proxy.
    if !upstream.is_mesh {
        response.fields.remove(REASON_HEADER);
    }
    let Changes {
        rule,
        backend,
        origin,
    } = changes;
    rule.filter_response(Some(backend), origin, response);
    let status = response.status;
    if status == 101 && !client.framing.upgrade {
        return client.answer_after(Reason::UpstreamProtocolError, &mut upload);
    }
    let tunnel = status == 101;
    let mut download = Body::of_response(framing.body);
    let mut until_close = framing.body == Framing::UntilClose;
    if client.version == Version::Http10 && framing.body == Framing::Chunked {
        response.fields.remove("transfer-encoding");
        download = download.content_only();
        until_close = true;
    }
    // A response before the end of the request: either the rest is short and is read, or the
    // client is told not to send its next request on this connection (RFC 9112 section 9.6).
    let request_ends = upload.is_received() || framing.keep_alive && upload.ends_soon();
    let unsure = client.is_unsure_of(&upload);
    let keep_alive = client.keeps_alive() && !until_close && request_ends && !unsure;
    // curl repeats a request without `Expect` after a 417, unless the response announces a
    // close. The connection is closed in any case: the next bytes may or may not be the body.
    let unsaid = tunnel || unsure && status == EXPECTATION_FAILED;
    write_head(
        client.connection,
        client.version,
        response,
        keep_alive || unsaid,
    );
    let complete = |reason| End {
        status: Some(status),
        reason,
    };
    if tunnel {
        return (complete(None), After::Tunnel(Box::new(upstream)));
    }
    let mut reader = Reader::new(client.session.worker.config.limits.reader_timeout);
    let fate = poll_fn(|cx| {
        let bodies = poll_bodies(
            deadlines,
            cx,
            client,
            &mut upload,
            &mut upstream,
            &mut download,
        );
        if bodies.is_ready() {
            return bodies;
        }
        let unsent = client.connection.unsent.len() + download.unwritten();
        let waiting = upstream.connection.read.len() + client.connection.unsent.len();
        let interrupt = if waiting > UNCHARGED && !client.memory.grow(Use::SmallBody, waiting) {
            Interrupt::NoMemory
        } else {
            ready!(reader.poll_unsent(cx, unsent));
            Interrupt::ReaderStopped
        };
        Poll::Ready(Fate::Interrupted(interrupt))
    })
    .await;
    match fate {
        Fate::Complete => {
            // Boxed: few responses come before the end of their request.
            let whole = upload.is_done()
                || !unsure
                    && Box::pin(finish(client, &mut upload, &mut upstream, keep_alive)).await
                        == Rest::Whole;
            let reusable = upload.is_sent() && !client.connection.has_ended();
            if reusable && framing.keep_alive && client.version == Version::Http11 {
                client.keep(&in_flight.endpoint, upstream);
            }
            let after = match keep_alive && whole {
                true => After::Next,
                false => After::Close,
            };
            (complete(None), after)
        }
        Fate::Truncated(reason) => {
            // Pass on as much as there is: the client sees the same as from the upstream.
            let _ = poll_fn(|cx| Poll::Ready(client.connection.poll_flush(cx))).await;
            (complete(Some(reason)), After::Cut)
        }
        Fate::Interrupted(interrupt) => {
            let reason = match interrupt {
                Interrupt::ClientGone => Reason::ClientGone,
                Interrupt::Timeout(reason) => reason,
                Interrupt::ReaderStopped => Reason::ReaderStopped,
                Interrupt::NoMemory => Reason::MemoryExhausted,
                Interrupt::LoginLost => Reason::ResponseTruncated,
                Interrupt::BadRequest => Reason::BadRequest,
            };
            (complete(Some(reason)), After::Cut)
        }
    }
}

fn poll_bodies<S>(
    deadlines: &mut Deadlines,
    cx: &mut Context<'_>,
    client: &mut Client<'_, S>,
    upload: &mut Body,
    upstream: &mut Upstream,
    download: &mut Body,
) -> Poll<Fate>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let gone = || Poll::Ready(Fate::Interrupted(Interrupt::ClientGone));
    match download.poll(cx, &mut upstream.connection, client.connection) {
        Poll::Ready(Ok(())) => return Poll::Ready(Fate::Complete),
        Poll::Ready(Err(TransferError::Sender(error))) => {
            tracing::debug!(%error, "an upstream broke off a response");
            return Poll::Ready(Fate::Truncated(Reason::ResponseTruncated));
        }
        Poll::Ready(Err(TransferError::Coding(error))) => {
            tracing::debug!(%error, "an upstream's response body is refused");
            return Poll::Ready(Fate::Truncated(Reason::UpstreamProtocolError));
        }
        Poll::Ready(Err(TransferError::Taker)) => return gone(),
        Poll::Pending => {}
    }
    deadlines.came(download.taken());
    let sending = !upload.is_done()
        && match upload.poll(cx, client.connection, &mut upstream.connection) {
            Poll::Ready(Err(TransferError::Sender(_) | TransferError::Coding(_))) => return gone(),
            // The rest of the response may still come. A client may read it only after it has
            // sent its own body.
            Poll::Ready(Err(TransferError::Taker)) => {
                upload.refuse();
                cx.waker().wake_by_ref();
                true
            }
            Poll::Ready(Ok(())) => false,
            Poll::Pending => true,
        };
    if !sending {
        let interrupt = ready!(poll_waiting(deadlines, cx, client, upstream));
        return Poll::Ready(Fate::Interrupted(interrupt));
    }
    let reason = ready!(deadlines.poll(cx));
    Poll::Ready(Fate::Interrupted(Interrupt::timeout(reason)))
}

/// Keeps the connection of a discarded response if all of the response has already come.
pub fn discard<S>(client: &mut Client<'_, S>, answered: Answered, upload: &Body)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Answered {
        mut upstream,
        in_flight,
        framing,
    } = answered;
    let connection = &mut upstream.connection;
    let whole = match framing.body {
        Framing::None => true,
        Framing::Length(length) if connection.read.len() as u64 == length => {
            connection.read.clear();
            true
        }
        _ => false,
    };
    let reusable = upload.is_sent() && !client.connection.has_ended();
    if whole && reusable && framing.keep_alive && client.version == Version::Http11 {
        client.keep(&in_flight.endpoint, upstream);
    }
}
