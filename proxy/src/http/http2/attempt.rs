//! One attempt of a request on one endpoint, up to the head of its response.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::ext::Protocol;
use h2::{RecvStream, SendStream};
use http::{Request, Response, Version, request};
use tokio::time::{Instant, sleep};

use super::body::{TransferError, Upload};
use crate::balance::{AttemptOutcome, Endpoint};
use crate::http::attempts::Failed;
use crate::http::retry::Failure;
use crate::http::strict::MAX_FIELDS;
use crate::observe::reason::Reason;
use crate::session::worker::Worker;
use crate::upstream::Caller;
use crate::upstream::http2::Http2Connection;
use crate::upstream::share::Holder;
use crate::upstream::streams::Lease;

/// How long a new connection may take until its peer's SETTINGS, its first frame, allow extended
/// CONNECT, and how often that is checked.
const SETTINGS_PATIENCE: Duration = Duration::from_millis(500);
const SETTINGS_POLL: Duration = Duration::from_millis(5);
/// How many connections that turn out to accept no more streams are skipped in one attempt.
const MAX_STALE: usize = 4;

/// A request in progress, without a final response yet.
pub(super) struct Attempt {
    response: ResponseFuture,
    pub send: SendStream<Bytes>,
    _lease: Lease<Http2Connection>,
}

/// The stream ended with `error` before a response.
fn stream_failed(error: &h2::Error) -> Failed {
    let reset = error
        .reason()
        .filter(|_| error.is_reset() && error.is_remote());
    // The peer has not processed the request: a refused stream, or one after the last stream ID of
    // its GOAWAY.
    let unprocessed = if error.is_go_away() && error.is_remote() {
        Some(Failure::Stale)
    } else {
        (reset == Some(h2::Reason::REFUSED_STREAM)).then_some(Failure::NeverSent)
    };
    let failed = match unprocessed {
        Some(failure) => Failed::new(failure, Reason::UpstreamReset, AttemptOutcome::Cancelled),
        None if error.is_library() => Failed::reset(Reason::UpstreamProtocolError),
        None => Failed::reset(Reason::UpstreamReset),
    };
    Failed { reset, ..failed }
}

/// The endpoint's response exceeds the limits.
pub(super) fn out_of_bounds() -> Failed {
    Failed::reset(Reason::UpstreamProtocolError)
}

/// Sends the head to `endpoint`. `holder`: the connection whose share of the streams it counts
/// against. `ends`: there is no body, and the head ends the request.
pub(super) async fn start(
    worker: &Rc<Worker>,
    holder: Option<&Rc<Holder>>,
    endpoint: &Arc<Endpoint>,
    caller: &Caller,
    head: &request::Parts,
    ends: bool,
) -> Result<Attempt, Failed> {
    for _ in 0..MAX_STALE {
        let lease = worker
            .http2_pool
            .acquire(endpoint, caller, holder)
            .await
            .map_err(Failed::no_connection)?;
        let Some(mut sender) = lease.connection.sender() else {
            continue;
        };
        let protocol = head.extensions.get::<Protocol>();
        if protocol.is_some() && !supports_extended_connect(&sender).await {
            let reason = Reason::UpstreamProtocolError;
            let failure = Failure::Status(reason.response_status());
            return Err(Failed::new(failure, reason, AttemptOutcome::Cancelled));
        }
        match sender.send_request(request(head, protocol), ends) {
            Ok((response, send)) => {
                return Ok(Attempt {
                    response,
                    send,
                    _lease: lease,
                });
            }
            // The connection received a GOAWAY, or has broken: nothing was sent on it.
            Err(error) => {
                tracing::debug!(%error, "a pooled connection takes no more streams");
                lease.retire();
            }
        }
    }
    Err(Failed::new(
        Failure::Stale,
        Reason::ConnectFailed,
        AttemptOutcome::Cancelled,
    ))
}

/// A copy of the head: h2 consumes the one that it gets.
fn request(head: &request::Parts, protocol: Option<&Protocol>) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = head.uri.clone();
    *request.headers_mut() = head.headers.clone();
    if let Some(protocol) = protocol {
        request.extensions_mut().insert(protocol.clone());
    }
    // A client may send `Host` instead of `:authority`. h2 passes that on only for requests marked
    // as HTTP/1.1.
    *request.version_mut() = match head.uri.authority() {
        Some(_) => Version::HTTP_2,
        None => Version::HTTP_11,
    };
    request
}

async fn supports_extended_connect(sender: &h2::client::SendRequest<Bytes>) -> bool {
    let deadline = Instant::now() + SETTINGS_PATIENCE;
    while !sender.is_extended_connect_protocol_enabled() {
        if Instant::now() >= deadline {
            return false;
        }
        sleep(SETTINGS_POLL).await;
    }
    true
}

/// The result of an attempt.
pub(super) enum Progress {
    /// An interim response (1xx), to be passed on.
    Interim(Response<()>),
    Head(Response<RecvStream>),
    Failed(Failed),
    /// The client has aborted its request.
    ClientGone(Option<h2::Reason>),
    /// The client's trailers contain fields that are not allowed there.
    BadRequest,
}

impl Attempt {
    /// Sends the body and waits for a response.
    pub fn poll(&mut self, cx: &mut Context<'_>, upload: &mut Upload) -> Poll<Progress> {
        // The body first: the part that is sent in this turn goes out with the head.
        if !upload.is_done() {
            match upload.poll(cx, &mut self.send) {
                Poll::Ready(Err(TransferError::Sender(error))) => {
                    return Poll::Ready(Progress::ClientGone(error.reason()));
                }
                Poll::Ready(Err(TransferError::Trailers)) => {
                    return Poll::Ready(Progress::BadRequest);
                }
                // The response has the reason: a server may have answered without waiting for the
                // body.
                Poll::Ready(Err(TransferError::Taker | TransferError::Stopped)) => upload.stop(),
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
        }
        self.poll_response(cx)
    }

    /// Waits for a response while the body is sent elsewhere.
    pub fn poll_response(&mut self, cx: &mut Context<'_>) -> Poll<Progress> {
        if let Poll::Ready(Some(Ok(interim))) = self.response.poll_informational(cx) {
            return Poll::Ready(Progress::Interim(interim));
        }
        Poll::Ready(match ready!(Pin::new(&mut self.response).poll(cx)) {
            Ok(response) if response.headers().len() > MAX_FIELDS => {
                tracing::debug!("an upstream's response has too many fields");
                self.send.send_reset(h2::Reason::ENHANCE_YOUR_CALM);
                Progress::Failed(out_of_bounds())
            }
            Ok(response) => Progress::Head(response),
            Err(error) => Progress::Failed(stream_failed(&error)),
        })
    }
}
