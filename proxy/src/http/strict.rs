//! Syntax rules that HTTP/1 and HTTP/2 share: the target of a request, its number of fields, and
//! the fields allowed as trailers.
//!
//! In: the text of a target, an authority or a field's name. Out: whether it is unambiguous.
//! Ambiguous text is rejected, since the next reader may take it for another resource, or for
//! another host's.

use std::net::Ipv6Addr;

use crate::route::is_spelling;

/// Fields in one head. Heads are bounded in bytes too; this bounds the work per byte.
pub const MAX_FIELDS: usize = 1_000;

/// `userinfo@host:port`, parsed (RFC 3986 section 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Authority<'a> {
    userinfo: Option<&'a str>,
    host: &'a str,
    port: Option<u16>,
}

impl<'a> Authority<'a> {
    pub fn parse(text: &'a str) -> Option<Self> {
        let (userinfo, rest) = match memchr::memchr(b'@', text.as_bytes()) {
            None => (None, text),
            Some(at) => (Some(&text[..at]), &text[at + 1..]),
        };
        if userinfo.is_some_and(|userinfo| !is_encoded(userinfo, USERINFO)) {
            return None;
        }
        let (host, port) = match rest.strip_prefix('[') {
            Some(literal) => {
                let (address, port) = literal.split_once(']')?;
                address.parse::<Ipv6Addr>().ok()?;
                let host = &rest[..address.len() + 2];
                match port {
                    "" => (host, None),
                    _ => (host, Some(port.strip_prefix(':')?)),
                }
            }
            None => match rest.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (rest, None),
            },
        };
        if !host.starts_with('[') && (host.is_empty() || !is_encoded(host, HOST)) {
            return None;
        }
        // `host:` has no port (RFC 3986 section 3.2.3).
        let port = match port {
            None | Some("") => None,
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                Some(digits.parse().ok()?)
            }
            Some(_) => return None,
        };
        Some(Self {
            userinfo,
            host,
            port,
        })
    }

    /// An authority in `Host`, where userinfo is not allowed (RFC 9110 section 7.2).
    pub fn of_host(text: &'a str) -> Option<Self> {
        Self::parse(text).filter(|authority| authority.userinfo.is_none())
    }

    /// The target of `CONNECT`: the port is required (RFC 9110 section 9.3.6).
    pub fn of_connect(text: &'a str) -> Option<Self> {
        Self::of_host(text).filter(|authority| authority.port.is_some())
    }

    /// Whether both name the same host. Clients leave out a port, or send a name as its user typed
    /// it.
    pub fn agrees_with(&self, other: &Self) -> bool {
        let same_port = match (self.port, other.port) {
            (Some(port), Some(other)) => port == other,
            _ => true,
        };
        same_port && self.host.eq_ignore_ascii_case(other.host)
    }
}

/// Whether a `Host` has the common form: a name or an IPv4 address, with a port of at most four
/// digits or without one. Others may be valid too: see [`Authority::of_host`].
pub fn is_plain_host(text: &[u8]) -> bool {
    let is_host = |byte: &u8| ALLOWED[usize::from(*byte)] & HOST != 0;
    let length = text.iter().take_while(|byte| is_host(byte)).count();
    match &text[length..] {
        [] => length > 0,
        [b':', port @ ..] => {
            length > 0 && port.len() <= 4 && port.iter().all(|byte| byte.is_ascii_digit())
        }
        _ => false,
    }
}

/// Whether `text` is valid in `:authority`. gRPC clients that were configured with a list of
/// addresses send the list.
pub fn is_authority_or_list(text: &str) -> bool {
    text.split(',')
        .all(|part| Authority::of_host(part).is_some())
}

/// Whether `target` is the path of a request, as in origin-form and in `:path`: it starts with a
/// slash and ends before a fragment, or is the `*` of OPTIONS.
pub fn is_path(target: &str, method: &str) -> bool {
    match target.as_bytes() {
        [b'/', rest @ ..] => memchr::memchr(b'#', rest).is_none(),
        b"*" => method == "OPTIONS",
        _ => false,
    }
}

/// Fields that are not allowed as trailers: they control framing or routing, or belong to one
/// connection (RFC 9110 section 6.5.1).
const NO_TRAILERS: [&str; 9] = [
    "content-length",
    "transfer-encoding",
    "host",
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "upgrade",
];
/// In a request, also fields that identify the client or control how the content is read: an app
/// that merges trailers into its header fields would trust them.
const NO_REQUEST_TRAILERS: [&str; 10] = [
    "authorization",
    "proxy-authorization",
    "cookie",
    "content-encoding",
    "content-range",
    "content-type",
    "expect",
    "x-forwarded-client-cert",
    "x-forwarded-for",
    "forwarded",
];

