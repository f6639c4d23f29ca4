//! Parses the ClientHello at the start of a TLS client's bytes.
//!
//! In: the bytes received so far, which stay unchanged. Out: the server name and the protocols of
//! ALPN, or that more bytes are needed. Versions, ciphers and the names themselves are left to the
//! server: a TLS library would reject clients that the server accepts. Only the framing has to be
//! valid, that of all extensions included. A ClientHello with other extensions is still known to be
//! one, because it is the server that answers it.

use std::borrow::Cow;
use std::future::poll_fn;
use std::io;

use tokio::io::{AsyncRead, AsyncWrite};

use super::buffered::Buffered;

/// Content type of a handshake record, and the length of a record's header (RFC 8446 section 5.1).
const HANDSHAKE: u8 = 22;
const RECORD_HEADER: usize = 5;
/// The largest payload of a record, in bytes.
const MAX_RECORD: usize = 16 * 1024;
/// The message's type, and the length of its header (RFC 8446 section 4).
const CLIENT_HELLO: u8 = 1;
const MESSAGE_HEADER: usize = 4;
/// The largest ClientHello, in bytes. With a post-quantum key share it has some 2 KiB, and a
/// session ticket may add as much.
pub const MAX_CLIENT_HELLO: usize = 16 * 1024;
/// The largest message that counts as a ClientHello at all, in bytes: OpenSSL's limit, the highest
/// of the common libraries'.
const MAX_UNREADABLE: usize = 131_396;
/// The longest session id, in bytes (RFC 8446 section 4.1.2).
const MAX_SESSION: usize = 32;
/// The most bytes that are read for it: it may span several records.
const MAX_BYTES: usize = MAX_CLIENT_HELLO + MESSAGE_HEADER + 64 * RECORD_HEADER;
/// The extension with the server name, and the only kind of name in it (RFC 6066 section 3).
const SERVER_NAME: usize = 0;
const HOST_NAME: usize = 0;
/// The extension with the protocols of ALPN (RFC 7301 section 3.1).
const ALPN: usize = 16;

/// The kind of the first bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hello {
    /// Possibly the beginning of a ClientHello.
    Incomplete,
    /// Not a ClientHello.
    Other,
    /// A ClientHello that does not tell what the client asks for: its extensions are malformed, or
    /// it is longer than [`MAX_CLIENT_HELLO`]. A server may accept it all the same.
    Unreadable,
    Complete(ClientHello),
}

/// What a client asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// In lower case and without a trailing dot. `None`: no name, or one that no route can have.
    pub server_name: Option<String>,
    /// The content of the list of protocols: each has its length before it. Well-formed.
    protocols: Vec<u8>,
}

impl ClientHello {
    /// A client that asks for this name, and for no protocol.
    pub fn naming(server_name: Option<String>) -> Self {
        Self {
            server_name,
            protocols: Vec::new(),
        }
    }

    /// The protocols of ALPN, in the client's order.
    pub fn protocols(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.protocols.as_slice();
        std::iter::from_fn(move || vector::<1>(&mut rest))
    }
}

/// Reads until the client has sent its ClientHello or something else. The bytes stay buffered to be
/// passed on. What is still incomplete at the bound on its bytes is [`Hello::Other`].
///
/// # Errors
///
/// The client has ended the connection before.
pub async fn read<S>(client: &mut Buffered<S>) -> io::Result<Hello>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        let hello = parse(&client.read);
        if hello != Hello::Incomplete {
            return Ok(hello);
        }
        if client.read.len() > MAX_BYTES {
            return Ok(Hello::Other);
        }
        if poll_fn(|cx| client.poll_fill(cx)).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Parses the first bytes.
pub fn parse(bytes: &[u8]) -> Hello {
    let mut message: Cow<[u8]> = Cow::Borrowed(&[]);
    let mut rest = bytes;
    loop {
        let expected = [HANDSHAKE, 3];
        let known = rest.len().min(expected.len());
        if rest[..known] != expected[..known] {
            return Hello::Other;
        }
        let Some((header, after)) = rest.split_at_checked(RECORD_HEADER) else {
            return Hello::Incomplete;
        };
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if length == 0 || length > MAX_RECORD {
            return Hello::Other;
        }
        let fragment = &after[..length.min(after.len())];
        // A message may span several records, but seldom does.
        match message.is_empty() {
            true => message = Cow::Borrowed(fragment),
            false => message.to_mut().extend_from_slice(fragment),
        }
        if let Some(hello) = message_of(&message) {
            return hello;
        }
        match after.get(length..) {
            Some(next) if !next.is_empty() => rest = next,
            _ => return Hello::Incomplete,
        }
    }
}

