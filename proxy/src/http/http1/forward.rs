//! A request in transit to a backend: attempts on one endpoint after the other until a response is
//! passed on, or all options are exhausted.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep};

use super::attempt::{self, Attempt, Progress, Reusable, write_head};
use super::body::{Body, Broken};
use super::client::{After, Client};
use super::framing::{Framing, ResponseFraming, is_idempotent};
use super::head::{Request, Response, Version};
use super::mirror;
use super::untimely::{Rest, finish, is_unsolicited};
use crate::balance::{AttemptOutcome, InFlight};
use crate::http::attempts::{self, Answer, Attempts, Failed, Outcome, Transport};
use crate::http::deadlines::Deadlines;
use crate::http::exchange::{self, End, Exchange};
use crate::http::reader::Reader;
use crate::http::retry::Failure;
use crate::memory::{Charge, UNCHARGED, Use};
use crate::observe::metrics::AppConnection;
use crate::observe::reason::{REASON_HEADER, Reason};
use crate::route::Rule;
use crate::session::worker::Worker;
use crate::upstream::pool::{self, Upstream};

const EXPECTATION_FAILED: u16 = 417;

/// The decisions that apply to a request while it is forwarded.
struct Forward {
    rule: Arc<Rule>,
    /// Index into the rule's backends.
    backend: usize,
    /// The origin that may read the response, by a CORS filter.
    origin: Option<Box<str>>,
    deadlines: Deadlines,
}

/// Why a wait ended early.
enum Interrupt {
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

/// A response, and the connection that it came on.
struct Answered {
    upstream: Upstream,
    in_flight: InFlight,
    framing: ResponseFraming,
}

type Unanswered = attempts::Unanswered<Interrupt>;

/// How the bodies ended, once the response had started.
enum Fate {
    Complete,
    Truncated(Reason),
    Interrupted(Interrupt),
}

/// Forwards a request as it was decided.
pub async fn run<S>(
    client: &mut Client<'_, S>,
    exchange: &mut Exchange<'_>,
    plan: exchange::Forward,
    request: &Request,
    response: &mut Response,
) -> (End, After)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let exchange::Forward {
        logical,
        rule,
        backend: index,
        origin,
    } = plan;
    let worker = client.session.worker.clone();
    let Some(backend) = rule.target(index) else {
        return client.answer(Reason::BackendInvalid);
    };
    let framing = client.framing.body;
    let mut upload = match replay_charge(&worker, framing) {
        Ok(charge) => {
            Body::replayable(framing, worker.config.limits.max_replay_bytes).charged(charge)
        }
        Err(NoRoom) => Body::new(framing),
    };
    if rule.is_mirrored(index) {
        let framing = &client.framing;
        upload = mirror::start(&worker, &rule, index, request, framing, upload);
    }
    let mut forward = Forward {
        deadlines: Deadlines::new(exchange.started, &rule),
        rule: rule.clone(),
        backend: index,
        origin,
    };
    let direction = client.session.direction();
    let mut attempts = Attempts::new(direction, &backend, rule.retry.as_ref(), &logical.budget);
    let mut transport = Http1 {
        forward: &mut forward,
        client,
        request,
        response,
        upload: &mut upload,
    };
    let outcome = attempts.run(exchange, &mut transport).await;
    match outcome {
        Outcome::Answered(answered) => forward.pass_on(client, response, answered, upload).await,
        Outcome::Failed(failed) => client.answer_after(failed.reason, &mut upload),
        Outcome::Interrupted(interrupt) => give_up(client, interrupt, &mut upload),
    }
}

fn give_up<S>(client: &mut Client<'_, S>, interrupt: Interrupt, upload: &mut Body) -> (End, After)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let reason = match interrupt {
        // These occur only after a response has started.
        Interrupt::ClientGone | Interrupt::ReaderStopped => return Client::<S>::gone(),
        Interrupt::LoginLost => {
            return (End::unanswered(Reason::UpstreamReset), After::Cut);
        }
        Interrupt::Timeout(reason) => reason,
        Interrupt::NoMemory => Reason::Overload,
        Interrupt::BadRequest => Reason::BadRequest,
    };
    client.answer_after(reason, upload)
}

