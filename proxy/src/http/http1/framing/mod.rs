//! The end of a message's body and the meaning of its connection-level fields (RFC 9112 sections 6,
//! 7 and 9). A request that two parsers could read differently is rejected.

use super::head::{Request, Response, Version};
use crate::http::login;
use crate::http::strict::{self, Authority};
use crate::observe::reason::{REASON_HEADER, Reason};
use crate::route::RequestHead as _;

/// How the end of a body is determined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// No body.
    None,
    /// Exactly this many bytes, at least one.
    Length(u64),
    Chunked,
    /// Until the connection ends. Responses only.
    UntilClose,
}

impl Framing {
    /// Whether the body is known to have no more than this many bytes.
    pub fn is_at_most(self, bytes: usize) -> bool {
        match self {
            Self::None => true,
            Self::Length(length) => length <= bytes as u64,
            Self::Chunked | Self::UntilClose => false,
        }
    }
}

/// Why a message is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FramingError {
    #[error("both Content-Length and Transfer-Encoding")]
    LengthAndEncoding,
    #[error("more than one Content-Length")]
    SeveralLengths,
    #[error("Content-Length is not a number")]
    Length,
    #[error("Transfer-Encoding is not just \"chunked\"")]
    Encoding,
    #[error("Transfer-Encoding in HTTP/1.0")]
    EncodingInHttp10,
    #[error("the target is neither a path, nor a URI of HTTP, nor what its method asks for")]
    Target,
    #[error("the method is CONNECT")]
    Connect,
    #[error("an HTTP/1.1 request needs exactly one Host field with a valid host")]
    Host,
    #[error("the target's authority and Host differ")]
    TargetAndHost,
    #[error("Connection names a field that a proxy must not remove")]
    ConnectionField,
}

impl FramingError {
    /// The reason for a client whose request is rejected.
    pub fn reason(self) -> Reason {
        match self {
            Self::Connect => Reason::ConnectMethod,
            _ => Reason::BadRequest,
        }
    }
}

/// The meaning of a request's connection-level fields, which have been removed from its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestFraming {
    pub body: Framing,
    /// The client wants to send more requests on this connection.
    pub keep_alive: bool,
    /// The client asks to switch protocols. `Upgrade` is still in the head.
    pub upgrade: bool,
    /// The client waits for 100 before it sends the body.
    pub expects_continue: bool,
    /// It carries credentials that apply to the connection: see [`crate::http::login`].
    pub logs_in: bool,
}

/// The meaning of a response's connection-level fields, which have been removed from its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseFraming {
    pub body: Framing,
    /// The connection may carry another exchange after this one.
    pub keep_alive: bool,
    /// It is part of a login for the connection: see [`crate::http::login`].
    pub logs_in: bool,
}

/// Fields that belong to one connection whether or not `Connection` names them (RFC 9110 section
/// 7.6.1).
const HOP_BY_HOP: [&str; 3] = ["connection", "keep-alive", "proxy-connection"];
/// Fields that a `Connection` field may not name: without them the message would have another
/// meaning.
const NOT_TO_BE_NAMED: [&str; 6] = [
    "host",
    "content-length",
    "transfer-encoding",
    "authorization",
    "cookie",
    "content-type",
];
/// Fields that belong to one connection if `Connection` names them. A request that names any other
/// existing field is rejected: one reader would drop that field, and another keep it, and it may be
/// one that a proxy in front has set.
const MAY_BE_NAMED: [&str; 6] = [
    "te",
    "trailer",
    "upgrade",
    "http2-settings",
    "proxy-authorization",
    "proxy-authenticate",
];
/// Names that one `Connection` field may list in addition to the well-known options.
const MAX_NAMED_FIELDS: usize = 16;

#[derive(Default)]
struct ConnectionOptions {
    close: bool,
    keep_alive: bool,
    upgrade: bool,
    /// How many fields are connection-level.
    fields: usize,
    named: Vec<Vec<u8>>,
}

