//! A body in transit from one connection to the other, in either direction: as fast as the receiver
//! reads it, validated against its framing, and kept from the start for another attempt if that is
//! wanted and the body is small.

use std::io;
use std::task::{Context, Poll, ready};

use bytes::Buf;
use tokio::io::{AsyncRead, AsyncWrite};

use super::chunked::{ChunkError, Chunked, Segment};
use super::framing::Framing;
use crate::http::mirror::Copies;
use crate::memory::Charge;
use crate::wire::buffered::{Buffered, READ_SIZE};

/// Up to this many bytes are written together with a head or another piece rather than separately.
const MAX_COALESCED: usize = 2 * READ_SIZE;

/// How much of a request's body may be left when its response comes, for its connection to be kept:
/// the rest is waited for, in bytes.
const MAX_LEFT: u64 = 256 * 1024;

/// At which side a body stopped.
#[derive(Debug)]
pub enum TransferError {
    /// The sender has gone before the end of the body.
    Sender(io::Error),
    /// The sender violates the chunked coding.
    Coding(ChunkError),
    /// The receiver has gone. The reason does not matter: nothing more is sent to it.
    Taker,
}

/// The rest of a body.
#[derive(Debug)]
enum Rest {
    Length(u64),
    Chunked(Chunked),
    UntilClose,
    Nothing,
}

/// One body, starting at the first unread byte of a connection's buffer.
#[derive(Debug)]
pub struct Body {
    rest: Rest,
    /// Bytes at the start of the sender's buffer that belong to the body and have not been written.
    checked: usize,
    /// Pass on the content of chunks without their coding.
    content_only: bool,
    /// The bytes received so far, while the body is `replayable`.
    kept: Vec<u8>,
    max_kept: usize,
    replayable: bool,
    /// The kept bytes are charged to the memory budget.
    charge: Option<Charge>,
    /// The copies that get the body as well. Boxed: few requests have any.
    copies: Option<Box<Copies>>,
    /// The receiver accepts no more: the rest is dropped.
    refused: bool,
    /// How many bytes have come, modulo 2^32, to distinguish a body that makes progress from a
    /// stalled one.
    taken: u32,
    /// Everything has been written and flushed.
    done: bool,
}

impl Body {
    /// A body that is passed on once.
    pub fn new(framing: Framing) -> Self {
        Self {
            rest: match framing {
                Framing::None => Rest::Nothing,
                Framing::Length(length) => Rest::Length(length),
                Framing::Chunked => Rest::Chunked(Chunked::default()),
                Framing::UntilClose => Rest::UntilClose,
            },
            checked: 0,
            content_only: false,
            kept: Vec::new(),
            max_kept: 0,
            replayable: false,
            charge: None,
            copies: None,
            refused: false,
            taken: 0,
            done: false,
        }
    }

    /// The body of a response: old servers pad the chunked coding with spaces that a client's body
    /// may not have.
    pub fn of_response(framing: Framing) -> Self {
        let mut body = Self::new(framing);
        if let Rest::Chunked(chunked) = &mut body.rest {
            *chunked = Chunked::of_response();
        }
        body
    }

    /// A body that can be sent again while it has at most `max_kept` bytes.
    pub fn replayable(framing: Framing, max_kept: usize) -> Self {
        Self {
            max_kept,
            replayable: true,
            ..Self::new(framing)
        }
    }

    /// `charge`: the charge for the kept bytes.
    pub fn charged(mut self, charge: Option<Charge>) -> Self {
        self.charge = charge;
        self
    }

    /// The body goes to mirrors too, with its coding, as it is read from the sender's connection.
    pub fn copied_to(mut self, mut copies: Copies) -> Self {
        if self.is_received() {
            copies.end(None);
        } else {
            self.copies = Some(Box::new(copies));
        }
        self
    }

    /// Only the content of a chunked body, for a client that does not support the coding.
    pub fn content_only(mut self) -> Self {
        self.content_only = true;
        self
    }

    pub fn is_replayable(&self) -> bool {
        self.replayable
    }

    /// Whether everything has been written, or dropped.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Whether everything has been written.
    pub fn is_sent(&self) -> bool {
        self.done && !self.refused
    }

    /// Whether the rest is short enough to wait for.
    pub fn ends_soon(&self) -> bool {
        match self.rest {
            Rest::Nothing => true,
            Rest::Length(left) => left <= MAX_LEFT,
            Rest::Chunked(_) | Rest::UntilClose => false,
        }
    }

    pub fn is_refused(&self) -> bool {
        self.refused
    }

    /// A number that changes as more bytes come.
    pub fn taken(&self) -> u32 {
        self.taken
    }

    /// The receiver accepts no more of it. The rest is still read from the sender's connection.
    pub fn refuse(&mut self) {
        self.refused = true;
    }

    /// Whether everything has been received.
    pub fn is_received(&self) -> bool {
        matches!(self.rest, Rest::Nothing)
    }

