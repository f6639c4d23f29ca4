//! The chunked transfer coding (RFC 9112 section 7.1), followed and not taken apart: the bytes are checked to the
//! letter and passed on as they came, extensions and trailers included.

/// A chunk's size line with its extensions, in bytes.
const MAX_SIZE_LINE: usize = 256;
/// All trailer fields of a message, in bytes.
const MAX_TRAILERS: usize = 16 * 1024;
/// Hexadecimal digits of a chunk's size: 2^60 bytes is more than anybody sends.
const MAX_SIZE_DIGITS: usize = 15;

/// Follows a chunked body through the reads that bring it.
#[derive(Clone, Debug)]
pub struct Chunked {
    state: State,
    /// Bytes of the current size line, or of the trailers so far.
    length: usize,
    size: u64,
    digits: usize,
    /// The current trailer line so far.
    line: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Size,
    Extension,
    SizeLineFeed,
    Data,
    DataReturn,
    DataLineFeed,
    Trailer,
    TrailerLineFeed,
    Done,
    /// Nothing that follows can be made sense of, not even where it looks like the end of the body.
    Broken(ChunkError),
}

/// What the next bytes are.
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
    #[error("a chunk's size is not a hexadecimal number")]
    Size,
    #[error("a chunk's size line is longer than {MAX_SIZE_LINE} bytes")]
    SizeLineTooLong,
    #[error("a line of the coding does not end in CRLF")]
    LineEnd,
    #[error("the trailers are longer than {MAX_TRAILERS} bytes")]
    TrailersTooLong,
    #[error("a trailer breaks the syntax or may not be one")]
    Trailer,
}

impl Default for Chunked {
    fn default() -> Self {
        Self {
            state: State::Size,
            length: 0,
            size: 0,
            digits: 0,
            line: Vec::new(),
        }
    }
}

impl Chunked {
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Takes in the next bytes of the body. Covers all of `bytes` or everything up to the body's end: `None` when there
    /// is nothing left to take.
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

    /// Takes in as much of `bytes` as belongs to the body, and says how much that is.
    pub fn advance(&mut self, bytes: &[u8]) -> Result<usize, ChunkError> {
        let mut taken = 0;
        while let Some(segment) = self.next(&bytes[taken..])? {
            taken += match segment {
                Segment::Coding(length) | Segment::Content(length) => length,
            };
        }
        Ok(taken)
    }

    fn step(&mut self, byte: u8) -> Result<(), ChunkError> {
        match self.state {
            State::Size => match (byte as char).to_digit(16) {
                Some(digit) => {
                    self.digits += 1;
                    if self.digits > MAX_SIZE_DIGITS {
                        return Err(ChunkError::Size);
                    }
                    self.size = self.size * 16 + u64::from(digit);
                }
                None if self.digits == 0 => return Err(ChunkError::Size),
                None => match byte {
                    b'\r' => self.state = State::SizeLineFeed,
                    b';' | b' ' | b'\t' => self.state = State::Extension,
                    _ => return Err(ChunkError::Size),
                },
            },
            State::Extension => {
                self.length += 1;
                if self.length > MAX_SIZE_LINE {
                    return Err(ChunkError::SizeLineTooLong);
                }
                match byte {
                    b'\r' => self.state = State::SizeLineFeed,
                    b'\t' | b' '..=b'~' | 0x80.. => {}
                    _ => return Err(ChunkError::LineEnd),
                }
            }
            State::SizeLineFeed => {
                if byte != b'\n' {
                    return Err(ChunkError::LineEnd);
                }
                self.length = 0;
                self.digits = 0;
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
                self.state = State::Size;
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
                if !is_permitted_trailer(&self.line) {
                    return Err(ChunkError::Trailer);
                }
                self.line.clear();
                self.state = State::Trailer;
            }
        }
        Ok(())
    }
}

/// A field that does not change how the message is framed or routed (RFC 9110 section 6.5.1).
fn is_permitted_trailer(line: &[u8]) -> bool {
    let Some(colon) = memchr::memchr(b':', line) else {
        return false;
    };
    let name = &line[..colon];
    let token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    const FORBIDDEN: [&str; 5] = [
        "content-length",
        "transfer-encoding",
        "host",
        "connection",
        crate::reason::REASON_HEADER,
    ];
    !name.is_empty()
        && name.iter().all(token)
        && !FORBIDDEN
            .iter()
            .any(|other| name.eq_ignore_ascii_case(other.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
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
    fn what_two_parsers_could_read_differently_is_refused() {
        for body in [
            &b"5\nhello\r\n0\r\n\r\n"[..],
            b"5\r\nhello\n0\r\n\r\n",
            b"5;a\nb\r\nhello\r\n0\r\n\r\n",
            b"5\rxhello\r\n0\r\n\r\n",
            b"0x5\r\nhello\r\n0\r\n\r\n",
            b"+5\r\nhello\r\n",
            b" 5\r\nhello\r\n",
            b"\r\n",
            b"10000000000000000\r\n",
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
    fn extensions_and_trailers_pass() {
        let body = b"5;name=\"v\"\r\nhello\r\n0\r\nGrpc-Status: 0\r\n\r\nNEXT";
        for cuts in 1..body.len() {
            let (content, taken) = content(body, cuts).unwrap();
            assert_eq!(content, b"hello");
            assert_eq!(&body[taken..], b"NEXT");
        }
    }

    #[test]
    fn what_is_broken_stays_broken() {
        let mut chunked = Chunked::default();
        assert_eq!(chunked.advance(b"7\r\n"), Ok(3));
        assert_eq!(chunked.advance(b"\r\n0\r\n\r\nX"), Err(ChunkError::LineEnd));
        assert_eq!(chunked.advance(b"\r\n0\r\n\r\n"), Err(ChunkError::LineEnd));
        assert!(!chunked.is_done());
    }

    proptest! {
        #[test]
        fn chunks_come_out_as_they_went_in(chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..8), cuts in 1usize..50) {
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
        fn any_bytes_are_taken_or_refused(body in proptest::collection::vec(any::<u8>(), 0..200), cuts in 1usize..20) {
            let _ = content(&body, cuts);
        }
    }
}
