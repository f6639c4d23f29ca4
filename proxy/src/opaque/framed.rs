//! One connection of an app, carried in frames to a peer.
//!
//! Each direction ends separately, by an END; a reset of either side is passed on to the other as a
//! RESET, so that the connection can serve the next app's connection. At most one read of bytes is
//! held that cannot be written on.
//!
//! A pooled connection may turn out to be closed. A peer closes one in order only if it has
//! accepted no OPEN from it, so all that was sent can be sent again on another one: it is kept for
//! that, up to a bound, until the first bytes of the peer.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use super::frame::{Ended, HEADER, Kind, MAX_DATA, Unframing};
use crate::wire::buffered::{Buffered, PASS_SIZE, Side};
use crate::wire::detect::{self, Greeting};

/// How much of the app's bytes is kept for a replay, in bytes. This also fits into any receiver's
/// buffer: up to this amount, a peer's kernel has no reason not to acknowledge it.
pub const MAX_REPLAY: usize = 16 * 1024;

/// How much of a server's first bytes is inspected, in bytes: its greeting may be split across
/// frames.
const GREETING: usize = 64;

/// How much a peer may still send after a RESET before it has read it, in bytes: data in flight in
/// buffers. Beyond this it is cheaper to close the connection.
const MAX_DROPPED: usize = 1024 * 1024;
/// How long the peer may take to answer a RESET: opening a new connection is as fast.
const RESET_PATIENCE: Duration = Duration::from_secs(1);

const _: () = assert!(PASS_SIZE <= MAX_DATA);

/// The state of one connection of an app.
#[derive(Debug, Default)]
pub struct Framed {
    way_out: WayOut,
    unframing: Unframing,
    /// The peer's END has been passed on.
    received: bool,
    /// Payload since the last [`Self::take_bytes`].
    bytes: Bytes,
    /// How much was dropped after a RESET, in bytes.
    dropped: usize,
}

/// From the app to the peer.
#[derive(Debug, Default)]
struct WayOut {
    opened: bool,
    /// The END or RESET has been queued.
    ended: bool,
    /// The end was a RESET.
    reset: bool,
    /// The end has been sent.
    sent: bool,
    /// The bytes that the app has sent, while a pooled connection may turn out to be closed.
    unproven: Option<BytesMut>,
    /// Writing to an unproven connection has failed: reading returns the reason.
    is_stuck: bool,
}

/// Payload that was passed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    pub sent: u64,
    pub received: u64,
}

/// Why there was no orderly end.
#[derive(Debug)]
pub enum FramedError {
    App,
    Peer(io::Error),
    /// The connection of the peer's app.
    PeerApp,
    /// The pooled connection was closed, and the peer has accepted nothing: see
    /// [`Framed::into_unproven`].
    Stale,
}

impl Framed {
    /// For the side that sends the OPEN. `reused`: on a connection from a pool.
    pub fn opening(reused: bool) -> Self {
        let way_out = WayOut {
            unproven: reused.then(BytesMut::new),
            ..WayOut::default()
        };
        Self {
            way_out,
            ..Self::default()
        }
    }

    /// For the side that has received the OPEN.
    pub fn opened() -> Self {
        let mut framed = Self::default();
        framed.way_out.opened = true;
        framed
    }

    /// The bytes to send again after [`FramedError::Stale`], followed by `read`.
    pub fn into_unproven(self, read: &[u8]) -> BytesMut {
        let mut bytes = self.way_out.unproven.unwrap_or_default();
        bytes.extend_from_slice(read);
        bytes
    }

    /// The peer has sent nothing on a pooled connection so far, and at most [`MAX_REPLAY`] was
    /// sent.
    pub fn is_unproven(&self) -> bool {
        self.way_out.unproven.is_some()
    }

    /// The bytes passed on since the last call.
    pub fn take_bytes(&mut self) -> Bytes {
        std::mem::take(&mut self.bytes)
    }

    /// The server's first bytes as classified by [`detect::greeting`]; they stay in `peer`. `None`:
    /// more bytes are needed.
    pub fn greeting<B>(&self, peer: &Buffered<B>) -> Option<Greeting> {
        let mut start = [0; GREETING];
        let length = peer.read.len().min(GREETING);
        start[..length].copy_from_slice(&peer.read[..length]);
        let mut unframing = self.unframing.clone();
        match unframing.unframe(&mut start[..length]) {
            Ok(_) if unframing.ended().is_some() => Some(Greeting::Other),
            Ok(unframed) => detect::greeting(&start[unframed.payload])
                .or((length == GREETING).then_some(Greeting::Other)),
            // Reading returns the reason.
            Err(_) => Some(Greeting::Other),
        }
    }