    /// Starts again, for another connection. Returns the bytes to write first.
    pub fn rewind<A>(&mut self, from: &mut Buffered<A>) -> &[u8] {
        // These bytes have been kept as well.
        from.read.advance(self.checked);
        self.checked = 0;
        self.done = false;
        &self.kept
    }

    /// Drops the part that is already in the sender's buffer. True: that was the whole body, and
    /// the next bytes are another message.
    pub fn skip<A>(&mut self, from: &mut Buffered<A>) -> bool {
        loop {
            from.read.advance(self.checked);
            self.checked = 0;
            if self.is_received() || from.read.is_empty() || self.check(from).is_err() {
                return self.is_received();
            }
        }
    }

    /// There will be no other attempt.
    pub fn keep_no_more(&mut self) {
        self.replayable = false;
        self.kept = Vec::new();
        self.charge = None;
    }

    /// Passes the body on until its end has been written and flushed.
    pub fn poll<A, B>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Buffered<A>,
        to: &mut Buffered<B>,
    ) -> Poll<Result<(), TransferError>>
    where
        A: AsyncRead + AsyncWrite + Unpin,
        B: AsyncRead + AsyncWrite + Unpin,
    {
        while !self.done {
            if let Some(copies) = &mut self.copies {
                ready!(copies.poll_turn(cx));
            }
            if self.refused && (self.checked > 0 || self.is_received()) {
                from.read.advance(self.checked);
                self.checked = 0;
                self.done = self.is_received();
            } else if self.checked > 0 {
                ready!(self.poll_write(cx, from, to)).map_err(|_| TransferError::Taker)?;
            } else if self.is_received() {
                ready!(to.poll_flush(cx)).map_err(|_| TransferError::Taker)?;
                self.done = true;
            } else if !from.read.is_empty() {
                self.check(from).map_err(TransferError::Coding)?;
            } else {
                match from.poll_fill(cx) {
                    Poll::Ready(Ok(0)) if matches!(self.rest, Rest::UntilClose) => {
                        self.rest = Rest::Nothing;
                    }
                    Poll::Ready(Ok(0)) => {
                        let end = io::ErrorKind::UnexpectedEof.into();
                        return Poll::Ready(Err(TransferError::Sender(end)));
                    }
                    Poll::Ready(Ok(_)) => {}
                    Poll::Ready(Err(error)) => {
                        return Poll::Ready(Err(TransferError::Sender(error)));
                    }
                    Poll::Pending if self.refused => return Poll::Pending,
                    Poll::Pending => {
                        // Flush everything before waiting for more.
                        ready!(to.poll_flush(cx)).map_err(|_| TransferError::Taker)?;
                        return Poll::Pending;
                    }
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Bytes that the receiver has no room for, in addition to its connection's `unsent`.
    pub fn unwritten(&self) -> usize {
        self.checked
    }

    fn poll_write<A, B>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Buffered<A>,
        to: &mut Buffered<B>,
    ) -> Poll<io::Result<()>>
    where
        B: AsyncRead + AsyncWrite + Unpin,
    {
        if !to.unsent.is_empty() && to.unsent.len() + self.checked <= MAX_COALESCED {
            to.unsent.extend_from_slice(&from.read[..self.checked]);
            from.read.advance(self.checked);
            self.checked = 0;
            return Poll::Ready(Ok(()));
        }
        ready!(to.poll_send(cx))?;
        while self.checked > 0 {
            let written = ready!(to.poll_write(cx, &from.read[..self.checked]))?;
            from.read.advance(written);
            self.checked -= written;
        }
        Poll::Ready(Ok(()))
    }

    /// Finds out how many of the bytes read belong to the body.
    fn check<A>(&mut self, from: &mut Buffered<A>) -> Result<(), ChunkError> {
        let available = from.read.len();
        let taken = match &mut self.rest {
            Rest::Nothing => 0,
            Rest::UntilClose => available,
            Rest::Length(left) => {
                let taken = (available as u64).min(*left);
                *left -= taken;
                if *left == 0 {
                    self.rest = Rest::Nothing;
                }
                taken as usize
            }
            Rest::Chunked(chunked) => {
                let taken = match self.content_only {
                    false => chunked.advance(&from.read)?,
                    true => match chunked.next(&from.read)? {
                        Some(Segment::Content(length)) => length,
                        Some(Segment::Coding(length)) => {
                            from.read.advance(length);
                            0
                        }
                        None => 0,
                    },
                };
                if chunked.is_done() {
                    self.rest = Rest::Nothing;
                }
                taken
            }
        };
        if self.replayable {
            if self.kept.len() + taken <= self.max_kept {
                self.kept.extend_from_slice(&from.read[..taken]);
            } else {
                self.keep_no_more();
            }
        }
        if let Some(copies) = &mut self.copies {
            copies.push_slice(&from.read[..taken]);
            if matches!(self.rest, Rest::Nothing) {
                copies.end(None);
                self.copies = None;
            }
        }
        self.checked = taken;
        self.taken = self.taken.wrapping_add(taken as u32);
        Ok(())
    }
}
