//! A stream of application data over TLS records.

use std::cell::RefCell;
use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, BytesMut};
use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{
    AlertDescription, ConnectionTrafficSecrets, ContentType, ExtractedSecrets, HandshakeType,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::record::{
    self, HEADER, Keys, MAX_CONTENT, OVERHEAD, RecordError, UnknownCipher, inner_length,
};

/// How many records one write seals, and one read opens.
const RECORDS: usize = 4;
/// Size of that many records, in bytes.
const ROOM: usize = RECORDS * (MAX_CONTENT + OVERHEAD);
/// How many records without application data may follow each other.
const MAX_WITHOUT_DATA: u32 = 32;
/// How many tickets of one connection are stored. Each costs a key and an entry in the shared
/// store.
const MAX_TICKETS: u32 = 4;
/// The longest message that a peer may send after the handshake, in bytes: a ticket with the
/// client's certificates in it.
const MAX_MESSAGE: usize = 64 * 1024;

/// A connection after its handshake.
///
/// A write seals up to four records and sends them; what the socket does not accept at once waits,
/// and is sent by the next write, or by a flush. An end of the connection without close_notify is
/// an error: it may be a truncation attack.
pub struct Stream<S> {
    io: S,
    sealing: Keys,
    opening: Keys,
    kernel: Kernel,
    /// Read, but not opened yet.
    received: BytesMut,
    /// Opened, but not consumed yet.
    content: BytesMut,
    /// The start of an incomplete handshake message.
    message: Vec<u8>,
    /// Sealed, but not sent yet.
    unsent: BytesMut,
    /// Records without application data since the last with some.
    without_data: u32,
    /// How many tickets have been stored.
    tickets: u32,
    /// The peer has requested a key update.
    key_update_pending: bool,
    /// Found after content that has yet to be consumed.
    failure: Option<StreamError>,
    sent_close_notify: bool,
    received_close_notify: bool,
    is_broken: bool,
}

/// The state that rustls keeps of a connection: the next keys, and the ticket store.
pub enum Kernel {
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
}

/// Why a peer's records are invalid.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("the peer sent the alert {0:?}")]
    Alert(AlertDescription),
    #[error("an unexpected message: {0}")]
    Unexpected(&'static str),
    #[error("a message of {0} bytes")]
    TooLong(usize),
    #[error("an incomplete message")]
    Malformed,
    #[error("a KeyUpdate with the invalid request {0}")]
    KeyUpdate(u8),
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    #[error(transparent)]
    Cipher(#[from] UnknownCipher),
}

impl<S> Stream<S> {
    /// `received`: bytes that have been read of `io` after the handshake.
    pub(super) fn new(
        io: S,
        secrets: ExtractedSecrets,
        kernel: Kernel,
        received: BytesMut,
    ) -> io::Result<Self> {
        let received = match received.is_empty() {
            true => BytesMut::new(),
            false => received,
        };
        Ok(Self {
            io,
            sealing: Keys::new(secrets.tx).map_err(io::Error::other)?,
            opening: Keys::new(secrets.rx).map_err(io::Error::other)?,
            kernel,
            received,
            content: BytesMut::new(),
            message: Vec::new(),
            unsent: BytesMut::new(),
            without_data: 0,
            tickets: 0,
            key_update_pending: false,
            failure: None,
            sent_close_notify: false,
            received_close_notify: false,
            is_broken: false,
        })
    }

    /// The underlying transport.
    pub fn get_ref(&self) -> &S {
        &self.io
    }

    /// Seals data to the start of `out`, as far as there is room, in as few records as possible.
    /// Returns how many bytes were consumed, and the length of the records.
    fn seal<'a>(
        &mut self,
        pieces: &'a [IoSlice<'_>],
        out: &mut [u8],
    ) -> Result<(usize, usize), StreamError> {
        let (mut taken, mut sealed) = (0, 0);
        if self.key_update_pending || self.sealing.are_exhausted() {
            sealed += self.change_key(out)?;
        }
        let mut pieces = pieces.iter().map(|piece| &**piece);
        let mut or_next = |rest: &'a [u8]| match rest {
            [] => pieces.find(|piece| !piece.is_empty()).unwrap_or_default(),
            rest => rest,
        };
        let mut piece = or_next(&[]);
        while !piece.is_empty() && out.len() - sealed > OVERHEAD {
            let out = &mut out[sealed..];
            let room = (out.len() - OVERHEAD).min(MAX_CONTENT);
            let (first, rest) = piece.split_at(piece.len().min(room));
            let mut length = first.len();
            piece = or_next(rest);
            let kind = ContentType::ApplicationData;
            sealed += if length == room || piece.is_empty() {
                self.sealing.seal(kind, first, out)?
            } else {
                let content = &mut out[HEADER..HEADER + room];
                content[..length].copy_from_slice(first);
                while length < room && !piece.is_empty() {
                    let (part, rest) = piece.split_at(piece.len().min(room - length));
                    content[length..length + part.len()].copy_from_slice(part);
                    length += part.len();
                    piece = or_next(rest);
                }
                self.sealing.seal_in_place(kind, length, out)?
            };
            taken += length;
        }
        Ok((taken, sealed))
    }

    /// Sends a KeyUpdate, and switches to the next sending key (RFC 8446 section 4.6.3).
    fn change_key(&mut self, out: &mut [u8]) -> Result<usize, StreamError> {
        const NOT_REQUESTED: u8 = 0;
        let message = [HandshakeType::KeyUpdate.into(), 0, 0, 1, NOT_REQUESTED];
        let sealed = self.sealing.seal(ContentType::Handshake, &message, out)?;
        self.take_next_key()?;
        self.key_update_pending = false;
        Ok(sealed)
    }

    fn take_next_key(&mut self) -> Result<(), StreamError> {
        self.sealing = Keys::new(self.kernel.next_sealing()?)?;
        Ok(())
    }

    /// Seals an alert after the unsent records.
    fn alert(&mut self, description: AlertDescription) {
        let level = match description {
            AlertDescription::CloseNotify => 1,
            _ => 2,
        };
        let mut record = [0; OVERHEAD + 2];
        let content = [level, description.into()];
        if let Ok(length) = self.sealing.seal(ContentType::Alert, &content, &mut record) {
            self.unsent.extend_from_slice(&record[..length]);
        }
    }

    /// Opens the complete records at the start of `bytes`, as far as `buf` has room. Returns their
    /// length.
    fn open(&mut self, bytes: &[u8], buf: &mut ReadBuf<'_>) -> Result<usize, StreamError> {
        let mut opened = 0;
        while buf.remaining() > 0 && self.content.is_empty() && !self.received_close_notify {
            let Some(length) = record::length(&bytes[opened..])? else {
                break;
            };
            let record = &bytes[opened..opened + length];
            opened += length;
            let inner = inner_length(length);
            if inner <= buf.remaining() {
                let out = buf.initialize_unfilled_to(inner);
                let (kind, length) = self.opening.open(record, out)?;
                if self.is_data(kind, &out[..length])? {
                    buf.advance(length);
                }
            } else {
                let mut out = BytesMut::zeroed(inner);
                let (kind, length) = self.opening.open(record, &mut out)?;
                if self.is_data(kind, &out[..length])? {
                    out.truncate(length);
                    self.content = out;
                    self.take_content(buf);
                }
            }
        }
        Ok(opened)
    }

    fn take_content(&mut self, buf: &mut ReadBuf<'_>) {
        let length = self.content.len().min(buf.remaining());
        buf.put_slice(&self.content[..length]);
        self.content.advance(length);
        if self.content.is_empty() {
            self.content = BytesMut::new();
        }
    }

    /// Whether a record's content is application data. Processes it if it is not.
    fn is_data(&mut self, kind: ContentType, content: &[u8]) -> Result<bool, StreamError> {
        // RFC 8446 section 5.1.
        if kind != ContentType::Handshake && !self.message.is_empty() {
            return Err(StreamError::Unexpected("something within a message"));
        }
        // RFC 8446 section 5.4: only application data may be empty.
        if kind != ContentType::ApplicationData && content.is_empty() {
            return Err(StreamError::Unexpected("a record without a message"));
        }
        if kind == ContentType::ApplicationData && !content.is_empty() {
            self.without_data = 0;
            return Ok(true);
        }
        self.without_data += 1;
        if self.without_data > MAX_WITHOUT_DATA {
            return Err(StreamError::Unexpected("too many records without data"));
        }
        match kind {
            ContentType::ApplicationData => {}
            ContentType::Alert => self.handle_alert(content)?,
            ContentType::Handshake => self.handle_messages(content)?,
            kind => return Err(RecordError::Type(kind).into()),
        }
        Ok(false)
    }

    fn handle_alert(&mut self, content: &[u8]) -> Result<(), StreamError> {
        // The level is ignored (RFC 8446 section 6).
        let [_level, description] = content else {
            return Err(StreamError::Malformed);
        };
        match AlertDescription::from(*description) {
            AlertDescription::CloseNotify => self.received_close_notify = true,
            // A close_notify follows it.
            AlertDescription::UserCanceled => {}
            description => return Err(StreamError::Alert(description)),
        }
        Ok(())
    }

    /// Processes handshake messages, which may be fragmented across records.
    fn handle_messages(&mut self, content: &[u8]) -> Result<(), StreamError> {
        let mut message = std::mem::take(&mut self.message);
        message.extend_from_slice(content);
        let mut rest = message.as_slice();
        while let Some(([kind, length @ ..], body)) = rest.split_first_chunk::<4>() {
            let [high, middle, low] = *length;
            let length = u32::from_be_bytes([0, high, middle, low]) as usize;
            if length > MAX_MESSAGE {
                return Err(StreamError::TooLong(length));
            }
            let Some((body, after)) = body.split_at_checked(length) else {
                break;
            };
            rest = after;
            self.handle_message(HandshakeType::from(*kind), body, rest.is_empty())?;
        }
        self.message = rest.to_vec();
        Ok(())
    }

    fn handle_message(
        &mut self,
        kind: HandshakeType,
        body: &[u8],
        is_last: bool,
    ) -> Result<(), StreamError> {
        match (kind, &mut self.kernel) {
            (HandshakeType::NewSessionTicket, Kernel::Client(kernel)) => {
                if self.tickets < MAX_TICKETS {
                    self.tickets += 1;
                    kernel.handle_new_session_ticket(body)?;
                }
            }
            // Data after it in the same record was sealed with the old key (RFC 8446 section 5.1).
            (HandshakeType::KeyUpdate, _) if !is_last => {
                return Err(StreamError::Unexpected("something behind a key update"));
            }
            (HandshakeType::KeyUpdate, kernel) => {
                let is_requested = match body {
                    [0] => false,
                    [1] => true,
                    [other] => return Err(StreamError::KeyUpdate(*other)),
                    _ => return Err(StreamError::Malformed),
                };
                self.opening = Keys::new(kernel.next_opening()?)?;
                // One KeyUpdate answers all requests received until it is sent.
                self.key_update_pending |= is_requested;
            }
            _ => return Err(StreamError::Unexpected("a message of a handshake")),
        }
        Ok(())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream<S> {
    /// Opens the records that are buffered, and reads what is missing. `buf` has room.
    fn poll_open(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<Result<(), io::Error>> {
        let before = buf.filled().len();
        if !self.received.is_empty() {
            let mut received = std::mem::take(&mut self.received);
            let opened = self.open_or_fail(&received, buf);
            received.advance(opened);
            if !received.is_empty() {
                self.received = received;
            }
        }
        while buf.filled().len() == before && !self.received_close_notify {
            if let Some(error) = self.failure.take() {
                return Poll::Ready(Err(self.fail(error)));
            }
            let read = SCRATCH.with_borrow_mut(|scratch| {
                // The start of a record.
                let kept = self.received.len();
                scratch[..kept].copy_from_slice(&self.received);
                let mut read = ReadBuf::new(&mut scratch[kept..]);
                ready!(Pin::new(&mut self.io).poll_read(cx, &mut read))?;
                let end = kept + read.filled().len();
                let opened = self.open_or_fail(&scratch[..end], buf);
                self.received.clear();
                match &scratch[opened..end] {
                    [] => self.received = BytesMut::new(),
                    rest => self.received.extend_from_slice(rest),
                }
                Poll::Ready(Ok::<_, io::Error>(end - kept))
            });
            if ready!(read)? == 0 {
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the peer ended the connection without saying so",
                )));
            }
        }
        Poll::Ready(Ok(()))
    }

    /// As [`Self::open`]. Content before a failure is delivered first.
    fn open_or_fail(&mut self, bytes: &[u8], buf: &mut ReadBuf<'_>) -> usize {
        self.open(bytes, buf).unwrap_or_else(|error| {
            self.failure = Some(error);
            bytes.len()
        })
    }

    /// Sends the alert for an error of the peer, as far as the socket accepts it.
    fn fail(&mut self, error: StreamError) -> io::Error {
        self.is_broken = true;
        let alert = error.alert().filter(|_| !self.sent_close_notify);
        if let Some(alert) = alert {
            let no_write_pending = self.unsent.is_empty();
            self.alert(alert);
            // A pending write has registered its waker, which must not be lost; that write sends
            // the alert too.
            if no_write_pending {
                let _ = self.poll_send(&mut Context::from_waker(Waker::noop()));
            }
        }
        io::Error::new(io::ErrorKind::InvalidData, error)
    }

    /// Sends the unsent records.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            let sent = ready!(Pin::new(&mut self.io).poll_write(cx, &self.unsent))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unsent.advance(sent);
        }
        if self.unsent.capacity() > 0 {
            self.unsent = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

/// Leaves out application data.
impl<S: fmt::Debug> fmt::Debug for Stream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("io", &self.io)
            .field("received", &self.received.len())
            .field("content", &self.content.len())
            .field("unsent", &self.unsent.len())
            .field("sent_close_notify", &self.sent_close_notify)
            .field("received_close_notify", &self.received_close_notify)
            .field("is_broken", &self.is_broken)
            .finish_non_exhaustive()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if !this.content.is_empty() {
            this.take_content(buf);
            return Poll::Ready(Ok(()));
        }
        if this.is_broken {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        this.poll_open(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.is_broken || this.sent_close_notify {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        ready!(this.poll_send(cx))?;
        SCRATCH.with_borrow_mut(|sealed| {
            let (taken, length) = match this.seal(pieces, sealed) {
                Ok(done) => done,
                Err(error) => {
                    this.is_broken = true;
                    return Poll::Ready(Err(io::Error::other(error)));
                }
            };
            let mut rest = &sealed[..length];
            let sent = loop {
                if rest.is_empty() {
                    break Ok(());
                }
                match Pin::new(&mut this.io).poll_write(cx, rest) {
                    Poll::Ready(Ok(0)) => break Err(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(Ok(sent)) => rest = &rest[sent..],
                    Poll::Ready(Err(error)) => break Err(error),
                    Poll::Pending => break Ok(()),
                }
            };
            // These bytes must be sent before anything else.
            this.unsent.extend_from_slice(rest);
            Poll::Ready(sent.map(|()| taken))
        })
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !std::mem::replace(&mut this.sent_close_notify, true) && !this.is_broken {
            this.alert(AlertDescription::CloseNotify);
        }
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

impl Kernel {
    fn next_sealing(&mut self) -> Result<Secrets, rustls::Error> {
        match self {
            Self::Client(kernel) => kernel.update_tx_secret(),
            Self::Server(kernel) => kernel.update_tx_secret(),
        }
    }

    fn next_opening(&mut self) -> Result<Secrets, rustls::Error> {
        match self {
            Self::Client(kernel) => kernel.update_rx_secret(),
            Self::Server(kernel) => kernel.update_rx_secret(),
        }
    }
}

type Secrets = (u64, ConnectionTrafficSecrets);

impl StreamError {
    /// The alert for the peer, if the error is the peer's.
    fn alert(&self) -> Option<AlertDescription> {
        match self {
            Self::Record(error) => Some(error.alert()),
            Self::Alert(_) => None,
            Self::Unexpected(_) => Some(AlertDescription::UnexpectedMessage),
            Self::TooLong(_) | Self::Malformed | Self::Tls(rustls::Error::InvalidMessage(_)) => {
                Some(AlertDescription::DecodeError)
            }
            Self::KeyUpdate(_) => Some(AlertDescription::IllegalParameter),
            Self::Tls(_) | Self::Cipher(_) => Some(AlertDescription::InternalError),
        }
    }
}

/// Access to internals for tests.
#[cfg(test)]
impl<S> Stream<S> {
    pub(super) fn io(&mut self) -> &mut S {
        &mut self.io
    }

    pub(super) fn sealing(&mut self) -> &mut Keys {
        &mut self.sealing
    }

    pub(super) fn opening(&mut self) -> &mut Keys {
        &mut self.opening
    }

    pub(super) fn update_key(&mut self) -> Result<(), StreamError> {
        self.take_next_key()
    }

    /// Size of the allocated buffers, in bytes.
    pub(super) fn held(&self) -> usize {
        let buffers = [&self.received, &self.content, &self.unsent];
        buffers.map(BytesMut::capacity).iter().sum::<usize>() + self.message.capacity()
    }
}

thread_local! {
    /// Space for records in either direction, zeroed once for each thread.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; ROOM].into_boxed_slice());
}