/// Reads and removes the connection-level fields of a request.
pub fn request(head: &mut Request) -> Result<RequestFraming, FramingError> {
    let http10 = head.version() == Version::Http10;
    let mut length = None;
    let mut chunked = false;
    let mut hosts = 0;
    let mut is_plain_host = true;
    let mut connection = ConnectionOptions::default();
    let mut upgrade_field = false;
    let mut to_http2 = false;
    let mut expects_continue = false;
    let mut logs_in = false;
    let mut to_drop = false;
    let mut takes_trailers = false;
    for (name, value) in head.fields.iter() {
        match name.len() {
            2 if is(name, "te") => takes_trailers |= offers_trailers(value),
            4 if is(name, "host") => {
                hosts += 1;
                is_plain_host = strict::is_plain_host(value);
            }
            6 if is(name, "expect") => {
                expects_continue |= value.eq_ignore_ascii_case(b"100-continue")
            }
            7 if is(name, "upgrade") => {
                upgrade_field = true;
                to_http2 |= offers_http2(value);
            }
            10 if is(name, "connection") => {
                to_drop = true;
                connection.read(value)?;
            }
            10 if is(name, "keep-alive") => to_drop = true,
            11 if is(name, REASON_HEADER) => to_drop = true,
            13 if is(name, "authorization") => logs_in |= login::is_of_connection(value),
            14 if is(name, "content-length") => match length {
                None => length = Some(parse_length(value)?),
                Some(_) => return Err(FramingError::SeveralLengths),
            },
            16 if is(name, "proxy-connection") => to_drop = true,
            17 if is(name, "transfer-encoding") => {
                if chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(FramingError::Encoding);
                }
                chunked = true;
            }
            19 if is(name, "proxy-authorization") => logs_in |= login::is_of_connection(value),
            _ => {}
        }
    }
    if chunked && http10 {
        return Err(FramingError::EncodingInHttp10);
    }
    if chunked && length.is_some() {
        return Err(FramingError::LengthAndEncoding);
    }
    if hosts > 1 || (hosts == 0 && !http10) {
        return Err(FramingError::Host);
    }
    // The common case; other requests are checked in detail.
    if !(is_plain_host && asks_for_path(head)) {
        check_target(head)?;
    }
    connection.check(head)?;
    let upgrade = connection.upgrade && upgrade_field && !to_http2 && !http10;
    // Kept unchanged if it has no other option: servers compare it, case included.
    let keeps_field = upgrade && connection.lists_only_upgrade();
    // Trailers are passed on, and an app leaves them out unless `TE` asks for them.
    let asks_for_trailers = takes_trailers && connection.drops(b"te") && !upgrade && !http10;
    let keeps = |name: &[u8]| match (upgrade, asks_for_trailers) {
        (true, _) => is(name, "connection") || is(name, "upgrade"),
        (false, true) => is(name, "connection") || is(name, "te"),
        (false, false) => false,
    };
    if to_drop {
        head.fields
            .retain(|name, _| (!connection.drops(name) || keeps(name)) && !is(name, REASON_HEADER));
    }
    if asks_for_trailers {
        head.fields.set("Connection", b"TE");
        head.fields.set("TE", b"trailers");
    }
    if upgrade && !keeps_field {
        head.fields.set("Connection", b"Upgrade");
    }
    if upgrade_field && !upgrade {
        head.fields.remove("upgrade");
    }
    Ok(RequestFraming {
        body: match (chunked, length) {
            (true, _) => Framing::Chunked,
            (false, Some(1..)) => Framing::Length(length.unwrap_or_default()),
            (false, _) => Framing::None,
        },
        keep_alive: !connection.close && (!http10 || connection.keep_alive),
        upgrade,
        expects_continue: expects_continue && !http10,
        logs_in,
    })
}

/// Whether a `TE` accepts trailers, which needs no transfer coding.
fn offers_trailers(value: &[u8]) -> bool {
    let mut parts = value.split(|byte| *byte == b',');
    parts.any(|part| is(part.trim_ascii(), "trailers"))
}