/// `None`: incomplete.
fn message_of(message: &[u8]) -> Option<Hello> {
    if *message.first()? != CLIENT_HELLO {
        return Some(Hello::Other);
    }
    let (header, body) = message.split_at_checked(MESSAGE_HEADER)?;
    let length = u32::from_be_bytes([0, header[1], header[2], header[3]]) as usize;
    if length > MAX_UNREADABLE {
        return Some(Hello::Other);
    }
    let is_complete = body.len() >= length;
    let start = Start::of(&body[..length.min(body.len())]);
    match start {
        // The rest of it is left to the server.
        Some(start) if length > MAX_CLIENT_HELLO => Some(start.unreadable()),
        Some(start) if is_complete => Some(match start.client_hello() {
            Some(hello) => Hello::Complete(hello),
            None => start.unreadable(),
        }),
        None if is_complete => Some(Hello::Other),
        Some(_) | None => None,
    }
}

/// What every ClientHello begins with, whatever its extensions.
struct Start<'a> {
    session: &'a [u8],
    ciphers: &'a [u8],
    compressions: &'a [u8],
    /// The list of extensions. Old clients send none.
    rest: &'a [u8],
}

impl<'a> Start<'a> {
    /// `None`: malformed, or incomplete.
    fn of(body: &'a [u8]) -> Option<Self> {
        const VERSION_AND_RANDOM: usize = 2 + 32;
        let mut rest = body.get(VERSION_AND_RANDOM..)?;
        Some(Self {
            session: vector::<1>(&mut rest)?,
            ciphers: vector::<2>(&mut rest)?,
            compressions: vector::<1>(&mut rest)?,
            rest,
        })
    }

    /// The kind of a message whose extensions can't be read. That it is a ClientHello then has to
    /// show in its start: no server accepts one with other lengths.
    fn unreadable(&self) -> Hello {
        let ciphers = self.ciphers.len();
        match self.session.len() <= MAX_SESSION
            && ciphers > 0
            && ciphers.is_multiple_of(2)
            && !self.compressions.is_empty()
        {
            true => Hello::Unreadable,
            false => Hello::Other,
        }
    }

    /// `None`: malformed.
    fn client_hello(&self) -> Option<ClientHello> {
        let mut rest = self.rest;
        let (mut name, mut protocols) = (None, None);
        let mut extensions = match rest.is_empty() {
            true => rest,
            false => vector::<2>(&mut rest)?,
        };
        while !extensions.is_empty() {
            let kind = number::<2>(&mut extensions)?;
            let content = vector::<2>(&mut extensions)?;
            // No extension may come twice (RFC 8446 section 4.2).
            let is_second = match kind {
                SERVER_NAME => name.replace(server_name(content)?).is_some(),
                ALPN => protocols.replace(protocol_names(content)?).is_some(),
                _ => false,
            };
            if is_second {
                return None;
            }
        }
        rest.is_empty().then(|| ClientHello {
            server_name: name.flatten(),
            protocols: protocols.unwrap_or_default().to_vec(),
        })
    }
}

/// The name in the extension. Outer `None`: malformed.
fn server_name(mut content: &[u8]) -> Option<Option<String>> {
    let mut names = vector::<2>(&mut content)?;
    while !names.is_empty() {
        let kind = number::<1>(&mut names)?;
        let name = vector::<2>(&mut names)?;
        if kind == HOST_NAME {
            return Some(str::from_utf8(name).ok().and_then(normal));
        }
    }
    Some(None)
}

/// The content of the extension's list, checked. `None`: malformed.
fn protocol_names(mut content: &[u8]) -> Option<&[u8]> {
    let names = vector::<2>(&mut content)?;
    let mut rest = names;
    while !rest.is_empty() {
        vector::<1>(&mut rest).filter(|name| !name.is_empty())?;
    }
    content.is_empty().then_some(names)
}

/// A name in the form in which routes are compared. `None`: no route can have it.
pub fn normal(name: &str) -> Option<String> {
    let name = name.strip_suffix('.').unwrap_or(name);
    (!name.is_empty() && name.is_ascii()).then(|| name.to_ascii_lowercase())
}

/// Reads an integer of `N` bytes.
fn number<const N: usize>(rest: &mut &[u8]) -> Option<usize> {
    let (number, after) = rest.split_at_checked(N)?;
    *rest = after;
    Some(
        number
            .iter()
            .fold(0, |sum, byte| sum << 8 | usize::from(*byte)),
    )
}

