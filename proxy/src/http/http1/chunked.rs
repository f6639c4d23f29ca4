//! The chunked transfer coding (RFC 9112 section 7.1), validated without decoding: the bytes are
//! strictly checked and passed on unchanged, extensions and trailers included.

use crate::http::strict;

/// A chunk's size line with its extensions, in bytes.
const MAX_SIZE_LINE: usize = 256;
/// All trailer fields of a message, in bytes.
const MAX_TRAILERS: usize = 16 * 1024;
/// The largest size of a chunk, in bytes: more than is ever sent, and within the range of readers
/// with a signed number. Leading zeros count as part of the line.
const MAX_SIZE: u64 = i64::MAX as u64;

/// Tracks a chunked body across reads.
#[derive(Clone, Debug)]
pub struct Chunked {
    state: State,
    /// Length of the current size line, or of the trailers so far, in bytes.
    length: usize,
    size: u64,
    /// It belongs to a response: spaces may precede the end of a size line, since old servers pad
    /// it.
    of_response: bool,
    /// The current trailer line so far.
    line: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before the first digit of a size.
    SizeStart,
    Size,
    /// After a size or an extension, and spaces: only another extension may follow.
    Blanks,
    /// Before an extension's name.
    NameStart,
    Name,
    /// After an extension's name, and spaces.
    AfterName,
    /// Before an extension's value.
    ValueStart,
    Value,
    Quoted,
    /// After a backslash in a quoted value.
    Escaped,
    /// After a quoted value.
    AfterQuoted,
    SizeLineFeed,
    Data,
    DataReturn,
    DataLineFeed,
    Trailer,
    TrailerLineFeed,
    Done,
    /// The following bytes have no meaning, even if they look like the end of the body.
    Broken(ChunkError),
}

/// The kind of the next bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// This many bytes of coding.
    Coding(usize),
    /// This many bytes of content.
    Content(usize),
}

/// Why a chunked body is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    #[error("a chunk size that is not a hexadecimal number, or too large")]
    Size,
    #[error("a chunk's extensions break the syntax")]
    Extension,
    #[error("a chunk's size line is longer than {MAX_SIZE_LINE} bytes")]
    SizeLineTooLong,
    #[error("a line of the coding does not end in CRLF")]
    LineEnd,
    #[error("the trailers are longer than {MAX_TRAILERS} bytes")]
    TrailersTooLong,
    #[error("a trailer with invalid syntax, or a field that must not be a trailer")]
    Trailer,
}

impl Default for Chunked {
    fn default() -> Self {
        Self {
            state: State::SizeStart,
            length: 0,
            size: 0,
            of_response: false,
            line: Vec::new(),
        }
    }
}

impl Chunked {
    /// The body of a response.
    pub fn of_response() -> Self {
        Self {
            of_response: true,
            ..Self::default()
        }
    }

    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Consumes the next bytes of the body. Covers all of `bytes` or everything up to the body's
    /// end: `None` when nothing is left to consume.
    pub fn next(&mut self, bytes: &[u8]) -> Result<Option<Segment>, ChunkError> {
        if bytes.is_empty() || self.is_done() {
            return Ok(None);
        }
        if self.state == State::Data {
            let length = (bytes.len() as u64).min(self.size);
            self.size -= length;
            if self.size == 0 {
                self.state = State::DataReturn;
            }
            return Ok(Some(Segment::Content(length as usize)));
        }
        let mut taken = 0;
        while taken < bytes.len() && self.state != State::Data && !self.is_done() {
            if let Err(error) = self.step(bytes[taken]) {
                self.state = State::Broken(error);
                return Err(error);
            }
            taken += 1;
        }
        Ok(Some(Segment::Coding(taken)))
    }

    /// Consumes the part of `bytes` that belongs to the body, and returns its length.
    pub fn advance(&mut self, bytes: &[u8]) -> Result<usize, ChunkError> {
        let mut taken = 0;
        while let Some(segment) = self.next(&bytes[taken..])? {
            taken += match segment {
                Segment::Coding(length) | Segment::Content(length) => length,
            };
        }
        Ok(taken)
    }

