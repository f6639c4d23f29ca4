//! Detects a protocol by the first bytes that a client sends.
//!
//! In: the bytes so far. Out: the protocol, or that more bytes are needed. Only real HTTP may be
//! detected as HTTP: a false positive breaks the connection, while HTTP that is taken for another
//! protocol only goes uncounted.
//!
//! A server that sends first decides the protocol as well, unless either side may send first: see
//! [`greeting`].

/// The start of an HTTP/2 connection (RFC 9113 section 3.4).
pub const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Longest word that counts as a method, in bytes. The longest registered one has 17.
const MAX_METHOD: usize = 32;
/// Bytes of empty lines before a request that are skipped. With more it is another protocol.
const MAX_BLANK: usize = 8;
/// Bytes without an end of line after which a possible request line counts as one. HTTP/1 then
/// reports what is wrong with it.
const MAX_LINE: usize = 8 * 1024;

/// What a connection carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detected {
    Http1,
    Http2,
    /// A TLS ClientHello.
    Tls,
    /// Anything else: passed on as it is.
    Other,
}

/// The bytes that a server has sent before its client has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Greeting {
    /// SETTINGS, which an HTTP/2 server sends as soon as it has accepted a connection: the client,
    /// which may start at the same time, decides. `parameters`: whether they contain any.
    Http2 { parameters: bool },
    /// The greeting of a server-first protocol.
    Other,
}

/// Length of a frame's header (RFC 9113 section 4.1).
const FRAME_HEADER: usize = 9;
/// Type of SETTINGS, their flags (no acknowledgement), and the stream that they are on.
const SETTINGS: [u8; 6] = [4, 0, 0, 0, 0, 0];
/// Length of one parameter in SETTINGS, in bytes.
const PARAMETER: usize = 6;
/// Longest frame that a server may send before its client has allowed more, in bytes.
const MAX_FRAME: usize = 16 * 1024;

