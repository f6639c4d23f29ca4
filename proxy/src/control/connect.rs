//! One connection to the controller, and the calls on it.
//!
//! In: the controller's name and the identity it must prove. Out: a gRPC channel that ends with its
//! connection. The name is resolved at each attempt, and all of its addresses are tried.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use naru_contract::{FromProxy, MAX_MESSAGE_BYTES, SYNC_PATH, ToProxy};
use rand::seq::SliceRandom;
use rustls::CertificateError;
use rustls::pki_types::ServerName;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Streaming};
use tonic_prost::ProstCodec;
use tower::service_fn;

use super::refusal::{Refused, Watched};
use crate::config::Config;
use crate::identity::{Identity, TrustError, read_anchors};

/// How long resolving the controller's name may take.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long connecting to one address may take, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the controller may take to answer a call.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval between HTTP/2 pings that check whether the connection is alive.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// How long the answer to a ping may take.
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// HTTP/2 window of the stream and the connection, in bytes: a table arrives in one flight.
const WINDOW: u32 = 1024 * 1024;

/// Why there is no connection to the controller.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("resolving {0}: {1}")]
    Resolve(String, io::Error),
    #[error("{0} has no address")]
    NoAddress(String),
    #[error("connecting to {}", each(.0))]
    Addresses(Vec<(SocketAddr, io::Error)>),
    #[error("trust anchors: {0}")]
    Trust(#[from] TrustError),
    #[error(transparent)]
    Http(#[from] tonic::transport::Error),
}

fn each(errors: &[(SocketAddr, io::Error)]) -> String {
    let each = errors.iter().map(|(address, error)| {
        let hint = clock_hint(error).unwrap_or("");
        format!("{address}: {error}{hint}")
    });
    each.collect::<Vec<_>>().join("; ")
}

/// An expired or not yet valid certificate is more often a wrong clock.
fn clock_hint(error: &io::Error) -> Option<&'static str> {
    match error.get_ref()?.downcast_ref()? {
        rustls::Error::InvalidCertificate(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        ) => Some(" (is the clock of this machine right?)"),
        _ => None,
    }
}

/// The controller's address and how to connect to it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Controller {
    pub config: Arc<Config>,
    pub identity: Identity,
}

impl Controller {
    /// Opens the stream: sends `messages`, and returns the messages received.
    pub async fn sync(
        &self,
        messages: mpsc::Receiver<FromProxy>,
    ) -> Result<Streaming<ToProxy>, SyncError> {
        let refused = Refused::default();
        let opened = self.open(messages, &refused).await;
        opened.map_err(|error| match refused.is_set() {
            true => SyncError::CertificateRefused,
            false => error,
        })
    }

    async fn open(
        &self,
        messages: mpsc::Receiver<FromProxy>,
        refused: &Refused,
    ) -> Result<Streaming<ToProxy>, SyncError> {
        let channel = self.connect(true, refused).await?;
        let mut grpc = Grpc::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let call = async {
            ready(&mut grpc).await?;
            let request = Request::new(ReceiverStream::new(messages));
            let codec = ProstCodec::<FromProxy, ToProxy>::default();
            grpc.streaming(request, path(SYNC_PATH), codec).await
        };
        match tokio::time::timeout(CALL_TIMEOUT, call).await {
            Ok(response) => Ok(response.map_err(SyncError::Refused)?.into_inner()),
            Err(_) => Err(SyncError::NoAnswer),
        }
    }

    /// A new connection to the first address that accepts one and proves the controller's identity.
    pub(super) async fn connect(
        &self,
        with_certificate: bool,
        refused: &Refused,
    ) -> Result<Channel, ConnectError> {
        // Read again each time: a rotated file readmits a proxy that missed the rotation.
        let bootstrap = read_anchors(&self.config.trust_anchors).unwrap_or_else(|error| {
            let file = self.config.trust_anchors.display();
            tracing::warn!(
                %error,
                %file,
                "cannot read the file of trust anchors; keeping those in force"
            );
            Vec::new()
        });
        let tls = self.identity.controller_config(
            &self.config.controller_identity,
            &bootstrap,
            with_certificate,
        )?;
        let tls = TlsConnector::from(Arc::new(tls));
        let name = &self.config.controller;
        let mut addresses = resolve(name).await?;
        // Distributes the proxies over the replicas behind one name.
        addresses.shuffle(&mut rand::rng());
        let mut errors = Vec::new();
        for address in addresses {
            let attempt = self.connect_to(address, &tls);
            match tokio::time::timeout(CONNECT_TIMEOUT, attempt).await {
                Ok(Ok(stream)) => return channel(name, refused.watch(stream)).await,
                Ok(Err(error)) => errors.push((address, error)),
                Err(_) => errors.push((address, io::ErrorKind::TimedOut.into())),
            }
        }
        match errors.is_empty() {
            true => Err(ConnectError::NoAddress(name.clone())),
            false => Err(ConnectError::Addresses(errors)),
        }
    }

    async fn connect_to(
        &self,
        address: SocketAddr,
        tls: &TlsConnector,
    ) -> io::Result<TlsStream<TcpStream>> {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        if let Some(mark) = self.config.socket_mark {
            socket2::SockRef::from(&socket).set_mark(mark)?;
        }
        let stream = socket.connect(address).await?;
        stream.set_nodelay(true)?;
        // The server name is irrelevant: the identity is pinned.
        tls.connect(ServerName::IpAddress(address.ip().into()), stream)
            .await
    }
}

/// Why a stream could not be opened, or ended.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the controller did not answer in time")]
    NoAnswer,
    #[error("the controller rejected this proxy's certificate; requesting another one")]
    CertificateRefused,
    #[error("{}", describe(.0))]
    Refused(tonic::Status),
    #[error("the controller ended the stream")]
    Ended,
    #[error("received nothing from the controller for {} s", .0.as_secs())]
    Silent(Duration),
    #[error("the controller sent a message of an unknown type")]
    UnknownMessage,
    #[error("the certificate has been renewed")]
    Renewed,
}

/// The message of a status, with its causes.
pub(super) fn describe(status: &tonic::Status) -> String {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

pub(super) async fn ready(grpc: &mut Grpc<Channel>) -> Result<(), tonic::Status> {
    grpc.ready()
        .await
        .map_err(|error| tonic::Status::from_error(Box::new(error)))
}

pub(super) fn path(path: &'static str) -> http::uri::PathAndQuery {
    http::uri::PathAndQuery::from_static(path)
}

async fn resolve(name: &str) -> Result<Vec<SocketAddr>, ConnectError> {
    let failed = |error| ConnectError::Resolve(name.to_owned(), error);
    match tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host(name)).await {
        Ok(addresses) => Ok(addresses.map_err(failed)?.collect()),
        Err(_) => Err(failed(io::ErrorKind::TimedOut.into())),
    }
}

/// gRPC on an open connection. Its calls end with the connection: the channel never reconnects by
/// itself.
async fn channel(name: &str, stream: Watched) -> Result<Channel, ConnectError> {
    let stream = Mutex::new(Some(TokioIo::new(stream)));
    let connector = service_fn(move |_: Uri| {
        let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
        std::future::ready(stream.ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionReset)))
    });
    let endpoint = Endpoint::from_shared(format!("https://{name}"))?
        .user_agent(concat!("naru-proxy/", env!("CARGO_PKG_VERSION")))?
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true);
    Ok(endpoint.connect_with_connector(connector).await?)
}
