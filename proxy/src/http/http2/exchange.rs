//! One stream from its request to the end of its response: decide, try (and try again), answer.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::RecvStream;
use h2::ext::Protocol;
use h2::server::SendResponse;
use http::header::HOST;
use http::{Request, Response, request};
use tokio::time::Instant;

use super::forward::Forward;
use super::held::Held;
use super::serve::{Downstream, logs_in};
use super::{head, reply};
use crate::http::deadlines::Deadlines;
use crate::http::record::{Asked, End, Told};
use crate::memory::Charge;
use crate::observe::metrics::{HttpVersion, RequestMetrics};
use crate::observe::reason::Reason;
use crate::route::{Decision, Preflight, Rule, decide};
use crate::table::Destination;

/// The client's side of a stream.
pub(super) struct Client<'a> {
    pub downstream: &'a Downstream,
    pub respond: SendResponse<Bytes>,
    pub grpc: bool,
    pub held: Held,
    started: Instant,
}

/// Carries one stream. Returns when it has ended.
pub(super) async fn run(
    downstream: &Downstream,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
    admission: Result<Charge, Reason>,
) -> Instant {
    let _busy = downstream.session.worker.drain.busy();
    let started = Instant::now();
    let (mut head, body) = request.into_parts();
    let log = downstream
        .session
        .worker
        .access_log
        .enabled()
        .then(|| Box::new((head.method.clone(), head.uri.clone())));
    let refused = admission.as_ref().err().copied();
    let charge = admission.unwrap_or_else(|_| downstream.session.worker.memory.nothing());
    let mut client = Client {
        downstream,
        held: Held::new(charge),
        grpc: reply::is_grpc(&head.headers),
        respond,
        started,
    };
    head.headers.remove(reply::REASON);
    if logs_in(&head.headers) {
        downstream.bind();
    }
    let mut told = Told::default();
    let (metrics, end) = client.serve(&mut head, body, refused, &mut told).await;
    let ended = Instant::now();
    let elapsed = ended.duration_since(started);
    metrics.end(end.status, end.reason, elapsed);
    if let Some(asked) = log {
        let (method, uri) = *asked;
        let host = head.headers.get(HOST).and_then(|host| host.to_str().ok());
        let authority = uri.authority().map(|authority| authority.as_str());
        let asked = Asked {
            version: HttpVersion::Http2,
            method: method.as_str(),
            authority: authority.or(host).unwrap_or(""),
            path: uri.path(),
        };
        told.log(&downstream.session, &asked, end, elapsed);
    }
    ended
}

impl Client<'_> {
    /// Returns where the request is counted, and how it ended.
    async fn serve(
        &mut self,
        request: &mut request::Parts,
        body: RecvStream,
        refused: Option<Reason>,
        told: &mut Told,
    ) -> (Arc<RequestMetrics>, End) {
        let session = &self.downstream.session;
        let destination = session.destination.load();
        let logical = match &**destination {
            Destination::Logical(logical) => logical.clone(),
            Destination::Passthrough | Destination::Unknown => {
                let metrics = session.unknown_metrics();
                metrics.begin(HttpVersion::Http2);
                return (metrics, self.answer(Reason::DestinationUnknown));
            }
        };
        drop(destination);
        logical.budget.deposit(self.started.into_std());
        let logical = &*told.logical.insert(logical);
        let is_extended_connect = request.extensions.get::<Protocol>().is_some();
        let max_bytes = session.worker.config.limits.max_header_bytes;
        let refused = head::refusal(request, is_extended_connect, max_bytes).or(refused);
        if let Some(reason) = refused {
            tracing::debug!(%reason, "a request is refused");
            self.downstream.meter.refused();
            let metrics = session.request_metrics(&logical.default_rule, None);
            metrics.begin(HttpVersion::Http2);
            return (metrics, self.answer(reason));
        }
        let decision = decide(logical, request, &mut session.worker.random.borrow_mut());
        match decision {
            Decision::Forward {
                rule,
                backend,
                origin,
            } => {
                let metrics = session.request_metrics(&rule, Some(backend));
                metrics.begin(HttpVersion::Http2);
                let logical = logical.clone();
                told.rule = Some(rule.clone());
                session.introduce(request);
                let mut forward = Forward {
                    rule: &rule,
                    backend,
                    origin: origin.as_deref(),
                    budget: &logical.budget,
                    metrics: &metrics,
                    deadlines: Deadlines::new(self.started, &rule),
                    told,
                };
                let end = forward.run(self, request, body).await;
                (metrics, end)
            }
            Decision::Redirect {
                rule,
                status,
                location,
                origin,
            } => {
                let metrics = session.request_metrics(&rule, None);
                metrics.begin(HttpVersion::Http2);
                let end = self.redirect(&rule, status, &location, origin.as_deref());
                told.rule = Some(rule);
                (metrics, end)
            }
            Decision::Preflight { rule, answer } => {
                let metrics = session.request_metrics(&rule, None);
                metrics.begin(HttpVersion::Http2);
                told.rule = Some(rule);
                (metrics, self.preflight(&answer))
            }
            Decision::Fail { rule, reason } => {
                let counted = rule.as_ref().unwrap_or(&logical.default_rule);
                let metrics = session.request_metrics(counted, None);
                metrics.begin(HttpVersion::Http2);
                told.rule = rule;
                (metrics, self.answer(reason))
            }
        }
    }

    /// Answers with an error of the proxy's own.
    pub fn answer(&mut self, reason: Reason) -> End {
        match reply::error(&mut self.respond, self.grpc, reason) {
            Ok(status) => End {
                status: Some(status),
                reason: Some(reason),
            },
            Err(_) => self.gone(),
        }
    }

    /// Counts a request that turned out to be malformed on its way as given up: its stream to the
    /// endpoint, on a connection that other clients share, has been reset for that.
    pub fn count_malformed(&self) {
        self.downstream.meter.refused();
        self.downstream.given_up(self.started);
    }

    fn redirect(&mut self, rule: &Rule, status: u16, location: &str, origin: Option<&str>) -> End {
        if self.grpc {
            return self.answer(Reason::Redirect);
        }
        let Some(mut response) = reply::redirect(status, location) else {
            // The path that the client sent can't stand in a header.
            return self.answer(Reason::BadRequest);
        };
        rule.filter_response(usize::MAX, origin, response.headers_mut());
        self.reply(response, Reason::Redirect)
    }

    fn preflight(&mut self, answer: &Preflight) -> End {
        match reply::preflight(answer) {
            Some(response) => self.reply(response, Reason::CorsPreflight),
            None => self.answer(Reason::BadRequest),
        }
    }

    fn reply(&mut self, response: Response<()>, reason: Reason) -> End {
        let status = response.status().as_u16();
        match self.respond.send_response(response, true) {
            Ok(_) => End {
                status: Some(status),
                reason: Some(reason),
            },
            Err(_) => self.gone(),
        }
    }

    pub fn gone(&self) -> End {
        self.downstream.given_up(self.started);
        End {
            status: None,
            reason: Some(Reason::ClientGone),
        }
    }

    /// Whether the client has given up the stream.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Option<h2::Reason>> {
        self.respond.poll_reset(cx).map(Result::ok)
    }
}
