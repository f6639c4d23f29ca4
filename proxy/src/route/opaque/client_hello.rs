//! Reads the server name out of the first bytes of a TLS client.
//!
//! In: the bytes received so far, which stay unchanged. Out: the name in the ClientHello's
//! `server_name` extension (RFC 6066 section 3), or that more bytes are needed. Versions, ciphers
//! and the name itself are left to the server: a TLS library would reject clients that the server
//! accepts.

use std::borrow::Cow;

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
/// The extension, and the only kind of name in it (RFC 6066 section 3).
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;

/// The kind of the first bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hello {
    /// Possibly the beginning of a ClientHello.
    Incomplete,
    /// Not a ClientHello, or a malformed or oversized one.
    Other,
    /// A ClientHello with this server name, in lower case and without a trailing dot; or without
    /// one.
    Asks(Option<String>),
}

/// Parses the first bytes.
pub fn read(bytes: &[u8]) -> Hello {
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
    if length > MAX_CLIENT_HELLO {
        return Some(Hello::Other);
    }
    let body = body.get(..length)?;
    Some(server_name(body).map_or(Hello::Other, Hello::Asks))
}

/// `None`: malformed.
fn server_name(body: &[u8]) -> Option<Option<String>> {
    const VERSION_AND_RANDOM: usize = 2 + 32;
    let mut rest = body.get(VERSION_AND_RANDOM..)?;
    let _session = vector::<1>(&mut rest)?;
    let _ciphers = vector::<2>(&mut rest)?;
    let _compressions = vector::<1>(&mut rest)?;
    if rest.is_empty() {
        // A ClientHello without extensions, as in old versions.
        return Some(None);
    }
    let mut extensions = vector::<2>(&mut rest)?;
    while !extensions.is_empty() {
        let kind = number::<2>(&mut extensions)?;
        let mut content = vector::<2>(&mut extensions)?;
        if kind != usize::from(SERVER_NAME) {
            continue;
        }
        let mut names = vector::<2>(&mut content)?;
        while !names.is_empty() {
            let kind = number::<1>(&mut names)?;
            let name = vector::<2>(&mut names)?;
            if kind == usize::from(HOST_NAME) {
                let name = str::from_utf8(name).ok();
                return Some(name.and_then(normal));
            }
        }
    }
    Some(None)
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
        Hello::Asks(Some(name.to_owned()))
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
        let name = [&[HOST_NAME][..], &counted::<2>(name)].concat();
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
            assert_eq!(read(&hello[..length]), Hello::Incomplete, "{length}");
        }
        assert_eq!(read(&hello), asks("shop.example"));
        let followed = [&hello[..], b"whatever comes next"].concat();
        assert_eq!(read(&followed), asks("shop.example"));
        assert_eq!(read(&client_hello("10.0.0.1")), Hello::Asks(None));
    }

    #[test]
    fn a_message_may_span_several_records() {
        let hello = client_hello("shop.example");
        let message = &hello[RECORD_HEADER..];
        for size in [1, 3, 100, message.len() - 1] {
            assert_eq!(
                read(&records(message, size)),
                asks("shop.example"),
                "{size}"
            );
        }
    }

    #[test]
    fn clients_of_any_age_are_supported() {
        let with = |extensions: Option<&[u8]>| read(&records(&old_hello(extensions), 500));
        assert_eq!(with(None), Hello::Asks(None));
        assert_eq!(with(Some(&[])), Hello::Asks(None));
        let other = [&[0, 23][..], &counted::<2>(&[])].concat();
        let both = [&other[..], &server_name(b"A.example.")].concat();
        assert_eq!(with(Some(&both)), asks("a.example"));
        for no_name in [&b""[..], b".", b"\xff.example"] {
            let extension = server_name(no_name);
            assert_eq!(with(Some(&extension)), Hello::Asks(None), "{no_name:?}");
        }
    }

    #[test]
    fn bytes_that_cannot_be_a_client_hello_are_rejected_as_early_as_possible() {
        let mut longer = old_hello(Some(&server_name(b"a.example")));
        // A length of the name beyond its bytes.
        let at = longer.len() - b"a.example".len() - 1;
        longer[at] += 1;
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"\x16\x02",
            b"\x16\x03\x01\0\0",
            b"\x16\x03\x01\xff\xff",
            // A ServerHello, and a ClientHello of 1 MiB.
            b"\x16\x03\x01\0\x04\x02",
            b"\x16\x03\x01\0\x04\x01\x10\0\0",
            &records(&longer, 500),
        ] {
            assert_eq!(read(bytes), Hello::Other, "{}", bytes.escape_ascii());
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
                let early = read(&bytes[..cut.index(bytes.len() + 1)]);
                prop_assert!(early == Hello::Incomplete || early == read(&bytes));
            }
        }
    }
}