/// Reads a vector with a length prefix of `N` bytes (RFC 8446 section 3.4).
fn vector<'a, const N: usize>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = number::<N>(rest)?;
    let (vector, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(vector)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::sockets::client_hello;

    fn asks(name: &str) -> Hello {
        Hello::Complete(ClientHello::naming(Some(name.to_owned())))
    }

    fn asks_for_no_name() -> Hello {
        Hello::Complete(ClientHello::naming(None))
    }

    /// Without the protocols.
    fn name_in(bytes: &[u8]) -> Hello {
        match parse(bytes) {
            Hello::Complete(hello) => Hello::Complete(ClientHello::naming(hello.server_name)),
            other => other,
        }
    }

    /// `content` with its length in `N` bytes as a prefix.
    fn counted<const N: usize>(content: &[u8]) -> Vec<u8> {
        let length = content.len().to_be_bytes();
        [&length[length.len() - N..], content].concat()
    }

    /// A ClientHello in the form of old clients: with these extensions only. `None`: without the
    /// list of extensions.
    fn old_hello(extensions: Option<&[u8]>) -> Vec<u8> {
        let mut body = [&[3, 1][..], &[7; 32], &[0], &[0, 2, 0, 10], &[1, 0]].concat();
        body.extend(extensions.map(counted::<2>).unwrap_or_default());
        [&[CLIENT_HELLO][..], &counted::<3>(&body)].concat()
    }

    fn server_name(name: &[u8]) -> Vec<u8> {
        let name = [&[HOST_NAME as u8][..], &counted::<2>(name)].concat();
        [&[0, 0][..], &counted::<2>(&counted::<2>(&name))].concat()
    }

    /// Records of `size` bytes each.
    fn records(message: &[u8], size: usize) -> Vec<u8> {
        let records = message.chunks(size);
        records
            .flat_map(|part| [&[HANDSHAKE, 3, 1][..], &counted::<2>(part)].concat())
            .collect()
    }

    #[test]
    fn the_name_is_found_once_the_message_is_complete() {
        let hello = client_hello("Shop.Example");
        for length in 0..hello.len() {
            assert_eq!(parse(&hello[..length]), Hello::Incomplete, "{length}");
        }
        assert_eq!(name_in(&hello), asks("shop.example"));
        let followed = [&hello[..], b"whatever comes next"].concat();
        assert_eq!(name_in(&followed), asks("shop.example"));
        assert_eq!(name_in(&client_hello("10.0.0.1")), asks_for_no_name());
    }

    #[test]
    fn a_message_may_span_several_records() {
        let hello = client_hello("shop.example");
        let message = &hello[RECORD_HEADER..];
        for size in [1, 3, 100, message.len() - 1] {
            let read = name_in(&records(message, size));
            assert_eq!(read, asks("shop.example"), "{size}");
        }
    }

    #[test]
    fn clients_of_any_age_are_supported() {
        let with = |extensions: Option<&[u8]>| parse(&records(&old_hello(extensions), 500));
        assert_eq!(with(None), asks_for_no_name());
        assert_eq!(with(Some(&[])), asks_for_no_name());
        let other = [&[0, 23][..], &counted::<2>(&[])].concat();
        let both = [&other[..], &server_name(b"A.example.")].concat();
        assert_eq!(with(Some(&both)), asks("a.example"));
        for no_name in [&b""[..], b".", b"\xff.example"] {
            let extension = server_name(no_name);
            assert_eq!(with(Some(&extension)), asks_for_no_name(), "{no_name:?}");
        }
    }

    fn alpn(names: &[u8]) -> Vec<u8> {
        [&[0, 16][..], &counted::<2>(&counted::<2>(names))].concat()
    }

    #[test]
    fn the_protocols_are_in_the_clients_order() {
        let protocols = |extensions: &[u8]| match parse(&records(&old_hello(Some(extensions)), 9)) {
            Hello::Complete(hello) => Some(hello.protocols().map(<[u8]>::to_vec).collect()),
            _ => None,
        };
        let both = [server_name(b"a.example"), alpn(b"\x02h2\x08http/1.1")].concat();
        let expected: Vec<Vec<u8>> = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        assert_eq!(protocols(&both), Some(expected));
        assert_eq!(protocols(&server_name(b"a.example")), Some(Vec::new()));
        // An empty name, and one that is longer than the list.
        for malformed in [&b"\x02h2\0"[..], b"\x03h2"] {
            assert_eq!(protocols(&alpn(malformed)), None, "{malformed:?}");
        }
    }

    #[test]
    fn an_extension_comes_once_and_nothing_follows_the_last_one() {
        let name = server_name(b"a.example");
        let protocols = alpn(b"\x02h2");
        for twice in [[&name[..], &name], [&protocols, &protocols]] {
            let hello = old_hello(Some(&twice.concat()));
            assert_eq!(parse(&records(&hello, 500)), Hello::Unreadable);
        }
        let mut hello = old_hello(Some(&name));
        hello.push(0);
        hello[3] += 1;
        assert_eq!(parse(&records(&hello, 500)), Hello::Unreadable);
    }

    #[test]
    fn a_client_hello_with_malformed_extensions_is_still_one() {
        let mut longer = old_hello(Some(&server_name(b"a.example")));
        // A length of the name beyond its bytes.
        let at = longer.len() - b"a.example".len() - 1;
        longer[at] += 1;
        // A protocol without a name.
        let nameless = old_hello(Some(&alpn(b"\x02h2\0")));
        for hello in [longer, nameless] {
            for size in [1, 500] {
                let hello = records(&hello, size);
                assert_eq!(parse(&hello), Hello::Unreadable, "{size}");
                assert_eq!(parse(&hello[..hello.len() - 1]), Hello::Incomplete);
            }
        }
    }

    #[test]
    fn a_client_hello_beyond_the_bound_is_known_by_its_start() {
        let padding = |length: usize| {
            let padding = |kind: u8| [&[0xff, kind][..], &counted::<2>(&vec![0; length])].concat();
            records(&old_hello(Some(&[padding(1), padding(2)].concat())), 4096)
        };
        assert_eq!(parse(&padding(8_000)), asks_for_no_name());
        assert_eq!(parse(&padding(8_200)), Hello::Unreadable);
        assert_eq!(parse(&padding(30_000)), Hello::Unreadable);
        let start = RECORD_HEADER + MESSAGE_HEADER + 2 + 32 + 1 + 4 + 2;
        let long = padding(30_000);
        assert_eq!(parse(&long[..start - 1]), Hello::Incomplete);
        assert_eq!(parse(&long[..start]), Hello::Unreadable);
        // Longer than any server accepts.
        let mut longest = long;
        longest[RECORD_HEADER + 1] = 0x10;
        assert_eq!(parse(&longest), Hello::Other);
    }

    #[test]
    fn what_has_malformed_extensions_and_not_the_start_of_a_client_hello_is_not_one() {
        let session = MESSAGE_HEADER + 2 + 32;
        let hello = old_hello(Some(&alpn(b"\0")));
        assert_eq!(parse(&records(&hello, 500)), Hello::Unreadable);
        // An odd length of the ciphers, none, and no compression method.
        for (at, [length, next]) in [(2, [3, 10]), (2, [0, 1]), (5, [0, 0])] {
            let mut hello = hello.clone();
            hello[session + at..][..2].copy_from_slice(&[length, next]);
            assert_eq!(parse(&records(&hello, 500)), Hello::Other, "{at} {length}");
        }
        let mut hello = hello;
        hello[3] += 33;
        hello.splice(session..=session, [33].into_iter().chain([7; 33]));
        assert_eq!(parse(&records(&hello, 500)), Hello::Other);
        // A request in a message of its own length.
        let request = [&[7; 24][..], b"GET / HTTP/1.1\r\nHost: web\r\n\r\n"].concat();
        let hello = [&[CLIENT_HELLO][..], &counted::<3>(&request)].concat();
        assert_eq!(parse(&records(&hello, 500)), Hello::Other);
    }

    #[test]
    fn bytes_that_cannot_be_a_client_hello_are_rejected_as_early_as_possible() {
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"\x16\x02",
            b"\x16\x03\x01\0\0",
            b"\x16\x03\x01\xff\xff",
            // A ServerHello, and a ClientHello of 1 MiB.
            b"\x16\x03\x01\0\x04\x02",
            b"\x16\x03\x01\0\x04\x01\x10\0\0",
        ] {
            assert_eq!(parse(bytes), Hello::Other, "{}", bytes.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn more_bytes_never_change_an_answer(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            at in any::<prop::sample::Index>(),
            cut in any::<prop::sample::Index>(),
        ) {
            // Both arbitrary bytes and nearly valid ones.
            let mut nearly = records(&old_hello(Some(&server_name(b"a.example"))), 40);
            if let Some(byte) = bytes.first() {
                let at = at.index(nearly.len());
                nearly[at] = *byte;
            }
            for bytes in [bytes, nearly] {
                let early = parse(&bytes[..cut.index(bytes.len() + 1)]);
                prop_assert!(early == Hello::Incomplete || early == parse(&bytes));
            }
        }
    }
}
