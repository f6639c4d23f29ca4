//! Connections that are passed on byte for byte: protocols other than HTTP, and HTTP that has
//! switched to another protocol.
//!
//! Each direction ends separately, and an end is passed on as an end. A reset is passed on as a
//! reset, so that truncated data never looks complete. There is no idle timeout: TCP keep-alive
//! probes detect a silent peer that is gone.
//!
//! ```text
//!            plain: copy                           an endpoint without a sidecar
//! client ──▶
//!            framed ══ a pooled TLS connection ══▶ peer ──▶ framed ──▶ app
//! ```
//!
//! Between sidecars an app's connection is framed ([`frame`]), so that the next one can follow on
//! the same TLS connection.
//!
//! # Floors
//!
//! ```text
//! peer                connections from a peer, carried to the app
//! framed              connections of the app, carried in frames
//! copy frame
//! ```

pub mod copy;
pub mod frame;
pub mod framed;
mod peer;

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::balance::{self, AttemptOutcome, Backend, Endpoint, InFlight, Peer};
use crate::identity::Alpn;
use crate::observe::metrics::{TcpLabels, TcpMetrics};
use crate::observe::reason::Reason;
use crate::route::Logical;
use crate::route::opaque::OpaqueRoutes;
use crate::session::Session;
use crate::session::worker::Worker;
use crate::socket::{self, Direction};
use crate::upstream::client_address::SourceAddress;
use crate::upstream::{Caller, ConnectError, Stream, pool};
use crate::wire::buffered::Buffered;
use crate::wire::closing::Closing;
use crate::wire::detect::{self, Greeting};
pub use copy::{CopyError, copy};
use framed::Framed;
pub use peer::serve_peer;

#[cfg(test)]
mod tests;

/// How many endpoints may refuse a connection before the client is refused.
const MAX_ATTEMPTS: usize = 3;
/// How long endpoints that time out are tried, one after the other, and a single one again and
/// again: a paused app accepts late, and without a mesh the client would wait for it. The client
/// may leave earlier.
const PATIENCE: Duration = Duration::from_secs(60);
/// How a successful connect counts for the endpoint.
const CONNECTED: AttemptOutcome = AttemptOutcome::Response { status: 200 };

/// A connection to an endpoint, with the endpoint that it is counted for.
pub struct OpaqueUpstream {
    link: Link,
    in_flight: InFlight,
    backend: Arc<Backend>,
}

enum Link {
    Plain(Buffered<Stream>),
    /// To a sidecar.
    Framed(pool::Upstream, Framed),
}

/// What a server sends first.
pub enum ServerFirst {
    /// Bytes of a server-first protocol, or the end of the connection.
    Bytes,
    /// HTTP/2's SETTINGS, with `parameters` or without: the client may still send first.
    Settings { parameters: bool },
    /// Nothing: a pooled connection was closed. A newly opened one replaces it.
    Stale(Arc<Backend>),
}

/// Whether a pooled connection may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pooled {
    Yes,
    No,
}

/// Connects to an endpoint of a Service, or to the app in this pod, which sees `source` as the
/// connection's source.
pub async fn connect(
    worker: &Worker,
    logical: &Logical,
    source: SourceAddress,
) -> Result<OpaqueUpstream, Reason> {
    connect_to(worker, default_backend(logical)?, source, Pooled::Yes).await
}

/// Connects to an endpoint of `backend`, after a pooled connection turned out to be closed.
pub async fn connect_new(
    worker: &Worker,
    backend: &Arc<Backend>,
) -> Result<OpaqueUpstream, Reason> {
    connect_to(worker, backend, SourceAddress::default(), Pooled::No).await
}

/// Connects to the app in this pod.
async fn connect_app(
    worker: &Worker,
    logical: &Logical,
    source: SourceAddress,
) -> Result<(Buffered<Stream>, InFlight), Reason> {
    let backend = default_backend(logical)?;
    let open = async |endpoint: &Endpoint| worker.dialer.connect(endpoint, source, Alpn::Tcp).await;
    let (stream, in_flight) = try_endpoints(worker, backend, open).await?;
    Ok((Buffered::new(stream), in_flight))
}

