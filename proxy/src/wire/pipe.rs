//! A connection within the process, for bytes that arrive in frames and are read as if they came
//! from a socket.
//!
//! Either end can be broken off, and the other then sees a reset behind the bytes that are under
//! way, as with TCP. A dropped end is an orderly end.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

/// One end.
#[derive(Debug)]
pub struct Pipe {
    io: DuplexStream,
    /// This end has been broken off; and the other one.
    broken: Rc<Cell<bool>>,
    other_broken: Rc<Cell<bool>>,
}

/// Both ends, with room for `size` bytes each way.
pub fn pipe(size: usize) -> (Pipe, Pipe) {
    let (left, right) = tokio::io::duplex(size);
    let (left_broken, right_broken) = (Rc::<Cell<bool>>::default(), Rc::<Cell<bool>>::default());
    let left = Pipe {
        io: left,
        broken: left_broken.clone(),
        other_broken: right_broken.clone(),
    };
    let right = Pipe {
        io: right,
        broken: right_broken,
        other_broken: left_broken,
    };
    (left, right)
}

impl Pipe {
    /// Ends it so that the other end sees a reset.
    pub fn break_off(self) {
        self.broken.set(true);
    }
}

impl AsyncRead for Pipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        let is_end = buf.filled().len() == before && buf.remaining() > 0;
        match is_end && self.other_broken.get() {
            true => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            false => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_dropped_end_is_an_end_and_a_broken_one_a_reset_behind_the_bytes() {
        for broken in [false, true] {
            let (mut near, mut far) = pipe(16);
            near.write_all(b"last words").await.unwrap();
            match broken {
                true => near.break_off(),
                false => drop(near),
            }
            let mut read = [0; 10];
            far.read_exact(&mut read).await.unwrap();
            assert_eq!(&read, b"last words");
            let end = far.read(&mut read).await.map_err(|error| error.kind());
            match broken {
                true => assert_eq!(end, Err(io::ErrorKind::ConnectionReset)),
                false => assert_eq!(end, Ok(0)),
            }
            assert!(far.write_all(b"?").await.is_err());
        }
    }

    #[tokio::test]
    async fn a_reader_that_waits_sees_the_break() {
        let (near, mut far) = pipe(16);
        let reads = async { far.read(&mut [0; 1]).await.map_err(|error| error.kind()) };
        let breaks = async {
            tokio::task::yield_now().await;
            near.break_off();
        };
        let (read, ()) = tokio::join!(reads, breaks);
        assert_eq!(read, Err(io::ErrorKind::ConnectionReset));
    }
}
