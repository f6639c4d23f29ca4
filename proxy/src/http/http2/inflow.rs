//! A body as it comes in. While the side that takes it has no room, what comes is taken out of h2
//! all the same, up to the stream's window: h2 keeps every DATA frame on its own, and ends a
//! connection, with the streams of others, once too many small ones lie there. Here they become one
//! piece.

use std::collections::VecDeque;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use http::HeaderMap;

/// Pieces shorter than this are joined, in bytes: copying them costs less than keeping them apart.
const SMALL: usize = 4 * 1024;

/// The part of a body that has come and not been passed on.
pub(super) struct Inflow {
    body: RecvStream,
    /// Boxed: few bodies have one, and every stream's task would have the room for it.
    backlog: Option<Box<Backlog>>,
    end: End,
}

/// How a body ends, as far as it has come.
enum End {
    Open,
    /// In order, with no trailers.
    Plain,
    /// With trailers, or broken off.
    With(Box<Result<HeaderMap, h2::Error>>),
}

/// Pieces of a body in their order.
#[derive(Default)]
struct Backlog {
    pieces: VecDeque<Bytes>,
    /// What comes after them.
    small: BytesMut,
}

impl Inflow {
    pub fn new(body: RecvStream) -> Self {
        Self {
            body,
            backlog: None,
            end: End::Open,
        }
    }

    /// The next piece. `None`: there is none, and [`Self::take_trailers`] has what ends the body.
    pub fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, h2::Error>>> {
        if let Some(piece) = self.backlog.as_mut().and_then(|backlog| backlog.pop()) {
            return Poll::Ready(Some(Ok(piece)));
        }
        if matches!(self.end, End::Open) {
            match ready!(self.body.poll_data(cx)) {
                Some(Ok(data)) => {
                    // There is nothing to be asked for after this.
                    if self.body.is_end_stream() {
                        self.end = End::Plain;
                    }
                    return Poll::Ready(Some(Ok(data)));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => self.end = End::of(ready!(self.body.poll_trailers(cx))),
            }
        }
        Poll::Ready(match std::mem::replace(&mut self.end, End::Plain) {
            End::With(end) => match *end {
                Err(error) => Some(Err(error)),
                Ok(trailers) => {
                    self.end = End::With(Box::new(Ok(trailers)));
                    None
                }
            },
            End::Open | End::Plain => None,
        })
    }

    /// Takes in what has come, for a taker that has no room for it now.
    pub fn hoard(&mut self, cx: &mut Context<'_>) {
        while matches!(self.end, End::Open) {
            match self.body.poll_data(cx) {
                Poll::Ready(Some(Ok(data))) => {
                    self.backlog.get_or_insert_default().push(data);
                }
                Poll::Ready(Some(Err(error))) => self.end = End::With(Box::new(Err(error))),
                Poll::Ready(None) => match self.body.poll_trailers(cx) {
                    Poll::Ready(end) => self.end = End::of(end),
                    Poll::Pending => break,
                },
                Poll::Pending => break,
            }
        }
    }

    /// Once there are no more pieces.
    pub fn take_trailers(&mut self) -> Option<HeaderMap> {
        match std::mem::replace(&mut self.end, End::Plain) {
            End::With(end) => end.ok(),
            End::Open | End::Plain => None,
        }
    }

    /// Whether nothing comes after what was taken, not even trailers.
    pub fn is_at_end(&self) -> bool {
        self.backlog
            .as_ref()
            .is_none_or(|backlog| backlog.is_empty())
            && match &self.end {
                End::Plain => true,
                End::With(_) => false,
                End::Open => self.body.is_end_stream(),
            }
    }

    /// Bytes that have come and not been released.
    pub fn held(&mut self) -> usize {
        self.body.flow_control().used_capacity()
    }

    /// So much has been passed on: as much may come.
    pub fn release(&mut self, bytes: usize) {
        if bytes > 0 {
            // Fails only where more is given back than was taken.
            let _ = self.body.flow_control().release_capacity(bytes);
        }
    }
}

impl End {
    fn of(trailers: Result<Option<HeaderMap>, h2::Error>) -> Self {
        match trailers {
            Ok(None) => Self::Plain,
            Ok(Some(trailers)) => Self::With(Box::new(Ok(trailers))),
            Err(error) => Self::With(Box::new(Err(error))),
        }
    }
}

impl Backlog {
    fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.small.is_empty()
    }

    fn push(&mut self, piece: Bytes) {
        if piece.len() < SMALL {
            self.small.extend_from_slice(&piece);
        } else {
            if !self.small.is_empty() {
                self.pieces.push_back(self.small.split().freeze());
            }
            self.pieces.push_back(piece);
        }
    }

    fn pop(&mut self) -> Option<Bytes> {
        match self.pieces.pop_front() {
            None if self.small.is_empty() => None,
            None => Some(std::mem::take(&mut self.small).freeze()),
            piece => piece,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backlog_gives_back_every_byte_in_order_and_joins_small_pieces() {
        let mut backlog = Backlog::default();
        let lengths = [1, 0, 3, SMALL, 1, SMALL, SMALL - 1, 2];
        let mut expected = Vec::new();
        for (number, length) in lengths.into_iter().enumerate() {
            let piece = vec![number as u8; length];
            expected.extend_from_slice(&piece);
            backlog.push(piece.into());
        }
        let pieces: Vec<Bytes> = std::iter::from_fn(|| backlog.pop()).collect();
        assert_eq!(pieces.concat(), expected);
        assert_eq!(pieces.len(), 5);
        assert!(backlog.is_empty());
    }
}
