//! One stream, which acts as a separate connection.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connection::{Closed, MuxConnection};
use super::frame::Kind;
use super::half::Half;
use super::{MAX_DATA, STREAM_WINDOW};

/// Buffer capacity that is kept for the next bytes, in bytes.
const KEPT_ROOM: usize = 2 * 1024;

/// One stream. It is reset if it is dropped before both directions have ended.
#[derive(Debug)]
pub struct Stream {
    connection: Rc<MuxConnection>,
    /// `None`: nothing has been sent, so the stream is not open at the peer.
    id: Option<u32>,
    half: Rc<RefCell<Half>>,
}

impl MuxConnection {
    /// A new stream, which is opened by its first bytes. `None`: the connection accepts no more.
    pub fn open_stream(self: &Rc<Self>) -> Option<Stream> {
        self.accepts_streams()
            .then(|| Stream::new(self.clone(), None, Rc::default()))
    }
}

impl Stream {
    /// Refuses a stream that the peer has opened: an end without a response signals that nothing
    /// was processed.
    pub fn refuse(self) {
        let mut half = self.half.borrow_mut();
        (half.ended, half.shut) = (true, true);
        if let Some(id) = self.id {
            self.connection.state.borrow_mut().send(Kind::End, id, 0);
        }
    }

    pub(super) fn new(
        connection: Rc<MuxConnection>,
        id: Option<u32>,
        half: Rc<RefCell<Half>>,
    ) -> Self {
        Self {
            connection,
            id,
            half,
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut half = self.half.borrow_mut();
        if half.received.is_empty() {
            return match half.broken {
                // Data that was complete before the reset is complete.
                _ if half.ended => Poll::Ready(Ok(())),
                Some(kind) => Poll::Ready(Err(kind.into())),
                // Nothing was sent on it, and nothing will be.
                None if self.id.is_none() && self.connection.is_leaving() => Poll::Ready(Ok(())),
                None => {
                    half.reader = Some(cx.waker().clone());
                    Poll::Pending
                }
            };
        }
        let length = half.received.len().min(buf.remaining());
        buf.put_slice(&half.received[..length]);
        half.received.advance(length);
        if half.received.is_empty() && half.received.capacity() > KEPT_ROOM {
            half.received = BytesMut::new();
        }
        let mut state = self.connection.state.borrow_mut();
        state.consume(length);
        half.taken += length as u32;
        if half.taken >= STREAM_WINDOW / 2 && !half.ended {
            let taken = std::mem::take(&mut half.taken);
            half.granted += taken;
            if let Some(id) = self.id {
                state.send(Kind::Window, id, taken);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Self {
            connection,
            id,
            half,
        } = self.get_mut();
        let mut this = half.borrow_mut();
        let mut state = connection.state.borrow_mut();
        if let Some(kind) = this.broken {
            return Poll::Ready(Err(kind.into()));
        }
        let over = state.closed() == Some(Closed::InOrder);
        if this.shut || over || id.is_none() && connection.is_leaving() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let length = bytes.len().min(MAX_DATA).min(this.credit as usize);
        let crowded = state.is_full();
        if length == 0 && !bytes.is_empty() || crowded {
            this.writer = Some(cx.waker().clone());
            if crowded {
                state.wait_for_room(half);
            }
            return Poll::Pending;
        }
        let number = match id.or_else(|| state.open(half)) {
            Some(number) => *id.insert(number),
            None => {
                drop(state);
                connection.leave();
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
        };
        this.credit -= length as u32;
        state.send_data(number, &bytes[..length]);
        Poll::Ready(Ok(length))
    }

    /// The driver writes all frames before it waits.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut half = self.half.borrow_mut();
        if let Some(kind) = half.broken {
            return Poll::Ready(Err(kind.into()));
        }
        if !std::mem::replace(&mut half.shut, true)
            && let Some(id) = self.id
        {
            let mut state = self.connection.state.borrow_mut();
            state.send(Kind::End, id, 0);
            if half.is_over() {
                state.forget(id);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let half = self.half.borrow();
        let mut state = self.connection.state.borrow_mut();
        state.stop_waiting(&self.half);
        state.consume(half.received.len());
        let Some(id) = self.id else {
            return;
        };
        if !half.is_over() && half.broken.is_none() {
            state.send(Kind::Reset, id, 0);
        }
        state.forget(id);
    }
}
