//! The client's side of a stream, and the responses that the proxy generates.

use std::task::{Context, Poll};

use bytes::Bytes;
use h2::ext::Protocol;
use h2::server::SendResponse;
use http::{Response, request};
use tokio::time::Instant;

use super::downstream::Downstream;
use super::held::Held;
use super::{head, reply};
use crate::http::exchange::End;
use crate::observe::reason::Reason;
use crate::route::{Preflight, Rule};

/// The client's side of a stream.
pub(super) struct Client<'a> {
    pub downstream: &'a Downstream,
    pub respond: SendResponse<Bytes>,
    pub grpc: bool,
    pub held: Held,
    pub started: Instant,
}

impl Client<'_> {
    /// Why the head is rejected, if it is.
    pub fn check(&self, head: &request::Parts) -> Option<Reason> {
        let is_extended_connect = head.extensions.get::<Protocol>().is_some();
        let limits = &self.downstream.session.worker.config.limits;
        head::refusal(head, is_extended_connect, limits.max_header_bytes)
    }

    /// Answers with an error of the proxy.
    pub fn answer(&mut self, reason: Reason) -> End {
        match reply::error(&mut self.respond, self.grpc, reason) {
            Ok(status) => End::answered(status, reason),
            Err(_) => self.gone(),
        }
    }

    /// Counts a request that turned out to be malformed in transit as an early reset: its stream to
    /// the endpoint, on a connection shared with other clients, has been reset for it.
    pub fn count_malformed(&self) {
        self.downstream.meter.refused();
        self.downstream.given_up(self.started);
    }

    pub fn redirect(
        &mut self,
        rule: &Rule,
        status: u16,
        location: &str,
        origin: Option<&str>,
    ) -> End {
        if self.grpc {
            return self.answer(Reason::Redirect);
        }
        let Some(mut response) = reply::redirect(status, location) else {
            // The path that the client sent is not a valid field value.
            return self.answer(Reason::BadRequest);
        };
        rule.filter_response(None, origin, response.headers_mut());
        self.reply(response, Reason::Redirect)
    }

    pub fn preflight(&mut self, answer: &Preflight) -> End {
        match reply::preflight(answer) {
            Some(response) => self.reply(response, Reason::CorsPreflight),
            None => self.answer(Reason::BadRequest),
        }
    }

    fn reply(&mut self, response: Response<()>, reason: Reason) -> End {
        let status = response.status().as_u16();
        match self.respond.send_response(response, true) {
            Ok(_) => End::answered(status, reason),
            Err(_) => self.gone(),
        }
    }

    pub fn gone(&self) -> End {
        self.downstream.given_up(self.started);
        End::unanswered(Reason::ClientGone)
    }

    /// Whether the client has reset the stream.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Option<h2::Reason>> {
        self.respond.poll_reset(cx).map(Result::ok)
    }
}