/// A request, as its attempts see it.
struct Http1<'a, 'c, S> {
    forward: &'a mut Forward,
    client: &'a mut Client<'c, S>,
    request: &'a Request,
    response: &'a mut Response,
    upload: &'a mut Body,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Transport for Http1<'_, '_, S> {
    type Answered = Answered;
    type Interrupt = Interrupt;

    fn bound(&self) -> Option<u64> {
        self.client.login.endpoint()
    }

    fn deadlines(&mut self) -> &mut Deadlines {
        &mut self.forward.deadlines
    }

    fn is_replayable(&self) -> bool {
        self.upload.is_replayable()
    }

    async fn attempt(&mut self, in_flight: InFlight) -> Result<Answered, Unanswered> {
        let (client, upload) = (&mut *self.client, &mut *self.upload);
        let attempted = self
            .forward
            .attempt(client, self.request, self.response, upload, in_flight)
            .await;
        attempted.map_err(|unanswered| match unanswered {
            // An app that sees the end of its client's half may close the connection; then the
            // client is the one that has gone.
            Unanswered::Failed(failed)
                if failed.failure == Failure::Reset && self.client.connection.has_ended() =>
            {
                Unanswered::Interrupted(Interrupt::ClientGone)
            }
            Unanswered::Interrupted(Interrupt::Timeout(Reason::BackendRequestTimeout)) => {
                Unanswered::Failed(Failed::timed_out())
            }
            unanswered => unanswered,
        })
    }

    fn answer<'a>(&'a self, answered: &'a Answered) -> Answer<'a> {
        Answer {
            status: self.response.status,
            reason: self.response.fields.get(REASON_HEADER),
            peer: &answered.in_flight.endpoint.peer,
        }
    }

    fn discard(&mut self, answered: Answered) {
        discard(self.client, answered, self.upload);
    }

    fn rewind(&mut self) {}

    async fn wait(&mut self, time: Duration) -> Result<(), Interrupt> {
        self.forward.wait_for(self.client, sleep(time)).await
    }
}

