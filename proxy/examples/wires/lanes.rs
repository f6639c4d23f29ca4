//! Both ends of a lane: byte streams, whatever carries them.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::rows::Row;

/// A byte stream.
pub trait Io: AsyncRead + AsyncWrite {}

impl<S: AsyncRead + AsyncWrite> Io for S {}

pub type Lane = Pin<Box<dyn Io>>;

/// Twelve fields, as a browser's or a client library's.
pub const REQUEST_HEAD: &str = "POST /api/orders/4711?full=true HTTP/1.1\r\n\
host: orders.shop\r\n\
user-agent: load/1.0\r\n\
accept: application/json\r\n\
accept-encoding: gzip\r\n\
accept-language: en\r\n\
authorization: Bearer 0123456789abcdef\r\n\
content-type: application/json\r\n\
content-length: 100\r\n\
x-request-id: 7d1c2e6e-9f52\r\n\
x-tenant: example\r\n\
traceparent: 00-0af7651916cd43dd-b7ad6b71-01\r\n\
cache-control: no-cache\r\n\r\n";
/// With a `content-length` of any value: both ends know the length from the row.
pub const RESPONSE_HEAD: &str = "HTTP/1.1 200 OK\r\n\
server: orders/1.0\r\n\
date: Tue, 01 Jan 2030 00:00:00 GMT\r\n\
content-type: application/json\r\n\
content-length: 1024000\r\n\
cache-control: no-store\r\n\
x-request-id: 7d1c2e6e-9f52\r\n\r\n";
const MAX_FIELDS: usize = 32;
/// The size of one read, as the sidecar's of bytes that it passes on.
const READ: usize = 64 * 1024;

/// What both ends send, and where they read to.
pub struct End {
    request: Vec<u8>,
    response: Vec<u8>,
    scratch: Vec<u8>,
    piece: usize,
    is_http: bool,
}

impl End {
    pub fn new(row: &Row) -> Self {
        let message = |head: &str, length: usize| {
            let mut message = vec![b'm'; length.min(row.piece.max(1024 * 1024 * 2))];
            if row.is_http {
                message[..head.len()].copy_from_slice(head.as_bytes());
            }
            message
        };
        Self {
            request: message(REQUEST_HEAD, row.request),
            response: message(RESPONSE_HEAD, row.response),
            scratch: vec![0; READ],
            piece: row.piece,
            is_http: row.is_http,
        }
    }

    /// One exchange of the client.
    pub async fn ask(&mut self, row: &Row, lane: &mut Lane) -> io::Result<()> {
        send(lane, &self.request, row.request, self.piece).await?;
        if !self.receive(lane, row.response, Kind::Response).await? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    /// Answers the requests of a lane until it ends.
    pub async fn answer(&mut self, row: &Row, lane: &mut Lane) -> io::Result<()> {
        while self.receive(lane, row.request, Kind::Request).await? {
            send(lane, &self.response, row.response, self.piece).await?;
        }
        lane.shutdown().await
    }

    /// Receives this many bytes. False: the lane has ended.
    async fn receive(&mut self, lane: &mut Lane, length: usize, kind: Kind) -> io::Result<bool> {
        let mut received = 0;
        while received < length {
            let read = lane.read(&mut self.scratch).await?;
            if read == 0 {
                return Ok(false);
            }
            // A head always comes in one piece: carriers send it in one.
            if received == 0 && self.is_http {
                parse(kind, &self.scratch[..read]);
            }
            received += read;
        }
        assert_eq!(received, length);
        Ok(true)
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Request,
    Response,
}

fn parse(kind: Kind, bytes: &[u8]) {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let complete = match kind {
        Kind::Request => httparse::Request::new(&mut fields).parse(bytes),
        Kind::Response => httparse::Response::new(&mut fields).parse(bytes),
    };
    assert!(complete.expect("a head").is_complete());
}

/// Sends `length` bytes: those of `message`, as often as it takes.
async fn send(lane: &mut Lane, message: &[u8], length: usize, piece: usize) -> io::Result<()> {
    let mut left = length;
    while left > 0 {
        for part in message[..message.len().min(left)].chunks(piece) {
            lane.write_all(part).await?;
            left -= part.len();
        }
    }
    poll_fn(|cx| lane.as_mut().poll_flush(cx)).await
}
