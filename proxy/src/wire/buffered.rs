//! A connection with the bytes that have been read ahead and those that are still to be written.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;

/// Size of one read whose bytes are kept. One TLS record is 16 KiB.
pub const READ_SIZE: usize = 16 * 1024;
/// Size of one read whose bytes are passed on at once.
pub const PASS_SIZE: usize = 64 * 1024;

/// How long, and for how many bytes, a side that is still sending is read after the end, so that
/// what was written last is not lost.
pub const LINGER: Duration = Duration::from_secs(2);
const MAX_LINGERED: usize = 1024 * 1024;

/// A connection and the bytes that wait in either direction.
#[derive(Debug)]
pub struct Buffered<S> {
    pub io: S,
    /// Read, but not consumed yet.
    pub read: BytesMut,
    /// Written before anything else.
    pub unsent: BytesMut,
    unflushed: bool,
    /// The peer has ended its half.
    ended: bool,
    /// Our half has been shut down.
    shut: bool,
}

/// Which of two connections broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    From,
    To,
}

impl<S> Buffered<S> {
    /// Whether the peer has ended its half, as far as has been read.
    pub fn has_ended(&self) -> bool {
        self.ended
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Buffered<S> {
    pub fn new(io: S) -> Self {
        Self {
            io,
            read: BytesMut::new(),
            unsent: BytesMut::new(),
            unflushed: false,
            ended: false,
            shut: false,
        }
    }

    /// Reads more into `read`. 0: the peer has ended its half.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        // Reading straight into the buffer's spare capacity needs either unsafe code or zeroing:
        // the scratch space is zeroed once for each thread, and an idle connection allocates no
        // buffer at all.
        SCRATCH.with_borrow_mut(|scratch| {
            let mut read = ReadBuf::new(&mut scratch[..READ_SIZE]);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut read))?;
            self.read.extend_from_slice(read.filled());
            self.ended |= read.filled().is_empty();
            Poll::Ready(Ok(read.filled().len()))
        })
    }

    /// Reads once and writes the bytes to `to`, whose `unsent` must be empty and keeps those that
    /// cannot be written at once. Returns how many bytes were read; 0: this side has ended its
    /// half.
    pub fn poll_pass<T>(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut Buffered<T>,
    ) -> Poll<Result<usize, Side>>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        self.poll_pass_as(cx, to, 0, |read| Ok(0..read.len()))
            .map_err(|(side, _)| side)
    }

    /// As [`Self::poll_pass`], but writes the output of `turn`: it gets the bytes that were read,
    /// behind `room` bytes of its own, and returns the range to write. Its error is an error of
    /// this side.
    pub fn poll_pass_as<T>(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut Buffered<T>,
        room: usize,
        turn: impl FnOnce(&mut [u8]) -> io::Result<Range<usize>>,
    ) -> Poll<Result<usize, (Side, io::Error)>>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut read = ReadBuf::new(&mut scratch[room..]);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut read))
                .map_err(|error| (Side::From, error))?;
            let length = read.filled().len();
            if length == 0 {
                return Poll::Ready(Ok(0));
            }
            let turned = turn(&mut scratch[..room + length]);
            let mut rest = &scratch[turned.map_err(|error| (Side::From, error))?];
            while !rest.is_empty() {
                match to.poll_write(cx, rest) {
                    Poll::Ready(Ok(written)) => rest = &rest[written..],
                    Poll::Ready(Err(error)) => return Poll::Ready(Err((Side::To, error))),
                    Poll::Pending => {
                        to.unsent.extend_from_slice(rest);
                        break;
                    }
                }
            }
            Poll::Ready(Ok(length))
        })
    }

    /// Writes some of `bytes`. `unsent` must be empty.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, bytes))?;
        self.unflushed = true;
        match written {
            0 => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            _ => Poll::Ready(Ok(written)),
        }
    }

    /// Writes all of `unsent`.
    pub fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, &self.unsent))?;
            self.unflushed = true;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unsent.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    /// Writes all of `unsent`, through to the socket.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        if self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Shuts down the write half, in order.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_flush(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    /// As [`Self::poll_shutdown`], and a no-op after it has completed once.
    pub fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.shut {
            ready!(self.poll_shutdown(cx))?;
            self.shut = true;
        }
        Poll::Ready(Ok(()))
    }

    /// Closes the connection so that the last bytes written arrive, even if the peer is still
    /// sending (RFC 9112 section 9.6).
    pub async fn close(mut self) {
        let ending = async {
            poll_fn(|cx| self.poll_shutdown(cx)).await?;
            let mut lingered = 0;
            while lingered < MAX_LINGERED {
                self.read.clear();
                match poll_fn(|cx| self.poll_fill(cx)).await? {
                    0 => break,
                    length => lingered += length,
                }
            }
            Ok::<_, io::Error>(())
        };
        // A peer that does not read to the end within this time loses the rest.
        let _ = timeout(LINGER, ending).await;
    }

    pub async fn flush(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// Whether an idle connection can still be used: it is open and has received nothing.
    pub fn is_quiet(&mut self) -> bool {
        self.is_quiet_for(std::task::Waker::noop())
    }

    /// As [`Self::is_quiet`]. Then wakes `waker` when the connection has ended or received bytes.
    pub fn is_quiet_for(&mut self, waker: &std::task::Waker) -> bool {
        if !self.read.is_empty() {
            return false;
        }
        // Unconstrained: the waker of a task without coop budget would be woken at once.
        let filled = tokio::task::coop::unconstrained(poll_fn(|cx| self.poll_fill(cx)));
        let mut cx = Context::from_waker(waker);
        pin!(filled).poll(&mut cx).is_pending()
    }

    /// Ready when the connection is broken. The end of the peer's half alone does not count: the
    /// peer may wait for its response (RFC 9112 section 9.6). Bytes that it sends in the meantime
    /// are kept, up to a bound.
    pub fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.ended && self.read.len() < READ_SIZE {
            if ready!(self.poll_fill(cx)).is_err() {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }

    /// Ready when the connection is broken or the peer has ended its half. Bytes that it sends in
    /// the meantime are kept, up to a bound.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.read.len() < READ_SIZE {
            match ready!(self.poll_fill(cx)) {
                Ok(0) | Err(_) => return Poll::Ready(()),
                Ok(_) => {}
            }
        }
        Poll::Pending
    }

    /// Frees empty buffers when no bytes are expected for a while.
    pub fn shrink(&mut self) {
        for buffer in [&mut self.read, &mut self.unsent] {
            if buffer.is_empty() && buffer.capacity() > 0 {
                *buffer = BytesMut::new();
            }
        }
    }
}

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; PASS_SIZE].into_boxed_slice());
}
