//! One stream from its request to the end of its response, as [`crate::http::exchange`] decides.

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{Request, request};
use tokio::time::Instant;

use super::client::Client;
use super::downstream::{Downstream, logs_in};
use super::held::Held;
use super::{forward, reply};
use crate::http::exchange::{Exchange, Plan};
use crate::memory::Charge;
use crate::observe::metrics::HttpVersion;
use crate::observe::reason::Reason;

/// Carries one stream. Returns when it has ended.
pub(super) async fn run(
    downstream: &Downstream,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
    admission: Result<Charge, Reason>,
) -> Instant {
    let _busy = downstream.session.worker.drain.busy();
    let (mut head, body) = request.into_parts();
    let session = &downstream.session;
    let mut exchange = Exchange::begin(session, HttpVersion::Http2, &head);
    let refused = admission.as_ref().err().copied();
    let charge = admission.unwrap_or_else(|_| session.worker.memory.nothing());
    let mut client = Client {
        downstream,
        held: Held::new(charge),
        grpc: reply::is_grpc(&head.headers),
        respond,
        started: exchange.started,
    };
    head.headers.remove(reply::REASON);
    if logs_in(&head.headers) {
        downstream.bind();
    }
    let check = |head: &request::Parts| {
        let reason = client.check(head).or(refused)?;
        tracing::debug!(%reason, "a request is refused");
        downstream.meter.refused();
        Some(reason)
    };
    let end = match exchange.decide(&mut head, check, |_| None) {
        Plan::Forward(forward) => {
            forward::run(&mut client, &mut exchange, forward, &head, body).await
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
    exchange.end(end)
}
