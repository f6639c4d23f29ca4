//! Responses that the proxy generates.

use std::fmt::Write as _;

use bytes::BytesMut;

use super::head::{Response, Version};
use crate::observe::reason::{REASON_HEADER, Reason};
use crate::route::{HeaderFields, Preflight};

const NO_CONTENT: u16 = 204;

/// An error without content, with its reason in a field.
pub fn error(reason: Reason) -> Response {
    empty(reason.response_status(), reason)
}

/// A redirect. The location must be a valid field value.
pub fn redirect(status: u16, location: &str) -> Response {
    let mut response = empty(status, Reason::Redirect);
    response.set_field("location", location);
    response
}

/// The response to a preflight request.
pub fn preflight(answer: &Preflight) -> Response {
    let mut response = empty(answer.status, Reason::CorsPreflight);
    for (name, value) in &answer.fields {
        response.set_field(name, value);
    }
    response
}

/// Whether `text` is a valid field value.
pub fn is_field_value(text: &str) -> bool {
    text.bytes()
        .all(|byte| matches!(byte, b'\t' | b' '..=b'~' | 0x80..))
}

fn empty(status: u16, reason: Reason) -> Response {
    let mut response = Response::new(status, phrase(status));
    // RFC 9110 section 8.6 forbids it with a 204.
    if status != NO_CONTENT {
        response.set_field("content-length", "0");
    }
    response.set_field(REASON_HEADER, reason.as_str());
    response
}

/// Appends the last lines of a head, including the connection-level fields.
pub fn end_head(out: &mut BytesMut, client: Version, keep_alive: bool) {
    match (client, keep_alive) {
        (Version::Http11, true) => {}
        (Version::Http10, true) => out.extend_from_slice(b"Connection: keep-alive\r\n"),
        (_, false) => out.extend_from_slice(b"Connection: close\r\n"),
    }
    out.extend_from_slice(b"\r\n");
}

/// A complete error response to input that was not a request.
pub fn refusal(reason: Reason, out: &mut BytesMut) {
    let status = reason.response_status();
    // Writing to a buffer can't fail.
    let _ = write!(
        out,
        "HTTP/1.1 {status} {}\r\ncontent-length: 0\r\n{REASON_HEADER}: {reason}\r\n\
         Connection: close\r\n\r\n",
        phrase(status)
    );
}

/// The reason phrase, for human readers.
fn phrase(status: u16) -> &'static str {
    http::StatusCode::from_u16(status)
        .ok()
        .and_then(|status| status.canonical_reason())
        .unwrap_or("")
}
