//! Where a message's body ends and what its connection headers say (RFC 9112 sections 6, 7 and 9). A request that
//! two parsers could read differently is refused.

use super::head::{Request, Response, Version};
use crate::login;
use crate::reason::REASON_HEADER;
use crate::route::RequestHead as _;

/// How the end of a body is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// No body.
    None,
    /// Exactly this many bytes, more than none.
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

/// Why a message is refused.
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
    #[error("an HTTP/1.1 request needs exactly one Host")]
    Host,
    #[error("the target's authority and Host differ")]
    TargetAndHost,
    #[error("Connection names a field that may not be dropped on the way")]
    ConnectionField,
}

/// What the connection-level fields of a request say. They have been taken out of the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestFraming {
    pub body: Framing,
    /// The client wants to send more requests on this connection.
    pub keep_alive: bool,
    /// The client asks to switch protocols. `Upgrade` is still in the head.
    pub upgrade: bool,
    /// The client waits for 100 before it sends the body.
    pub expects_continue: bool,
    /// It carries credentials that hold for the connection: see [`crate::login`].
    pub logs_in: bool,
}

/// What the connection-level fields of a response say. They have been taken out of the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseFraming {
    pub body: Framing,
    /// The connection may carry another exchange after this one.
    pub keep_alive: bool,
    /// It is part of a login that holds for the connection: see [`crate::login`].
    pub logs_in: bool,
}

/// Fields that belong to one connection whether `Connection` names them or not (RFC 9110 section 7.6.1).
const HOP_BY_HOP: [&str; 3] = ["connection", "keep-alive", "proxy-connection"];
/// Fields that a `Connection` field may not name: without them the message would mean something else.
const NOT_TO_BE_NAMED: [&str; 6] = [
    "host",
    "content-length",
    "transfer-encoding",
    "authorization",
    "cookie",
    "content-type",
];
/// Names that one `Connection` field may list beside the well-known words.
const MAX_NAMED_FIELDS: usize = 8;

#[derive(Default)]
struct Connection {
    close: bool,
    keep_alive: bool,
    upgrade: bool,
    named: Vec<Vec<u8>>,
}

