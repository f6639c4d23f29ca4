//! Copies of a request for its mirrors, each on a separate upstream connection.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::time::Instant;

use super::attempt::{self, Attempt, Progress, Reusable};
use super::body::Body;
use super::framing::{RequestFraming, ResponseFraming};
use super::head::{Request, Response, Version};
use crate::balance::{AttemptOutcome, InFlight};
use crate::http::mirror::{self, CopyBody, MAX_DISCARDED, Piece};
use crate::observe::metrics::MirrorOutcome;
use crate::route::{RequestHead as _, Rule};
use crate::session::worker::Worker;
use crate::upstream::{Caller, Stream};
use crate::wire::buffered::Buffered;

/// The part that all copies of a request share.
struct Head {
    bytes: Bytes,
    is_head: bool,
    version: Version,
}

/// The body of a copy in transit.
struct Sending {
    source: CopyBody,
    piece: Bytes,
    ended: bool,
    state: SendingState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SendingState {
    Going,
    Whole,
    /// The mirror accepts no more.
    Refused,
}

/// Starts the copies of a request for `backend`, which get `body` as it is read. A request that
/// becomes a tunnel has no copies: the copy's tunnel would have no client. A login for a connection
/// has none either: its credentials are for the server that has asked for them.
pub fn start(
    worker: &Rc<Worker>,
    rule: &Rule,
    backend: usize,
    request: &Request,
    framing: &RequestFraming,
    body: Body,
) -> Body {
    if framing.upgrade || framing.logs_in {
        return body;
    }
    let mut bytes = BytesMut::new();
    request.write(&mut bytes);
    bytes.extend_from_slice(b"\r\n");
    let head = Rc::new(Head {
        bytes: bytes.freeze(),
        is_head: request.method() == "HEAD",
        version: request.version(),
    });
    let copies = mirror::start(worker, rule, backend, |in_flight, source| {
        send(worker.clone(), in_flight, head.clone(), source)
    });
    body.copied_to(copies)
}

async fn send(
    worker: Rc<Worker>,
    mut in_flight: InFlight,
    head: Rc<Head>,
    source: CopyBody,
) -> MirrorOutcome {
    let endpoint = in_flight.endpoint.clone();
    // A copy is never retried, so only a connection that is likely to be open may be reused.
    let reusable = match head.version {
        Version::Http11 => Reusable::Yes { repeatable: false },
        Version::Http10 => Reusable::No,
    };
    let began = Instant::now();
    let caller = Caller::default();
    let upstream = match attempt::pooled(&worker, &endpoint, &caller, reusable) {
        Some(upstream) => Ok(upstream),
        None => Box::pin(attempt::open(&worker, &endpoint, caller)).await,
    };
    let upstream = match upstream {
        Ok(upstream) => upstream,
        Err(failed) => {
            in_flight.finish(failed.outcome, began);
            return MirrorOutcome::Failed;
        }
    };
    let sent = Instant::now();
    let mut attempt = Attempt::of_copy(upstream, &head.bytes, head.is_head);
    let mut sending = Sending {
        source,
        piece: Bytes::new(),
        ended: false,
        state: SendingState::Going,
    };
    let mut response = Response::default();
    let max_head = worker.config.limits.max_header_bytes;
    let answered =
        poll_fn(|cx| poll_head(cx, &mut attempt, &mut sending, &mut response, max_head)).await;
    let framing = match answered {
        Ok(Ok(framing)) => framing,
        Ok(Err(progress)) => {
            if let Progress::Failed(failed) = progress {
                in_flight.finish(failed.outcome, sent);
            }
            return MirrorOutcome::Failed;
        }
        Err(outcome) => {
            attempt.upstream.connection.io.reset();
            return outcome;
        }
    };
    let status = response.status;
    in_flight.answered(AttemptOutcome::Response { status }, sent);
    let mut upstream = attempt.upstream;
    upstream.is_bound |= framing.logs_in;
    let mut discarding = Discarding {
        body: Body::of_response(framing.body),
        discarded: 0,
    };
    let whole = poll_fn(|cx| discarding.poll(cx, &mut upstream.connection, &mut sending)).await;
    if sending.state != SendingState::Whole {
        upstream.connection.io.reset();
    } else if whole == Ok(true) && framing.keep_alive && head.version == Version::Http11 {
        worker.http1_pool.put(&endpoint, upstream);
    }
    match whole {
        Ok(_) => MirrorOutcome::Answered,
        Err(outcome) => outcome,
    }
}

/// Sends the copy until the head of its final response has come.
fn poll_head(
    cx: &mut Context<'_>,
    attempt: &mut Attempt,
    sending: &mut Sending,
    response: &mut Response,
    max_head: usize,
) -> Poll<Result<Result<ResponseFraming, Progress>, MirrorOutcome>> {
    sending.poll(cx, &mut attempt.upstream.connection)?;
    loop {
        match ready!(attempt.poll_head(cx, response, max_head)) {
            Ok(_) if response.status < 200 => {}
            other => return Poll::Ready(Ok(other)),
        }
    }
}

impl Sending {
    /// Sends the available bytes without blocking the request. An error: the copy must be aborted.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut Buffered<Stream>,
    ) -> Result<(), MirrorOutcome> {
        if self.state != SendingState::Going {
            return Ok(());
        }
        // Checked even if the mirror reads nothing.
        if let Poll::Ready(outcome) = self.source.poll_broken(cx) {
            return Err(outcome);
        }
        match self.poll_pieces(cx, to)? {
            Poll::Pending => {}
            Poll::Ready(Ok(())) => self.state = SendingState::Whole,
            // The response, if there is one, has the reason.
            Poll::Ready(Err(_)) => self.state = SendingState::Refused,
        }
        Ok(())
    }

