//! The client's side of a request: its connection, and the responses that the proxy generates.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};

use super::body::Body;
use super::framing::RequestFraming;
use super::head::{Response, Version};
use super::{attempt, reply};
use crate::balance::Endpoint;
use crate::http::exchange::End;
use crate::http::login::Login;
use crate::memory::Charge;
use crate::observe::reason::Reason;
use crate::route::{Preflight, Rule};
use crate::session::Session;
use crate::socket::Direction;
use crate::upstream::pool::Upstream;
use crate::wire::buffered::Buffered;

/// What happens to the client's connection.
pub enum After {
    /// It may carry another request.
    Next,
    /// It is closed in order.
    Close,
    /// It is reset, so that the client does not take the response for a complete one.
    Cut,
    /// It is a tunnel for the protocol that both sides have switched to.
    Tunnel(Box<Upstream>),
}

/// The client's side of an exchange.
pub struct Client<'a, S> {
    pub session: &'a Session,
    pub connection: &'a mut Buffered<S>,
    pub version: Version,
    pub framing: RequestFraming,
    pub login: &'a mut Login,
    /// The charge of the connection beyond its base.
    pub memory: &'a mut Charge,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<'_, S> {
    /// The backend with the endpoint of the client's login: the login ends when the next request
    /// goes to another backend.
    pub fn backend_of_login(&self, rule: &Rule) -> Option<usize> {
        let endpoint = self.login.endpoint()?;
        (0..rule.backends.len()).find(|index| {
            rule.target(*index).is_some_and(|backend| {
                let set = backend.endpoints();
                set.endpoints.iter().any(|other| other.id == endpoint)
            })
        })
    }

    /// Answers with an error of the proxy, before any of the request's body has been read.
    pub fn answer(&mut self, reason: Reason) -> (End, After) {
        let mut body = Body::new(self.framing.body);
        self.answer_after(reason, &mut body)
    }

    /// Answers with an error of the proxy. `body`: the rest of the request's body.
    pub fn answer_after(&mut self, reason: Reason, body: &mut Body) -> (End, After) {
        self.reply(&reply::error(reason), reason, body)
    }

    pub fn redirect(
        &mut self,
        rule: &Rule,
        status: u16,
        location: &str,
        origin: Option<&str>,
    ) -> (End, After) {
        if !reply::is_field_value(location) {
            // The path that the client sent is not a valid field value.
            return self.answer(Reason::BadRequest);
        }
        let mut response = reply::redirect(status, location);
        rule.filter_response(None, origin, &mut response);
        let mut body = Body::new(self.framing.body);
        self.reply(&response, Reason::Redirect, &mut body)
    }

    pub fn preflight(&mut self, answer: &Preflight) -> (End, After) {
        let mut body = Body::new(self.framing.body);
        self.reply(&reply::preflight(answer), Reason::CorsPreflight, &mut body)
    }

    fn reply(&mut self, response: &Response, reason: Reason, body: &mut Body) -> (End, After) {
        let whole = body.skip(self.connection);
        let keep_alive = whole && self.keeps_alive();
        attempt::write_head(self.connection, self.version, response, keep_alive);
        let end = End::answered(response.status, reason);
        match keep_alive {
            true => (end, After::Next),
            false => (end, After::Close),
        }
    }

    pub fn gone() -> (End, After) {
        (End::unanswered(Reason::ClientGone), After::Cut)
    }

    /// Keeps an upstream connection whose exchange is complete: for this client if it has a login,
    /// otherwise for all.
    pub fn keep(&mut self, endpoint: &Arc<Endpoint>, upstream: Upstream) {
        match upstream.is_bound {
            true => self.login.keep(endpoint, upstream),
            false => {
                let worker = &self.session.worker;
                worker.http1_pool.put(endpoint, upstream);
            }
        }
    }

    /// Whether client and proxy both allow another request on the client's connection.
    pub fn keeps_alive(&self) -> bool {
        let leaving = self.session.direction() == Direction::Inbound
            && self.session.worker.drain.is_draining();
        self.framing.keep_alive && !leaving
    }

    /// Whether a client that expects 100 (Continue) may or may not still send its body.
    pub fn is_unsure_of(&self, body: &Body) -> bool {
        self.framing.expects_continue && !body.is_received()
    }
}
