//! The handshake, driven by hand: so that what comes after it can be taken over record by record.
//!
//! rustls gets one record at a time and no more than the handshake needs. What a peer sends in the same breath stays for the stream.

use std::io;
use std::sync::Arc;

use bytes::{Buf, BytesMut};
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{ClientConfig, ContentType, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::record::{HEADER, MAX_RECORD};
use super::stream::{Kernel, Stream};

/// The most of a peer's handshake that is held, in bytes. A message may take several records.
const MAX_HANDSHAKE: usize = 64 * 1024;
/// How much is read at once, in bytes: most flights fit.
const READ_SIZE: usize = 4 * 1024;

/// A client's connection.
#[derive(Debug)]
pub struct Accepted<S> {
    pub stream: Stream<S>,
    pub alpn: Option<Vec<u8>>,
    /// The client's own comes first. Empty: it has shown none.
    pub certificates: Vec<CertificateDer<'static>>,
}

/// Connects as the client. Agrees to the one protocol that `config` offers, or fails.
///
/// # Errors
///
/// What rustls finds wrong is an [`io::Error`] with a [`rustls::Error`] in it. `config` must allow the extraction of secrets.
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
    shake_hands(&mut connection, process_client, &mut io, &mut received).await?;
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

/// Accepts as the server. `received`: what has been read of `io` already.
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
    shake_hands(&mut connection, process_server, &mut io, &mut received).await?;
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

/// Brings the handshake to its end. What follows it stays in `received`.
async fn shake_hands<C, D, S>(
    connection: &mut C,
    process: for<'c, 'i> fn(&'c mut C, &'i mut [u8]) -> UnbufferedStatus<'c, 'i, D>,
    io: &mut S,
    received: &mut BytesMut,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut unsent = Vec::new();
    // How much of `received` rustls may see: whole records.
    let mut shown = 0;
    loop {
        let mut is_blocked = false;
        let mut failure = None;
        let status = process(connection, &mut received[..shown]);
        let discard = status.discard;
        match status.state {
            Ok(ConnectionState::EncodeTlsData(data)) => encode(data, &mut unsent)?,
            Ok(ConnectionState::TransmitTlsData(data)) => {
                io.write_all(&unsent).await?;
                io.flush().await?;
                unsent.clear();
                data.done();
            }
            Ok(ConnectionState::BlockedHandshake) => is_blocked = true,
            Ok(ConnectionState::WriteTraffic(_)) => {
                received.advance(discard);
                return Ok(());
            }
            // No data can come before the end of the handshake, and none is taken after it.
            Ok(_) => return Err(io::ErrorKind::InvalidData.into()),
            Err(error) => failure = Some(error),
        }
        received.advance(discard);
        shown -= discard;
        if let Some(error) = failure {
            say_goodbye(connection, process, io, &mut received[..shown]).await;
            return Err(broken(error));
        }
        if is_blocked {
            shown = next_record(io, received, shown).await?;
        }
    }
}

/// Tells the peer by an alert what is wrong with it, if it wants to know.
async fn say_goodbye<C, D, S>(
    connection: &mut C,
    process: for<'c, 'i> fn(&'c mut C, &'i mut [u8]) -> UnbufferedStatus<'c, 'i, D>,
    io: &mut S,
    mut shown: &mut [u8],
) where
    S: AsyncWrite + Unpin,
{
    let mut alert = Vec::new();
    loop {
        let status = process(connection, shown);
        let discard = status.discard;
        let Ok(ConnectionState::EncodeTlsData(data)) = status.state else {
            break;
        };
        if encode(data, &mut alert).is_err() {
            return;
        }
        shown = &mut shown[discard..];
    }
    if io.write_all(&alert).await.is_ok() {
        let _ = io.flush().await;
    }
}

/// Reads until `received` has a whole record after its first `shown` bytes. Returns where that ends.
async fn next_record<S>(io: &mut S, received: &mut BytesMut, shown: usize) -> io::Result<usize>
where
    S: AsyncRead + Unpin,
{
    loop {
        if let Some([kind, _, _, high, low]) = received[shown..].first_chunk::<HEADER>() {
            let length = HEADER + usize::from(u16::from_be_bytes([*high, *low]));
            let is_unknown = matches!((*kind).into(), ContentType::Unknown(_));
            if is_unknown || length > MAX_RECORD || shown + length > MAX_HANDSHAKE {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "what the peer says is no handshake, or too long for one",
                ));
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
    // Asked without room, it says how much it needs.
    let needed = match data.encode(&mut []) {
        Ok(_) => return Ok(()),
        Err(EncodeError::InsufficientSize(error)) => error.required_size,
        Err(error) => return Err(io::Error::other(error)),
    };
    out.resize(start + needed, 0);
    data.encode(&mut out[start..]).map_err(io::Error::other)?;
    Ok(())
}

fn process_client<'c, 'i>(
    connection: &'c mut UnbufferedClientConnection,
    received: &'i mut [u8],
) -> UnbufferedStatus<'c, 'i, ClientConnectionData> {
    connection.process_tls_records(received)
}

fn process_server<'c, 'i>(
    connection: &'c mut UnbufferedServerConnection,
    received: &'i mut [u8],
) -> UnbufferedStatus<'c, 'i, ServerConnectionData> {
    connection.process_tls_records(received)
}

fn broken(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
