//! One request from its head to the end of its response: decide, try (and try again), answer.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::body::Body;
use super::forward::Forward;
use super::framing::RequestFraming;
use super::head::{Request, Response, Version};
use super::{attempt, reply};
use crate::balance::Endpoint;
use crate::http::deadlines::Deadlines;
use crate::http::login::Login;
use crate::http::record::{Asked, End, Told};
use crate::memory::Charge;
use crate::observe::metrics::{HttpVersion, RequestMetrics};
use crate::observe::reason::Reason;
use crate::route::{Decision, RequestHead as _, Rule, decide};
use crate::session::Session;
use crate::socket::Direction;
use crate::table::Destination;
use crate::upstream::pool::Upstream;
use crate::wire::buffered::Buffered;

/// What becomes of the client's connection.
pub enum After {
    /// It may carry another request.
    Next,
    /// It is ended, in order.
    Close,
    /// It is cut: the client must not take what it got for a whole response.
    Cut,
    /// It belongs to the other protocol that both sides have switched to.
    Tunnel(Box<Upstream>),
}

/// The client's side of an exchange.
pub struct Client<'a, S> {
    pub session: &'a Session,
    pub connection: &'a mut Buffered<S>,
    pub version: Version,
    pub framing: RequestFraming,
    pub login: &'a mut Login,
    /// What the connection is charged for beyond its base.
    pub memory: &'a mut Charge,
    started: Instant,
}

/// Carries one request, whose head has been read and whose body follows in the connection.
pub async fn run<S>(
    session: &Session,
    connection: &mut Buffered<S>,
    request: &mut Request,
    response: &mut Response,
    framing: RequestFraming,
    login: &mut Login,
    memory: &mut Charge,
) -> After
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let access_log = &session.worker.access_log;
    let asked = access_log.enabled().then(|| {
        let authority = request.authority().unwrap_or_default().to_owned();
        let path = request.path_and_query().split('?').next();
        let path = path.unwrap_or_default().to_owned();
        (request.method().to_owned(), authority, path)
    });
    let mut client = Client {
        session,
        connection,
        version: request.version(),
        framing,
        login,
        memory,
        started: Instant::now(),
    };
    let mut told = Told::default();
    let (metrics, (end, after)) = client.serve(request, response, &mut told).await;
    let elapsed = client.started.elapsed();
    metrics.end(end.status, end.reason, elapsed);
    if let Some((method, authority, path)) = &asked {
        let asked = Asked {
            version: HttpVersion::Http1,
            method,
            authority,
            path,
        };
        told.log(session, &asked, end, elapsed);
    }
    after
}

/// Counts something that was no request, and writes a refusal.
pub fn refuse<S>(session: &Session, connection: &mut Buffered<S>, reason: Reason) {
    let metrics = metrics_of(session);
    metrics.begin(HttpVersion::Http1);
    metrics.end(Some(reason.status()), Some(reason), Duration::ZERO);
    reply::refusal(reason, &mut connection.unsent);
}

/// Counts a request of a client that must have an identity by now. It gets no answer.
pub fn turn_away(session: &Session) {
    let metrics = metrics_of(session);
    metrics.begin(HttpVersion::Http1);
    metrics.end(None, Some(Reason::IdentityRequired), Duration::ZERO);
}

