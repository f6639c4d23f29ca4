//! Bodies in transit: one direction of a stream at a time, from the sender to the receiver.
//! Flow-control window is returned to the sender only as the receiver has room, so at most one
//! frame accumulates here.

use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::HeaderMap;

use super::head::are_trailers;
use super::inflow::Inflow;
use super::reply::REASON;
use crate::http::mirror::Copies;
use crate::http::reader::Reader;
use crate::upstream::http2::paced::Place;

/// Pieces of a body that are kept for another attempt: a body in many tiny frames would cost more
/// in bookkeeping than in bytes.
const MAX_REPLAY_PIECES: usize = 256;

/// At which side a body stopped.
#[derive(Debug)]
pub(super) enum TransferError {
    /// The sender failed.
    Sender(h2::Error),
    /// Its trailers contain fields that are not allowed there.
    Trailers,
    /// The receiver failed. The reason shows where its response is awaited.
    Taker,
    /// The receiver has read nothing for too long.
    Stopped,
}

/// A request body, which can be sent again as long as it fits into the limit.
pub(super) struct Upload {
    inflow: Inflow,
    kept: Kept,
    kept_bytes: usize,
    /// In bytes. 0: nothing is kept any more.
    max_kept: usize,
    /// Everything read from `inflow` is in `kept`.
    replayable: bool,
    /// How many pieces of `kept` this attempt has started to send.
    sent: usize,
    /// The piece that this attempt is sending.
    piece: Bytes,
    /// Bytes read from `inflow` whose window has not been returned.
    unreleased: usize,
    /// Once `inflow` has been read to its end: its trailers.
    end: Option<Option<Box<HeaderMap>>>,
    /// The copies that get the body as well. Boxed: few requests have any.
    copies: Option<Box<Copies>>,
    /// This attempt has sent everything.
    done: bool,
}

/// Pieces of a body in order. Most bodies are a single piece, without a list.
#[derive(Default)]
struct Kept {
    first: Option<Bytes>,
    more: Vec<Bytes>,
}

impl Kept {
    fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.more.len()
    }

    fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    fn get(&self, number: usize) -> Option<&Bytes> {
        match number.checked_sub(1) {
            None => self.first.as_ref(),
            Some(number) => self.more.get(number),
        }
    }

    fn push(&mut self, piece: Bytes) {
        match self.first {
            None => self.first = Some(piece),
            Some(_) => self.more.push(piece),
        }
    }
}

impl Upload {
    pub fn new(body: RecvStream, max_kept: usize) -> Self {
        let end = body.is_end_stream().then_some(None);
        Self {
            inflow: Inflow::new(body),
            kept: Kept::default(),
            kept_bytes: 0,
            max_kept,
            replayable: true,
            sent: 0,
            piece: Bytes::new(),
            unreleased: 0,
            copies: None,
            done: end.is_some(),
            end,
        }
    }

    /// The body goes to mirrors too, as it is read.
    pub fn copied_to(mut self, mut copies: Copies) -> Self {
        if self.end.is_some() {
            copies.end(None);
        } else {
            self.copies = Some(Box::new(copies));
        }
        self
    }

    /// There is no body: the head ends the stream.
    pub fn is_empty(&self) -> bool {
        self.end == Some(None) && self.kept.is_empty() && self.replayable
    }

    pub fn is_replayable(&self) -> bool {
        self.replayable
    }

    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Bytes that wait to be sent, or are kept.
    pub fn held(&mut self) -> usize {
        let received = match self.end {
            None => self.inflow.held(),
            Some(_) => self.unreleased,
        };
        received + self.kept_bytes
    }

    /// The receiver accepts no more of it.
    pub fn stop(&mut self) {
        self.done = true;
    }

    /// Starts again from the first byte.
    pub fn rewind(&mut self) {
        self.release(self.unreleased);
        self.piece = Bytes::new();
        self.sent = 0;
        self.done = self.is_empty();
    }

    /// There will be no other attempt.
    pub fn keep_no_more(&mut self) {
        self.max_kept = 0;
        // Pieces that this attempt has not sent yet are still needed.
        if self.sent == self.kept.len() {
            self.forget();
        }
    }

    fn forget(&mut self) {
        self.replayable &= self.kept.is_empty();
        self.kept = Kept::default();
        self.kept_bytes = 0;
        self.sent = 0;
    }

