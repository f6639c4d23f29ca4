//! Carries the frames of a connection: all received bytes to the streams, and all bytes of the
//! streams out in one write.

use std::future::poll_fn;
use std::io;
use std::mem::swap;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use super::MAX_DATA;
use super::connection::{Closed, MuxConnection, Side};
use super::frame::{HEADER, Header, Kind};
use super::half::Violation;
use super::stream::Stream;
use crate::wire::buffered::Buffered;

/// How long closing a connection may take.
const LINGER: Duration = Duration::from_secs(2);
/// How often a connection is read in one turn, before the streams get theirs.
const MAX_READS: usize = 8;
/// Buffer capacity that is kept for frames between two turns, in bytes.
const KEPT_ROOM: usize = 16 * 1024;

/// Drives one connection.
#[derive(Debug)]
pub struct Driver<S> {
    pub connection: Rc<MuxConnection>,
    io: Buffered<S>,
    /// Bytes have arrived since this was last cleared.
    pub received_bytes: bool,
}

/// Why a connection is driven no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// It has ended.
    Ended,
    /// It carries nothing any more, and must be ended in order.
    Unused,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    pub fn new(side: Side, io: S) -> Self {
        Self {
            connection: MuxConnection::new(side),
            io: Buffered::new(io),
            received_bytes: false,
        }
    }

    /// Reads and writes what it can. `accept` is given the streams that the peer opens. Ready when
    /// the connection has ended; its streams have ended by then.
    pub fn poll(&mut self, cx: &mut Context<'_>, accept: &mut impl FnMut(Stream)) -> Poll<Closed> {
        self.connection.state.borrow_mut().driven_by(cx);
        let over = match self.poll_read(cx, accept) {
            Some(over) => over,
            None => match self.poll_write(cx) {
                Poll::Ready(Err(error)) => Closed::Broken(error.kind()),
                Poll::Ready(Ok(())) | Poll::Pending => return Poll::Pending,
            },
        };
        self.connection.finish(over);
        Poll::Ready(over)
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        accept: &mut impl FnMut(Stream),
    ) -> Option<Closed> {
        for _ in 0..MAX_READS {
            match self.io.poll_fill(cx) {
                Poll::Ready(Ok(0)) if self.io.read.is_empty() => return Some(Closed::InOrder),
                Poll::Ready(Ok(0)) => return Some(Closed::Broken(io::ErrorKind::UnexpectedEof)),
                Poll::Ready(Ok(_)) => {
                    self.received_bytes = true;
                    if let Err(violation) = self.take_frames(accept) {
                        tracing::debug!(%violation, "a peer breaks the protocol between sidecars");
                        return Some(Closed::Broken(io::ErrorKind::InvalidData));
                    }
                }
                Poll::Ready(Err(error)) => return Some(Closed::Broken(error.kind())),
                Poll::Pending => {
                    if self.io.read.is_empty() && self.io.read.capacity() > KEPT_ROOM {
                        self.io.read = BytesMut::new();
                    }
                    return None;
                }
            }
        }
        cx.waker().wake_by_ref();
        None
    }

    fn take_frames(&mut self, accept: &mut impl FnMut(Stream)) -> Result<(), Violation> {
        while let Some(header) = Header::parse(&self.io.read)? {
            let length = match header.kind {
                Kind::Data => header.amount as usize,
                _ => 0,
            };
            if length > MAX_DATA {
                return Err(Violation::Large);
            }
            let Some(payload) = self.io.read.get(HEADER..HEADER + length) else {
                break;
            };
            let opened = self.connection.receive(header, payload)?;
            self.io.read.advance(HEADER + length);
            if let Some((id, half)) = opened {
                accept(Stream::new(self.connection.clone(), Some(id), half));
            }
        }
        Ok(())
    }

    /// Writes all unsent frames, through to the socket.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut state = self.connection.state.borrow_mut();
            if state.exceeds_backlog() {
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            }
            if self.io.unsent.is_empty() {
                swap(&mut self.io.unsent, &mut state.unsent);
            }
            drop(state);
            if self.io.unsent.is_empty() {
                break;
            }
            match self.io.poll_send(cx) {
                Poll::Ready(Ok(())) => self.connection.state.borrow_mut().wake_writers(),
                other => return other,
            }
        }
        if self.io.unsent.capacity() > KEPT_ROOM {
            self.io.unsent = BytesMut::new();
        }
        self.io.poll_flush(cx)
    }

    /// Closes a connection in order, so that the peer can distinguish it from a reset.
    pub async fn end(mut self) {
        let ending = async {
            poll_fn(|cx| self.poll_shutdown(cx)).await?;
            poll_fn(|cx| self.poll_drained(cx)).await;
            Ok::<_, io::Error>(())
        };
        let ended = timeout(LINGER, ending).await;
        // For streams that were about to be opened.
        self.connection.finish(match ended {
            Ok(Ok(())) => Closed::InOrder,
            Ok(Err(error)) => Closed::Broken(error.kind()),
            Err(_) => Closed::Broken(io::ErrorKind::TimedOut),
        });
    }

    /// Shuts down the write half, in order: this proves to the peer that nothing was truncated.
    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write(cx))?;
        self.io.poll_shutdown(cx)
    }

    /// Waits until the peer has shut down its half as well.
    fn poll_drained(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            self.io.read.clear();
            match self.io.poll_fill(cx) {
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl MuxConnection {
    /// Whether to close it: no new streams are accepted, and all streams have ended.
    pub fn is_finished(&self) -> bool {
        self.is_leaving() && self.is_unused()
    }
}
