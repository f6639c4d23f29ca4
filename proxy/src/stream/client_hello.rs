//! The name that a TLS client asks for, out of the first bytes that it sends.
//!
//! In: what has come so far, which stays as it is. Out: the name in the ClientHello's `server_name` extension (RFC 6066 section 3), or
//! that more is needed. Nothing else is read: what versions, ciphers or names are right is for the server to say, and a TLS library
//! would turn away clients that the server takes.

use std::borrow::Cow;

/// Content type of a record that carries a handshake, and its header's length (RFC 8446 section 5.1).
const HANDSHAKE: u8 = 22;
const RECORD_HEADER: usize = 5;
/// The most that one record carries, in bytes.
const MAX_RECORD: usize = 16 * 1024;
/// The message's type, and the length of its header (RFC 8446 section 4).
const CLIENT_HELLO: u8 = 1;
const MESSAGE_HEADER: usize = 4;
/// The largest ClientHello, in bytes. With a post-quantum key share it has some 2 KiB, and a session ticket may have as many more.
pub const MAX_CLIENT_HELLO: usize = 16 * 1024;
/// The extension, and the only kind of name in it (RFC 6066 section 3).
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;

/// What `bytes` begin with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hello {
    /// So far it may be a ClientHello.
    Incomplete,
    /// It is none, or one that is broken or too large.
    Other,
    /// It asks for this name, in lower case and without a dot at the end; or for none.
    Asks(Option<String>),
}

/// Looks for the name.
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
        // A message may be spread over records, and seldom is.
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

/// `None`: it is not all there.
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

/// `None`: it is broken.
fn server_name(body: &[u8]) -> Option<Option<String>> {
    const VERSION_AND_RANDOM: usize = 2 + 32;
    let mut rest = body.get(VERSION_AND_RANDOM..)?;
    let _session = vector::<1>(&mut rest)?;
    let _ciphers = vector::<2>(&mut rest)?;
    let _compressions = vector::<1>(&mut rest)?;
    if rest.is_empty() {
        // From before there were extensions.
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
                return Some(name_of(name));
            }
        }
    }
    Some(None)
}

/// `None`: no name that a route could have.
fn name_of(name: &[u8]) -> Option<String> {
    let name = str::from_utf8(name).ok().filter(|name| name.is_ascii())?;
    let name = name.strip_suffix('.').unwrap_or(name);
    (!name.is_empty()).then(|| name.to_ascii_lowercase())
}

/// A number of `N` bytes.
fn number<const N: usize>(rest: &mut &[u8]) -> Option<usize> {
    let (number, after) = rest.split_at_checked(N)?;
    *rest = after;
    Some(
        number
            .iter()
            .fold(0, |sum, byte| sum << 8 | usize::from(*byte)),
    )
}

/// As many bytes as a number of `N` bytes before them says (RFC 8446 section 3.4).
fn vector<'a, const N: usize>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = number::<N>(rest)?;
    let (vector, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(vector)
}
