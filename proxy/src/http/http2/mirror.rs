//! Copies of a request for its mirrors, each on a separate upstream stream. The connection may be
//! shared with other requests, as every upstream connection is.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::ext::Protocol;
use h2::{RecvStream, SendStream};
use http::{Method, request};
use tokio::time::Instant;

use super::attempt::{self, Progress};
use super::body::{Upload, poll_room, send_end};
use super::downstream::logs_in;
use super::reply;
use crate::balance::{AttemptOutcome, InFlight};
use crate::http::mirror::{self, CopyBody, MAX_DISCARDED, Piece};
use crate::observe::metrics::MirrorOutcome;
use crate::route::Rule;
use crate::session::worker::Worker;
use crate::upstream::Caller;

/// The body of a copy in transit.
struct Sending {
    source: CopyBody,
    piece: Bytes,
    /// All has been sent, or the mirror accepts no more.
    done: bool,
}

/// Starts the copies of a request for `backend`, which get the body as `upload` reads it. A request
/// that becomes a tunnel has no copies: the copy's tunnel would have no client. A login for a
/// connection has none either: its credentials are for the server that has asked for them.
pub(super) fn start(
    worker: &Rc<Worker>,
    rule: &Rule,
    backend: usize,
    head: &request::Parts,
    upload: Upload,
) -> Upload {
    let is_tunnel = head.method == Method::CONNECT || head.extensions.get::<Protocol>().is_some();
    if is_tunnel || logs_in(&head.headers) {
        return upload;
    }
    let head = Rc::new(head.clone());
    let copies = mirror::start(worker, rule, backend, |in_flight, source| {
        send(worker.clone(), in_flight, head.clone(), source)
    });
    upload.copied_to(copies)
}

async fn send(
    worker: Rc<Worker>,
    mut in_flight: InFlight,
    head: Rc<request::Parts>,
    source: CopyBody,
) -> MirrorOutcome {
    let began = Instant::now();
    let ends = source.is_at_end();
    let (caller, endpoint) = (&Caller::default(), &in_flight.endpoint);
    let mut attempt = match attempt::start(&worker, None, endpoint, caller, &head, ends).await {
        Ok(attempt) => attempt,
        Err(failed) => {
            in_flight.finish(failed.outcome, began);
            return MirrorOutcome::Failed;
        }
    };
    drop(head);
    let sent = Instant::now();
    let mut sending = Sending {
        source,
        piece: Bytes::new(),
        done: ends,
    };
    let response = loop {
        let progress = poll_fn(|cx| {
            sending.poll(cx, &mut attempt.send)?;
            attempt.poll_response(cx).map(Ok)
        });
        match progress.await {
            Ok(Progress::Head(response)) => break response,
            Ok(Progress::Interim(_)) => {}
            Ok(Progress::Failed(failed)) => {
                in_flight.finish(failed.outcome, sent);
                return MirrorOutcome::Failed;
            }
            Ok(Progress::ClientGone(_) | Progress::BadRequest) => return MirrorOutcome::BrokenOff,
            Err(outcome) => {
                attempt.send.send_reset(h2::Reason::CANCEL);
                return outcome;
            }
        }
    };
    let status = reply::status_of(&response, &in_flight.endpoint.peer);
    in_flight.answered(AttemptOutcome::Response { status }, sent);
    let mut body = response.into_body();
    let mut discarded = 0;
    let ended = poll_fn(|cx| {
        sending.poll(cx, &mut attempt.send)?;
        poll_discard(cx, &mut body, &mut discarded).map(Ok)
    });
    let ended = ended.await;
    if !sending.done {
        attempt.send.send_reset(h2::Reason::CANCEL);
    }
    match ended {
        Ok(()) => MirrorOutcome::Answered,
        Err(outcome) => outcome,
    }
}

/// Reads and drops a response, so that the mirror can finish in order. Ready at its end, or when it
/// is too long.
fn poll_discard(cx: &mut Context<'_>, body: &mut RecvStream, discarded: &mut usize) -> Poll<()> {
    while *discarded <= MAX_DISCARDED {
        match ready!(body.poll_data(cx)) {
            Some(Ok(data)) => {
                *discarded += data.len();
                // Fails only if more is released than was received.
                let _ = body.flow_control().release_capacity(data.len());
            }
            Some(Err(_)) | None => break,
        }
    }
    Poll::Ready(())
}

impl Sending {
    /// Sends the available bytes without blocking the request. An error: the copy must be aborted.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut SendStream<Bytes>,
    ) -> Result<(), MirrorOutcome> {
        if self.done {
            return Ok(());
        }
        // Checked even if the mirror reads nothing.
        if let Poll::Ready(outcome) = self.source.poll_broken(cx) {
            return Err(outcome);
        }
        while !self.done {
            if self.piece.is_empty() {
                match self.source.poll_piece(cx) {
                    Poll::Ready(Ok(Piece::Data(piece))) => self.piece = piece,
                    Poll::Ready(Ok(Piece::End(trailers))) => {
                        self.done = true;
                        // The response, if there is one, has the reason.
                        let _ = send_end(to, trailers, false);
                    }
                    Poll::Ready(Err(outcome)) => return Err(outcome),
                    Poll::Pending => break,
                }
                continue;
            }
            let room = match poll_room(cx, to, self.piece.len()) {
                Poll::Ready(Ok(room)) => room,
                Poll::Ready(Err(_)) => {
                    self.done = true;
                    break;
                }
                Poll::Pending => break,
            };
            let part = self.piece.split_to(room.min(self.piece.len()));
            let ends = self.piece.is_empty() && self.source.is_at_end();
            self.done = to.send_data(part, ends).is_err() || ends;
        }
        Ok(())
    }
}