    /// Opens the connection for a server that may send first. Ready when the peer has sent bytes,
    /// which are kept.
    pub fn poll_first_bytes<B>(
        &mut self,
        cx: &mut Context<'_>,
        peer: &mut Buffered<B>,
    ) -> Poll<Result<(), FramedError>>
    where
        B: AsyncRead + AsyncWrite + Unpin,
    {
        self.way_out.open(&mut peer.unsent);
        // If that fails, reading returns the reason.
        let _ = peer.poll_flush(cx);
        let filled = ready!(peer.poll_fill(cx));
        Poll::Ready(self.received_or_failed(filled).map(drop))
    }

    /// Carries bytes in both directions until both have ended. Then `peer` is ready for the next
    /// OPEN.
    pub fn poll<A, B>(
        &mut self,
        cx: &mut Context<'_>,
        app: &mut Buffered<A>,
        peer: &mut Buffered<B>,
    ) -> Poll<Result<(), FramedError>>
    where
        A: AsyncRead + AsyncWrite + Unpin,
        B: AsyncRead + AsyncWrite + Unpin,
    {
        let out = self.way_out.poll(cx, app, peer, &mut self.bytes)?;
        let back = self.poll_back(cx, peer, app)?;
        if out.is_ready() && back.is_ready() {
            return Poll::Ready(Ok(()));
        }
        app.shrink();
        peer.shrink();
        Poll::Pending
    }

