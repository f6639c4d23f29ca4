//! Accepting connections: TCP, then TLS, both bounded in number and time.
//!
//! In: a listener. Out: connections with the identity that the client has proven, if any.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;
use tracing::{debug, warn};

use super::stream::Peer;
use super::tls;

/// Connections at once, one for each proxy and a few more. The rest wait to be accepted.
const MAX_CONNECTIONS: usize = 25_000;
/// Connections at once of clients that have not proven who they are, those in the handshake included. Each lives for
/// the time of a certificate request, so that this is enough for thousands of proxies that start in the same minute.
const MAX_UNPROVEN: usize = 2_000;
/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client that has not proven who it is may stay: one certificate request and its answer.
const UNPROVEN_LIFETIME: Duration = Duration::from_secs(30);
/// How long to wait after a connection could not be accepted (no file descriptors left, mostly).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections after their handshake that wait for the HTTP/2 server.
const MAX_READY: usize = 64;

/// What is known about a connection. It goes with every request.
#[derive(Clone, Debug)]
pub struct Client {
    pub address: SocketAddr,
    /// Whom the client has proven to be.
    pub peer: Option<Peer>,
}

/// A connection after its handshake.
pub struct Connection {
    stream: TlsStream<TcpStream>,
    client: Client,
    /// When it has to end, and its place among the unproven.
    unproven: Option<(Pin<Box<Sleep>>, OwnedSemaphorePermit)>,
    _place: OwnedSemaphorePermit,
}

/// Accepts for as long as the receiver lives.
pub fn start(
    listener: TcpListener,
    config: Arc<ArcSwap<ServerConfig>>,
    trust_domain: &str,
) -> mpsc::Receiver<io::Result<Connection>> {
    let (sender, receiver) = mpsc::channel(MAX_READY);
    let acceptor = Acceptor {
        config,
        trust_domain: trust_domain.into(),
        sender,
    };
    tokio::spawn(acceptor.run(listener));
    receiver
}

#[derive(Clone)]
struct Acceptor {
    config: Arc<ArcSwap<ServerConfig>>,
    trust_domain: Arc<str>,
    sender: mpsc::Sender<io::Result<Connection>>,
}

impl Acceptor {
    async fn run(self, listener: TcpListener) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let unproven = Arc::new(Semaphore::new(MAX_UNPROVEN));
        loop {
            let accepted = async {
                let place = places.clone().acquire_owned().await.ok()?;
                let unproven = unproven.clone().acquire_owned().await.ok()?;
                Some((place, unproven, listener.accept().await))
            };
            let accepted = tokio::select! {
                accepted = accepted => accepted,
                () = self.sender.closed() => return,
            };
            match accepted {
                None => return,
                Some((place, unproven, Ok((stream, address)))) => {
                    tokio::spawn(self.clone().handshake(stream, address, place, unproven));
                }
                Some((_, _, Err(error))) => {
                    warn!(%error, "accepting a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn handshake(
        self,
        stream: TcpStream,
        address: SocketAddr,
        place: OwnedSemaphorePermit,
        unproven: OwnedSemaphorePermit,
    ) {
        // Pushes are single small segments that somebody waits for.
        if let Err(error) = stream.set_nodelay(true) {
            return debug!(%address, %error, "a new connection");
        }
        let tls = TlsAcceptor::from(self.config.load_full());
        let stream = match timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return debug!(%address, %error, "TLS handshake"),
            Err(_) => return debug!(%address, "no TLS handshake in time"),
        };
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return debug!(%address, "the client does not speak HTTP/2 (ALPN)");
        }
        let peer = tls::peer(stream.get_ref().1.peer_certificates(), &self.trust_domain);
        let unproven = match peer {
            Some(_) => None,
            None => Some((Box::pin(sleep(UNPROVEN_LIFETIME)), unproven)),
        };
        let connection = Connection {
            stream,
            client: Client { address, peer },
            unproven,
            _place: place,
        };
        // No receiver: the controller ends.
        let _ = self.sender.send(Ok(connection)).await;
    }
}

impl Connected for Connection {
    type ConnectInfo = Client;

    fn connect_info(&self) -> Client {
        self.client.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some((deadline, _)) = &mut self.unproven
            && deadline.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
