//! One request from its head to the end of its response, as [`crate::http::exchange`] decides.

use tokio::io::{AsyncRead, AsyncWrite};

use super::client::{After, Client};
use super::framing::RequestFraming;
use super::head::{Request, Response};
use super::{forward, reply};
use crate::http::exchange::{Exchange, Plan, refused};
use crate::http::login::Login;
use crate::memory::Charge;
use crate::observe::metrics::HttpVersion;
use crate::observe::reason::Reason;
use crate::session::Session;
use crate::wire::buffered::Buffered;

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
    let mut exchange = Exchange::begin(session, HttpVersion::Http1, request);
    let mut client = Client {
        session,
        connection,
        version: request.version(),
        framing,
        login,
        memory,
    };
    let plan = exchange.decide(request, |_| None, |rule| client.backend_of_login(rule));
    let (end, after) = match plan {
        Plan::Forward(forward) => {
            forward::run(&mut client, &mut exchange, forward, request, response).await
        }
        Plan::Redirect {
            rule,
            status,
            location,
            origin,
        } => client.redirect(&rule, status, &location, origin.as_deref()),
        Plan::Preflight(answer) => client.preflight(&answer),
        Plan::Refuse(reason) => client.answer(reason),
    };
    exchange.end(end);
    after
}

/// Counts input that was not a request, and writes an error.
pub fn refuse<S>(session: &Session, connection: &mut Buffered<S>, reason: Reason) {
    refused(
        session,
        HttpVersion::Http1,
        Some(reason.response_status()),
        reason,
    );
    reply::refusal(reason, &mut connection.unsent);
}

/// Counts a request of a client that must have an identity by now. It gets no response.
pub fn turn_away(session: &Session) {
    refused(session, HttpVersion::Http1, None, Reason::IdentityRequired);
}