    /// The state after `byte` of a size line:
    /// `size *( BWS ";" BWS name [ BWS "=" BWS value ] ) CRLF` (RFC 9112 section 7.1.1). Spaces
    /// after an extension are allowed only before another one; a response may also end the line
    /// with them.
    fn size_line(&mut self, byte: u8) -> Result<State, ChunkError> {
        if let (State::SizeStart | State::Size, Some(digit)) =
            (self.state, (byte as char).to_digit(16))
        {
            if self.size > MAX_SIZE >> 4 {
                return Err(ChunkError::Size);
            }
            self.size = self.size << 4 | u64::from(digit);
            return Ok(State::Size);
        }
        let blank = matches!(byte, b' ' | b'\t');
        Ok(match (self.state, byte) {
            (State::SizeStart, _) => return Err(ChunkError::Size),
            (State::NameStart | State::ValueStart, _) if blank => self.state,
            (State::NameStart | State::Name, _) if is_token(byte) => State::Name,
            (State::ValueStart | State::Value, _) if is_token(byte) => State::Value,
            (State::ValueStart, b'"') => State::Quoted,
            (State::Quoted, b'\\') => State::Escaped,
            (State::Quoted, b'"') => State::AfterQuoted,
            (State::Quoted | State::Escaped, b'\t' | b' '..=b'~' | 0x80..) => State::Quoted,
            (State::Name | State::AfterName, b'=') => State::ValueStart,
            (State::Name | State::AfterName, _) if blank => State::AfterName,
            (State::Size | State::Value | State::AfterQuoted | State::Blanks, _) if blank => {
                State::Blanks
            }
            (
                State::Size
                | State::Name
                | State::AfterName
                | State::Value
                | State::AfterQuoted
                | State::Blanks,
                b';',
            ) => State::NameStart,
            (State::Size | State::Name | State::Value | State::AfterQuoted, b'\r') => {
                State::SizeLineFeed
            }
            (State::AfterName | State::Blanks, b'\r') if self.of_response => State::SizeLineFeed,
            (State::Size, _) => return Err(ChunkError::Size),
            _ => return Err(ChunkError::Extension),
        })
    }

    fn step(&mut self, byte: u8) -> Result<(), ChunkError> {
        match self.state {
            State::SizeStart
            | State::Size
            | State::Blanks
            | State::NameStart
            | State::Name
            | State::AfterName
            | State::ValueStart
            | State::Value
            | State::Quoted
            | State::Escaped
            | State::AfterQuoted => {
                self.length += 1;
                if self.length > MAX_SIZE_LINE {
                    return Err(ChunkError::SizeLineTooLong);
                }
                self.state = self.size_line(byte)?;
            }
            State::SizeLineFeed => {
                if byte != b'\n' {
                    return Err(ChunkError::LineEnd);
                }
                self.length = 0;
                self.state = if self.size == 0 {
                    State::Trailer
                } else {
                    State::Data
                };
            }
            State::Data | State::Done => {}
            State::Broken(error) => return Err(error),
            State::DataReturn => {
                if byte != b'\r' {
                    return Err(ChunkError::LineEnd);
                }
                self.state = State::DataLineFeed;
            }
            State::DataLineFeed => {
                if byte != b'\n' {
                    return Err(ChunkError::LineEnd);
                }
                self.state = State::SizeStart;
                self.size = 0;
            }
            State::Trailer => {
                self.length += 1;
                if self.length > MAX_TRAILERS {
                    return Err(ChunkError::TrailersTooLong);
                }
                match byte {
                    b'\r' => self.state = State::TrailerLineFeed,
                    b'\t' | b' '..=b'~' | 0x80.. => self.line.push(byte),
                    _ => return Err(ChunkError::LineEnd),
                }
            }
            State::TrailerLineFeed => {
                if byte != b'\n' {
                    return Err(ChunkError::LineEnd);
                }
                if self.line.is_empty() {
                    self.state = State::Done;
                    return Ok(());
                }
                if !is_permitted_trailer(&self.line, !self.of_response) {
                    return Err(ChunkError::Trailer);
                }
                self.line.clear();
                self.state = State::Trailer;
            }
        }
        Ok(())
    }
}

/// A field that does not change how the message is framed or routed.
fn is_permitted_trailer(line: &[u8], of_request: bool) -> bool {
    let Some(colon) = memchr::memchr(b':', line) else {
        return false;
    };
    let name = &line[..colon];
    !name.is_empty()
        && name.iter().all(|byte| is_token(*byte))
        && strict::is_trailer(name, of_request)
        && !name.eq_ignore_ascii_case(crate::observe::reason::REASON_HEADER.as_bytes())
}

