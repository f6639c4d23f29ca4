//! The handshake, driven by hand, so that the records after it can be processed one by one.
//!
//! rustls gets one record at a time and only what the handshake needs. Application data that a peer
//! sends with its last flight stays for the stream.

use std::io;
use std::ops::Deref;
use std::sync::Arc;

use bytes::{Buf, BytesMut};
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, UnbufferedConnectionCommon, UnbufferedStatus,
};
use rustls::{ClientConfig, ContentType, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::record::{HEADER, MAX_RECORD};
use super::stream::{Kernel, Stream};

/// How much of a peer's handshake is buffered, in bytes. A message may span several records.
const MAX_HANDSHAKE: usize = 64 * 1024;
/// How many records a peer's handshake may have: in practice, one or two for each of its messages.
const MAX_RECORDS: usize = 64;
/// Size of one read, in bytes: most flights fit.
const READ_SIZE: usize = 4 * 1024;

/// An accepted connection of a client.
#[derive(Debug)]
pub struct Accepted<S> {
    pub stream: Stream<S>,
    pub alpn: Option<Vec<u8>>,
    /// The client's end-entity certificate comes first. Empty: the client has presented none.
    pub certificates: Vec<CertificateDer<'static>>,
}

/// Connects as the client. Negotiates the one protocol that `config` offers, or fails.
///
/// # Errors
///
/// An error of rustls is an [`io::Error`] with a [`rustls::Error`] in it. `config` must enable the
/// extraction of secrets.
pub async fn connect<S>(
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    mut io: S,
) -> io::Result<Stream<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let offered = config.alpn_protocols.first().cloned();
    let mut connection = UnbufferedClientConnection::new(config, name).map_err(broken)?;
    let mut received = BytesMut::new();
    complete_handshake(&mut connection, &mut io, &mut received).await?;
    if connection.alpn_protocol() != offered.as_deref() {
        return Err(io::Error::other(
            "the peer did not agree to the protocol that was offered",
        ));
    }
    let (secrets, kernel) = connection
        .dangerous_into_kernel_connection()
        .map_err(broken)?;
    Stream::new(io, secrets, Kernel::Client(kernel), received)
}

/// Accepts as the server. `received`: bytes of `io` that have already been read.
///
/// # Errors
///
/// As [`connect`].
pub async fn accept<S>(
    config: Arc<ServerConfig>,
    mut received: BytesMut,
    mut io: S,
) -> io::Result<Accepted<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut connection = UnbufferedServerConnection::new(config).map_err(broken)?;
    complete_handshake(&mut connection, &mut io, &mut received).await?;
    let alpn = connection.alpn_protocol().map(<[u8]>::to_vec);
    let certificates = connection.peer_certificates().unwrap_or_default().to_vec();
    let (secrets, kernel) = connection
        .dangerous_into_kernel_connection()
        .map_err(broken)?;
    Ok(Accepted {
        stream: Stream::new(io, secrets, Kernel::Server(kernel), received)?,
        alpn,
        certificates,
    })
}

/// What rustls' client and server connections have in common; rustls has no trait for it.
trait Handshake: Deref<Target = UnbufferedConnectionCommon<Self::Data>> {
    type Data;

    fn process<'c, 'i>(&'c mut self, shown: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Handshake for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(&'c mut self, shown: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(shown)
    }
}

impl Handshake for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(&'c mut self, shown: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(shown)
    }
}

/// Completes the handshake. Bytes after it stay in `received`.
async fn complete_handshake<S>(
    connection: &mut impl Handshake,
    io: &mut S,
    received: &mut BytesMut,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut unsent = Vec::new();
    // How many bytes of `received` rustls may process: complete records.
    let mut shown = 0;
    let mut records = 0;
    loop {
        let status = connection.process(&mut received[..shown]);
        let discard = status.discard;
        let looked = match status.state {
            Ok(ConnectionState::EncodeTlsData(data)) => {
                encode(data, &mut unsent)?;
                Ok(false)
            }
            Ok(ConnectionState::TransmitTlsData(data)) => {
                io.write_all(&unsent).await?;
                io.flush().await?;
                unsent.clear();
                data.done();
                Ok(false)
            }
            Ok(ConnectionState::BlockedHandshake) => Ok(true),
            Ok(ConnectionState::WriteTraffic(_)) => {
                received.advance(discard);
                return Ok(());
            }
            // Application data cannot come before the end of the handshake, and is not read after
            // it.
            Ok(_) => return Err(io::ErrorKind::InvalidData.into()),
            Err(error) => Err(error),
        };
        received.advance(discard);
        shown -= discard;
        let is_blocked = match looked {
            Ok(is_blocked) => is_blocked,
            Err(error) => {
                send_alert(connection, io, unsent, &mut received[..shown]).await;
                return Err(broken(error));
            }
        };
        if is_blocked {
            // For each record rustls may process all records before it again.
            records += 1;
            if records > MAX_RECORDS {
                return Err(not_a_handshake());
            }
            shown = next_record(io, received, shown).await?;
        }
    }
}

/// Sends the alert for an error of the peer, if rustls has one.
async fn send_alert<S>(
    connection: &mut impl Handshake,
    io: &mut S,
    mut unsent: Vec<u8>,
    mut shown: &mut [u8],
) where
    S: AsyncWrite + Unpin,
{
    // Only while there is something to send: rustls would process the invalid record again. And
    // only with all of `shown`: it remembers offsets of message fragments in it.
    while connection.wants_write() {
        let status = connection.process(shown);
        let discard = status.discard;
        let Ok(ConnectionState::EncodeTlsData(data)) = status.state else {
            break;
        };
        if encode(data, &mut unsent).is_err() {
            return;
        }
        shown = &mut shown[discard..];
    }
    if io.write_all(&unsent).await.is_ok() {
        let _ = io.flush().await;
    }
}

/// Reads until `received` has a complete record after its first `shown` bytes. Returns the end of
/// that record.
async fn next_record<S>(io: &mut S, received: &mut BytesMut, shown: usize) -> io::Result<usize>
where
    S: AsyncRead + Unpin,
{
    loop {
        if let Some([kind, _, _, high, low]) = received[shown..].first_chunk::<HEADER>() {
            let length = HEADER + usize::from(u16::from_be_bytes([*high, *low]));
            let is_unknown = matches!((*kind).into(), ContentType::Unknown(_));
            let is_empty = length == HEADER;
            if is_unknown || is_empty || length > MAX_RECORD || shown + length > MAX_HANDSHAKE {
                return Err(not_a_handshake());
            }
            if received.len() >= shown + length {
                return Ok(shown + length);
            }
        }
        received.reserve(READ_SIZE);
        if io.read_buf(received).await? == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the peer ended the connection in the handshake",
            ));
        }
    }
}

fn encode<D>(mut data: EncodeTlsData<'_, D>, out: &mut Vec<u8>) -> io::Result<()> {
    let start = out.len();
    // Encoding into an empty buffer returns the size needed.
    let needed = match data.encode(&mut []) {
        Ok(_) => return Ok(()),
        Err(EncodeError::InsufficientSize(error)) => error.required_size,
        Err(error) => return Err(io::Error::other(error)),
    };
    out.resize(start + needed, 0);
    data.encode(&mut out[start..]).map_err(io::Error::other)?;
    Ok(())
}

fn not_a_handshake() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "what the peer says is no handshake, or too long for one",
    )
}

fn broken(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
