//! A request in transit to a backend: attempts on one endpoint after the other until a response is
//! passed on, or all options are exhausted.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::header::{CONTENT_LENGTH, HeaderValue};
use http::{Response, request};
use tokio::time::{Instant, sleep};

use super::attempt::{self, Attempt, Progress};
use super::body::{Download, TransferError, Upload};
use super::client::Client;
use super::interim::Allowance;
use super::{head, mirror, reply};
use crate::balance::{AttemptOutcome, InFlight, Peer};
use crate::http::attempts::{self, Answer, Attempts, Failed, Outcome, Transport};
use crate::http::deadlines::Deadlines;
use crate::http::exchange::{self, End, Exchange};
use crate::observe::reason::Reason;
use crate::route::Rule;

/// The decisions that apply to a request while it is forwarded.
struct Forwarding {
    rule: Arc<Rule>,
    /// Index into the rule's backends.
    backend: usize,
    /// The origin that may read the response, by a CORS filter.
    origin: Option<Box<str>>,
    deadlines: Deadlines,
}

/// Why a wait ended early.
enum Interrupt {
    /// With the code of the client's RST_STREAM, if there was one.
    ClientGone(Option<h2::Reason>),
    /// The client's trailers are rejected.
    BadRequest,
    /// The client has not read its response for too long.
    ReaderStopped,
    Timeout(Reason),
    /// The memory budget has no room for the waiting data.
    NoMemory,
}

/// A response, and the connection that it came on.
struct Answered {
    attempt: Attempt,
    in_flight: InFlight,
    response: Response<RecvStream>,
    /// See [`reply::status_of`].
    status: u16,
}

type Unanswered = attempts::Unanswered<Interrupt>;

/// How the bodies ended, once the response had started.
enum Fate {
    Complete,
    /// The upstream accepts no more of the request, after a complete response. h2 signals this to
    /// the client (RST_STREAM with NO_ERROR) once the whole response is out.
    Stopped,
    Truncated(h2::Error),
    Interrupted(Interrupt),
}

/// Forwards a request as it was decided.
pub(super) async fn run(
    client: &mut Client<'_>,
    exchange: &mut Exchange<'_>,
    plan: exchange::ForwardPlan,
    head: &request::Parts,
    body: RecvStream,
) -> End {
    let exchange::ForwardPlan {
        logical,
        rule,
        backend: index,
        origin,
    } = plan;
    let worker = client.downstream.session.worker.clone();
    let Some(backend) = rule.target(index) else {
        return client.answer(Reason::BackendInvalid);
    };
    let mut upload = Upload::new(body, worker.config.limits.max_replay_bytes);
    if rule.is_mirrored(index) {
        upload = mirror::start(&worker, &rule, index, head, upload);
    }
    let mut forward = Forwarding {
        deadlines: Deadlines::new(exchange.started, &rule),
        rule: rule.clone(),
        backend: index,
        origin,
    };
    let direction = client.downstream.session.direction();
    let mut attempts = Attempts::new(direction, &backend, rule.retry.as_ref(), &logical.budget);
    let mut transport = Http2 {
        forward: &mut forward,
        client,
        head,
        upload: &mut upload,
    };
    let outcome = attempts.run(exchange, &mut transport).await;
    match outcome {
        Outcome::Answered(answered) => forward.pass_on(client, answered, upload).await,
        Outcome::Failed(failed) => fail(client, failed),
        Outcome::Interrupted(interrupt) => give_up(client, interrupt),
    }
}

/// A request, as its attempts see it.
struct Http2<'a, 'c> {
    forward: &'a mut Forwarding,
    client: &'a mut Client<'c>,
    head: &'a request::Parts,
    upload: &'a mut Upload,
}

impl Transport for Http2<'_, '_> {
    type Answered = Answered;
    type Interrupt = Interrupt;

    fn bound(&self) -> Option<u64> {
        None
    }

    fn deadlines(&mut self) -> &mut Deadlines {
        &mut self.forward.deadlines
    }

    fn is_replayable(&self) -> bool {
        self.upload.is_replayable()
    }