/// Classifies `bytes`, the first of a server. `None`: more bytes are needed.
pub fn greeting(bytes: &[u8]) -> Option<Greeting> {
    let header = &bytes[..bytes.len().min(FRAME_HEADER)];
    let (length, rest) = header.split_at(header.len().min(3));
    if length.first().is_some_and(|high| *high != 0) || !SETTINGS.starts_with(rest) {
        return Some(Greeting::Other);
    }
    let [_, high, low] = *length else {
        return None;
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > MAX_FRAME || !length.is_multiple_of(PARAMETER) {
        return Some(Greeting::Other);
    }
    let parameters = length > 0;
    (header.len() == FRAME_HEADER).then_some(Greeting::Http2 { parameters })
}

/// Classifies `bytes`. `None`: they are ambiguous so far.
pub fn detect(bytes: &[u8]) -> Option<Detected> {
    if *bytes.first()? == TLS_HANDSHAKE {
        return tls(bytes);
    }
    let length = bytes.len().min(HTTP2_PREFACE.len());
    if bytes[..length] == HTTP2_PREFACE[..length] {
        return (length == HTTP2_PREFACE.len()).then_some(Detected::Http2);
    }
    http1(bytes)
}

/// Content type of a TLS record that carries a handshake (RFC 8446 section 5.1).
const TLS_HANDSHAKE: u8 = 0x16;
const CLIENT_HELLO: u8 = 1;

/// Classifies `bytes`, if only TLS matters.
pub fn detect_tls(bytes: &[u8]) -> Option<Detected> {
    match bytes.first() {
        Some(&TLS_HANDSHAKE) => tls(bytes),
        Some(_) => Some(Detected::Other),
        None => None,
    }
}

fn tls(bytes: &[u8]) -> Option<Detected> {
    match bytes {
        [_] | [_, 3] | [_, 3, _] | [_, 3, _, _] | [_, 3, _, _, _] => None,
        [_, 3, _, _, _, CLIENT_HELLO, ..] => Some(Detected::Tls),
        _ => Some(Detected::Other),
    }
}

/// `METHOD SP target SP HTTP/1.x` and the end of the line.
fn http1(bytes: &[u8]) -> Option<Detected> {
    // Servers skip empty lines before a request (RFC 9112 section 2.2), and so does the proxy.
    let blank = bytes.iter().take_while(|byte| b"\r\n".contains(byte));
    let blank = blank.take(MAX_BLANK).count();
    let bytes = &bytes[blank..];
    let is_method = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.!#$%&'*+^`|~".contains(byte);
    let method = bytes.iter().take_while(|byte| is_method(byte)).count();
    match bytes.get(method) {
        None if method <= MAX_METHOD => return None,
        Some(b' ') if (1..=MAX_METHOD).contains(&method) => {}
        _ => return Some(Detected::Other),
    }
    // Later bytes do not change the result.
    let looked_at = &bytes[..bytes.len().min(MAX_LINE)];
    let end = memchr::memchr(b'\n', looked_at);
    let line = &looked_at[..end.unwrap_or(looked_at.len())];
    let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0x80.. | b' ' | b'\r');
    if !line[method..].iter().all(printable) {
        return Some(Detected::Other);
    }
    if end.is_none() {
        return (bytes.len() >= MAX_LINE).then_some(Detected::Http1);
    }
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let version = line.rsplit(|byte| *byte == b' ').next().unwrap_or_default();
    let target = line.len().saturating_sub(method + 1 + version.len() + 1);
    let is_http = matches!(
        version,
        [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9']
    );
    Some(match is_http && target > 0 {
        true => Detected::Http1,
        false => Detected::Other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn protocols_are_distinguished() {
        for (bytes, expected) in [
            (&b"GET / HTTP/1.1\r\n"[..], Some(Detected::Http1)),
            (b"GET / HTTP/1.1\n", Some(Detected::Http1)),
            (b"GET / HTTP/1.0\r\nHost", Some(Detected::Http1)),
            (b"GET / HTTP/3.7\r\n", Some(Detected::Http1)),
            (b"VERSION-CONTROL /a b HTTP/1.1\r\n", Some(Detected::Http1)),
            (b"CONNECT db:5432 HTTP/1.1\r\n", Some(Detected::Http1)),
            (b"GET / HTTP/1.", None),
            (b"GE", None),
            (b"\r\n", None),
            (b"\r\nGET / HTTP/1.1\r\n", Some(Detected::Http1)),
            (b"\r\n\n\r\nGET / HTTP/1.1\r\n", Some(Detected::Http1)),
            (b"P", None),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Some(Detected::Http2)),
            (b"PRI * HTTP/2.0\r\n\r\nSM", None),
            (b"PRI * HTTP/2.0\r\n\r\nXX", Some(Detected::Http1)),
            (b"\x16\x03\x01\x02\x00\x01\x00", Some(Detected::Tls)),
            (b"\x16\x03\x01\x02\x00", None),
            (b"\x16\x03\x01\x02\x00\x02", Some(Detected::Other)),
            (b"\x16\x02", Some(Detected::Other)),
            // Redis, both request formats.
            (b"*1\r\n$4\r\nPING\r\n", Some(Detected::Other)),
            (b"GET key\r\n", Some(Detected::Other)),
            (b"SET a HTTP/1\r\n", Some(Detected::Other)),
            (b"PING\r\n", Some(Detected::Other)),
            (b"get key\r\n", Some(Detected::Other)),
            // SMTP, SSH, PostgreSQL, MongoDB, AMQP.
            (b"EHLO me.example\r\n", Some(Detected::Other)),
            (b"SSH-2.0-OpenSSH_9.6\r\n", Some(Detected::Other)),
            (b"\0\0\0\x08\x04\xd2\x16\x2f", Some(Detected::Other)),
            (b"\x3a\0\0\0\xa7A\0\0", Some(Detected::Other)),
            (b"AMQP\0\0\x09\x01", Some(Detected::Other)),
            (b"GET \0", Some(Detected::Other)),
            (b"GET \0 HTTP/1.1\r\n", Some(Detected::Other)),
            (b" GET / HTTP/1.1\r\n", Some(Detected::Other)),
            (b"", None),
        ] {
            assert_eq!(detect(bytes), expected, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn a_servers_settings_are_distinguished_from_other_greetings() {
        let http2 = |parameters| Some(Greeting::Http2 { parameters });
        for (bytes, expected) in [
            (&b"\0\0\0\x04\0\0\0\0\0"[..], http2(false)),
            (b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64", http2(true)),
            (b"\0\0\x18\x04\0\0\0\0\0", http2(true)),
            (b"", None),
            (b"\0", None),
            (b"\0\0", None),
            (b"\0\0\x12", None),
            (b"\0\0\x12\x04\0\0\0\0", None),
            // An acknowledgement, another stream, another type, an invalid length for SETTINGS.
            (b"\0\0\0\x04\x01\0\0\0\0", Some(Greeting::Other)),
            (b"\0\0\0\x04\0\0\0\0\x01", Some(Greeting::Other)),
            (b"\0\0\x08\x06\0\0\0\0\0", Some(Greeting::Other)),
            (b"\0\0\x07", Some(Greeting::Other)),
            (b"\0\x40\x02", Some(Greeting::Other)),
            (b"\x01\0\0", Some(Greeting::Other)),
            // MySQL, SMTP, SSH, VNC, a length of four bytes and then text.
            (b"\x4a\0\0\0\x0a8.0.36", Some(Greeting::Other)),
            (b"220 ready\r\n", Some(Greeting::Other)),
            (b"SSH-2.0-OpenSSH_9.6\r\n", Some(Greeting::Other)),
            (b"RFB 003.008\n", Some(Greeting::Other)),
            (b"\0\0\0\x04name", Some(Greeting::Other)),
        ] {
            assert_eq!(greeting(bytes), expected, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn detection_is_bounded() {
        assert_eq!(detect(&[b'A'; MAX_METHOD + 1]), Some(Detected::Other));
        let long = [&b"GET /"[..], &[b'x'; MAX_LINE]].concat();
        assert_eq!(detect(&long), Some(Detected::Http1));
    }

    proptest! {
        /// More bytes never change a result.
        #[test]
        fn more_bytes_keep_the_result(
            line in "[A-Z]{1,8} [ -~\\x01]{0,9} ?HTTP/[12].[01]\r\n.{0,9}",
            cut in 0usize..40,
        ) {
            let bytes = line.as_bytes();
            let cut = cut.min(bytes.len());
            if let Some(early) = detect(&bytes[..cut]) {
                prop_assert_eq!(Some(early), detect(bytes));
            }
        }

        /// More bytes never change the result for a server.
        #[test]
        fn more_bytes_keep_the_greeting(
            bytes in proptest::collection::vec(0u8..7, 0..20),
            cut in 0usize..20,
        ) {
            let cut = cut.min(bytes.len());
            if let Some(early) = greeting(&bytes[..cut]) {
                prop_assert_eq!(Some(early), greeting(&bytes));
            }
        }

        #[test]
        fn any_bytes_are_classified(
            bytes in proptest::collection::vec(any::<u8>(), 0..100),
            cut in 0usize..100,
        ) {
            let cut = cut.min(bytes.len());
            if let Some(early) = detect(&bytes[..cut]) {
                prop_assert_eq!(Some(early), detect(&bytes));
            }
        }
    }
}
