//! Bounds the bytes that are read from a connection in each turn of its task, and reports to its
//! streams whether the socket accepts writes.
//!
//! h2 decodes all that can be read before it returns a stream, and a byte of HPACK can stand for a
//! field of a hundred. Between two turns the streams are started, counted and charged.
//!
//! A peer may open its windows wide and then not read its socket. Data that streams have handed to
//! h2 by then waits there uncharged, so they hand over more only after some of it has been written.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that are read in one turn: two frames of the maximum size.
const TURN: usize = 64 * 1024;

/// Reads up to the turn's limit.
#[derive(Debug)]
pub(crate) struct Paced<S> {
    io: S,
    turn: Turn,
}

/// The state of a connection's turns. The task that polls the connection starts each one.
#[derive(Clone, Debug)]
pub(crate) struct Turn(Rc<State>);

#[derive(Debug)]
struct State {
    /// Bytes that may still be read in this turn.
    left: Cell<usize>,
    /// The last write to the socket was pending.
    is_blocked: Cell<bool>,
    /// Streams that wait for the socket, by number.
    waiting: RefCell<HashMap<u64, Waker>>,
    /// The next such number.
    next: Cell<u64>,
}

/// A stream's place among those that wait for the socket.
#[derive(Debug)]
pub(crate) struct Place {
    turn: Turn,
    number: Option<u64>,
}

impl Turn {
    pub fn new() -> Self {
        Self(Rc::new(State {
            left: Cell::new(TURN),
            is_blocked: Cell::new(false),
            waiting: RefCell::default(),
            next: Cell::new(0),
        }))
    }

    pub fn begin(&self) {
        self.0.left.set(TURN);
    }

    pub fn place(&self) -> Place {
        Place {
            turn: self.clone(),
            number: None,
        }
    }

    fn wrote<T>(&self, written: &Poll<T>) {
        let blocked = written.is_pending();
        if self.0.is_blocked.replace(blocked) && !blocked {
            for (_, waker) in self.0.waiting.take() {
                waker.wake();
            }
        }
    }
}

impl Place {
    /// Pending while the socket accepts no writes.
    pub fn poll_writable(&mut self, cx: &Context<'_>) -> Poll<()> {
        let state = &self.turn.0;
        if !state.is_blocked.get() {
            return Poll::Ready(());
        }
        let number = *self
            .number
            .get_or_insert_with(|| state.next.replace(state.next.get() + 1));
        state
            .waiting
            .borrow_mut()
            .insert(number, cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.turn.0.waiting.borrow_mut().remove(&number);
        }
    }
}

impl<S> Paced<S> {
    pub fn new(io: S, turn: &Turn) -> Self {
        Self {
            io,
            turn: turn.clone(),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let left = self.turn.0.left.get();
        if left == 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        let length = buf.filled().len() - before;
        self.turn.0.left.set(left.saturating_sub(length));
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.turn.wrote(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, pieces);
        self.turn.wrote(&written);
        written
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    #[tokio::test]
    async fn streams_wait_while_the_socket_accepts_no_writes() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (ours, mut theirs) = tokio::io::duplex(8);
        let turn = Turn::new();
        let mut paced = Paced::new(ours, &turn);
        let mut place = turn.place();
        let writing =
            tokio::spawn(async move { theirs.read_exact(&mut [0; 16]).await.map(|_| theirs) });
        paced.write_all(&[7; 16]).await.expect("written");
        poll_fn(|cx| place.poll_writable(cx)).await;
        let mut theirs = writing.await.expect("a task").expect("read");
        paced.write_all(&[7; 8]).await.expect("room for them");
        let full =
            poll_fn(|cx| Poll::Ready(Pin::new(&mut paced).poll_write(cx, &[7]).is_pending()));
        assert!(full.await);
        let waits = poll_fn(|cx| Poll::Ready(place.poll_writable(cx).is_pending()));
        assert!(waits.await);
        theirs.read_exact(&mut [0; 8]).await.expect("read");
        paced.write_all(&[7]).await.expect("written");
        poll_fn(|cx| place.poll_writable(cx)).await;
        drop(place);
        assert!(turn.0.waiting.borrow().is_empty());
    }

    #[tokio::test]
    async fn a_turn_ends_and_the_next_one_goes_on() {
        let turn = Turn::new();
        let content = vec![7; 3 * TURN];
        let mut paced = Paced::new(&content[..], &turn);
        let mut scratch = vec![0; TURN / 2];
        let mut total = 0;
        let mut turns = 0;
        while total < content.len() {
            let mut read = 0;
            // One poll of the task, however often it polls the connection.
            poll_fn(|cx| {
                turn.begin();
                loop {
                    let mut buf = ReadBuf::new(&mut scratch);
                    match Pin::new(&mut paced).poll_read(cx, &mut buf) {
                        Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                            read += buf.filled().len();
                        }
                        _ => return Poll::Ready(()),
                    }
                }
            })
            .await;
            assert!(read <= TURN);
            total += read;
            turns += 1;
        }
        assert_eq!(turns, 3);
    }
}
