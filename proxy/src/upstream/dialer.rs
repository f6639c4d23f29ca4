//! Opening a connection to an endpoint: TCP, then TLS with the endpoint's identity pinned.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::client_address::Source;
use super::mux;
use crate::balance::{Endpoint, Peer};
use crate::config::Limits;
use crate::identity::{Alpn, Identity, is_identity_mismatch};
use crate::memory::Budget;
use crate::observe::metrics::Metrics;
use crate::observe::reason::Reason;
use crate::socket::{self, Direction, dial, dial_app};
use crate::tls;

/// How long the app in this pod may take to accept a connection, if the connect time-out is no
/// longer. Its kernel is this one, so it is there: it does not accept because it is paused or busy,
/// and no other endpoint could be tried instead. Linux itself would ask for two minutes.
const APP_PATIENCE: Duration = Duration::from_secs(60);

/// Why no connection came about. Nothing of any request has been sent.
#[derive(Debug, thiserror::Error)]
#[error("{reason}: {source}")]
pub struct ConnectError {
    pub reason: Reason,
    pub source: io::Error,
}

/// A connection to an endpoint.
#[derive(Debug)]
pub enum Stream {
    Plain(TcpStream),
    Tls(Box<tls::Stream<TcpStream>>),
    /// One of several on a connection between sidecars.
    Multiplexed(mux::Stream),
}

/// What opening connections takes, of one worker. Pools and those that look for an endpoint hold
/// it.
pub struct Dialer {
    pub limits: Limits,
    pub identity: Identity,
    pub metrics: Metrics,
    pub memory: Budget,
    /// On every socket, where rules tell the proxy's traffic by a mark.
    pub mark: Option<u32>,
}

impl Dialer {
    /// How long a connection to `endpoint` may take to open.
    pub fn patience(&self, endpoint: &Endpoint) -> Duration {
        let patience = self.limits.connect_timeout;
        match endpoint.peer {
            Peer::App => patience.max(APP_PATIENCE),
            Peer::Mesh(_) | Peer::Plain => patience,
        }
    }

    /// Connects to `endpoint` within its [`Self::patience`]. `alpn` says what the connection will
    /// carry; it is only spoken about with mesh peers, `source` only with the app.
    pub async fn connect(
        &self,
        endpoint: &Endpoint,
        source: Source,
        alpn: Alpn,
    ) -> Result<Stream, ConnectError> {
        // Boxed: handshakes need room that whoever waits for them would hold for as long as its
        // connection lives.
        let connecting = Box::pin(self.open(endpoint, source, alpn));
        let connected = timeout(self.patience(endpoint), connecting)
            .await
            .unwrap_or_else(|_| {
                Err(ConnectError {
                    reason: Reason::ConnectTimeout,
                    source: io::ErrorKind::TimedOut.into(),
                })
            });
        let reason = connected.as_ref().err().map(|error| error.reason);
        self.metrics.upstream_connect(reason);
        connected
    }

    async fn open(
        &self,
        endpoint: &Endpoint,
        source: Source,
        alpn: Alpn,
    ) -> Result<Stream, ConnectError> {
        let dialled = match endpoint.peer {
            Peer::App => {
                self.metrics.app_connect(source.shows());
                dial_app(endpoint.address, source.address, source.told, self.mark).await
            }
            Peer::Plain | Peer::Mesh(_) => dial(endpoint.address, self.mark).await,
        };
        let tcp = dialled.map_err(|source| ConnectError {
            reason: Reason::ConnectFailed,
            source,
        })?;
        let Peer::Mesh(expected) = &endpoint.peer else {
            return Ok(Stream::Plain(tcp));
        };
        let config = self
            .identity
            .client_config(expected, alpn)
            .ok_or_else(|| ConnectError {
                reason: Reason::NoCertificate,
                source: io::ErrorKind::NotFound.into(),
            })?;
        let name = ServerName::IpAddress(endpoint.address.ip().into());
        let failed = |source| ConnectError {
            reason: match is_identity_mismatch(&source) {
                true => Reason::IdentityMismatch,
                false => Reason::TlsFailed,
            },
            source,
        };
        let tls = tls::connect(config, name, tcp).await.map_err(failed);
        let reason = tls.as_ref().err().map(|error| error.reason);
        self.metrics.handshake(Direction::Outbound, reason);
        Ok(Stream::Tls(Box::new(tls?)))
    }
}

impl Stream {
    /// The socket, where this has one of its own.
    pub fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(tcp) => Some(tcp),
            Self::Tls(tls) => Some(tls.get_ref()),
            Self::Multiplexed(_) => None,
        }
    }

    /// The other end sees a break in place of an orderly end, once the stream is dropped.
    pub fn reset(&self) {
        // One that is dropped before its end is broken off in any case.
        if let Some(tcp) = self.tcp() {
            socket::reset(tcp);
        }
    }

    /// Bounds how long what was sent may stay unacknowledged: see
    /// [`socket::await_acknowledgements`].
    pub fn await_acknowledgements(&self, bound: Option<Duration>) {
        if let Some(tcp) = self.tcp() {
            socket::await_acknowledgements(tcp, bound);
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Self::Tls(io) => Pin::new(io).poll_read(cx, buf),
            Self::Multiplexed(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_write(cx, buf),
            Self::Tls(io) => Pin::new(io).poll_write(cx, buf),
            Self::Multiplexed(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Self::Tls(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Self::Multiplexed(io) => Pin::new(io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(io) => io.is_write_vectored(),
            Self::Tls(io) => io.is_write_vectored(),
            Self::Multiplexed(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_flush(cx),
            Self::Tls(io) => Pin::new(io).poll_flush(cx),
            Self::Multiplexed(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Self::Tls(io) => Pin::new(io).poll_shutdown(cx),
            Self::Multiplexed(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}
