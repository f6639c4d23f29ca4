//! Reading and writing of one connection from two futures at once, with the bytes that were read too early.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How much is read at once. One TLS record is 16 KiB.
pub const READ_SIZE: usize = 16 * 1024;

/// One connection and what has been read from it and not been used yet.
#[derive(Debug)]
pub struct Buffered<S> {
    pub io: S,
    pub buffer: BytesMut,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Buffered<S> {
    pub fn new(io: S, buffer: BytesMut) -> Self {
        Self { io, buffer }
    }

    /// Reads more into the buffer. 0: the other side has ended its half.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        poll_fill(&mut self.io, &mut self.buffer, cx)
    }

    pub async fn fill(&mut self) -> io::Result<usize> {
        poll_fn(|cx| self.poll_fill(cx)).await
    }

    pub async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let io = RefCell::new(&mut self.io);
        write_all(&io, bytes).await?;
        flush(&io).await
    }

    /// Whether an idle connection can still be used: it is open and has said nothing unasked.
    pub fn is_quiet(&mut self) -> bool {
        if !self.buffer.is_empty() {
            return false;
        }
        let mut cx = Context::from_waker(std::task::Waker::noop());
        self.poll_fill(&mut cx).is_pending()
    }
}

/// The connection, borrowed for the length of one poll at a time.
pub type Shared<'a, S> = RefCell<&'a mut S>;

fn poll_fill<S: AsyncRead + Unpin>(
    io: &mut S,
    buffer: &mut BytesMut,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    // Reading straight into the buffer's spare room needs either unsafe code or zeroing: the scratch space is
    // zeroed once for each thread.
    SCRATCH.with_borrow_mut(|scratch| {
        let mut read = ReadBuf::new(scratch);
        ready!(Pin::new(io).poll_read(cx, &mut read))?;
        buffer.extend_from_slice(read.filled());
        Poll::Ready(Ok(read.filled().len()))
    })
}

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_SIZE].into_boxed_slice());
}

/// Reads more into `buffer`. 0: the other side has ended its half.
pub async fn fill<S: AsyncRead + Unpin>(
    io: &Shared<'_, S>,
    buffer: &mut BytesMut,
) -> io::Result<usize> {
    poll_fn(|cx| poll_fill(*io.borrow_mut(), buffer, cx)).await
}

pub async fn write_all<S: AsyncWrite + Unpin>(
    io: &Shared<'_, S>,
    mut bytes: &[u8],
) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = poll_fn(|cx| Pin::new(&mut **io.borrow_mut()).poll_write(cx, bytes)).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        bytes = &bytes[written..];
    }
    Ok(())
}

pub async fn flush<S: AsyncWrite + Unpin>(io: &Shared<'_, S>) -> io::Result<()> {
    poll_fn(|cx| Pin::new(&mut **io.borrow_mut()).poll_flush(cx)).await
}
