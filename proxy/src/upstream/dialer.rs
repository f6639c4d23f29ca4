//! Opening a connection to an endpoint: TCP, then TLS with the endpoint's identity pinned.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::client_address::SourceAddress;
use super::mux;
use crate::balance::{Endpoint, Peer};
use crate::config::Limits;
use crate::identity::{Alpn, Identity, is_identity_mismatch};
use crate::memory::Budget;
use crate::observe::metrics::Metrics;
use crate::observe::reason::Reason;
use crate::socket::{self, Direction, dial, dial_app};
use crate::tls;

/// How long the app in this pod may take to accept a connection, if the connect timeout is shorter.
/// It runs on this kernel, so it exists: it accepts late because it is paused or busy, and no other
/// endpoint could be tried instead. Linux itself would retry for two minutes.
const APP_PATIENCE: Duration = Duration::from_secs(60);

/// Why connecting failed. Nothing of any request has been sent.
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
    /// A stream of a shared connection between sidecars.
    Multiplexed(mux::Stream),
}

/// What is needed to open connections on one worker. Held by the pools and by connection attempts.
pub struct Dialer {
    pub limits: Limits,
    pub identity: Identity,
    pub metrics: Metrics,
    pub memory: Budget,
    /// Set on every socket, if rules recognize the proxy's traffic by a mark.
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

    /// Connects to `endpoint` within its [`Self::patience`]. `alpn` names the protocol that the
    /// connection will carry; it is negotiated only with mesh peers, and `source` is used only with
    /// the app.
    pub async fn connect(
        &self,
        endpoint: &Endpoint,
        source: SourceAddress,
        alpn: Alpn,
    ) -> Result<Stream, ConnectError> {
        // Boxed: otherwise the future of each connection would reserve space for a handshake for as
        // long as the connection lives.
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
        source: SourceAddress,
        alpn: Alpn,
    ) -> Result<Stream, ConnectError> {
        let dialled = match endpoint.peer {
            Peer::App => {
                self.metrics.app_connect(source.shows());
                dial_app(
                    endpoint.address,
                    source.address,
                    source.proxy_header,
                    self.mark,
                )
                .await
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
    /// The socket, if the stream has one of its own.
    pub fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(tcp) => Some(tcp),
            Self::Tls(tls) => Some(tls.get_ref()),
            Self::Multiplexed(_) => None,
        }
    }

    /// Once the stream is dropped, the other end sees a reset instead of an orderly end.
    pub fn reset(&self) {
        // A multiplexed stream that is dropped before its end is always reset.
        if let Some(tcp) = self.tcp() {
            socket::reset(tcp);
        }
    }

    /// Bounds how long sent data may stay unacknowledged: see [`socket::await_acknowledgements`].
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
