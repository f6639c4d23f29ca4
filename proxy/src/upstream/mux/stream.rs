//! One stream: a connection, as far as whoever carries bytes on it can tell.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connection::{Connection, Over, Violation};
use super::frame::Kind;
use super::{MAX_DATA, STREAM_WINDOW};

/// Room that is kept for what comes next, in bytes.
const KEPT_ROOM: usize = 2 * 1024;

/// One stream. Dropped before both directions have ended, it is broken off.
#[derive(Debug)]
pub struct Stream {
    connection: Rc<Connection>,
    /// `None`: nothing has been sent, and the peer does not know of it.
    id: Option<u32>,
    half: Rc<RefCell<Half>>,
}

/// This side's half of a stream.
#[derive(Debug)]
pub(super) struct Half {
    /// What has come and nobody has read.
    received: BytesMut,
    /// What the peer may send beyond that.
    granted: u32,
    /// What has been read, and the peer has not been told.
    taken: u32,
    /// What we may send.
    credit: u32,
    /// The peer has ended its direction.
    ended: bool,
    /// We have ended ours.
    shut: bool,
    broken: Option<io::ErrorKind>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Default for Half {
    fn default() -> Self {
        Self {
            received: BytesMut::new(),
            granted: STREAM_WINDOW,
            taken: 0,
            credit: STREAM_WINDOW,
            ended: false,
            shut: false,
            broken: None,
            reader: None,
            writer: None,
        }
    }
}

impl Half {
    pub fn receive(&mut self, payload: &[u8]) -> Result<(), Violation> {
        let length = u32::try_from(payload.len()).map_err(|_| Violation::Large)?;
        self.granted = self.granted.checked_sub(length).ok_or(Violation::Window)?;
        if self.ended {
            return Err(Violation::Stream);
        }
        self.received.extend_from_slice(payload);
        wake(&mut self.reader);
        Ok(())
    }

    /// The peer sends no more.
    pub fn end(&mut self) {
        self.ended = true;
        wake(&mut self.reader);
    }

    /// The peer's reader has taken so much. More than the window: the peer miscounts.
    pub fn widen(&mut self, amount: u32) -> Result<(), Violation> {
        let wider = self.credit.saturating_add(amount);
        if wider > STREAM_WINDOW {
            return Err(Violation::Window);
        }
        self.credit = wider;
        self.wake_writer();
        Ok(())
    }

    /// The stream is broken.
    pub fn reset(&mut self, kind: io::ErrorKind) {
        self.broken = Some(kind);
        wake(&mut self.reader);
        wake(&mut self.writer);
    }

    /// The whole connection has ended in order.
    pub fn finish(&mut self) {
        self.end();
        wake(&mut self.writer);
    }

    pub fn wake_writer(&mut self) {
        wake(&mut self.writer);
    }

    /// Both directions have ended.
    pub fn is_over(&self) -> bool {
        self.ended && self.shut
    }
}

impl Stream {
    /// Nothing is taken from a stream that the peer has opened: an end without an answer says so.
    pub fn refuse(self) {
        let mut half = self.half.borrow_mut();
        (half.ended, half.shut) = (true, true);
        if let Some(id) = self.id {
            self.connection.state.borrow_mut().send(Kind::End, id, 0);
        }
    }

    pub(super) fn new(
        connection: Rc<Connection>,
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
                // What was complete before the break is complete.
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
        state.read(length);
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
        let over = state.over() == Some(Over::InOrder);
        if this.shut || over || id.is_none() && connection.is_leaving() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let length = bytes.len().min(MAX_DATA).min(this.credit as usize);
        let crowded = state.is_crowded();
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

    /// The driver writes what there is before it waits for anything.
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
        state.wait_no_more(&self.half);
        state.read(half.received.len());
        let Some(id) = self.id else {
            return;
        };
        if !half.is_over() && half.broken.is_none() {
            state.send(Kind::Reset, id, 0);
        }
        state.forget(id);
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}