/// Whether an `Upgrade` names HTTP/2, quoted or not. A mesh uses HTTP/2 with prior knowledge; an
/// upgrade to it would hide requests from the proxy (RFC 9113 section 3.1).
fn offers_http2(value: &[u8]) -> bool {
    value.split(|byte| *byte == b',').any(|protocol| {
        let protocol = protocol.trim_ascii();
        let protocol = protocol
            .strip_prefix(b"\"")
            .unwrap_or(protocol)
            .trim_ascii();
        protocol.get(..2).is_some_and(|start| is(start, "h2"))
    })
}

/// Whether the target is in origin-form, and the method allows that form.
fn asks_for_path(head: &Request) -> bool {
    match head.target_bytes() {
        [b'/', rest @ ..] => {
            memchr::memchr(b'#', rest).is_none() && head.method_bytes() != b"CONNECT"
        }
        _ => false,
    }
}

/// Checks the target and host of a request (RFC 9112 section 3.2).
fn check_target(head: &mut Request) -> Result<(), FramingError> {
    let host = match head.fields.get("host") {
        // For the app the same as a missing field (RFC 9112 section 3.3), unless the target names a
        // host.
        Some(b"") => match head.target_authority() {
            Some(_) => return Err(FramingError::TargetAndHost),
            None => None,
        },
        Some(value) => {
            let text = std::str::from_utf8(value).map_err(|_| FramingError::Host)?;
            Some(Authority::of_host(text).ok_or(FramingError::Host)?)
        }
        None => None,
    };
    let method = head.method();
    let addressed = if method == "CONNECT" {
        Some(Authority::of_connect(head.target()).ok_or(FramingError::Target)?)
    } else if let Some(authority) = head.target_authority() {
        Some(Authority::parse(authority).ok_or(FramingError::Target)?)
    } else if strict::is_path(head.target(), method) {
        None
    } else {
        return Err(FramingError::Target);
    };
    let Some(addressed) = addressed else {
        return Ok(());
    };
    if host.is_some_and(|host| !addressed.agrees_with(&host)) {
        return Err(FramingError::TargetAndHost);
    }
    if method == "CONNECT" {
        return Err(FramingError::Connect);
    }
    let path = head.path_and_query();
    if path.starts_with('?') {
        // An empty path is `/` (RFC 9110 section 4.2.3), for routes as well as for the app.
        let path = format!("/{path}");
        head.set_path_and_query(&path);
    }
    match strict::is_path(head.path_and_query(), "") {
        true => Ok(()),
        false => Err(FramingError::Target),
    }
}

/// Reads and removes the connection-level fields of a response. `method_is_head`: of the request.
pub fn response(
    head: &mut Response,
    method_is_head: bool,
) -> Result<ResponseFraming, FramingError> {
    let http10 = head.version() == Version::Http10;
    let mut length: Option<u64> = None;
    let mut encoded = false;
    let mut chunked = false;
    let mut connection = ConnectionOptions::default();
    let mut drop_lengths = false;
    let mut logs_in = false;
    for (name, value) in head.fields.iter() {
        match name.len() {
            10 if is(name, "connection") => connection.read(value)?,
            14 if is(name, "content-length") => {
                // Some servers repeat it, in one field or in several; equal values have one
                // meaning.
                for part in value.split(|byte| *byte == b',') {
                    let part = parse_length(part.trim_ascii())?;
                    match length {
                        None => length = Some(part),
                        Some(before) if before == part => drop_lengths = true,
                        Some(_) => return Err(FramingError::SeveralLengths),
                    }
                }
            }
            // IIS marks a login for the connection with it.
            15 if is(name, "persistent-auth") => logs_in |= is(value, "true"),
            16 if is(name, "www-authenticate") => logs_in |= login::is_of_connection(value),
            17 if is(name, "transfer-encoding") && is(value, "identity") => {}
            17 if is(name, "transfer-encoding") => {
                encoded = true;
                let last = value
                    .rsplit(|byte| *byte == b',')
                    .next()
                    .unwrap_or_default();
                chunked = last.trim_ascii().eq_ignore_ascii_case(b"chunked");
            }
            18 if is(name, "proxy-authenticate") => logs_in |= login::is_of_connection(value),
            _ => {}
        }
    }
    // RFC 9112 section 6.1 and RFC 9110 section 8.6 forbid both fields with these statuses.
    let unframed = matches!(head.status, 100..=199 | 204);
    // With both fields the encoding takes precedence (RFC 9112 section 6.3), and the connection
    // cannot be trusted any further. The same applies to an HTTP/1.0 server, which has no transfer
    // codings (section 6.1), and to a server that announces a body for a response without one: it
    // may send it.
    let ambiguous = encoded && (http10 || length.is_some())
        || unframed && (encoded || length.is_some_and(|l| l > 0));
    let bodyless = method_is_head || unframed || head.status == 304;
    let body = if bodyless {
        Framing::None
    } else if chunked {
        Framing::Chunked
    } else if encoded {
        Framing::UntilClose
    } else {
        match length {
            Some(0) => Framing::None,
            Some(length) => Framing::Length(length),
            None => Framing::UntilClose,
        }
    };
    let upgraded = head.status == 101;
    // `identity` was once the name for no coding. Old servers still send it.
    let no_coding = |name: &[u8], value: &[u8]| {
        is(name, "transfer-encoding") && (unframed || is(value, "identity"))
    };
    head.fields.retain(|name, value| {
        !(connection.drops(name) && !(upgraded && is(name, "upgrade")))
            && !((ambiguous || unframed) && is(name, "content-length"))
            && !no_coding(name, value)
    });
    if drop_lengths && !ambiguous && !unframed {
        head.fields.set(
            "Content-Length",
            length.unwrap_or_default().to_string().as_bytes(),
        );
    }
    Ok(ResponseFraming {
        body,
        keep_alive: !connection.close
            && (!http10 || connection.keep_alive)
            && body != Framing::UntilClose
            && !ambiguous,
        logs_in,
    })
}