    async fn attempt(&mut self, in_flight: InFlight) -> Result<Answered, Unanswered> {
        let attempted = self
            .forward
            .attempt(self.client, self.head, self.upload, in_flight)
            .await;
        attempted.map_err(|unanswered| match unanswered {
            Unanswered::Interrupted(Interrupt::Timeout(Reason::BackendRequestTimeout)) => {
                Unanswered::Failed(Failed::timed_out())
            }
            unanswered => unanswered,
        })
    }

    fn answer<'a>(&'a self, answered: &'a Answered) -> Answer<'a> {
        let headers = answered.response.headers();
        // Only that of a failure matters.
        let reason = (answered.status >= 400).then(|| headers.get(reply::REASON));
        Answer {
            status: answered.status,
            reason: reason.flatten().map(HeaderValue::as_bytes),
            peer: &answered.in_flight.endpoint.peer,
        }
    }

    fn discard(&mut self, answered: Answered) {
        drop(answered);
    }

    fn rewind(&mut self) {
        self.upload.rewind();
    }

    async fn wait(&mut self, time: Duration) -> Result<(), Interrupt> {
        let waited = sleep(time);
        self.forward
            .wait_for(self.client, self.upload, waited)
            .await
    }
}

impl Forwarding {
    /// One attempt, up to the head of a response.
    async fn attempt(
        &mut self,
        client: &mut Client<'_>,
        head: &request::Parts,
        upload: &mut Upload,
        mut in_flight: InFlight,
    ) -> Result<Answered, Unanswered> {
        let started = Instant::now();
        let worker = &client.downstream.session.worker;
        let endpoint = in_flight.endpoint.clone();
        let mut attempt = {
            let worker = worker.clone();
            let caller = client.downstream.caller();
            let holder = client.downstream.holder.clone();
            let ends = upload.is_empty();
            let start = attempt::start(&worker, Some(&holder), &endpoint, &caller, head, ends);
            match self.wait_for(client, upload, start).await {
                Ok(Ok(attempt)) => attempt,
                Ok(Err(failed)) => {
                    in_flight.finish(failed.outcome, started);
                    return Err(Unanswered::Failed(failed));
                }
                Err(interrupt) => {
                    in_flight.finish(interrupt.outcome(), started);
                    return Err(Unanswered::Interrupted(interrupt));
                }
            }
        };
        // The time to open the connection does not count: the next request will not need it.
        let sent = Instant::now();
        let mut interims = Allowance::new(worker.config.limits.max_header_bytes, sent);
        loop {
            let progress = poll_fn(|cx| match attempt.poll(cx, upload) {
                Poll::Ready(progress) => Poll::Ready(Ok(progress)),
                Poll::Pending => self.poll_interrupt(cx, client, upload).map(Err),
            })
            .await;
            let interrupt = match progress {
                Ok(Progress::Interim(interim)) if !interims.take(interim.headers()) => {
                    tracing::debug!("an upstream sends interim responses without an end");
                    attempt.send.send_reset(h2::Reason::ENHANCE_YOUR_CALM);
                    let failed = attempt::out_of_bounds();
                    in_flight.finish(failed.outcome, sent);
                    return Err(Unanswered::Failed(failed));
                }
                Ok(Progress::Interim(mut interim)) => {
                    interim.headers_mut().remove(CONTENT_LENGTH);
                    if !matches!(endpoint.peer, Peer::Mesh(_)) {
                        interim.headers_mut().remove(reply::REASON);
                    }
                    // The next turn detects a client that is gone.
                    let _ = client.respond.send_informational(interim);
                    continue;
                }
                Ok(Progress::Head(response)) => {
                    let status = reply::status_of(&response, &endpoint.peer);
                    in_flight.answered(AttemptOutcome::Response { status }, sent);
                    return Ok(Answered {
                        attempt,
                        in_flight,
                        response,
                        status,
                    });
                }
                Ok(Progress::Failed(failed)) => {
                    in_flight.finish(failed.outcome, sent);
                    return Err(Unanswered::Failed(failed));
                }
                Ok(Progress::ClientGone(code)) => Interrupt::ClientGone(code),
                Ok(Progress::BadRequest) => Interrupt::BadRequest,
                Err(interrupt) => interrupt,
            };
            attempt.send.send_reset(interrupt.code());
            let outcome = interrupt.outcome();
            in_flight.finish(outcome, sent);
            if matches!(interrupt, Interrupt::NoMemory) {
                // `overload` would mean to the client's sidecar that nothing has reached the app.
                return Err(Unanswered::Failed(Failed::no_memory(outcome)));
            }
            return Err(Unanswered::Interrupted(interrupt));
        }
    }

