//! A connection within the process, whose bytes move only when a target says so.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What has left one end, and what has arrived at it.
#[derive(Debug, Default)]
pub struct Lane {
    pub sent: VecDeque<u8>,
    pub arrived: VecDeque<u8>,
    /// This end has shut down its half; and the other one.
    pub shut: bool,
    pub ended: bool,
    /// How many bytes `sent` may hold.
    pub room: usize,
}

/// One end. Clones are the same one.
#[derive(Clone, Debug)]
pub struct End(pub Rc<RefCell<Lane>>);

impl End {
    pub fn new(room: usize) -> Self {
        Self(Rc::new(RefCell::new(Lane {
            room,
            ..Lane::default()
        })))
    }

    /// Moves at most `count` bytes to `other`; and its end, once all bytes are there. Returns how
    /// many bytes were moved.
    pub fn deliver(&self, other: &Self, count: usize) -> usize {
        let (mut from, mut to) = (self.0.borrow_mut(), other.0.borrow_mut());
        let count = count.min(from.sent.len());
        to.arrived.extend(from.sent.drain(..count));
        to.ended |= from.shut && from.sent.is_empty();
        count
    }
}

impl AsyncRead for End {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut lane = self.0.borrow_mut();
        if lane.arrived.is_empty() {
            return match lane.ended {
                true => Poll::Ready(Ok(())),
                false => Poll::Pending,
            };
        }
        let count = lane.arrived.len().min(buf.remaining());
        for byte in lane.arrived.drain(..count) {
            buf.put_slice(&[byte]);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for End {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut lane = self.0.borrow_mut();
        let count = bytes.len().min(lane.room.saturating_sub(lane.sent.len()));
        if count == 0 && !bytes.is_empty() {
            return Poll::Pending;
        }
        lane.sent.extend(&bytes[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().shut = true;
        Poll::Ready(Ok(()))
    }
}

/// A context that wakes nothing: targets poll again themselves.
pub fn context() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

/// One read of at most `room` bytes.
pub fn poll_read<S>(stream: &mut S, room: usize) -> Poll<io::Result<Vec<u8>>>
where
    S: AsyncRead + Unpin,
{
    let mut space = vec![0; room];
    let mut buf = ReadBuf::new(&mut space);
    let read = Pin::new(stream).poll_read(&mut context(), &mut buf);
    read.map_ok(|()| buf.filled().to_vec())
}

/// Bytes of a stream at these offsets, which differ between streams.
pub fn pattern(stream: usize, offset: usize, length: usize) -> Vec<u8> {
    let byte = |at: usize| (at.wrapping_mul(31) ^ (at >> 8) ^ stream.wrapping_mul(97)) as u8;
    (offset..offset + length).map(byte).collect()
}
