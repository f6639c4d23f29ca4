//! Responses that the proxy generates: the reason code in a field, and for gRPC a status that its
//! clients understand instead of a bare HTTP error.

use std::fmt::Write as _;

use bytes::Bytes;
use h2::server::SendResponse;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION};
use http::{Response, StatusCode};

use crate::balance::Peer;
use crate::observe::reason::{REASON_HEADER, Reason};
use crate::route::{HeaderFields as _, Preflight};

const GRPC: &str = "application/grpc";
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
pub(super) const REASON: HeaderName = HeaderName::from_static(REASON_HEADER);

/// Whether the client uses gRPC (gRPC-Web has its own framing, and its proxies expect HTTP errors).
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.as_bytes().strip_prefix(GRPC.as_bytes()))
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// The status that a response stands for: a peer's sidecar answers gRPC with 200 and the reason.
pub(super) fn status_of<B>(response: &Response<B>, peer: &Peer) -> u16 {
    let status = response.status();
    let is_told = status == StatusCode::OK && matches!(peer, Peer::Mesh(_));
    is_told
        .then(|| response.headers().get(REASON))
        .flatten()
        .and_then(|reason| Reason::from_word(reason.as_bytes())?.status())
        .unwrap_or(status.as_u16())
}

/// Answers with an error. Returns the HTTP status.
pub(super) fn error(
    respond: &mut SendResponse<Bytes>,
    grpc: bool,
    reason: Reason,
) -> Result<u16, h2::Error> {
    let mut response = Response::new(());
    let headers = response.headers_mut();
    let status = if grpc {
        grpc_fields(headers, reason);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(GRPC));
        StatusCode::OK
    } else {
        headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        StatusCode::from_u16(reason.response_status()).unwrap_or(StatusCode::SERVICE_UNAVAILABLE)
    };
    headers.insert(REASON, HeaderValue::from_static(reason.as_str()));
    *response.status_mut() = status;
    respond.send_response(response, true)?;
    Ok(status.as_u16())
}

/// The head of a redirect.
pub(super) fn redirect(status: u16, location: &str) -> Option<Response<()>> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(status).ok()?;
    let headers = response.headers_mut();
    headers.insert(LOCATION, HeaderValue::from_str(location).ok()?);
    headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    headers.insert(REASON, HeaderValue::from_static(Reason::Redirect.as_str()));
    Some(response)
}

/// The head of the response to a preflight request.
pub(super) fn preflight(answer: &Preflight) -> Option<Response<()>> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(answer.status).ok()?;
    let headers = response.headers_mut();
    for (name, value) in &answer.fields {
        headers.set_field(name, value);
    }
    headers.insert(
        REASON,
        HeaderValue::from_static(Reason::CorsPreflight.as_str()),
    );
    Some(response)
}

/// Ends a gRPC response that has started.
pub(super) fn grpc_trailers(reason: Reason) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    grpc_fields(&mut trailers, reason);
    trailers.insert(REASON, HeaderValue::from_static(reason.as_str()));
    trailers
}

fn grpc_fields(headers: &mut HeaderMap, reason: Reason) {
    let mut message = String::new();
    // Writing to a string does not fail.
    let _ = write!(message, "naru: {reason}");
    headers.insert(GRPC_STATUS, HeaderValue::from(grpc_status(reason)));
    if let Ok(message) = HeaderValue::from_str(&message) {
        headers.insert(GRPC_MESSAGE, message);
    }
}

/// The gRPC status for a reason, as gRPC's own libraries would report it without a proxy: errors
/// that a retry may resolve are UNAVAILABLE.
pub(crate) const fn grpc_status(reason: Reason) -> u16 {
    const INTERNAL: u16 = 13;
    const UNAVAILABLE: u16 = 14;
    match reason {
        // DEADLINE_EXCEEDED
        Reason::RequestTimeout | Reason::BackendRequestTimeout | Reason::HeaderTimeout => 4,
        Reason::IdentityRequired => 7, // PERMISSION_DENIED
        Reason::HeaderTooLarge | Reason::ReaderStopped => 8, // RESOURCE_EXHAUSTED
        Reason::NoRoute
        | Reason::Redirect
        | Reason::CorsPreflight
        | Reason::ConnectMethod
        | Reason::VersionNotSupported => 12, // UNIMPLEMENTED
        Reason::BadRequest | Reason::NoClientHello | Reason::UpstreamProtocolError => INTERNAL,
        Reason::ClientGone => 1, // CANCELLED
        Reason::BackendInvalid
        | Reason::NoBackend
        | Reason::NoEndpoint
        | Reason::DestinationUnknown
        | Reason::ConnectFailed
        | Reason::ConnectTimeout
        | Reason::IdentityMismatch
        | Reason::TlsFailed
        | Reason::NoCertificate
        | Reason::UpstreamReset
        | Reason::ResponseTruncated
        | Reason::Overload
        | Reason::MemoryExhausted
        | Reason::ShuttingDown => UNAVAILABLE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_is_recognized_by_its_content_type() {
        for (value, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;charset=utf-8", true),
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(value));
            assert_eq!(is_grpc(&headers), expected, "{value}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }

    #[test]
    fn every_reason_has_a_grpc_error_status() {
        for reason in Reason::ALL {
            assert!((1..=16).contains(&grpc_status(*reason)), "{reason}");
        }
    }
}