    fn poll_pieces(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut Buffered<Stream>,
    ) -> Result<Poll<std::io::Result<()>>, MirrorOutcome> {
        loop {
            if !self.piece.is_empty() {
                let written = match to.poll_send(cx) {
                    Poll::Ready(Ok(())) => to.poll_write(cx, &self.piece),
                    Poll::Ready(Err(error)) => return Ok(Poll::Ready(Err(error))),
                    Poll::Pending => return Ok(Poll::Pending),
                };
                match written {
                    Poll::Ready(Ok(written)) => self.piece.advance(written),
                    Poll::Ready(Err(error)) => return Ok(Poll::Ready(Err(error))),
                    Poll::Pending => return Ok(Poll::Pending),
                }
            } else if self.ended {
                return Ok(to.poll_flush(cx));
            } else {
                match self.source.poll_piece(cx) {
                    Poll::Ready(Ok(Piece::Data(piece))) => self.piece = piece,
                    // Trailers are part of the coding.
                    Poll::Ready(Ok(Piece::End(_))) => self.ended = true,
                    Poll::Ready(Err(outcome)) => return Err(outcome),
                    Poll::Pending => {
                        return Ok(match to.poll_flush(cx) {
                            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                            Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
                        });
                    }
                }
            }
        }
    }
}

/// A discarded response, read so that the mirror can finish in order.
struct Discarding {
    body: Body,
    discarded: usize,
}

impl Discarding {
    /// Ready with whether all of it was read.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        connection: &mut Buffered<Stream>,
        sending: &mut Sending,
    ) -> Poll<Result<bool, MirrorOutcome>> {
        sending.poll(cx, connection)?;
        loop {
            if self.body.skip(connection) {
                return Poll::Ready(Ok(true));
            }
            match ready!(connection.poll_fill(cx)) {
                Ok(length @ 1..) => self.discarded += length,
                Ok(0) | Err(_) => return Poll::Ready(Ok(false)),
            }
            if self.discarded > MAX_DISCARDED {
                return Poll::Ready(Ok(false));
            }
        }
    }
}