/// Whether a field may be a trailer of a request (`of_request`) or of a response.
pub fn is_trailer(name: &[u8], of_request: bool) -> bool {
    let is = |other: &&str| is_spelling(name, other.as_bytes());
    !(NO_TRAILERS.iter().any(is) || of_request && NO_REQUEST_TRAILERS.iter().any(is))
}

/// The parts of an authority in which a byte is allowed, as bits.
const HOST: u8 = 1;
const USERINFO: u8 = 2;

/// `unreserved` and `sub-delims` (RFC 3986 section 2), but a comma in a host: that is a list.
static ALLOWED: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let other = matches!(
            byte as u8,
            b'-' | b'.'
                | b'_'
                | b'~'
                | b'!'
                | b'$'
                | b'&'
                | b'\''
                | b'('
                | b')'
                | b'*'
                | b'+'
                | b';'
                | b'='
        );
        if (byte as u8).is_ascii_alphanumeric() || other {
            table[byte] = HOST | USERINFO;
        }
        byte += 1;
    }
    table[b',' as usize] = USERINFO;
    table[b':' as usize] = USERINFO;
    table
};

/// Whether every byte is allowed in `part`, literally or percent-encoded.
fn is_encoded(text: &str, part: u8) -> bool {
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if ALLOWED[usize::from(byte)] & part != 0 {
            continue;
        }
        let hex = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_hexdigit());
        if byte != b'%' || !hex(bytes.next()) || !hex(bytes.next()) {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_plain_host_is_a_valid_host(text in "[a-z0-9.:%@,\\[\\]/ _-]{0,12}") {
            if is_plain_host(text.as_bytes()) {
                prop_assert!(Authority::of_host(&text).is_some(), "{}", text);
            }
        }
    }

    #[test]
    fn names_with_and_without_a_port_are_plain_hosts() {
        for text in ["web", "web.shop:8080", "10.0.0.1:80", "a:"] {
            assert!(is_plain_host(text.as_bytes()), "{text}");
        }
        for text in ["", ":80", "a:80:90", "a b", "a,b", "a/b", "a:x", "\u{e9}"] {
            assert!(!is_plain_host(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn a_host_is_parsed_strictly() {
        for text in [
            "web",
            "web:80",
            "web:",
            "my_service.shop:65535",
            "10.0.0.1:80",
            "[::1]",
            "[fd00::1]:80",
            "a%20b",
        ] {
            assert!(Authority::of_host(text).is_some(), "{text}");
        }
        for text in [
            "", " ", "a b", "a,b", "a/b", "a\\b", "a:80:90", "a:b", "a:-1", "a:65536", ":80",
            "u@a", "a@", "@", "ä", "a\"", "a<b", "a%2", "a%zz", "[::1", "::1", "[x]", "[::1]80",
            "[::1]:x", "a?b", "a#b", "a|b",
        ] {
            assert!(Authority::of_host(text).is_none(), "{text}");
        }
        assert!(Authority::parse("u:p@web:80").is_some());
        for text in ["a@b@c", "a/b@c", "u@", "u p@web"] {
            assert!(Authority::parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn the_same_host_may_be_written_in_several_ways() {
        let agree = |a, b| {
            let host = Authority::of_host(b).expect("a host");
            Authority::parse(a)
                .expect("an authority")
                .agrees_with(&host)
        };
        assert!(agree("web", "WEB") && agree("web:80", "web") && agree("u:p@web", "web:80"));
        assert!(agree("web:80", "web:080") && agree("[::1]:80", "[::1]"));
        assert!(!agree("web", "other") && !agree("web:80", "web:81") && !agree("web@other", "web"));
    }

    #[test]
    fn only_an_authority_may_be_a_list_of_hosts() {
        assert!(is_authority_or_list("10.0.0.1,10.0.0.2") && is_authority_or_list("a:80,b:81"));
        for text in ["a,", ",a", "a,,b", "a, b", "u@a,b"] {
            assert!(!is_authority_or_list(text), "{text}");
        }
    }

    #[test]
    fn a_path_starts_with_a_slash_and_has_no_fragment() {
        assert!(is_path("/", "GET") && is_path("/a?b=/", "GET") && is_path("*", "OPTIONS"));
        for target in ["", "a", "?q", "/a#b", "/a?b#", "*", "**", "#"] {
            assert!(!is_path(target, "GET"), "{target}");
        }
    }
}
