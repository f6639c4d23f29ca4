//! Reads a socket in large pieces for a TLS library that asks for small ones.
//!
//! rustls asks for 4 KiB at a time, and a record has 16: that would be four system calls for each record of a bulk transfer. What is
//! read beyond what was asked for is kept, and nothing else is: an idle connection holds no room.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How much is read at once, in bytes: four records.
const PIECE: usize = 64 * 1024;

/// Reads `kept` first, and the stream then.
#[derive(Debug)]
pub struct ReadAhead<S> {
    kept: BytesMut,
    pub io: S,
}

impl<S> ReadAhead<S> {
    /// `kept`: what has been read of the stream already.
    pub fn new(kept: BytesMut, io: S) -> Self {
        Self { kept, io }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadAhead<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.kept.is_empty() {
            if buf.remaining() >= PIECE {
                return Pin::new(&mut self.io).poll_read(cx, buf);
            }
            return SCRATCH.with_borrow_mut(|scratch| {
                let mut piece = ReadBuf::new(scratch);
                ready!(Pin::new(&mut self.io).poll_read(cx, &mut piece))?;
                let (asked_for, more) = piece
                    .filled()
                    .split_at(piece.filled().len().min(buf.remaining()));
                buf.put_slice(asked_for);
                self.kept.extend_from_slice(more);
                Poll::Ready(Ok(()))
            });
        }
        let length = self.kept.len().min(buf.remaining());
        buf.put_slice(&self.kept[..length]);
        self.kept.advance(length);
        if self.kept.is_empty() {
            self.kept = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadAhead<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

thread_local! {
    /// Zeroed once for each thread.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; PIECE].into_boxed_slice());
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn everything_comes_in_order_in_pieces_of_any_size() {
        let long: Vec<u8> = (0..3 * PIECE).map(|at| at as u8).collect();
        for asked_for in [1, 4096, PIECE - 1, PIECE, 2 * PIECE] {
            let mut stream = ReadAhead::new(BytesMut::from(&b"first"[..]), &long[..]);
            let mut all = Vec::new();
            let mut piece = vec![0; asked_for];
            loop {
                match stream.read(&mut piece).await.unwrap() {
                    0 => break,
                    length => all.extend_from_slice(&piece[..length]),
                }
            }
            assert_eq!(all, [b"first", &long[..]].concat(), "{asked_for}");
            assert_eq!(stream.kept.capacity(), 0);
        }
    }
}
