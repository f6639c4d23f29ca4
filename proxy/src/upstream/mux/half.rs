//! This side's half of a stream: what has come and was not read, and what may be sent.

use std::io;
use std::task::Waker;

use bytes::BytesMut;

use super::STREAM_WINDOW;
use super::frame::UnknownKind;

/// The peer does not keep to the protocol.
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
    /// What has come and nobody has read.
    pub received: BytesMut,
    /// What the peer may send beyond that.
    pub granted: u32,
    /// What has been read, and the peer has not been told.
    pub taken: u32,
    /// What we may send.
    pub credit: u32,
    /// The peer has ended its direction.
    pub ended: bool,
    /// We have ended ours.
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

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}