/// Whether a request with this method may safely be sent twice (RFC 9110 section 9.2.2).
pub fn is_idempotent(request: &Request) -> bool {
    matches!(
        request.method(),
        "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE"
    )
}

impl ConnectionOptions {
    fn read(&mut self, value: &[u8]) -> Result<(), FramingError> {
        self.fields += 1;
        for token in value.split(|byte| *byte == b',') {
            let token = token.trim_ascii();
            if token.is_empty() {
            } else if is(token, "close") {
                self.close = true;
            } else if is(token, "keep-alive") {
                self.keep_alive = true;
            } else if is(token, "upgrade") {
                self.upgrade = true;
            } else if NOT_TO_BE_NAMED.iter().any(|name| is(token, name))
                || self.named.len() == MAX_NAMED_FIELDS
            {
                return Err(FramingError::ConnectionField);
            } else {
                self.named.push(token.to_ascii_lowercase());
            }
        }
        Ok(())
    }

    /// Rejects names of existing fields that another reader would keep.
    fn check(&self, head: &Request) -> Result<(), FramingError> {
        let strips = |name: &Vec<u8>| {
            !MAY_BE_NAMED.iter().any(|other| is(name, other))
                && !HOP_BY_HOP.iter().any(|other| is(name, other))
                && head
                    .fields
                    .iter()
                    .any(|(other, _)| other.eq_ignore_ascii_case(name))
        };
        match self.named.iter().any(strips) {
            true => Err(FramingError::ConnectionField),
            false => Ok(()),
        }
    }

    fn lists_only_upgrade(&self) -> bool {
        self.fields == 1 && !self.close && self.named.is_empty()
    }

    fn drops(&self, name: &[u8]) -> bool {
        HOP_BY_HOP.iter().any(|other| is(name, other))
            || self
                .named
                .iter()
                .any(|other| name.eq_ignore_ascii_case(other))
    }
}

fn is(name: &[u8], other: &str) -> bool {
    name.eq_ignore_ascii_case(other.as_bytes())
}

/// Only digits (RFC 9110 section 8.6).
fn parse_length(value: &[u8]) -> Result<u64, FramingError> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(FramingError::Length);
    }
    value
        .iter()
        .try_fold(0u64, |sum, digit| {
            sum.checked_mul(10)?.checked_add(u64::from(digit - b'0'))
        })
        .ok_or(FramingError::Length)
}

#[cfg(test)]
mod tests;
