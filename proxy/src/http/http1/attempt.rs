//! One attempt of a request on one endpoint, up to the head of its response.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Buf;
use tokio::io::{AsyncRead, AsyncWrite};

use super::body::{Body, TransferError};
use super::framing::{self, ResponseFraming};
use super::head::{self, Request, Response, Version};
use super::reply;
use crate::balance::{AttemptOutcome, Endpoint, Peer};
use crate::http::attempts::Failed;
use crate::http::retry::Failure;
use crate::observe::reason::{REASON_HEADER, Reason};
use crate::route::RequestHead as _;
use crate::session::worker::Worker;
use crate::upstream::Caller;
use crate::upstream::pool::{self, Upstream, Watched};
use crate::upstream::streams::Refusal;
use crate::wire::buffered::Buffered;

/// A request in progress, without a final response yet.
pub struct Attempt {
    pub upstream: Upstream,
    /// How many of the bytes read have been searched for the end of the head.
    scanned: usize,
    /// Bytes of a response have come.
    answered: bool,
    /// The upstream has closed the connection in order, before any such byte.
    pub ended_in_order: bool,
    is_head: bool,
}

/// The result of an attempt.
pub enum Progress {
    Head(ResponseFraming),
    Failed(Failed),
    /// A pooled connection had been closed by an app in the meantime: this does not count for the
    /// endpoint.
    Stale,
    /// The client has aborted its request.
    ClientGone,
    /// The client's body violates the chunked coding.
    BadRequest,
}

/// An idle connection to `endpoint`, on which nothing of this exchange has been sent yet.
pub fn pooled(
    worker: &Worker,
    endpoint: &Endpoint,
    caller: &Caller,
    reusable: Reusable,
) -> Option<Upstream> {
    match reusable {
        Reusable::No => None,
        Reusable::Yes { repeatable } => {
            let pool = &worker.http1_pool;
            pool.take(endpoint, caller, repeatable)
        }
    }
}

/// Opens a connection to `endpoint`, or a stream on one.
pub async fn open(
    worker: &Rc<Worker>,
    endpoint: &Arc<Endpoint>,
    caller: Caller,
) -> Result<Upstream, Failed> {
    let opened = match endpoint.peer {
        Peer::Mesh(_) => pool::open_stream(&worker.http1_streams, endpoint).await,
        Peer::Plain | Peer::App => {
            let source = caller.source();
            let watched = Watched::new(endpoint, caller, &worker.metrics);
            worker.http1_pool.give_way(endpoint);
            let opened = worker.http1_pool.connect(endpoint, source).await;
            let opened = opened.map(|upstream| upstream.watched(watched));
            opened.map_err(|error| {
                tracing::debug!(address = %endpoint.address, %error, "connecting failed");
                Refusal::of(error.reason)
            })
        }
    };
    opened.map_err(|refusal| {
        if refusal.reason == Reason::ConnectTimeout {
            worker.http1_pool.forget(endpoint.id);
            worker.http1_streams.forget(endpoint.id);
        }
        Failed::no_connection(refusal)
    })
}

/// Whether a pooled connection may be used.
#[derive(Clone, Copy, Debug)]
pub enum Reusable {
    /// `repeatable`: the request can be sent again if the connection turns out to be closed.
    Yes {
        repeatable: bool,
    },
    No,
}

impl Attempt {
    /// Sends the head, and the available part of the body, with the first turn of [`Self::poll`].
    pub fn new<S>(
        mut upstream: Upstream,
        request: &Request,
        body: &mut Body,
        client: &mut Buffered<S>,
    ) -> Self {
        let out = &mut upstream.connection.unsent;
        request.write(out);
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(body.rewind(client));
        Self {
            upstream,
            scanned: 0,
            answered: false,
            ended_in_order: false,
            is_head: request.method() == "HEAD",
        }
    }

    /// A copy for a mirror, whose task sends the body. The head is sent with it.
    pub fn of_copy(mut upstream: Upstream, head: &[u8], is_head: bool) -> Self {
        upstream.connection.unsent.extend_from_slice(head);
        Self {
            upstream,
            scanned: 0,
            answered: false,
            ended_in_order: false,
            is_head,
        }
    }