impl Forward {
    /// One attempt, up to the head of a response.
    async fn attempt<S>(
        &mut self,
        client: &mut Client<'_, S>,
        request: &Request,
        response: &mut Response,
        upload: &mut Body,
        mut in_flight: InFlight,
    ) -> Result<Answered, Unanswered>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let worker = client.session.worker.clone();
        let endpoint = in_flight.endpoint.clone();
        let max_head = worker.config.limits.max_header_bytes;
        let version = client.version;
        let repeatable = is_idempotent(request)
            && client
                .framing
                .body
                .is_at_most(worker.config.limits.max_replay_bytes);
        // An HTTP/1.0 server closes after the response.
        let mut reusable = match version {
            Version::Http11 => Reusable::Yes { repeatable },
            Version::Http10 => Reusable::No,
        };
        loop {
            let began = Instant::now();
            let login = client.login.take(endpoint.id);
            let logged_in = login.is_some();
            let caller = client.session.caller();
            let upstream = if let Some(mut upstream) = login {
                match upstream.connection.is_quiet() {
                    true => upstream,
                    false => return Err(Unanswered::Interrupted(Interrupt::LoginLost)),
                }
            } else if let Some(upstream) = attempt::pooled(&worker, &endpoint, &caller, reusable) {
                upstream
            } else {
                // Boxed: every connection would reserve space for it, and most requests find an
                // idle one.
                let opening = Box::pin(attempt::open(&worker, &endpoint, caller));
                match self.wait_for(client, opening).await {
                    Ok(Ok(upstream)) => upstream,
                    Ok(Err(failed)) => {
                        in_flight.finish(failed.outcome, began);
                        return Err(Unanswered::Failed(failed));
                    }
                    Err(interrupt) => {
                        in_flight.finish(interrupt.outcome(), began);
                        return Err(Unanswered::Interrupted(interrupt));
                    }
                }
            };
            // The time to open the connection does not count: the next request will not need it.
            let sent = Instant::now();
            let mut attempt = Attempt::new(upstream, request, upload, client.connection);
            let is_new = attempt.upstream.watched.is_some() && !attempt.upstream.reused;
            let mut patience = is_new.then(|| Box::pin(sleep(pool::STARVED_AFTER)));
            let progress = poll_fn(|cx| {
                if let Some(timer) = &mut patience
                    && timer.as_mut().poll(cx).is_ready()
                {
                    patience = None;
                    (worker.http1_pool).make_room(&endpoint, &attempt.upstream);
                }
                let connection = &mut *client.connection;
                match attempt.poll(cx, connection, version, upload, response, max_head) {
                    Poll::Ready(progress) => Poll::Ready(Ok(progress)),
                    Poll::Pending if upload.is_done() => {
                        let interrupt =
                            ready!(self.poll_waiting(cx, client, &mut attempt.upstream));
                        Poll::Ready(Err(interrupt))
                    }
                    Poll::Pending => self
                        .deadlines
                        .poll(cx)
                        .map(|reason| Err(Interrupt::timeout(reason))),
                }
            })
            .await;
            return match progress {
                Ok(Progress::Head(framing))
                    if repeatable
                        && is_unsolicited(response.status, &framing, &attempt.upstream, sent)
                        && upload.is_replayable() =>
                {
                    reusable = Reusable::No;
                    continue;
                }
                Ok(Progress::Head(framing)) => {
                    let outcome = AttemptOutcome::Response {
                        status: response.status,
                    };
                    in_flight.answered(outcome, sent);
                    attempt.upstream.is_bound |= client.framing.logs_in || framing.logs_in;
                    Ok(Answered {
                        upstream: attempt.upstream,
                        in_flight,
                        framing,
                    })
                }
                Ok(Progress::Stale) if logged_in => {
                    Err(Unanswered::Interrupted(Interrupt::LoginLost))
                }
                Ok(Progress::Failed(failed))
                    if logged_in && failed.reason == Reason::UpstreamReset =>
                {
                    in_flight.finish(failed.outcome, sent);
                    Err(Unanswered::Interrupted(Interrupt::LoginLost))
                }
                Ok(Progress::Stale) => {
                    // Boxed: it is rare, and every connection would reserve space for it.
                    let took_nothing = async {
                        attempt.ended_in_order && Box::pin(attempt.upstream.took_nothing()).await
                    };
                    if upload.is_replayable() && (repeatable || took_nothing.await) {
                        if !repeatable {
                            worker.metrics.app_connection(AppConnection::Resent);
                        }
                        reusable = Reusable::No;
                        continue;
                    }
                    let failed = Failed::reset(Reason::UpstreamReset);
                    in_flight.finish(failed.outcome, sent);
                    Err(Unanswered::Failed(failed))
                }
                Ok(Progress::Failed(failed)) => {
                    if failed.outcome == AttemptOutcome::TimedOut {
                        worker.http1_pool.forget(endpoint.id);
                        worker.http1_streams.forget(endpoint.id);
                    }
                    in_flight.finish(failed.outcome, sent);
                    Err(Unanswered::Failed(failed))
                }
                Ok(Progress::ClientGone) => Err(Unanswered::Interrupted(Interrupt::ClientGone)),
                Ok(Progress::BadRequest) => Err(Unanswered::Interrupted(Interrupt::BadRequest)),
                Err(interrupt) => {
                    in_flight.finish(interrupt.outcome(), sent);
                    Err(Unanswered::Interrupted(interrupt))
                }
            };
        }
    }

    /// Passes on the whole response, and the rest of the request.
    async fn pass_on<S>(
        &mut self,
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
        self.rule
            .filter_response(Some(self.backend), self.origin.as_deref(), response);
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
            let bodies = self.poll_bodies(cx, client, &mut upload, &mut upstream, &mut download);
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
        &mut self,
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
            Poll::Ready(Err(Broken::Sender(error))) => {
                tracing::debug!(%error, "an upstream broke off a response");
                return Poll::Ready(Fate::Truncated(Reason::ResponseTruncated));
            }
            Poll::Ready(Err(Broken::Coding(error))) => {
                tracing::debug!(%error, "an upstream's response body is refused");
                return Poll::Ready(Fate::Truncated(Reason::UpstreamProtocolError));
            }
            Poll::Ready(Err(Broken::Taker)) => return gone(),
            Poll::Pending => {}
        }
        self.deadlines.came(download.taken());
        let sending = !upload.is_done()
            && match upload.poll(cx, client.connection, &mut upstream.connection) {
                Poll::Ready(Err(Broken::Sender(_) | Broken::Coding(_))) => return gone(),
                // The rest of the response may still come. A client may read it only after it has
                // sent its own body.
                Poll::Ready(Err(Broken::Taker)) => {
                    upload.refuse();
                    cx.waker().wake_by_ref();
                    true
                }
                Poll::Ready(Ok(())) => false,
                Poll::Pending => true,
            };
        if !sending {
            let interrupt = ready!(self.poll_waiting(cx, client, upstream));
            return Poll::Ready(Fate::Interrupted(interrupt));
        }
        let reason = ready!(self.deadlines.poll(cx));
        Poll::Ready(Fate::Interrupted(Interrupt::timeout(reason)))
    }

    /// Ready when `upstream` must no longer be waited for. The client has sent all of its request:
    /// if it ends its half, that is passed on, as an app without a proxy would see it.
    fn poll_waiting<S>(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut Client<'_, S>,
        upstream: &mut Upstream,
    ) -> Poll<Interrupt>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let interrupted = self.poll_interrupt(cx, client);
        if interrupted.is_pending() && client.connection.has_ended() {
            // An error here shows again when the connection is read.
            let _ = upstream.connection.poll_end(cx);
        }
        interrupted
    }

    /// Waits for `future`, unless the client disconnects or a deadline passes first.
    async fn wait_for<S, F: Future>(
        &mut self,
        client: &mut Client<'_, S>,
        future: F,
    ) -> Result<F::Output, Interrupt>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut future = pin!(future);
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending => self.poll_interrupt(cx, client).map(Err),
        })
        .await
    }

    fn poll_interrupt<S>(
        &mut self,
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
            self.deadlines.half_closed();
        }
        self.deadlines.poll(cx).map(Interrupt::timeout)
    }
}

impl Interrupt {
    /// A deadline has passed.
    fn timeout(reason: Reason) -> Self {
        match reason {
            Reason::ClientGone => Self::ClientGone,
            reason => Self::Timeout(reason),
        }
    }

    /// How it counts for the endpoint.
    fn outcome(&self) -> AttemptOutcome {
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

/// The memory budget has no room to keep a body.
struct NoRoom;

/// Charges the part of a body that is kept for another attempt, unless it is small.
fn replay_charge(worker: &Worker, framing: Framing) -> Result<Option<Charge>, NoRoom> {
    let most = worker.config.limits.max_replay_bytes;
    let kept = match framing {
        Framing::Length(length) => usize::try_from(length).map_or(most, |length| length.min(most)),
        Framing::None => 0,
        Framing::Chunked | Framing::UntilClose => most,
    };
    match kept > UNCHARGED {
        true => worker
            .memory
            .charge(Use::Replay, kept)
            .map(Some)
            .ok_or(NoRoom),
        false => Ok(None),
    }
}

/// Keeps the connection of a discarded response if all of the response has already come.
fn discard<S>(client: &mut Client<'_, S>, answered: Answered, upload: &Body)
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
