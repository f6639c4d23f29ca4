//! The head of a message as received: bytes in one block, fields as spans into it. Case and order
//! are preserved because the block is never rebuilt; changes append to it and re-point a span.

mod fields;
#[cfg(test)]
mod tests;

use std::mem::MaybeUninit;

use bytes::BytesMut;
use http::{HeaderName, HeaderValue};

use crate::http::strict::MAX_FIELDS;
use crate::route::{HeaderFields, RequestHead, is_spelling};
use fields::Span;

pub use fields::Fields;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Http10,
    Http11,
}

/// The head of a request.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub fields: Fields,
    method: Span,
    target: Span,
    /// The authority of an absolute target (`GET http://host/path`), which is also part of
    /// `target`.
    authority: Option<Span>,
    minor_version: u8,
}

/// The head of a response.
#[derive(Clone, Debug, Default)]
pub struct Response {
    pub fields: Fields,
    pub status: u16,
    reason: Span,
    minor_version: u8,
}

/// Why a head is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    #[error("some lines end in LF alone, and others do not")]
    LineEnds,
    #[error("the head breaks HTTP/1.1 syntax: {0}")]
    Syntax(&'static str),
    #[error("more than {MAX_FIELDS} fields")]
    TooManyFields,
    #[error("the version is neither HTTP/1.0 nor HTTP/1.1")]
    Version,
}

/// Where the head ends in `buffer`, searching from `from` (a hint: the bytes searched before).
/// `Ok(None)`: it is incomplete. If `strict`, all lines must end alike, in CRLF or in LF alone: a
/// reader that knows only CRLF rejects a first line with an LF in it, so that these bytes cannot be
/// read as any other request.
pub fn find_end(buffer: &[u8], from: usize, strict: bool) -> Result<Option<usize>, HeadError> {
    // Step back over an end that was split between reads.
    let mut position = from.saturating_sub(3);
    let ends_in_crlf = |line_feed: usize| line_feed > 0 && buffer[line_feed - 1] == b'\r';
    let mut first_line = None;
    while let Some(offset) = memchr::memchr(b'\n', &buffer[position..]) {
        let line_feed = position + offset;
        let crlf = ends_in_crlf(line_feed);
        if strict {
            let first = || memchr::memchr(b'\n', buffer).is_some_and(ends_in_crlf);
            if *first_line.get_or_insert_with(first) != crlf {
                return Err(HeadError::LineEnds);
            }
        }
        let end = match &buffer[line_feed + 1..] {
            [b'\r', b'\n', ..] => Some((true, line_feed + 3)),
            [b'\n', ..] => Some((false, line_feed + 2)),
            _ => None,
        };
        match end {
            Some((last_crlf, _)) if strict && last_crlf != crlf => {
                return Err(HeadError::LineEnds);
            }
            Some((_, end)) => return Ok(Some(end)),
            None => position = line_feed + 1,
        }
    }
    Ok(None)
}

impl Request {
    /// Loads a complete head, including its final empty line. Allocates only if it is larger than
    /// any before.
    pub fn parse(&mut self, head: &[u8]) -> Result<(), HeadError> {
        let mut headers = [MaybeUninit::uninit(); MAX_FIELDS];
        let mut parsed = httparse::Request::new(&mut []);
        match parsed.parse_with_uninit_headers(head, &mut headers) {
            Ok(httparse::Status::Complete(length)) if length == head.len() => {}
            Ok(_) => return Err(HeadError::Syntax("it ends early")),
            Err(httparse::Error::Version) => {
                let line = memchr::memchr(b'\n', head).map_or(head, |end| &head[..end]);
                let line = line.strip_suffix(b"\r").unwrap_or(line);
                let version = line.len().saturating_sub(VERSION.len());
                return self.parse(&as_1_1(head, version).ok_or(HeadError::Version)?);
            }
            Err(error) => return Err(head_error(error)),
        }
        let (Some(method), Some(target), Some(minor)) =
            (parsed.method, parsed.path, parsed.version)
        else {
            return Err(HeadError::Syntax("no request line"));
        };
        self.minor_version = minor;
        self.method = Span::of(head, method.as_bytes());
        self.target = Span::of(head, target.as_bytes());
        self.authority = absolute_authority(target).map(|part| Span::of(head, part.as_bytes()));
        self.fields.load(head, parsed.headers);
        Ok(())
    }