/// Reads and takes out the connection-level fields of a request.
pub fn request(head: &mut Request) -> Result<RequestFraming, FramingError> {
    let http10 = head.version() == Version::Http10;
    let mut length = None;
    let mut chunked = false;
    let mut hosts = 0;
    let mut connection = Connection::default();
    let mut upgrade_field = false;
    let mut to_http2 = false;
    let mut expects_continue = false;
    let mut logs_in = false;
    let mut to_drop = false;
    for (name, value) in head.fields.iter() {
        match name.len() {
            4 if is(name, "host") => hosts += 1,
            6 if is(name, "expect") => {
                expects_continue |= value.eq_ignore_ascii_case(b"100-continue")
            }
            7 if is(name, "upgrade") => {
                upgrade_field = true;
                // HTTP/2 has prior knowledge in a mesh; switched to on the way, it would hide requests (RFC 9113 section 3.1).
                to_http2 |= value
                    .split(|byte| *byte == b',')
                    .any(|protocol| is(protocol.trim_ascii(), "h2c"));
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
    if let (Some(target), Some(host)) = (head.target_authority(), head.fields.get("host"))
        && !host.eq_ignore_ascii_case(target.as_bytes())
    {
        return Err(FramingError::TargetAndHost);
    }
    let upgrade = connection.upgrade && upgrade_field && !to_http2 && !http10;
    if to_drop {
        head.fields
            .retain(|name, _| !connection.drops(name) && !is(name, REASON_HEADER));
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

/// Reads and takes out the connection-level fields of a final response to a request with `method`.
pub fn response(
    head: &mut Response,
    method_is_head: bool,
    method_is_connect: bool,
) -> Result<ResponseFraming, FramingError> {
    let http10 = head.version() == Version::Http10;
    let mut length: Option<u64> = None;
    let mut encoded = false;
    let mut chunked = false;
    let mut connection = Connection::default();
    let mut drop_lengths = false;
    let mut logs_in = false;
    for (name, value) in head.fields.iter() {
        match name.len() {
            10 if is(name, "connection") => connection.read(value)?,
            14 if is(name, "content-length") => {
                // Some servers repeat it, in one field or in several; the same number is the same message.
                for part in value.split(|byte| *byte == b',') {
                    let part = parse_length(part.trim_ascii())?;
                    match length {
                        None => length = Some(part),
                        Some(before) if before == part => drop_lengths = true,
                        Some(_) => return Err(FramingError::SeveralLengths),
                    }
                }
            }
            // What IIS says of a login that holds for the connection.
            15 if is(name, "persistent-auth") => logs_in |= is(value, "true"),
            16 if is(name, "www-authenticate") => logs_in |= login::is_of_connection(value),
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
    // Both: the encoding is what counts (RFC 9112 section 6.3), and the connection is not to be trusted further.
    let ambiguous = encoded && length.is_some();
    let bodyless = method_is_head || matches!(head.status, 100..=199 | 204 | 304);
    let tunnel = method_is_connect && (200..300).contains(&head.status);
    let body = if bodyless || tunnel {
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
    head.fields.retain(|name, _| {
        !(connection.drops(name) && !(upgraded && is(name, "upgrade")))
            && !(ambiguous && is(name, "content-length"))
    });
    if drop_lengths && !ambiguous {
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

/// Whether a request with this method may be sent a second time without harm (RFC 9110 section 9.2.2).
pub fn is_idempotent(request: &Request) -> bool {
    matches!(
        request.method(),
        "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE"
    )
}

impl Connection {
    fn read(&mut self, value: &[u8]) -> Result<(), FramingError> {
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

/// Digits and nothing else (RFC 9110 section 8.6).
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
mod tests {
    use super::*;

    fn of_request(text: &str) -> Result<RequestFraming, FramingError> {
        let mut head = Request::default();
        head.parse(text.as_bytes()).unwrap();
        request(&mut head)
    }

    #[test]
    fn a_request_that_can_be_read_in_two_ways_is_refused() {
        use FramingError::*;
        for (fields, error) in [
            (
                "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
                LengthAndEncoding,
            ),
            ("Content-Length: 1\r\nContent-Length: 1\r\n", SeveralLengths),
            ("Content-Length: 1, 1\r\n", Length),
            ("Content-Length: +1\r\n", Length),
            ("Content-Length: 0x1\r\n", Length),
            ("Content-Length: \r\n", Length),
            ("Content-Length: 18446744073709551616\r\n", Length),
            ("Transfer-Encoding: gzip, chunked\r\n", Encoding),
            ("Transfer-Encoding: chunked, chunked\r\n", Encoding),
            ("Transfer-Encoding: xchunked\r\n", Encoding),
            (
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
                Encoding,
            ),
            ("Transfer-Encoding: \r\n", Encoding),
            ("Host: y\r\n", Host),
            ("Connection: close, host\r\n", ConnectionField),
            (
                "Connection: content-length\r\nContent-Length: 4\r\n",
                ConnectionField,
            ),
        ] {
            let text = format!("POST / HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
            assert_eq!(of_request(&text), Err(error), "{fields}");
        }
        assert_eq!(of_request("GET / HTTP/1.1\r\n\r\n"), Err(Host));
        assert_eq!(
            of_request("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"),
            Err(EncodingInHttp10)
        );
        assert_eq!(
            of_request("GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n"),
            Err(TargetAndHost)
        );
    }

    #[test]
    fn connection_fields_are_taken_out_and_others_stay() {
        let mut head = Request::default();
        head.parse(
            b"GET / HTTP/1.1\r\nHost: x\r\nKeep-Alive: 3\r\nConnection: close, X-Hop\r\nx-hop: 1\r\nUpgrade: y\r\nNaru-Reason: z\r\nTE: trailers\r\n\r\n",
        )
        .unwrap();
        let framing = request(&mut head).unwrap();
        assert!(!framing.keep_alive && !framing.upgrade);
        let names: Vec<_> = head.fields.iter().map(|(name, _)| name.to_vec()).collect();
        assert_eq!(names, [&b"Host"[..], b"TE"]);
    }

    #[test]
    fn http10_keeps_a_connection_only_when_asked() {
        assert!(!of_request("GET / HTTP/1.0\r\n\r\n").unwrap().keep_alive);
        assert!(
            of_request("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n")
                .unwrap()
                .keep_alive
        );
        assert!(
            of_request("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                .unwrap()
                .keep_alive
        );
    }

    fn of_response(text: &str, method: &str) -> Result<ResponseFraming, FramingError> {
        let mut head = Response::default();
        head.parse(text.as_bytes()).unwrap();
        response(&mut head, method == "HEAD", method == "CONNECT")
    }

    #[test]
    fn a_response_body_ends_where_rfc_9112_says() {
        for (head, method, body) in [
            ("200 OK\r\nContent-Length: 5\r\n", "GET", Framing::Length(5)),
            ("200 OK\r\nContent-Length: 5\r\n", "HEAD", Framing::None),
            ("204 No\r\nContent-Length: 5\r\n", "GET", Framing::None),
            ("304 Same\r\nContent-Length: 5\r\n", "GET", Framing::None),
            ("200 OK\r\nContent-Length: 5\r\n", "CONNECT", Framing::None),
            (
                "200 OK\r\nTransfer-Encoding: chunked\r\n",
                "GET",
                Framing::Chunked,
            ),
            (
                "200 OK\r\nTransfer-Encoding: gzip, chunked\r\n",
                "GET",
                Framing::Chunked,
            ),
            (
                "200 OK\r\nTransfer-Encoding: gzip\r\n",
                "GET",
                Framing::UntilClose,
            ),
            (
                "200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n",
                "GET",
                Framing::Chunked,
            ),
            ("200 OK\r\n", "GET", Framing::UntilClose),
            (
                "200 OK\r\nContent-Length: 5, 5\r\n",
                "GET",
                Framing::Length(5),
            ),
        ] {
            let framing = of_response(&format!("HTTP/1.1 {head}\r\n"), method).unwrap();
            assert_eq!(framing.body, body, "{method} {head}");
        }
        assert_eq!(
            of_response(
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
                "GET"
            ),
            Err(FramingError::SeveralLengths)
        );
    }
}
