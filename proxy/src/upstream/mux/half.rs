//! This side's half of a stream: received data that is unread, and what may be sent.

use std::io;
use std::task::Waker;

use bytes::BytesMut;

use super::STREAM_WINDOW;
use super::frame::UnknownKind;

/// A violation of the protocol by the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error(transparent)]
    Kind(#[from] UnknownKind),
    #[error("a frame of a stream that was not opened")]
    Stream,
    #[error("more than a stream's window")]
    Window,
    #[error("more unread bytes than the windows allow")]
    Unread,
    #[error("a frame is too large")]
    Large,
}

/// This side's half of a stream.
#[derive(Debug)]
pub struct Half {
    /// Received, but not read yet.
    pub received: BytesMut,
    /// How much more the peer may send.
    pub granted: u32,
    /// Read, but not yet returned to the peer's window.
    pub taken: u32,
    /// How much this side may send.
    pub credit: u32,
    /// The peer has ended its direction.
    pub ended: bool,
    /// This side has ended its direction.
    pub shut: bool,
    pub broken: Option<io::ErrorKind>,
    pub reader: Option<Waker>,
    pub writer: Option<Waker>,
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

    /// Ends the peer's direction.
    pub fn end(&mut self) {
        self.ended = true;
        wake(&mut self.reader);
    }

    /// The peer's reader has consumed `amount` bytes. More than the window is a violation.
    pub fn widen(&mut self, amount: u32) -> Result<(), Violation> {
        let wider = self.credit.saturating_add(amount);
        if wider > STREAM_WINDOW {
            return Err(Violation::Window);
        }
        self.credit = wider;
        self.wake_writer();
        Ok(())
    }

    /// Resets the stream.
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

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}