    /// Frees the capacity of a large head that is no longer used.
    pub fn forget_large(&mut self) {
        self.fields.shrink();
        if self.fields.is_empty() {
            *self = Self::default();
        }
    }

    pub fn version(&self) -> Version {
        version(self.minor_version)
    }

    /// The target as in the request line.
    pub fn target(&self) -> &str {
        self.fields.text(self.target)
    }

    pub fn target_bytes(&self) -> &[u8] {
        self.fields.bytes(self.target)
    }

    pub fn method_bytes(&self) -> &[u8] {
        self.fields.bytes(self.method)
    }

    /// The authority of an absolute target, userinfo included.
    pub fn target_authority(&self) -> Option<&str> {
        self.authority.map(|span| self.fields.text(span))
    }

    /// Appends request line and fields, without the empty line that ends the head.
    pub fn write(&self, out: &mut BytesMut) {
        out.reserve(self.fields.room());
        out.extend_from_slice(self.fields.bytes(self.method));
        out.extend_from_slice(b" ");
        out.extend_from_slice(self.fields.bytes(self.target));
        out.extend_from_slice(match self.version() {
            Version::Http10 => b" HTTP/1.0\r\n",
            Version::Http11 => b" HTTP/1.1\r\n",
        });
        self.fields.write(out);
    }
}

impl RequestHead for Request {
    fn method(&self) -> &str {
        self.fields.text(self.method)
    }

    fn path_and_query(&self) -> &str {
        let target = self.target();
        match self.authority {
            None => target,
            Some(authority) => {
                let start = (authority.start + authority.length - self.target.start) as usize;
                match &target[start..] {
                    "" => "/",
                    path => path,
                }
            }
        }
    }

    fn authority(&self) -> Option<&str> {
        self.target_authority()
            .map(|text| text.rsplit('@').next().unwrap_or_default())
            .or_else(|| std::str::from_utf8(self.fields.get("host")?).ok())
            .filter(|authority| !authority.is_empty())
    }

    fn set_path_and_query(&mut self, path_and_query: &str) {
        match self.authority {
            None => self.target = self.fields.append(path_and_query.as_bytes()),
            Some(authority) => {
                let before = (authority.start + authority.length - self.target.start) as usize;
                let mut target = self.target()[..before].to_owned();
                let authority_offset = authority.start - self.target.start;
                target.push_str(path_and_query);
                self.target = self.fields.append(target.as_bytes());
                self.authority = Some(Span {
                    start: self.target.start + authority_offset,
                    length: authority.length,
                });
            }
        }
    }

    fn set_authority(&mut self, authority: &str) {
        if let Some(before) = self.authority {
            let scheme = before.start - self.target.start;
            let mut target = self.target()[..scheme as usize].to_owned();
            target.push_str(authority);
            target.push_str(self.path_and_query());
            self.target = self.fields.append(target.as_bytes());
            self.authority = Some(Span {
                start: self.target.start + scheme,
                length: authority.len() as u32,
            });
        }
        self.fields.set("Host", authority.as_bytes());
    }
}

impl Response {
    /// A head without fields.
    pub fn new(status: u16, reason: &str) -> Self {
        let mut fields = Fields::default();
        let reason = fields.append(reason.as_bytes());
        Self {
            fields,
            status,
            reason,
            minor_version: 1,
        }
    }

    /// Loads a complete head, including its final empty line. Old servers fold lines and put spaces
    /// before a colon: both have one defined meaning (RFC 9112 sections 5.1 and 5.2), and are
    /// passed on in today's syntax.
    pub fn parse(&mut self, head: &[u8]) -> Result<(), HeadError> {
        let mut config = httparse::ParserConfig::default();
        match self.parse_as(&config, head) {
            Err(HeadError::Version) => {
                return self.parse(&as_1_1(head, 0).ok_or(HeadError::Version)?);
            }
            Err(HeadError::Syntax(FIELD_NAME)) => {}
            parsed => return parsed,
        }
        config
            .allow_obsolete_multiline_headers_in_responses(true)
            .allow_spaces_after_header_name_in_responses(true);
        self.parse_as(&config, head)?;
        self.fields.unfold();
        Ok(())
    }