    /// Passes on the whole response, and the rest of the request.
    async fn pass_on(
        &mut self,
        client: &mut Client<'_>,
        answered: Answered,
        mut upload: Upload,
    ) -> End {
        let Answered {
            mut attempt,
            in_flight,
            response,
            ..
        } = answered;
        upload.keep_no_more();
        let (mut head, body) = response.into_parts();
        head::tidy(&mut head);
        // Only a proxy sends reasons, and only a sidecar is known to be a proxy.
        let trusted = matches!(in_flight.endpoint.peer, Peer::Mesh(_));
        if !trusted {
            head.headers.remove(reply::REASON);
        }
        self.rule
            .filter_response(Some(self.backend), self.origin.as_deref(), &mut head);
        let status = head.status.as_u16();
        let ends = body.is_end_stream();
        let Ok(mut send) = client
            .respond
            .send_response(Response::from_parts(head, ()), ends)
        else {
            attempt.send.send_reset(h2::Reason::CANCEL);
            return client.gone();
        };
        let fate = if ends && upload.is_done() {
            Fate::Complete
        } else {
            let patience = client
                .downstream
                .session
                .worker
                .config
                .limits
                .reader_timeout;
            let place = client.downstream.turn.place();
            let mut download = Download::new(body, trusted, place, patience);
            poll_fn(|cx| {
                let fate =
                    self.poll_bodies(cx, &mut upload, &mut attempt.send, &mut download, &mut send);
                match fate {
                    Poll::Pending if !client.held.has_room(upload.held() + download.held()) => {
                        Poll::Ready(Fate::Interrupted(Interrupt::NoMemory))
                    }
                    ready => ready,
                }
            })
            .await
        };
        let reason = match fate {
            Fate::Complete | Fate::Stopped => None,
            Fate::Truncated(error) => {
                tracing::debug!(%error, "an upstream broke off a response");
                let code = error
                    .reason()
                    .filter(|_| error.is_reset() && error.is_remote());
                break_off(client, &mut send, code, Reason::ResponseTruncated);
                Some(Reason::ResponseTruncated)
            }
            Fate::Interrupted(interrupt) => {
                attempt.send.send_reset(interrupt.code());
                match interrupt {
                    Interrupt::ClientGone(_) => Some(Reason::ClientGone),
                    Interrupt::BadRequest => {
                        client.count_malformed();
                        Some(Reason::BadRequest)
                    }
                    Interrupt::ReaderStopped => {
                        // The reset goes out although the client reads no body.
                        send.send_reset(interrupt.code());
                        Some(Reason::ReaderStopped)
                    }
                    Interrupt::Timeout(reason) => {
                        break_off(client, &mut send, None, reason);
                        Some(reason)
                    }
                    Interrupt::NoMemory => {
                        break_off(client, &mut send, None, Reason::MemoryExhausted);
                        Some(Reason::MemoryExhausted)
                    }
                }
            }
        };
        End {
            status: Some(status),
            reason,
        }
    }

