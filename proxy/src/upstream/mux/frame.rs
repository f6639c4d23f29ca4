//! Frames: a header of eight bytes, and for DATA the payload.
//!
//! ```text
//!  0      1                 4                         8
//! ┌──────┬─────────────────┬─────────────────────────┐
//! │ kind │ amount          │ stream                  │ payload: `amount` bytes of DATA
//! └──────┴─────────────────┴─────────────────────────┘
//! ```
//! Numbers are big endian. Unknown kinds are a connection error: both ends are Naru's.

use bytes::{BufMut, BytesMut};

/// Length of a frame's header, in bytes.
pub const HEADER: usize = 8;
/// The largest amount that fits into its three bytes.
pub const MAX_AMOUNT: u32 = (1 << 24) - 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Bytes of a stream. The first ones of a client open it.
    Data,
    /// This direction of the stream has ended.
    End,
    /// The stream is reset.
    Reset,
    /// The reader has consumed so many bytes: the sender may send as many more.
    Window,
    /// The sender accepts no new streams (on stream 0).
    Leave,
    /// Asks whether the receiver is alive, independently of its apps (on stream 0).
    Ping,
    /// The answer to a ping.
    Pong,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub kind: Kind,
    /// Bytes of payload, or of the window. Otherwise 0.
    pub amount: u32,
    pub stream: u32,
}

/// The header is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame of the unknown kind {0}")]
pub struct UnknownKind(u8);

impl Header {
    /// The header at the start of `bytes`. `None`: it is incomplete.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, UnknownKind> {
        let Some(&[kind, a, b, c, d, e, f, g]) = bytes.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let kind = match kind {
            0 => Kind::Data,
            1 => Kind::End,
            2 => Kind::Reset,
            3 => Kind::Window,
            4 => Kind::Leave,
            5 => Kind::Ping,
            6 => Kind::Pong,
            other => return Err(UnknownKind(other)),
        };
        Ok(Some(Self {
            kind,
            amount: u32::from_be_bytes([0, a, b, c]),
            stream: u32::from_be_bytes([d, e, f, g]),
        }))
    }

    /// Appends the header. The amount must be at most [`MAX_AMOUNT`].
    pub fn write(&self, out: &mut BytesMut) {
        debug_assert!(self.amount <= MAX_AMOUNT);
        out.put_u32((self.kind as u32) << 24 | self.amount);
        out.put_u32(self.stream);
    }
}