    /// Sends a RESET, and drops incoming frames until the peer's direction has ended too. An error:
    /// the connection must not be reused.
    fn poll_reset<B>(
        &mut self,
        cx: &mut Context<'_>,
        peer: &mut Buffered<B>,
    ) -> Poll<io::Result<()>>
    where
        B: AsyncRead + AsyncWrite + Unpin,
    {
        if !self.way_out.opened {
            return Poll::Ready(Ok(()));
        }
        let peer_knows = self.unframing.ended() == Some(Ended::Reset);
        if !self.way_out.ended {
            peer.unsent.extend_from_slice(&Kind::Reset.header());
            self.way_out.ended = true;
            self.way_out.reset = true;
        } else if !self.way_out.reset && !peer_knows {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        ready!(peer.poll_send(cx))?;
        ready!(peer.poll_flush(cx))?;
        while self.unframing.ended().is_none() {
            if peer.read.is_empty() && ready!(peer.poll_fill(cx))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            let mut bytes = peer.read.split();
            let used = self.unframing.unframe(&mut bytes)?.used;
            peer.read = bytes.split_off(used);
            self.dropped += used;
            if self.dropped > MAX_DROPPED {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
        }
        Poll::Ready(Ok(()))
    }

    /// After [`FramedError::App`] and [`FramedError::PeerApp`]: whether `peer` is ready for the
    /// next OPEN, once both sides have signalled the reset of the app's connection.
    pub async fn is_reusable_after_reset<B>(&mut self, peer: &mut Buffered<B>) -> bool
    where
        B: AsyncRead + AsyncWrite + Unpin,
    {
        let reset = poll_fn(|cx| self.poll_reset(cx, peer));
        matches!(timeout(RESET_PATIENCE, reset).await, Ok(Ok(())))
    }

    /// A RESET has been sent: an orderly close after it means that no later OPEN was accepted.
    pub fn has_reset(&self) -> bool {
        self.way_out.reset
    }

    /// From the peer to the app.
    fn poll_back<A, B>(
        &mut self,
        cx: &mut Context<'_>,
        peer: &mut Buffered<B>,
        app: &mut Buffered<A>,
    ) -> Poll<Result<(), FramedError>>
    where
        A: AsyncRead + AsyncWrite + Unpin,
        B: AsyncRead + AsyncWrite + Unpin,
    {
        while !self.received {
            if self.unframing.ended() == Some(Ended::Reset) {
                // Bytes before the RESET are delivered if the app's socket has room.
                let _ = app.poll_send(cx);
                return Poll::Ready(Err(FramedError::PeerApp));
            }
            ready!(app.poll_send(cx)).map_err(|_| FramedError::App)?;
            if self.unframing.ended().is_some() {
                ready!(app.poll_shutdown(cx)).map_err(|_| FramedError::App)?;
                self.received = true;
            } else if !peer.read.is_empty() {
                // Bytes that came with the OPEN, or before the destination was known.
                let mut bytes = peer.read.split();
                let unframed = self.unframing.unframe(&mut bytes);
                let unframed = unframed.map_err(|error| FramedError::Peer(error.into()))?;
                peer.read = bytes.split_off(unframed.used);
                bytes.truncate(unframed.payload.end);
                bytes.advance(unframed.payload.start);
                self.bytes.received += bytes.len() as u64;
                app.unsent = bytes;
            } else {
                let mut rest = BytesMut::new();
                let turn = |read: &mut [u8]| {
                    let unframed = self.unframing.unframe(read)?;
                    // Bytes after an END belong to the next OPEN.
                    rest.extend_from_slice(&read[unframed.used..]);
                    self.bytes.received += unframed.payload.len() as u64;
                    Ok(unframed.payload)
                };
                let passed = match peer.poll_pass_as(cx, app, 0, turn) {
                    Poll::Ready(Ok(length)) => Ok(length),
                    Poll::Ready(Err((Side::From, error))) => Err(error),
                    Poll::Ready(Err((Side::To, _))) => {
                        peer.read = rest;
                        return Poll::Ready(Err(FramedError::App));
                    }
                    Poll::Pending => {
                        // Flush everything before waiting for more.
                        ready!(app.poll_flush(cx)).map_err(|_| FramedError::App)?;
                        return Poll::Pending;
                    }
                };
                self.received_or_failed(passed)?;
                peer.read = rest;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Handles a read from the peer, successful or failed.
    fn received_or_failed(&mut self, read: io::Result<usize>) -> Result<usize, FramedError> {
        match read {
            Ok(0) if self.is_unproven() => Err(FramedError::Stale),
            Ok(0) => Err(FramedError::Peer(io::ErrorKind::UnexpectedEof.into())),
            Ok(length) => {
                self.way_out.unproven = None;
                Ok(length)
            }
            Err(error) => Err(FramedError::Peer(error)),
        }
    }
}

impl WayOut {
    fn poll<A, B>(
        &mut self,
        cx: &mut Context<'_>,
        app: &mut Buffered<A>,
        peer: &mut Buffered<B>,
        bytes: &mut Bytes,
    ) -> Poll<Result<(), FramedError>>
    where
        A: AsyncRead + AsyncWrite + Unpin,
        B: AsyncRead + AsyncWrite + Unpin,
    {
        while !self.sent {
            if self.is_stuck {
                return Poll::Pending;
            }
            if let Err(error) = ready!(peer.poll_send(cx)) {
                return self.failed(error);
            }
            if !app.read.is_empty() {
                bytes.sent += self.send_read(app, peer);
            } else if self.ended {
                if let Err(error) = ready!(peer.poll_flush(cx)) {
                    return self.failed(error);
                }
                self.sent = true;
            } else {
                match self.poll_pass(cx, app, peer) {
                    Poll::Ready(Ok(0)) => {
                        self.open(&mut peer.unsent);
                        peer.unsent.extend_from_slice(&Kind::End.header());
                        self.ended = true;
                    }
                    Poll::Ready(Ok(length)) => bytes.sent += length as u64,
                    Poll::Ready(Err((Side::From, _))) => return Poll::Ready(Err(FramedError::App)),
                    Poll::Ready(Err((Side::To, error))) => return self.failed(error),
                    // The server may send first: open the connection without waiting for the app's
                    // bytes.
                    Poll::Pending if !self.opened => self.open(&mut peer.unsent),
                    Poll::Pending => {
                        // Flush everything before waiting for more.
                        if let Err(error) = ready!(peer.poll_flush(cx)) {
                            return self.failed(error);
                        }
                        return Poll::Pending;
                    }
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once and writes it as a frame, behind the OPEN if that has not been sent: one record,
    /// and one system call.
    fn poll_pass<A, B>(
        &mut self,
        cx: &mut Context<'_>,
        app: &mut Buffered<A>,
        peer: &mut Buffered<B>,
    ) -> Poll<Result<usize, (Side, io::Error)>>
    where
        A: AsyncRead + AsyncWrite + Unpin,
        B: AsyncRead + AsyncWrite + Unpin,
    {
        let open = match self.opened {
            true => 0,
            false => HEADER,
        };
        let room = open + HEADER;
        app.poll_pass_as(cx, peer, room, |read| {
            let length = read.len() - room;
            read[..open].copy_from_slice(&Kind::Open.header()[..open]);
            read[open..room].copy_from_slice(&Kind::Data { length }.header());
            self.opened = true;
            self.keep(&read[room..]);
            Ok(0..read.len())
        })
    }

    /// Sends the bytes that were read ahead from the app as frames. Returns how many they are.
    fn send_read<A, B>(&mut self, app: &mut Buffered<A>, peer: &mut Buffered<B>) -> u64 {
        let read = app.read.split();
        self.open(&mut peer.unsent);
        for part in read.chunks(MAX_DATA) {
            let length = part.len();
            let header = Kind::Data { length }.header();
            peer.unsent.extend_from_slice(&header);
            peer.unsent.extend_from_slice(part);
        }
        self.keep(&read);
        read.len() as u64
    }

    fn open(&mut self, out: &mut BytesMut) {
        if !std::mem::replace(&mut self.opened, true) {
            out.extend_from_slice(&Kind::Open.header());
        }
    }

    /// Keeps sent bytes while they may have to be sent again.
    fn keep(&mut self, bytes: &[u8]) {
        if let Some(sent) = &mut self.unproven {
            match sent.len() + bytes.len() <= MAX_REPLAY {
                true => sent.extend_from_slice(bytes),
                false => self.unproven = None,
            }
        }
    }

    /// Writing to the peer has failed.
    fn failed(&mut self, error: io::Error) -> Poll<Result<(), FramedError>> {
        if self.unproven.is_none() {
            return Poll::Ready(Err(FramedError::Peer(error)));
        }
        self.is_stuck = true;
        Poll::Pending
    }
}
