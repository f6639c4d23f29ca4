//! A request in transit to a backend: attempts on one endpoint after the other until a response is
//! passed on, or all options are exhausted.

use std::future::poll_fn;
use std::task::{Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep};

use super::attempt::{self, Attempt, Progress, Reusable};
use super::body::Body;
use super::client::{After, Client};
use super::framing::{Framing, is_idempotent};
use super::head::{Request, Response, Version};
use super::interrupt::{Interrupt, poll_waiting, wait_for};
use super::mirror;
use super::pass_on::{Answered, Changes, discard, pass_on};
use super::untimely::is_unsolicited;
use crate::balance::{AttemptOutcome, InFlight};
use crate::http::attempts::{self, Answer, Attempts, Failed, Outcome, Transport};
use crate::http::deadlines::Deadlines;
use crate::http::exchange::{self, End, Exchange};
use crate::http::retry::Failure;
use crate::memory::{Charge, UNCHARGED, Use};
use crate::observe::metrics::AppConnection;
use crate::observe::reason::{REASON_HEADER, Reason};
use crate::session::worker::Worker;
use crate::upstream::pool;

type Unanswered = attempts::Unanswered<Interrupt>;

/// Forwards a request as it was decided.
pub async fn run<S>(
    client: &mut Client<'_, S>,
    exchange: &mut Exchange<'_>,
    plan: exchange::ForwardPlan,
    request: &Request,
    response: &mut Response,
) -> (End, After)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let exchange::ForwardPlan {
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
    let mut deadlines = Deadlines::new(exchange.started, &rule);
    let direction = client.session.direction();
    let mut attempts = Attempts::new(direction, &backend, rule.retry.as_ref(), &logical.budget);
    let mut transport = Http1 {
        deadlines: &mut deadlines,
        client,
        request,
        response,
        upload: &mut upload,
    };
    let outcome = attempts.run(exchange, &mut transport).await;
    match outcome {
        Outcome::Answered(answered) => {
            let changes = Changes {
                rule: &rule,
                backend: index,
                origin: origin.as_deref(),
            };
            pass_on(changes, &mut deadlines, client, response, answered, upload).await
        }
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
    deadlines: &'a mut Deadlines,
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
        self.deadlines
    }

    fn is_replayable(&self) -> bool {
        self.upload.is_replayable()
    }

    async fn attempt(&mut self, in_flight: InFlight) -> Result<Answered, Unanswered> {
        let attempted = self.once(in_flight).await;
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
        wait_for(self.deadlines, self.client, sleep(time)).await
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Http1<'_, '_, S> {
    /// One attempt, up to the head of a response.
    async fn once(&mut self, mut in_flight: InFlight) -> Result<Answered, Unanswered> {
        let Self {
            deadlines,
            client,
            request,
            response,
            upload,
        } = self;
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
                match wait_for(deadlines, client, opening).await {
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
                            ready!(poll_waiting(deadlines, cx, client, &mut attempt.upstream));
                        Poll::Ready(Err(interrupt))
                    }
                    Poll::Pending => deadlines
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