fn default_backend(logical: &Logical) -> Result<&Arc<Backend>, Reason> {
    let backend = logical.default_rule.backends.first();
    let backend = backend.ok_or(Reason::NoBackend)?.backend.as_ref();
    backend.map_err(|_| Reason::BackendInvalid)
}

async fn connect_to(
    worker: &Worker,
    backend: &Arc<Backend>,
    source: SourceAddress,
    pooled: Pooled,
) -> Result<OpaqueUpstream, Reason> {
    let open = async |endpoint: &Endpoint| open(worker, endpoint, source, pooled).await;
    let (link, in_flight) = try_endpoints(worker, backend, open).await?;
    Ok(OpaqueUpstream {
        link,
        in_flight,
        backend: backend.clone(),
    })
}

/// A connection to `endpoint` on which nothing has been sent yet.
async fn open(
    worker: &Worker,
    endpoint: &Endpoint,
    source: SourceAddress,
    pooled: Pooled,
) -> Result<Link, ConnectError> {
    if !matches!(endpoint.peer, Peer::Mesh(_)) {
        let stream = worker.dialer.connect(endpoint, source, Alpn::Tcp).await?;
        return Ok(Link::Plain(Buffered::new(stream)));
    }
    // Only a new connection shows whether an ejected endpoint has recovered.
    if pooled == Pooled::Yes
        && !endpoint.load.is_ejected()
        && let Some(mut upstream) = worker.tcp_pool.take(endpoint, &Caller::default(), true)
    {
        upstream.expect_acknowledgement(&worker.config.limits, true);
        return Ok(Link::Framed(upstream, Framed::opening(true)));
    }
    let opened = worker.tcp_pool.connect(endpoint, source).await;
    if let Err(error) = &opened
        && error.reason == Reason::ConnectTimeout
    {
        worker.tcp_pool.forget(endpoint.id);
    }
    Ok(Link::Framed(opened?, Framed::opening(false)))
}

/// Tries the endpoints of `backend` one after the other until a connection succeeds.
async fn try_endpoints<T>(
    worker: &Worker,
    backend: &Backend,
    open: impl AsyncFn(&Endpoint) -> Result<T, ConnectError>,
) -> Result<(T, InFlight), Reason> {
    let mut tried: Vec<u64> = Vec::new();
    let mut failed = Reason::NoEndpoint;
    let mut refused = 0;
    let started = Instant::now();
    let mut began = started;
    while refused < MAX_ATTEMPTS && began.duration_since(started) < PATIENCE {
        let picked = balance::pick(
            &backend.endpoints(),
            &tried,
            &mut worker.random.borrow_mut(),
        );
        let Some(mut in_flight) = picked else {
            break;
        };
        let id = in_flight.endpoint.id;
        match tried.contains(&id) {
            // Only an endpoint that timed out, and may still accept, is tried again.
            true if failed != Reason::ConnectTimeout => break,
            true => {}
            false => tried.push(id),
        }
        match open(&in_flight.endpoint).await {
            Ok(opened) => {
                in_flight.answered(CONNECTED, began);
                return Ok((opened, in_flight));
            }
            Err(error) => {
                tracing::debug!(address = %in_flight.endpoint.address, %error, "connecting failed");
                failed = error.reason;
                refused += usize::from(failed != Reason::ConnectTimeout);
                let outcome = AttemptOutcome::no_connection(error.reason);
                in_flight.finish(outcome, began);
                began = Instant::now();
            }
        }
    }
    Err(failed)
}

/// Waits for a connection to an endpoint, unless the client's connection breaks.
async fn unless_broken<S, T>(
    client: &mut Buffered<S>,
    connecting: impl Future<Output = Result<T, Reason>>,
) -> Result<T, Reason>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut connecting = pin!(connecting);
    poll_fn(|cx| match connecting.as_mut().poll(cx) {
        Poll::Ready(connected) => Poll::Ready(connected),
        Poll::Pending => client.poll_broken(cx).map(|()| Err(Reason::ClientGone)),
    })
    .await
}