/// A byte of a name (RFC 9110 section 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn content(body: &[u8], cuts: usize) -> Result<(Vec<u8>, usize), ChunkError> {
        let mut chunked = Chunked::default();
        let mut content = Vec::new();
        let mut taken = 0;
        for piece in body.chunks(cuts.max(1)) {
            let mut rest = piece;
            while let Some(segment) = chunked.next(rest)? {
                let length = match segment {
                    Segment::Coding(length) => length,
                    Segment::Content(length) => {
                        content.extend_from_slice(&rest[..length]);
                        length
                    }
                };
                taken += length;
                rest = &rest[length..];
            }
            if chunked.is_done() {
                return Ok((content, taken));
            }
        }
        Ok((content, usize::MAX))
    }

    #[test]
    fn ambiguous_coding_is_rejected() {
        for body in [
            &b"5\nhello\r\n0\r\n\r\n"[..],
            b"5\r\nhello\n0\r\n\r\n",
            b"5;a\nb\r\nhello\r\n0\r\n\r\n",
            b"5\rxhello\r\n0\r\n\r\n",
            b"0x5\r\nhello\r\n0\r\n\r\n",
            b"+5\r\nhello\r\n",
            b" 5\r\nhello\r\n",
            b"\r\n",
            b"8000000000000000\r\n",
            b"5 3\r\nhello\r\n0\r\n\r\n",
            b"5;\r\nhello\r\n0\r\n\r\n",
            b"5 \t x\r\nhello\r\n0\r\n\r\n",
            b"5 \r\nhello\r\n0\r\n\r\n",
            b"5;a \r\nhello\r\n0\r\n\r\n",
            b"5;a=\r\nhello\r\n0\r\n\r\n",
            b"5;a=\"b\r\nhello\r\n0\r\n\r\n",
            b"5;a=\"b\"c\r\nhello\r\n0\r\n\r\n",
            b"5;a b\r\nhello\r\n0\r\n\r\n",
            b"5;=b\r\nhello\r\n0\r\n\r\n",
            b"5,a\r\nhello\r\n0\r\n\r\n",
            b"5;\xc3\r\nhello\r\n0\r\n\r\n",
            b"0\r\nHost: b\r\n\r\n",
            b"0\r\n:path: /\r\n\r\n",
            b"0\r\nAuthorization: b\r\n\r\n",
            b"5\r\nhelloX\r\n",
            b"0\r\nContent-Length: 5\r\n\r\n",
            b"0\r\n folded\r\n\r\n",
            b"0\r\nno colon\r\n\r\n",
            b"0\r\nA: b\n\r\n",
        ] {
            assert!(
                content(body, 1).is_err(),
                "{:?}",
                String::from_utf8_lossy(body)
            );
            assert!(content(body, body.len()).is_err());
        }
    }

    #[test]
    fn extensions_and_trailers_are_accepted() {
        let body = b"5;name=\"v\"\r\nhello\r\n0\r\nGrpc-Status: 0\r\n\r\nNEXT";
        for cuts in 1..body.len() {
            let (content, taken) = content(body, cuts).unwrap();
            assert_eq!(content, b"hello");
            assert_eq!(&body[taken..], b"NEXT");
        }
    }

    #[test]
    fn a_size_line_follows_the_grammar() {
        for line in [
            "5",
            "0000000000000005",
            "00000000000000000005",
            "5;a",
            "5;a=b;c=\"d e\"",
            "5 ; a = b ;c",
            "5;a=\"\\\"\"",
        ] {
            let body = format!("{line}\r\nhello\r\n0;end\r\n\r\n");
            for cuts in [1, body.len()] {
                let (content, taken) = content(body.as_bytes(), cuts).unwrap();
                assert_eq!((&*content, taken), (&b"hello"[..], body.len()), "{line}");
            }
        }
    }

    #[test]
    fn a_response_may_only_pad_its_sizes() {
        let padded = b"5   \r\nhello\r\n0 \r\nSet-Cookie: a\r\n\r\n";
        let mut chunked = Chunked::of_response();
        assert_eq!(chunked.advance(padded), Ok(padded.len()));
        assert!(chunked.is_done());
        for line in ["5 3", "5;", "5 \t x", " 5"] {
            let line = format!("{line}\r\n");
            assert!(
                Chunked::of_response().advance(line.as_bytes()).is_err(),
                "{line}"
            );
        }
    }

    #[test]
    fn an_error_is_permanent() {
        let mut chunked = Chunked::default();
        assert_eq!(chunked.advance(b"7\r\n"), Ok(3));
        assert_eq!(chunked.advance(b"\r\n0\r\n\r\nX"), Err(ChunkError::LineEnd));
        assert_eq!(chunked.advance(b"\r\n0\r\n\r\n"), Err(ChunkError::LineEnd));
        assert!(!chunked.is_done());
    }

    proptest! {
        #[test]
        fn chunks_are_passed_on_unchanged(
            chunks in vec(vec(any::<u8>(), 1..40), 0..8),
            cuts in 1usize..50,
        ) {
            let mut body = Vec::new();
            for chunk in &chunks {
                body.extend_from_slice(format!("{:X}\r\n", chunk.len()).as_bytes());
                body.extend_from_slice(chunk);
                body.extend_from_slice(b"\r\n");
            }
            body.extend_from_slice(b"0\r\n\r\n");
            let length = body.len();
            body.extend_from_slice(b"more");
            let (content, taken) = content(&body, cuts).unwrap();
            prop_assert_eq!(content, chunks.concat());
            prop_assert_eq!(taken, length);
        }

        #[test]
        fn any_bytes_are_accepted_or_rejected(
            body in vec(any::<u8>(), 0..200),
            cuts in 1usize..20,
        ) {
            let _ = content(&body, cuts);
        }
    }
}