    fn poll_bodies(
        &mut self,
        cx: &mut Context<'_>,
        upload: &mut Upload,
        upstream: &mut SendStream<Bytes>,
        download: &mut Download,
        client: &mut SendStream<Bytes>,
    ) -> Poll<Fate> {
        let gone = |code| Poll::Ready(Fate::Interrupted(Interrupt::ClientGone(code)));
        if let Poll::Ready(Err(broken)) = download.poll(cx, client) {
            return match broken {
                TransferError::Sender(error) => Poll::Ready(Fate::Truncated(error)),
                TransferError::Trailers => {
                    Poll::Ready(Fate::Truncated(h2::Reason::PROTOCOL_ERROR.into()))
                }
                TransferError::Stopped => Poll::Ready(Fate::Interrupted(Interrupt::ReaderStopped)),
                TransferError::Taker => match client.poll_reset(cx) {
                    Poll::Ready(code) => gone(code.ok()),
                    Poll::Pending => gone(None),
                },
            };
        }
        if let Poll::Ready(Err(broken)) = upload.poll(cx, upstream) {
            match broken {
                TransferError::Sender(error) => return gone(error.reason()),
                TransferError::Trailers => {
                    client.send_reset(h2::Reason::PROTOCOL_ERROR);
                    return Poll::Ready(Fate::Interrupted(Interrupt::BadRequest));
                }
                // The rest of the response may still come.
                TransferError::Taker | TransferError::Stopped => upload.stop(),
            }
        }
        if download.is_done() {
            if upload.is_done() {
                return Poll::Ready(Fate::Complete);
            }
            if upstream.poll_reset(cx).is_ready() {
                return Poll::Ready(Fate::Stopped);
            }
        }
        if let Poll::Ready(code) = client.poll_reset(cx) {
            return gone(code.ok());
        }
        let reason = ready!(self.deadlines.poll(cx));
        Poll::Ready(Fate::Interrupted(Interrupt::Timeout(reason)))
    }

    /// Waits for `future`, unless the client disconnects or a deadline passes first. Meanwhile
    /// incoming parts of the body are kept.
    async fn wait_for<F: Future>(
        &mut self,
        client: &mut Client<'_>,
        upload: &mut Upload,
        future: F,
    ) -> Result<F::Output, Interrupt> {
        let mut future = pin!(future);
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending => {
                upload.hoard(cx);
                self.poll_interrupt(cx, client, upload).map(Err)
            }
        })
        .await
    }

    fn poll_interrupt(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut Client<'_>,
        upload: &mut Upload,
    ) -> Poll<Interrupt> {
        if let Poll::Ready(code) = client.poll_gone(cx) {
            return Poll::Ready(Interrupt::ClientGone(code));
        }
        if !client.held.has_room(upload.held()) {
            // The pieces kept for another attempt are dropped first.
            upload.keep_no_more();
            if !client.held.has_room(upload.held()) {
                return Poll::Ready(Interrupt::NoMemory);
            }
        }
        self.deadlines.poll(cx).map(Interrupt::Timeout)
    }
}

impl Interrupt {
    /// The code of the reset to the upstream.
    fn code(&self) -> h2::Reason {
        match self {
            Self::ClientGone(Some(code)) => *code,
            Self::ClientGone(None)
            | Self::BadRequest
            | Self::ReaderStopped
            | Self::Timeout(_)
            | Self::NoMemory => h2::Reason::CANCEL,
        }
    }

    /// How it counts for the endpoint.
    fn outcome(&self) -> AttemptOutcome {
        match self {
            Self::ClientGone(_) | Self::BadRequest | Self::ReaderStopped | Self::NoMemory => {
                AttemptOutcome::Cancelled
            }
            Self::Timeout(_) => AttemptOutcome::TimedOut,
        }
    }
}

fn give_up(client: &mut Client<'_>, interrupt: Interrupt) -> End {
    match interrupt {
        // These occur only after a response has started.
        Interrupt::ClientGone(_) | Interrupt::ReaderStopped => client.gone(),
        Interrupt::BadRequest => {
            client.count_malformed();
            client.answer(Reason::BadRequest)
        }
        Interrupt::Timeout(reason) => client.answer(reason),
        Interrupt::NoMemory => client.answer(Reason::Overload),
    }
}

fn fail(client: &mut Client<'_>, failed: Failed) -> End {
    match failed.reset {
        // As without a proxy.
        Some(code) => {
            client.respond.send_reset(code);
            End::unanswered(failed.reason)
        }
        None => client.answer(failed.reason),
    }
}

/// Ends a response that has started and cannot be completed: with the upstream's own code, or so
/// that the client sees the reason.
fn break_off(
    client: &Client<'_>,
    send: &mut SendStream<Bytes>,
    code: Option<h2::Reason>,
    reason: Reason,
) {
    match code {
        Some(code) => send.send_reset(code),
        None if client.grpc && send.send_trailers(reply::grpc_trailers(reason)).is_ok() => {}
        None => send.send_reset(h2::Reason::INTERNAL_ERROR),
    }
}
