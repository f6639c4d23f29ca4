//! Accepts connections: TCP, then TLS, both bounded in number, in time and by source address.
//!
//! In: a listener. Out: connections with the client's verified identity, if any.
//!
//! ```text
//! silent ─▶ waits for its turn, handshake ─┬─▶ proven
//!                                          └─▶ unproven ─▶ certificate request ─▶ unproven
//! ```
//!
//! A connection that is silent, or unproven without a request, may be closed for others: the oldest
//! of the address with the most connections.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use arc_swap::ArcSwap;
use naru_listen::descriptors::Descriptors;
use naru_listen::turns::Turns;
use naru_listen::{Bounds, Limit, Place, Places};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;
use tracing::debug;

use super::stream::Peer;
use super::tls;
use crate::metrics::Metrics;

/// Connections of clients with a verified identity: one per proxy, and some more.
const MAX_PROVEN: usize = 25_000;
/// Connections that are silent, in the handshake, or of clients without a verified identity: enough
/// for thousands of proxies that start in the same minute.
const MAX_WAITING: usize = 10_000;
/// The share of one address, as a fraction. A node's address may stand for all its pods.
const OF_SOURCE: (usize, usize) = (1, 2);
/// Timeout for the first byte.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(5);
/// Concurrent handshakes per core. Each needs a core for about a millisecond, and otherwise waits
/// for its client. If all ran at once, each would exceed its client's timeout, and all of the work
/// would be wasted.
const HANDSHAKES_PER_CORE: usize = 32;
/// How long a connection waits for its turn at the handshake: after that its proxy has timed out.
const TURN_TIMEOUT: Duration = Duration::from_secs(4);
/// How long a client may hold a turn while it delays the handshake.
const TURN: Duration = Duration::from_millis(500);
/// Timeout of a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Lifetime of a connection without a verified identity: one certificate request and its response.
const UNPROVEN_LIFETIME: Duration = Duration::from_secs(30);
/// Capacity of the queue of connections that have completed their handshake.
const MAX_READY: usize = 64;

/// Properties of a connection, attached to every request.
#[derive(Clone, Debug)]
pub struct Client {
    pub address: SocketAddr,
    /// The client's verified identity.
    pub peer: Option<Peer>,
    pub place: Arc<Place>,
    /// Held by the certificate request in progress.
    pub certifying: Arc<tokio::sync::Mutex<()>>,
}

/// A connection after its handshake.
pub struct AcceptedConnection {
    stream: TlsStream<TcpStream>,
    client: Client,
    /// The early end of a connection whose client is unproven.
    unproven: Option<Unproven>,
}

struct Unproven {
    deadline: Pin<Box<Sleep>>,
    evicted: Pin<Box<dyn Future<Output = ()> + Send>>,
}

/// Accepts until the receiver is dropped.
pub fn start(
    listener: TcpListener,
    config: Arc<ArcSwap<ServerConfig>>,
    trust_domain: &str,
    metrics: &Metrics,
) -> mpsc::Receiver<io::Result<AcceptedConnection>> {
    let (sender, receiver) = mpsc::channel(MAX_READY);
    let places = Places::new(bounds(Descriptors::raise()));
    metrics.watch_places("proxies", places.clone());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let handshakes = HANDSHAKES_PER_CORE * cores;
    let acceptor = Acceptor {
        config,
        trust_domain: trust_domain.into(),
        sender: sender.clone(),
        turns: Turns::new(handshakes, handshakes / 2),
    };
    let start = move |stream, address, place| {
        let handshake = acceptor.clone().handshake(stream, address, place);
        tokio::spawn(handshake);
    };
    tokio::spawn(async move {
        tokio::select! {
            () = naru_listen::accept(listener, places, start) => {}
            () = sender.closed() => {}
        }
    });
    receiver
}