impl OpaqueUpstream {
    /// Waits for the server's first bytes, for a client that may be waiting for them.
    pub fn poll_server_first(
        &mut self,
        cx: &mut Context<'_>,
        worker: &Worker,
    ) -> Poll<ServerFirst> {
        loop {
            match self.greeting() {
                Some(Greeting::Http2 { parameters }) => {
                    return Poll::Ready(ServerFirst::Settings { parameters });
                }
                Some(Greeting::Other) => return Poll::Ready(ServerFirst::Bytes),
                None => {}
            }
            let received = match &mut self.link {
                Link::Plain(connection) => match ready!(connection.poll_fill(cx)) {
                    Ok(1..) => Ok(()),
                    Ok(0) | Err(_) => return Poll::Ready(ServerFirst::Bytes),
                },
                Link::Framed(upstream, framed) => {
                    ready!(framed.poll_first_bytes(cx, &mut upstream.connection))
                }
            };
            match received {
                Ok(()) => {}
                Err(framed::FramedError::Stale) => {
                    return Poll::Ready(ServerFirst::Stale(self.backend.clone()));
                }
                Err(framed::FramedError::Peer(error)) => {
                    forget_if_out_of_reach(worker, &self.in_flight, &error);
                    return Poll::Ready(ServerFirst::Bytes);
                }
                Err(framed::FramedError::App | framed::FramedError::PeerApp) => {
                    return Poll::Ready(ServerFirst::Bytes);
                }
            }
        }
    }

    /// Whether the server has sent any bytes.
    pub fn has_begun(&self) -> bool {
        match &self.link {
            Link::Plain(connection) => !connection.read.is_empty(),
            Link::Framed(upstream, _) => !upstream.connection.read.is_empty(),
        }
    }

    fn greeting(&self) -> Option<Greeting> {
        match &self.link {
            Link::Plain(connection) => detect::greeting(&connection.read),
            Link::Framed(upstream, framed) => framed.greeting(&upstream.connection),
        }
    }
}

/// A pod whose kernel acknowledges nothing has vanished: its other connections are dropped as well.
fn forget_if_out_of_reach(worker: &Worker, in_flight: &InFlight, error: &io::Error) {
    if error.kind() == io::ErrorKind::TimedOut {
        worker.tcp_pool.forget(in_flight.endpoint.id);
    }
}

/// Carries a connection to an endpoint of the backend that `routes` select.
pub async fn serve_routed<S>(
    session: &Session,
    logical: &Logical,
    routes: &OpaqueRoutes,
    mut client: Buffered<S>,
) -> Closing<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let worker = &session.worker;
    let patience = worker.config.limits.handshake_timeout;
    let found = routes.find(&mut client, patience).await;
    let picked = found.and_then(|route| route.pick(&mut worker.random.borrow_mut()));
    let upstream = match picked {
        Ok(backend) => {
            let connecting = connect_to(worker, backend, session.source(), Pooled::Yes);
            unless_broken(&mut client, connecting).await
        }
        Err(reason) => Err(reason),
    };
    serve(session, logical, client, Some(upstream)).await
}

/// Carries a connection to an endpoint of `logical`, or on `upstream` if that is already connected.
pub async fn serve<S>(
    session: &Session,
    logical: &Logical,
    mut client: Buffered<S>,
    upstream: Option<Result<OpaqueUpstream, Reason>>,
) -> Closing<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let worker = &session.worker;
    let _busy = worker.drain.busy();
    let metrics = session.tcp_metrics(logical);
    metrics.opened();
    let mut upstream = match upstream {
        Some(upstream) => upstream,
        None => {
            let connecting = connect(worker, logical, session.source());
            unless_broken(&mut client, connecting).await
        }
    };
    loop {
        let OpaqueUpstream {
            link,
            in_flight,
            backend,
        } = match upstream {
            Ok(upstream) => upstream,
            Err(reason) => {
                metrics.closed(Some(reason));
                return Closing::Reset(client.io);
            }
        };
        let (mut connection, mut framed) = match link {
            Link::Framed(connection, framed) => (connection, framed),
            Link::Plain(mut connection) => {
                let copied =
                    copy(&mut client, &mut connection, Some(&metrics), &worker.memory).await;
                return finish(client, &connection.io, &metrics, copied);
            }
        };
        let carried = carry(worker, &mut client, &mut connection, &mut framed, &metrics).await;
        let broken = match carried {
            Ok(()) => {
                worker.tcp_pool.put(&in_flight.endpoint, connection);
                metrics.closed(None);
                return Closing::Done;
            }
            Err(framed::FramedError::Stale) => {
                client.read = framed.into_unproven(&client.read);
                upstream = unless_broken(&mut client, connect_new(worker, &backend)).await;
                continue;
            }
            Err(broken @ (framed::FramedError::App | framed::FramedError::PeerApp)) => {
                let broken = match broken {
                    framed::FramedError::App => CopyError::Client,
                    _ => CopyError::Upstream,
                };
                if framed
                    .is_reusable_after_reset(&mut connection.connection)
                    .await
                {
                    worker.tcp_pool.put(&in_flight.endpoint, connection);
                    metrics.closed(Some(broken.reason()));
                    return Closing::Reset(client.io);
                }
                broken
            }
            Err(framed::FramedError::Peer(error)) => {
                tracing::debug!(
                    address = %in_flight.endpoint.address,
                    %error,
                    "a connection broke"
                );
                forget_if_out_of_reach(worker, &in_flight, &error);
                CopyError::Upstream
            }
        };
        return finish(client, &connection.connection.io, &metrics, Err(broken));
    }
}

