//! An incoming body. While its receiver has no room, incoming data is still read from h2, up to the
//! stream's window: h2 keeps every DATA frame separately, and closes a connection, with the streams
//! of other clients, once too many small ones accumulate. Here they are joined into one piece.

use std::collections::VecDeque;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use http::HeaderMap;

/// Pieces shorter than this are joined, in bytes: copying them costs less than separate pieces.
const SMALL: usize = 4 * 1024;

/// The part of a body that has come but has not been passed on.
pub(super) struct Inflow {
    body: RecvStream,
    /// Boxed: few bodies have one, and every stream's task would reserve space for it.
    backlog: Option<Box<Backlog>>,
    end: End,
}

/// How a body ends, as far as it has come.
enum End {
    Open,
    /// In order, with no trailers.
    Plain,
    /// With trailers, or with a reset.
    With(Box<Result<HeaderMap, h2::Error>>),
}

/// Pieces of a body in order.
#[derive(Default)]
struct Backlog {
    pieces: VecDeque<Bytes>,
    /// The small pieces after them.
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

    /// The next piece. `None`: the body has ended, and [`Self::take_trailers`] has its trailers.
    pub fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, h2::Error>>> {
        if let Some(piece) = self.backlog.as_mut().and_then(|backlog| backlog.pop()) {
            return Poll::Ready(Some(Ok(piece)));
        }
        if matches!(self.end, End::Open) {
            match ready!(self.body.poll_data(cx)) {
                Some(Ok(data)) => {
                    // The stream must not be polled after this.
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

    /// Buffers incoming data for a receiver that has no room now.
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

    /// To be called once there are no more pieces.
    pub fn take_trailers(&mut self) -> Option<HeaderMap> {
        match std::mem::replace(&mut self.end, End::Plain) {
            End::With(end) => end.ok(),
            End::Open | End::Plain => None,
        }
    }

    /// Whether nothing follows the pieces returned, not even trailers.
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

    /// Bytes that have come and have not been released.
    pub fn held(&mut self) -> usize {
        self.body.flow_control().used_capacity()
    }

    /// Bytes that have been passed on: the sender may send as many more.
    pub fn release(&mut self, bytes: usize) {
        if bytes > 0 {
            // Fails only if more is released than was received.
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
    fn a_backlog_returns_every_byte_in_order_and_joins_small_pieces() {
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