fn metrics_of(session: &Session) -> Arc<RequestMetrics> {
    match &**session.destination.load() {
        Destination::Logical(logical) => session.request_metrics(&logical.default_rule, None),
        Destination::Passthrough | Destination::Unknown => session.unknown_metrics(),
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<'_, S> {
    /// Returns where the request is counted, and how it ended.
    async fn serve(
        &mut self,
        request: &mut Request,
        response: &mut Response,
        told: &mut Told,
    ) -> (Arc<RequestMetrics>, (End, After)) {
        let session = self.session;
        let destination = session.destination.load();
        let logical = match &**destination {
            Destination::Logical(logical) => logical.clone(),
            Destination::Passthrough | Destination::Unknown => {
                let metrics = session.unknown_metrics();
                metrics.begin(HttpVersion::Http1);
                return (metrics, self.answer(Reason::DestinationUnknown));
            }
        };
        drop(destination);
        logical.budget.deposit(self.started.into_std());
        let decision = decide(&logical, request, &mut session.worker.random.borrow_mut());
        let logical = &*told.logical.insert(logical);
        match decision {
            Decision::Forward {
                rule,
                backend,
                origin,
            } => {
                let backend = self.backend_of_login(&rule).unwrap_or(backend);
                let metrics = session.request_metrics(&rule, Some(backend));
                metrics.begin(HttpVersion::Http1);
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
                let ended = forward.run(self, request, response).await;
                (metrics, ended)
            }
            Decision::Redirect {
                rule,
                status,
                location,
                origin,
            } => {
                let metrics = session.request_metrics(&rule, None);
                metrics.begin(HttpVersion::Http1);
                let ended = self.redirect(&rule, status, &location, origin.as_deref());
                told.rule = Some(rule);
                (metrics, ended)
            }
            Decision::Preflight { rule, answer } => {
                let metrics = session.request_metrics(&rule, None);
                metrics.begin(HttpVersion::Http1);
                told.rule = Some(rule);
                let mut body = Body::new(self.framing.body);
                let answer = reply::preflight(&answer);
                (
                    metrics,
                    self.reply(&answer, Reason::CorsPreflight, &mut body),
                )
            }
            Decision::Fail { rule, reason } => {
                let counted = rule.as_ref().unwrap_or(&logical.default_rule);
                let metrics = session.request_metrics(counted, None);
                metrics.begin(HttpVersion::Http1);
                told.rule = rule;
                (metrics, self.answer(reason))
            }
        }
    }

    /// The backend with an endpoint that the client has logged in at: a login is over where the
    /// next request goes elsewhere.
    fn backend_of_login(&self, rule: &Rule) -> Option<usize> {
        let endpoint = self.login.endpoint()?;
        (0..rule.backends.len()).find(|index| {
            rule.target(*index).is_some_and(|backend| {
                let set = backend.endpoints();
                set.endpoints.iter().any(|other| other.id == endpoint)
            })
        })
    }

    /// Answers with an error of the proxy's own, before anything has been done about the request's body.
    pub fn answer(&mut self, reason: Reason) -> (End, After) {
        let mut body = Body::new(self.framing.body);
        self.answer_after(reason, &mut body)
    }

    /// Answers with an error of the proxy's own. `body`: what is left of the request's.
    pub fn answer_after(&mut self, reason: Reason, body: &mut Body) -> (End, After) {
        self.reply(&reply::error(reason), reason, body)
    }

    fn redirect(
        &mut self,
        rule: &Rule,
        status: u16,
        location: &str,
        origin: Option<&str>,
    ) -> (End, After) {
        if !reply::is_field_value(location) {
            // The path that the client sent can't stand in a header.
            return self.answer(Reason::BadRequest);
        }
        let mut response = reply::redirect(status, location);
        rule.filter_response(usize::MAX, origin, &mut response);
        let mut body = Body::new(self.framing.body);
        self.reply(&response, Reason::Redirect, &mut body)
    }

    fn reply(&mut self, response: &Response, reason: Reason, body: &mut Body) -> (End, After) {
        let whole = body.skip(self.connection);
        let keep_alive = whole && self.keeps_alive();
        attempt::write_head(self.connection, self.version, response, keep_alive);
        let end = End {
            status: Some(response.status),
            reason: Some(reason),
        };
        match keep_alive {
            true => (end, After::Next),
            false => (end, After::Close),
        }
    }

    pub fn gone() -> (End, After) {
        let end = End {
            status: None,
            reason: Some(Reason::ClientGone),
        };
        (end, After::Cut)
    }

    /// Keeps an upstream connection whose exchange is complete: for this client, where a login
    /// holds for it, else for all.
    pub fn keep(&mut self, endpoint: &Arc<Endpoint>, upstream: Upstream) {
        match upstream.is_bound {
            true => self.login.keep(endpoint, upstream),
            false => {
                let worker = &self.session.worker;
                worker.http1_pool.put(endpoint, upstream);
            }
        }
    }

    /// Whether the client's connection may carry another request, as far as client and proxy want.
    pub fn keeps_alive(&self) -> bool {
        let leaving =
            self.session.direction == Direction::Inbound && self.session.worker.drain.is_draining();
        self.framing.keep_alive && !leaving
    }

    /// Whether a client that waits for a word before it sends its body may still send it, or not.
    pub fn is_unsure_of(&self, body: &Body) -> bool {
        self.framing.expects_continue && !body.is_received()
    }
}