    /// Sends until everything has been sent.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut SendStream<Bytes>,
    ) -> Poll<Result<(), TransferError>> {
        while !self.done {
            if let Some(copies) = &mut self.copies
                && copies.poll_turn(cx).is_pending()
            {
                self.hoard(cx);
                return Poll::Pending;
            }
            if self.piece.is_empty() && !ready!(self.poll_piece(cx))? {
                let trailers = match &mut self.end {
                    Some(trailers) if self.replayable => trailers.clone(),
                    Some(trailers) => trailers.take(),
                    None => None,
                };
                self.done = true;
                let trailers = trailers.map(|trailers| *trailers);
                return Poll::Ready(send_end(to, trailers, false));
            }
            while !self.piece.is_empty() {
                let Poll::Ready(room) = poll_room(cx, to, self.piece.len()) else {
                    self.hoard(cx);
                    return Poll::Pending;
                };
                let part = self.piece.split_to(room?.min(self.piece.len()));
                let length = part.len();
                let ends = self.piece.is_empty() && self.is_last();
                to.send_data(part, ends).map_err(|_| TransferError::Taker)?;
                self.release(length);
                if ends {
                    self.done = true;
                    if self.end.is_none() {
                        self.ended(None);
                    }
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Buffers incoming data while nothing can be sent.
    pub fn hoard(&mut self, cx: &mut Context<'_>) {
        if self.end.is_none() {
            self.inflow.hoard(cx);
        }
    }

    /// Whether nothing follows the current piece, not even trailers.
    fn is_last(&self) -> bool {
        self.sent == self.kept.len()
            && match &self.end {
                Some(trailers) => trailers.is_none(),
                None => self.inflow.is_at_end(),
            }
    }

    /// Gets the next piece to send. False: the body has ended.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, TransferError>> {
        if let Some(kept) = self.kept.get(self.sent) {
            self.piece = kept.clone();
            self.sent += 1;
            if self.max_kept == 0 && self.sent == self.kept.len() {
                self.forget();
            }
            return Poll::Ready(Ok(true));
        }
        if self.end.is_some() {
            return Poll::Ready(Ok(false));
        }
        loop {
            match ready!(self.inflow.poll_piece(cx)) {
                Some(Ok(data)) if data.is_empty() => {}
                Some(Ok(data)) => {
                    self.unreleased += data.len();
                    self.keep(&data);
                    if let Some(copies) = &mut self.copies {
                        copies.push(&data);
                    }
                    self.piece = data;
                    return Poll::Ready(Ok(true));
                }
                Some(Err(error)) => return Poll::Ready(Err(TransferError::Sender(error))),
                None => break,
            }
        }
        let trailers = self.inflow.take_trailers();
        if trailers
            .as_ref()
            .is_some_and(|map| !are_trailers(map, true))
        {
            return Poll::Ready(Err(TransferError::Trailers));
        }
        self.ended(trailers);
        Poll::Ready(Ok(false))
    }

    /// `inflow` has been read to its end.
    fn ended(&mut self, trailers: Option<HeaderMap>) {
        if let Some(mut copies) = self.copies.take() {
            copies.end(trailers.as_ref());
        }
        self.end = Some(trailers.map(Box::new));
    }

    fn keep(&mut self, data: &Bytes) {
        let fits = self.kept_bytes + data.len() <= self.max_kept
            && self.kept.len() < MAX_REPLAY_PIECES
            && self.replayable;
        if fits {
            self.kept.push(data.clone());
            self.kept_bytes += data.len();
            self.sent = self.kept.len();
        } else {
            self.replayable = false;
            self.forget();
        }
    }

    fn release(&mut self, bytes: usize) {
        let bytes = bytes.min(self.unreleased);
        self.unreleased -= bytes;
        self.inflow.release(bytes);
    }
}

/// A response body.
pub(super) struct Download {
    inflow: Inflow,
    reader: Reader,
    trusted: bool,
    piece: Bytes,
    done: bool,
    /// The client's connection.
    place: Place,
}

impl Download {
    /// `trusted`: a reason header from the sender comes from a proxy. `patience`: how long the
    /// receiver may read nothing.
    pub fn new(body: RecvStream, trusted: bool, place: Place, patience: Duration) -> Self {
        Self {
            inflow: Inflow::new(body),
            reader: Reader::new(patience),
            trusted,
            piece: Bytes::new(),
            done: false,
            place,
        }
    }

    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Bytes that wait for a reader that has stopped.
    pub fn held(&mut self) -> usize {
        match self.piece.is_empty() {
            true => 0,
            false => self.inflow.held(),
        }
    }

    /// Sends until everything has been sent.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut SendStream<Bytes>,
    ) -> Poll<Result<(), TransferError>> {
        while !self.done {
            while self.piece.is_empty() {
                match ready!(self.inflow.poll_piece(cx)) {
                    Some(Ok(data)) => self.piece = data,
                    Some(Err(error)) => return Poll::Ready(Err(TransferError::Sender(error))),
                    None => {
                        let trailers = self.inflow.take_trailers();
                        if trailers
                            .as_ref()
                            .is_some_and(|map| !are_trailers(map, false))
                        {
                            return Poll::Ready(Err(TransferError::Trailers));
                        }
                        self.done = true;
                        return Poll::Ready(send_end(to, trailers, self.trusted));
                    }
                }
            }
            while !self.piece.is_empty() {
                let room = match self.place.poll_writable(cx) {
                    Poll::Ready(()) => poll_room(cx, to, self.piece.len()),
                    Poll::Pending => Poll::Pending,
                };
                let Poll::Ready(room) = room else {
                    self.inflow.hoard(cx);
                    ready!(self.reader.poll_stopped(cx));
                    return Poll::Ready(Err(TransferError::Stopped));
                };
                self.reader.reads();
                let part = self.piece.split_to(room?.min(self.piece.len()));
                let length = part.len();
                let ends = self.piece.is_empty() && self.inflow.is_at_end();
                to.send_data(part, ends).map_err(|_| TransferError::Taker)?;
                self.inflow.release(length);
                self.done = ends;
            }
        }
        Poll::Ready(Ok(()))
    }
}

pub(super) fn send_end(
    to: &mut SendStream<Bytes>,
    trailers: Option<HeaderMap>,
    trusted: bool,
) -> Result<(), TransferError> {
    match trailers {
        Some(mut trailers) => {
            if !trusted {
                trailers.remove(REASON);
            }
            to.send_trailers(trailers)
        }
        None => to.send_data(Bytes::new(), true),
    }
    .map_err(|_| TransferError::Taker)
}

/// How many of `wanted` bytes the receiver has room for: at least one byte.
pub(super) fn poll_room(
    cx: &mut Context<'_>,
    to: &mut SendStream<Bytes>,
    wanted: usize,
) -> Poll<Result<usize, TransferError>> {
    to.reserve_capacity(wanted);
    loop {
        match to.capacity() {
            0 => match ready!(to.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Poll::Ready(Err(TransferError::Taker)),
            },
            room => return Poll::Ready(Ok(room)),
        }
    }
}