    /// Sends the body and waits for a response. Interim responses are passed on to `client`.
    pub fn poll<S>(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut Buffered<S>,
        client_version: Version,
        body: &mut Body,
        response: &mut Response,
        max_head: usize,
    ) -> Poll<Progress>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        // The body first: the part that is sent in this turn goes out with the head.
        match body.poll(cx, client, &mut self.upstream.connection) {
            Poll::Ready(Err(TransferError::Sender(error))) => {
                tracing::debug!(%error, "a client broke off its request");
                return Poll::Ready(Progress::ClientGone);
            }
            Poll::Ready(Err(TransferError::Coding(error))) => {
                tracing::debug!(%error, "a client's request body is refused");
                return Poll::Ready(Progress::BadRequest);
            }
            // The response has the reason: a server may have answered without waiting for the body.
            Poll::Ready(Err(TransferError::Taker) | Ok(())) | Poll::Pending => {}
        }
        loop {
            // One interim response at a time, so that they do not accumulate.
            if let Poll::Ready(Err(_)) = client.poll_flush(cx) {
                return Poll::Ready(Progress::ClientGone);
            }
            if !client.unsent.is_empty() {
                return Poll::Pending;
            }
            let head = match ready!(self.poll_head(cx, response, max_head)) {
                Ok(head) => head,
                Err(progress) => return Poll::Ready(progress),
            };
            if response.status < 200 && response.status != 101 {
                if client_version == Version::Http11 {
                    if !self.upstream.is_mesh {
                        response.fields.remove(REASON_HEADER);
                    }
                    response.write(Version::Http11, &mut client.unsent);
                    client.unsent.extend_from_slice(b"\r\n");
                }
                continue;
            }
            return Poll::Ready(Progress::Head(head));
        }
    }

    /// Waits for the head of a response, including interim ones.
    pub fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        response: &mut Response,
        max_head: usize,
    ) -> Poll<Result<ResponseFraming, Progress>> {
        let broken = || Progress::Failed(Failed::reset(Reason::UpstreamProtocolError));
        let connection = &mut self.upstream.connection;
        loop {
            match head::find_end(&connection.read, self.scanned, false) {
                Ok(Some(end)) if end <= max_head => {
                    let parsed = response.parse(&connection.read[..end]);
                    connection.read.advance(end);
                    self.scanned = 0;
                    let parsed = parsed.map_err(|error| error.to_string()).and_then(|()| {
                        framing::response(response, self.is_head).map_err(|error| error.to_string())
                    });
                    return Poll::Ready(parsed.map_err(|error| {
                        tracing::debug!(error, "an upstream's response is refused");
                        broken()
                    }));
                }
                Ok(None) if connection.read.len() < max_head => {}
                Ok(_) | Err(_) => {
                    tracing::debug!("the head of an upstream's response is too large");
                    return Poll::Ready(Err(broken()));
                }
            }
            self.scanned = connection.read.len();
            match ready!(connection.poll_fill(cx)) {
                Ok(0) => {
                    self.ended_in_order = true;
                    return Poll::Ready(Err(self.ended(None)));
                }
                Ok(_) => {
                    let is_first = !std::mem::replace(&mut self.answered, true);
                    if is_first
                        && !self.upstream.reused
                        && let Some(watched) = &self.upstream.watched
                    {
                        watched.answered();
                    }
                }
                Err(error) => return Poll::Ready(Err(self.ended(Some(&error)))),
            }
        }
    }

    /// The connection has ended before the head of a response is complete. No `error`: it was
    /// closed in order.
    fn ended(&self, error: Option<&io::Error>) -> Progress {
        tracing::debug!(
            ?error,
            answered = self.answered,
            reused = self.upstream.reused,
            "an upstream ended a connection"
        );
        if !self.answered && self.upstream.is_mesh && error.is_none() {
            // A sidecar closes a connection in order and without a response only if it has accepted
            // no request from it.
            let (reason, outcome) = (Reason::UpstreamReset, AttemptOutcome::Cancelled);
            return Progress::Failed(Failed::new(Failure::NeverSent, reason, outcome));
        }
        if !self.answered && self.upstream.reused && !self.upstream.is_mesh {
            return Progress::Stale;
        }
        Progress::Failed(match error.map(io::Error::kind) {
            Some(io::ErrorKind::TimedOut) => Failed::out_of_reach(),
            _ => Failed::reset(Reason::UpstreamReset),
        })
    }
}

/// Appends a response's head for a client.
pub fn write_head<S>(
    client: &mut Buffered<S>,
    client_version: Version,
    response: &Response,
    keep_alive: bool,
) {
    let version = match client_version {
        Version::Http11 => Version::Http11,
        Version::Http10 => response.version(),
    };
    response.write(version, &mut client.unsent);
    if response.status == 101 {
        client
            .unsent
            .extend_from_slice(b"Connection: Upgrade\r\n\r\n");
    } else {
        reply::end_head(&mut client.unsent, client_version, keep_alive);
    }
}