/// Carries a connection in frames to a peer.
async fn carry<S>(
    worker: &Worker,
    client: &mut Buffered<S>,
    upstream: &mut pool::Upstream,
    framed: &mut Framed,
    metrics: &TcpMetrics,
) -> Result<(), framed::FramedError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    poll_fn(|cx| {
        let ended = framed.poll(cx, client, &mut upstream.connection);
        // Bytes that may have to be sent again are not counted yet.
        let is_stale = matches!(ended, Poll::Ready(Err(framed::FramedError::Stale)));
        if !framed.is_unproven() || ended.is_ready() && !is_stale {
            let bytes = framed.take_bytes();
            metrics.sent(bytes.sent);
            metrics.received(bytes.received);
        }
        if !framed.is_unproven() {
            upstream.expect_acknowledgement(&worker.config.limits, false);
        }
        ended
    })
    .await
}

/// Carries a connection to an address outside the mesh.
pub async fn pass_through(
    worker: &Worker,
    address: SocketAddr,
    mut client: Buffered<TcpStream>,
) -> Closing<TcpStream> {
    let _busy = worker.drain.busy();
    let empty: Arc<str> = "".into();
    let count = |port| {
        let metrics = worker.metrics.tcp(TcpLabels {
            direction: Direction::Outbound,
            client: empty.clone(),
            namespace: empty.clone(),
            service: empty.clone(),
            port,
        });
        metrics.opened();
        metrics
    };
    let dialled = tokio::time::timeout(
        PASS_THROUGH_PATIENCE,
        socket::dial(address, worker.config.socket_mark),
    );
    let reason = match dialled.await {
        Ok(Ok(stream)) => {
            worker.metrics.upstream_connect(None);
            let metrics = count(Some(address.port()));
            let mut upstream = Buffered::new(Stream::Plain(stream));
            let copied = copy(&mut client, &mut upstream, Some(&metrics), &worker.memory).await;
            return finish(client, &upstream.io, &metrics, copied);
        }
        Ok(Err(error)) => {
            tracing::debug!(%address, %error, "connecting failed");
            Reason::ConnectFailed
        }
        Err(_) => Reason::ConnectTimeout,
    };
    worker.metrics.upstream_connect(Some(reason));
    // A port on which nothing listens gets no series of its own.
    count(None).closed(Some(reason));
    Closing::Reset(client.io)
}

/// How long an address outside the mesh may take to accept: as many retries as Linux makes in a
/// minute. The client may have a shorter timeout.
const PASS_THROUGH_PATIENCE: Duration = Duration::from_secs(60);

fn finish<S>(
    client: Buffered<S>,
    upstream: &Stream,
    metrics: &TcpMetrics,
    copied: Result<(), CopyError>,
) -> Closing<S> {
    metrics.closed(copied.err().map(CopyError::reason));
    match copied {
        Ok(()) => Closing::Done,
        Err(_) => {
            upstream.reset();
            Closing::Reset(client.io)
        }
    }
}