    fn parse_as(&mut self, config: &httparse::ParserConfig, head: &[u8]) -> Result<(), HeadError> {
        let mut headers = [MaybeUninit::uninit(); MAX_FIELDS];
        let mut parsed = httparse::Response::new(&mut []);
        match config.parse_response_with_uninit_headers(&mut parsed, head, &mut headers) {
            Ok(httparse::Status::Complete(length)) if length == head.len() => {}
            Ok(_) => return Err(HeadError::Syntax("it ends early")),
            Err(error) => return Err(head_error(error)),
        }
        let (Some(status), Some(reason), Some(minor)) =
            (parsed.code, parsed.reason, parsed.version)
        else {
            return Err(HeadError::Syntax("no status line"));
        };
        if !(100..=999).contains(&status) {
            return Err(HeadError::Syntax("a status below 100"));
        }
        self.status = status;
        self.minor_version = minor;
        // For an empty or unprintable reason the parser returns a literal, which is not part of the
        // head.
        self.reason = if reason.is_empty() {
            Span::default()
        } else {
            Span::of(head, reason.as_bytes())
        };
        self.fields.load(head, parsed.headers);
        Ok(())
    }

    pub fn version(&self) -> Version {
        version(self.minor_version)
    }

    /// Appends status line and fields, without the empty line that ends the head. The version is
    /// that of the proxy as the sender (RFC 9110 section 6.2).
    pub fn write(&self, version: Version, out: &mut BytesMut) {
        out.reserve(self.fields.room());
        out.extend_from_slice(match version {
            Version::Http10 => b"HTTP/1.0 ",
            Version::Http11 => b"HTTP/1.1 ",
        });
        out.extend_from_slice(&decimal(self.status));
        out.extend_from_slice(b" ");
        out.extend_from_slice(self.fields.bytes(self.reason));
        out.extend_from_slice(b"\r\n");
        self.fields.write(out);
    }
}

macro_rules! header_fields {
    ($($head:ty),*) => {$(
        impl HeaderFields for $head {
            fn for_each_value(&self, name: &str, each: &mut dyn FnMut(&[u8]) -> bool) {
                for (other, value) in self.fields.iter() {
                    if other.eq_ignore_ascii_case(name.as_bytes()) && !each(value) {
                        return;
                    }
                }
            }

            fn set_field(&mut self, name: &str, value: &str) {
                self.fields.set(name, value.as_bytes());
            }

            fn add_field(&mut self, name: &str, value: &str) {
                self.fields.add(name, value.as_bytes());
            }

            fn add_shared(&mut self, name: &HeaderName, value: &HeaderValue) {
                self.fields.add(name.as_str(), value.as_bytes());
            }

            fn remove_field(&mut self, name: &str) {
                self.fields.remove(name);
            }

            fn remove_spellings(&mut self, name: &str) {
                self.fields
                    .retain(|other, _| !is_spelling(other, name.as_bytes()));
            }
        }
    )*};
}

header_fields!(Request, Response);

fn version(minor: u8) -> Version {
    if minor == 0 {
        Version::Http10
    } else {
        Version::Http11
    }
}

/// A status has three digits.
fn decimal(status: u16) -> [u8; 3] {
    [status / 100, status / 10, status].map(|rest| b'0' + (rest % 10) as u8)
}

const VERSION: &[u8] = b"HTTP/1.1";

/// `head` with a later minor version at `start` read as HTTP/1.1, the latest one that the proxy
/// supports (RFC 9110 section 2.5).
fn as_1_1(head: &[u8], start: usize) -> Option<Vec<u8>> {
    let (start, end) = (start, start + VERSION.len());
    let [major @ .., b'2'..=b'9'] = head.get(start..end)? else {
        return None;
    };
    if !VERSION.starts_with(major) {
        return None;
    }
    let mut head = head.to_vec();
    head.get_mut(start..end)?.copy_from_slice(VERSION);
    Some(head)
}

/// The authority in `http://authority/path`.
fn absolute_authority(target: &str) -> Option<&str> {
    let rest = ["http://", "https://"].iter().find_map(|scheme| {
        let start = target.get(..scheme.len())?;
        start
            .eq_ignore_ascii_case(scheme)
            .then(|| &target[scheme.len()..])
    })?;
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    Some(&rest[..end])
}

const FIELD_NAME: &str = "a field name";

fn head_error(error: httparse::Error) -> HeadError {
    HeadError::Syntax(match error {
        httparse::Error::TooManyHeaders => return HeadError::TooManyFields,
        httparse::Error::Version => return HeadError::Version,
        httparse::Error::HeaderName => FIELD_NAME,
        httparse::Error::HeaderValue => "a field value",
        httparse::Error::NewLine => "a line's end",
        httparse::Error::Status => "the status",
        httparse::Error::Token => "the start line",
    })
}
