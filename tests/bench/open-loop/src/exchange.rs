//! One request and its response on a persistent connection.

use std::io::{Error, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Timeout for a connect, or for one read of a response.
const PATIENCE: Duration = Duration::from_secs(10);
/// The largest head of a response.
const MAX_HEAD: usize = 8 * 1024;

/// A persistent connection with its buffer.
pub struct Kept {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Kept {
    /// Opens a connection.
    pub fn open(target: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect_timeout(&target, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let buffer = vec![0; MAX_HEAD];
        Ok(Self { stream, buffer })
    }

    /// Releases the buffer of a connection that will be idle.
    pub fn idle(mut self) -> TcpStream {
        self.buffer = Vec::new();
        self.stream
    }

    /// Reuses an idle connection.
    pub fn again(stream: TcpStream) -> Self {
        let buffer = vec![0; MAX_HEAD];
        Self { stream, buffer }
    }

    /// Sends a request and reads its complete response; an error unless it is a complete 200.
    pub fn ask(&mut self, request: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(request)?;
        read_ok(&mut self.stream, &mut self.buffer)
    }
}

/// The request, which is the same every time.
pub fn request(target: SocketAddr) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nhost: {}\r\n\r\n", target.ip()).into_bytes()
}

/// Reads a complete response with a `content-length`. `buffer` has the maximum length of a head.
fn read_ok(from: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<()> {
    let broken = |what: &str| Error::new(ErrorKind::InvalidData, what.to_owned());
    let mut filled = 0;
    let head = loop {
        let read = from.read(&mut buffer[filled..])?;
        if read == 0 {
            return Err(Error::from(ErrorKind::UnexpectedEof));
        }
        // The end of the head may be split over two reads.
        let seen = filled.saturating_sub(3);
        filled += read;
        let found = buffer[seen..filled]
            .windows(4)
            .position(|four| four == b"\r\n\r\n");
        if let Some(end) = found {
            break seen + end + 4;
        }
        if filled == buffer.len() {
            return Err(broken("the head is too large"));
        }
    };
    let text = std::str::from_utf8(&buffer[..head]).map_err(|_| broken("the head is no text"))?;
    if !text.starts_with("HTTP/1.1 200 ") {
        return Err(broken(text.lines().next().unwrap_or_default()));
    }
    let length = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse::<usize>().ok())
        .ok_or_else(|| broken("there is no content-length"))?;
    let mut left = length
        .checked_sub(filled - head)
        .ok_or_else(|| broken("more came than the content-length says"))?;
    while left > 0 {
        let piece = left.min(buffer.len());
        let read = from.read(&mut buffer[..piece])?;
        if read == 0 {
            return Err(Error::from(ErrorKind::UnexpectedEof));
        }
        left -= read;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A peer that sends this many bytes at a time.
    struct Pieces<'a>(&'a [u8], usize);

    impl Read for Pieces<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let piece = self.1.min(buffer.len()).min(self.0.len());
            buffer[..piece].copy_from_slice(&self.0[..piece]);
            self.0 = &self.0[piece..];
            Ok(piece)
        }
    }

    fn read(response: &str, piece: usize) -> std::io::Result<()> {
        let mut pieces = Pieces(response.as_bytes(), piece);
        let outcome = read_ok(&mut pieces, &mut [0; 64]);
        assert!(outcome.is_err() || pieces.0.is_empty(), "all of it is read");
        outcome
    }

    #[test]
    fn a_response_is_read_to_its_end_however_it_is_split() {
        let body = "x".repeat(200);
        let response = format!("HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\n{body}");
        for piece in [1, 2, 3, 5, 64, 1000] {
            read(&response, piece).expect("a whole response");
        }
        read("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", 1).expect("one without a body");
    }

    #[test]
    fn anything_but_a_complete_200_is_an_error() {
        for response in [
            "HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort",
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nlonger",
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nx: ",
            &format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "x".repeat(64)),
        ] {
            assert!(read(response, 7).is_err(), "{response:?}");
        }
    }
}