/// Bounds that fit the limit on file descriptors.
fn bounds(descriptors: Descriptors) -> Bounds {
    let wanted = MAX_PROVEN + MAX_WAITING;
    let connections = descriptors.connections(wanted, 1, "proxies of the controller");
    let part = |of: usize| (connections * of / wanted).max(1);
    let (waiting, all) = (part(MAX_WAITING), part(MAX_PROVEN));
    let of_source = |of: usize| (of * OF_SOURCE.0 / OF_SOURCE.1).max(1);
    Bounds {
        waiting,
        waiting_of_source: of_source(waiting),
        taken: waiting.min(all),
        taken_of_source: of_source(waiting.min(all)),
        spare: 0,
        all,
        of_source: of_source(all),
    }
}

#[derive(Clone)]
struct Acceptor {
    config: Arc<ArcSwap<ServerConfig>>,
    trust_domain: Arc<str>,
    sender: mpsc::Sender<io::Result<AcceptedConnection>>,
    /// Turns for handshakes, by source address.
    turns: Turns<IpAddr>,
}

impl Acceptor {
    async fn handshake(self, stream: TcpStream, address: SocketAddr, place: Place) {
        let evicted = place.evicted();
        tokio::select! {
            () = self.shake_hands(stream, address, place) => {}
            () = evicted => debug!(%address, "given up for other connections"),
        }
    }

    async fn shake_hands(self, stream: TcpStream, address: SocketAddr, place: Place) {
        // Pushes are single small segments, and the proxy waits for each of them.
        if let Err(error) = stream.set_nodelay(true) {
            return debug!(%address, %error, "a new connection");
        }
        match timeout(FIRST_BYTE_TIMEOUT, stream.peek(&mut [0])).await {
            Ok(Ok(1..)) => {}
            Ok(_) => return,
            Err(_) => return debug!(%address, "not a byte in time"),
        }
        if let Err(limit) = place.take() {
            return debug!(%address, ?limit, "no place for another handshake");
        }
        let turn = self.turns.take(place.source(), MAX_WAITING);
        let Ok(Some(turn)) = timeout(TURN_TIMEOUT, turn).await else {
            place.refuse(Limit::Turn);
            return debug!(%address, "no turn at the handshake in time");
        };
        let tls = TlsAcceptor::from(self.config.load_full());
        let mut shaking = pin!(timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)));
        let shaken = match timeout(TURN, &mut shaking).await {
            Ok(shaken) => {
                drop(turn);
                shaken
            }
            Err(_) => {
                drop(turn);
                shaking.await
            }
        };
        let stream = match shaken {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return debug!(%address, %error, "TLS handshake"),
            Err(_) => return debug!(%address, "no TLS handshake in time"),
        };
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return debug!(%address, "the client does not speak HTTP/2 (ALPN)");
        }
        let peer = tls::peer(stream.get_ref().1.peer_certificates(), &self.trust_domain);
        let unproven = match peer {
            Some(_) => match place.prove() {
                Ok(()) => None,
                Err(limit) => return debug!(%address, ?limit, "no place for another proxy"),
            },
            None => {
                place.wait();
                Some(Unproven {
                    deadline: Box::pin(sleep(UNPROVEN_LIFETIME)),
                    evicted: Box::pin(place.evicted()),
                })
            }
        };
        let connection = AcceptedConnection {
            stream,
            client: Client {
                address,
                peer,
                place: Arc::new(place),
                certifying: Arc::default(),
            },
            unproven,
        };
        // Without a receiver the controller is shutting down.
        let _ = self.sender.send(Ok(connection)).await;
    }
}

impl Connected for AcceptedConnection {
    type ConnectInfo = Client;

    fn connect_info(&self) -> Client {
        self.client.clone()
    }
}

impl AsyncRead for AcceptedConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(unproven) = &mut self.unproven
            && (unproven.deadline.as_mut().poll(context).is_ready()
                || unproven.evicted.as_mut().poll(context).is_ready())
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for AcceptedConnection {
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
