//! The head of a message as received: bytes in one block, fields as spans into it. Case and order
//! are preserved because the block is never rebuilt; changes append to it and re-point a span.

use std::fmt::Write as _;
use std::mem::MaybeUninit;

use bytes::BytesMut;
use http::{HeaderName, HeaderValue};

use crate::http::strict::MAX_FIELDS;
use crate::route::{HeaderFields, RequestHead, is_spelling};

/// Estimate of how much writing a head adds to the bytes read, in bytes: usually enough.
const LINE: usize = 64;
/// Capacity that a head keeps for the next one, in bytes.
const KEPT_ROOM: usize = 4 * 1024;

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

/// Header fields in their order.
#[derive(Clone, Debug, Default)]
pub struct Fields {
    block: Vec<u8>,
    spans: Vec<Field>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Field {
    name: Span,
    value: Span,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Span {
    start: u32,
    length: u32,
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
        self.fields.take_over(head, parsed.headers);
        Ok(())
    }

    /// Frees the capacity of a large head that is no longer used.
    pub fn forget_large(&mut self) {
        self.fields.shrink();
        if self.fields.block.is_empty() {
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
        self.fields.take_over(head, parsed.headers);
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
        // Writing to a buffer can't fail.
        let _ = write!(out, "{:03} ", self.status);
        out.extend_from_slice(self.fields.bytes(self.reason));
        out.extend_from_slice(b"\r\n");
        self.fields.write(out);
    }
}

impl Fields {
    fn take_over(&mut self, head: &[u8], headers: &[httparse::Header<'_>]) {
        self.block.clear();
        self.block.extend_from_slice(head);
        self.spans.clear();
        self.spans.extend(headers.iter().map(|header| Field {
            name: Span::of(head, header.name.as_bytes()),
            value: Span::of(head, header.value),
        }));
    }

    /// Joins every folded value into one line.
    fn unfold(&mut self) {
        for field in &mut self.spans {
            let value = field.value;
            let bytes = &mut self.block[value.start as usize..][..value.length as usize];
            for byte in bytes
                .iter_mut()
                .filter(|byte| matches!(byte, b'\r' | b'\n'))
            {
                *byte = b' ';
            }
            let trimmed = bytes.trim_ascii();
            field.value = Span {
                start: value.start + (bytes.len() - bytes.trim_ascii_start().len()) as u32,
                length: trimmed.len() as u32,
            };
        }
    }

    /// Frees the capacity of a large head that is no longer used.
    pub fn shrink(&mut self) {
        if self.block.capacity() > KEPT_ROOM {
            *self = Self::default();
        }
    }

    /// Name and value of every field, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.spans
            .iter()
            .map(|field| (self.bytes(field.name), self.bytes(field.value)))
    }

    /// The first value of that name.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.iter()
            .find(|(other, _)| other.eq_ignore_ascii_case(name.as_bytes()))
            .map(|(_, value)| value)
    }

    /// Keeps the fields for which `keep` returns true.
    pub fn retain(&mut self, mut keep: impl FnMut(&[u8], &[u8]) -> bool) {
        let block = &self.block;
        self.spans
            .retain(|field| keep(field.name.slice(block), field.value.slice(block)));
    }

    pub fn set(&mut self, name: &str, value: &[u8]) {
        let value = self.append(value);
        let block = &self.block;
        let same = |field: &Field| {
            field
                .name
                .slice(block)
                .eq_ignore_ascii_case(name.as_bytes())
        };
        match self.spans.iter().position(same) {
            Some(first) => {
                self.spans[first].value = value;
                let mut index = 0;
                self.spans.retain(|field| {
                    index += 1;
                    index - 1 <= first || !same(field)
                });
            }
            None => self.push(name, value),
        }
    }

    pub fn add(&mut self, name: &str, value: &[u8]) {
        let value = self.append(value);
        self.push(name, value);
    }

    pub fn remove(&mut self, name: &str) {
        self.retain(|other, _| !other.eq_ignore_ascii_case(name.as_bytes()));
    }

    fn push(&mut self, name: &str, value: Span) {
        let name = self.append(name.as_bytes());
        self.spans.push(Field { name, value });
    }

    fn append(&mut self, bytes: &[u8]) -> Span {
        let start = self.block.len() as u32;
        self.block.extend_from_slice(bytes);
        Span {
            start,
            length: bytes.len() as u32,
        }
    }

    fn bytes(&self, span: Span) -> &[u8] {
        span.slice(&self.block)
    }

    /// For spans that were valid text when they were created.
    fn text(&self, span: Span) -> &str {
        std::str::from_utf8(self.bytes(span)).unwrap_or_default()
    }

    /// Estimated length of the written head, in bytes: its buffer is reserved at once.
    fn room(&self) -> usize {
        self.block.len() + LINE
    }

    fn write(&self, out: &mut BytesMut) {
        for field in &self.spans {
            out.extend_from_slice(self.bytes(field.name));
            out.extend_from_slice(match self.is_without_blank(field) {
                true => b":",
                false => b": ",
            });
            out.extend_from_slice(self.bytes(field.value));
            out.extend_from_slice(b"\r\n");
        }
    }

    /// Whether the value follows its colon directly, or is empty and without a space.
    fn is_without_blank(&self, field: &Field) -> bool {
        let colon = field.name.start + field.name.length;
        field.value.start == colon + 1 && self.block.get(colon as usize + 1) != Some(&b' ')
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

impl Span {
    /// The span of `part`, which is a slice of `whole`.
    fn of(whole: &[u8], part: &[u8]) -> Self {
        let start = (part.as_ptr() as usize).wrapping_sub(whole.as_ptr() as usize);
        debug_assert!(start + part.len() <= whole.len());
        Self {
            start: start as u32,
            length: part.len() as u32,
        }
    }

    fn slice(self, block: &[u8]) -> &[u8] {
        block
            .get(self.start as usize..(self.start + self.length) as usize)
            .unwrap_or_default()
    }
}

fn version(minor: u8) -> Version {
    if minor == 0 {
        Version::Http10
    } else {
        Version::Http11
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn request(text: &str) -> Request {
        let mut request = Request::default();
        request.parse(text.as_bytes()).unwrap();
        request
    }

    fn written(request: &Request) -> String {
        let mut out = BytesMut::new();
        request.write(&mut out);
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn case_and_order_are_preserved() {
        let text = "GET /a?b=c HTTP/1.1\r\nhOST: x\r\nSet-Cookie: 1\r\nX-B: 2\r\nset-cookie: 3\r\n";
        assert_eq!(written(&request(&format!("{text}\r\n"))), text);
    }

    #[test]
    fn a_field_keeps_the_space_after_its_colon() {
        let text = "GET / HTTP/1.1\r\nHost: x\r\nA:b\r\nB:\r\nC: \r\nD:\tc\r\nE:  d \r\n";
        let mut request = request(&format!("{text}\r\n"));
        request.set_field("F", "f");
        request.set_field("G", "");
        let tidy = text.replace("\t", " ").replace(":  d ", ": d");
        assert_eq!(written(&request), format!("{tidy}F: f\r\nG: \r\n"));
        request.set_field("A", "c");
        assert!(written(&request).contains("\r\nA: c\r\n"));
    }

    #[test]
    fn a_later_minor_version_is_read_and_written_as_1_1() {
        for version in ["HTTP/1.2", "HTTP/1.9"] {
            let text = format!("GET /HTTP/1.2 {version}\r\nHost: HTTP/1.2\r\n");
            let request = request(&format!("{text}\r\n"));
            assert_eq!(request.version(), Version::Http11);
            let as_written = "GET /HTTP/1.2 HTTP/1.1\r\nHost: HTTP/1.2\r\n";
            assert_eq!(written(&request), as_written);
            let mut response = Response::default();
            let head = format!("{version} 200 OK\r\nA: HTTP/1.2\r\n\r\n");
            response.parse(head.as_bytes()).unwrap();
            assert_eq!(
                (response.version(), response.status),
                (Version::Http11, 200)
            );
            assert_eq!(response.fields.get("a"), Some(&b"HTTP/1.2"[..]));
        }
        for version in [
            "HTTP/2.0",
            "HTTP/2.2",
            "HTTP/1.10",
            "HTTP/1.",
            "HTTP/1.x",
            "http/1.2",
        ] {
            let head = format!("GET / {version}\r\nHost: x\r\n\r\n");
            assert!(
                Request::default().parse(head.as_bytes()).is_err(),
                "{version}"
            );
            let head = format!("{version} 200 OK\r\n\r\n");
            assert!(
                Response::default().parse(head.as_bytes()).is_err(),
                "{version}"
            );
        }
    }

    #[test]
    fn a_field_is_set_in_its_place() {
        let mut request = request("GET / HTTP/1.1\r\nHost: x\r\nA: 1\r\nB: 2\r\na: 3\r\n\r\n");
        request.set_field("a", "9");
        request.add_field("C", "4");
        request.remove_field("b");
        assert_eq!(
            written(&request),
            "GET / HTTP/1.1\r\nHost: x\r\nA: 9\r\nC: 4\r\n"
        );
    }

    #[test]
    fn a_path_is_rewritten_in_either_form_of_target() {
        let mut origin = request("GET /a?q HTTP/1.1\r\nHost: x\r\n\r\n");
        origin.set_path_and_query("/b");
        assert_eq!(origin.path_and_query(), "/b");
        let mut absolute = request("GET http://x:80/a?q HTTP/1.1\r\nHost: x:80\r\n\r\n");
        assert_eq!(absolute.authority(), Some("x:80"));
        assert_eq!(absolute.path_and_query(), "/a?q");
        absolute.set_path_and_query("/b");
        assert_eq!(absolute.target(), "http://x:80/b");
        absolute.set_authority("y");
        assert_eq!(written(&absolute), "GET http://y/b HTTP/1.1\r\nHost: y\r\n");
    }

    #[test]
    fn the_end_of_a_head_is_found_wherever_reads_split_it() {
        let head = b"GET / HTTP/1.1\r\nHost: x\r\n\r\nbody";
        for cut in 0..head.len() {
            let first = find_end(&head[..cut], 0, true).unwrap();
            assert_eq!(first.is_some(), cut >= 27, "{cut}");
            assert_eq!(find_end(head, cut, true).unwrap().is_some(), cut <= 27);
            if first.is_none() {
                assert_eq!(find_end(head, cut, true).unwrap(), Some(27));
            }
        }
    }

    #[test]
    fn line_ends_must_be_uniform_in_requests_only() {
        for head in [
            &b"GET / HTTP/1.1\nHost: x\r\n\r\n"[..],
            b"GET / HTTP/1.1\nHost: x\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\n\n",
        ] {
            for from in 0..head.len() {
                assert_eq!(find_end(head, from, true), Err(HeadError::LineEnds));
            }
            assert!(find_end(head, 0, false).unwrap().is_some());
        }
        let head = b"GET / HTTP/1.1\nHost: x\n\nbody\r\n";
        for from in 0..24 {
            assert_eq!(find_end(&head[..from], 0, true), Ok(None));
            assert_eq!(find_end(head, from, true), Ok(Some(24)), "{from}");
        }
        assert_eq!(
            find_end(b"HTTP/1.1 200 OK\nA: b\n\n", 0, false),
            Ok(Some(22))
        );
    }

    #[test]
    fn folded_lines_and_spaces_before_a_colon_in_responses_are_normalized() {
        for (text, line) in [
            ("A: b;\r\n  c\r\n\td", "A: b;    c  \td"),
            ("A : b", "A: b"),
            ("A:\r\n b", "A: b"),
            ("A: b\n c", "A: b  c"),
            (
                "Transfer-Encoding:\r\n chunked",
                "Transfer-Encoding: chunked",
            ),
        ] {
            let mut response = Response::default();
            let head = format!("HTTP/1.1 200 OK\r\n{text}\r\nB: c\r\n\r\n");
            response.parse(head.as_bytes()).unwrap();
            let mut out = BytesMut::new();
            response.write(response.version(), &mut out);
            let out = String::from_utf8(out.to_vec()).unwrap();
            assert_eq!(out, format!("HTTP/1.1 200 OK\r\n{line}\r\nB: c\r\n"));
            let request = format!("GET / HTTP/1.1\r\nHost: x\r\n{text}\r\n\r\n");
            assert!(
                Request::default().parse(request.as_bytes()).is_err(),
                "{text}"
            );
        }
        for text in [" A: b", "A b: c", "no colon", ": b", "A: b\rc"] {
            let head = format!("HTTP/1.1 200 OK\r\n{text}\r\n\r\n");
            assert!(
                Response::default().parse(head.as_bytes()).is_err(),
                "{text}"
            );
        }
    }

    #[test]
    fn a_response_keeps_its_reason() {
        let mut response = Response::default();
        let text = "HTTP/1.1 299 Quite Fine\r\nA: b\r\n";
        response.parse(format!("{text}\r\n").as_bytes()).unwrap();
        let mut out = BytesMut::new();
        response.write(response.version(), &mut out);
        assert_eq!(String::from_utf8(out.to_vec()).unwrap(), text);
    }
}
