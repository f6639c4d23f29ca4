//! Connections that are passed on byte for byte: whatever is not HTTP, and HTTP that has switched to something else.
//!
//! Each direction ends for itself, and an end is passed on as an end. What breaks is passed on as a break, so that nobody takes half
//! of something for the whole. There is no time limit: whoever is silent is asked by TCP itself whether it is still there.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::balance::{self, AttemptOutcome, InFlight};
use crate::buffered::{Buffered, Side};
use crate::identity::Alpn;
use crate::metrics::{Direction, TcpLabels, TcpMetrics};
use crate::reason::Reason;
use crate::session::Session;
use crate::socket;
use crate::stream::StreamRoutes;
use crate::table::{Backend, Logical};
use crate::upstream::{self, Stream};
use crate::worker::Worker;

#[cfg(test)]
mod tests;

/// Endpoints that are tried before the client is refused.
const MAX_ATTEMPTS: usize = 3;
/// What a connection that came about counts as for the endpoint.
const CONNECTED: AttemptOutcome = AttemptOutcome::Response { status: 200 };

/// An upstream connection, and the endpoint that it counts for.
pub struct Upstream {
    pub connection: Buffered<Stream>,
    _in_flight: InFlight,
}

/// Connects to an endpoint of a Service, or of whatever else is behind a destination.
pub async fn connect(worker: &Worker, logical: &Logical) -> Result<Upstream, Reason> {
    match logical.default_rule.backends.first() {
        Some(backend) => match &backend.backend {
            Ok(backend) => connect_to(worker, backend).await,
            Err(_) => Err(Reason::BackendInvalid),
        },
        None => Err(Reason::NoBackend),
    }
}

async fn connect_to(worker: &Worker, backend: &Backend) -> Result<Upstream, Reason> {
    let mut tried: Vec<u64> = Vec::new();
    let mut failed = Reason::NoEndpoint;
    for _ in 0..MAX_ATTEMPTS {
        let picked = balance::pick(
            &backend.endpoints(),
            &tried,
            &mut worker.random.borrow_mut(),
        );
        let Some(mut in_flight) = picked else {
            break;
        };
        if tried.contains(&in_flight.endpoint.id) {
            break;
        }
        tried.push(in_flight.endpoint.id);
        let began = Instant::now();
        match upstream::connect(worker, &in_flight.endpoint, Alpn::Tcp).await {
            Ok(stream) => {
                in_flight.answered(CONNECTED, began.elapsed());
                return Ok(Upstream {
                    connection: Buffered::new(stream),
                    _in_flight: in_flight,
                });
            }
            Err(error) => {
                tracing::debug!(address = %in_flight.endpoint.address, %error, "connecting failed");
                failed = error.reason;
                let outcome = AttemptOutcome::no_connection(error.reason);
                in_flight.finish(outcome, began.elapsed());
            }
        }
    }
    Err(failed)
}

/// Carries a connection to an endpoint of the backend that `routes` say. Returns the client's connection if it must be reset.
pub async fn serve_routed<S>(
    session: &Session,
    logical: &Logical,
    routes: &StreamRoutes,
    mut client: Buffered<S>,
) -> Option<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let worker = &session.worker;
    let patience = worker.config.limits.handshake_timeout;
    let found = routes.find(&mut client, patience).await;
    let picked = found.and_then(|route| route.pick(&mut worker.random.borrow_mut()));
    let upstream = match picked {
        Ok(backend) => connect_to(worker, backend).await,
        Err(reason) => Err(reason),
    };
    serve(session, logical, client, Some(upstream)).await
}

/// Carries a connection to an endpoint of `logical`, or on to `upstream` where that is connected already. Returns the client's
/// connection if it must be reset.
pub async fn serve<S>(
    session: &Session,
    logical: &Logical,
    mut client: Buffered<S>,
    upstream: Option<Result<Upstream, Reason>>,
) -> Option<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let _busy = session.worker.drain.busy();
    let metrics = session.tcp_metrics(logical);
    metrics.opened();
    let upstream = match upstream {
        Some(upstream) => upstream,
        None => connect(&session.worker, logical).await,
    };
    match upstream {
        Ok(mut upstream) => {
            let broken = copy(&mut client, &mut upstream.connection, Some(&metrics)).await;
            finish(client, &upstream.connection, &metrics, broken)
        }
        Err(reason) => {
            metrics.closed(Some(reason));
            Some(client.io)
        }
    }
}

/// Carries a connection to an address that the mesh knows nothing of. Returns the client's connection if it must be reset.
pub async fn pass_through(
    worker: &Worker,
    address: SocketAddr,
    mut client: Buffered<TcpStream>,
) -> Option<TcpStream> {
    let _busy = worker.drain.busy();
    let empty: Arc<str> = "".into();
    let metrics = worker.metrics.tcp(TcpLabels {
        direction: Direction::Outbound,
        client: empty.clone(),
        namespace: empty.clone(),
        service: empty,
        port: address.port(),
    });
    metrics.opened();
    let dialled = tokio::time::timeout(
        PASS_THROUGH_PATIENCE,
        socket::dial(address, None, worker.config.socket_mark),
    );
    let reason = match dialled.await {
        Ok(Ok(stream)) => {
            worker.metrics.upstream_connect(None);
            let mut upstream = Buffered::new(Stream::Plain(stream));
            let broken = copy(&mut client, &mut upstream, Some(&metrics)).await;
            return finish(client, &upstream, &metrics, broken);
        }
        Ok(Err(error)) => {
            tracing::debug!(%address, %error, "connecting failed");
            Reason::ConnectFailed
        }
        Err(_) => Reason::ConnectTimeout,
    };
    worker.metrics.upstream_connect(Some(reason));
    metrics.closed(Some(reason));
    Some(client.io)
}

/// How long an address outside the mesh may take to accept: what Linux tries by itself in a minute, and the client may have its own
/// opinion.
const PASS_THROUGH_PATIENCE: Duration = Duration::from_secs(60);

fn finish<S>(
    client: Buffered<S>,
    upstream: &Buffered<Stream>,
    metrics: &TcpMetrics,
    broken: Option<Broken>,
) -> Option<S> {
    metrics.closed(broken.map(|broken| match broken {
        Broken::Client => Reason::ClientGone,
        Broken::Upstream => Reason::UpstreamReset,
    }));
    broken?;
    socket::reset(upstream.io.tcp());
    Some(client.io)
}

/// Which side broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    Client,
    Upstream,
}

/// Carries bytes both ways until both sides have ended.
pub async fn copy<A, B>(
    client: &mut Buffered<A>,
    upstream: &mut Buffered<B>,
    metrics: Option<&TcpMetrics>,
) -> Option<Broken>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let mut up = Way::default();
    let mut down = Way::default();
    poll_fn(|cx| {
        let sent = up.poll(cx, client, upstream);
        let received = down.poll(cx, upstream, client);
        if let Some(metrics) = metrics {
            metrics.sent(std::mem::take(&mut up.bytes));
            metrics.received(std::mem::take(&mut down.bytes));
        }
        match (sent, received) {
            (Poll::Ready(Err(Side::From)), _) | (_, Poll::Ready(Err(Side::To))) => {
                Poll::Ready(Some(Broken::Client))
            }
            (Poll::Ready(Err(Side::To)), _) | (_, Poll::Ready(Err(Side::From))) => {
                Poll::Ready(Some(Broken::Upstream))
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(None),
            _ => {
                client.shrink();
                upstream.shrink();
                Poll::Pending
            }
        }
    })
    .await
}

/// One direction.
#[derive(Debug, Default)]
struct Way {
    /// Passed on and not counted yet.
    bytes: u64,
    /// There will be no more.
    ended: bool,
    /// That has been passed on as well.
    shut: bool,
}

impl Way {
    fn poll<A, B>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Buffered<A>,
        to: &mut Buffered<B>,
    ) -> Poll<Result<(), Side>>
    where
        A: AsyncRead + AsyncWrite + Unpin,
        B: AsyncRead + AsyncWrite + Unpin,
    {
        while !self.shut {
            ready!(to.poll_send(cx)).map_err(|_| Side::To)?;
            if !from.read.is_empty() {
                // What had been read before anybody knew where to.
                self.bytes += from.read.len() as u64;
                to.unsent = from.read.split();
            } else if self.ended {
                ready!(to.poll_shutdown(cx)).map_err(|_| Side::To)?;
                self.shut = true;
            } else {
                match from.poll_pass(cx, to) {
                    Poll::Ready(Ok(0)) => self.ended = true,
                    Poll::Ready(Ok(length)) => self.bytes += length as u64,
                    Poll::Ready(Err(side)) => return Poll::Ready(Err(side)),
                    Poll::Pending => {
                        // Whatever there is goes out before anything is waited for.
                        ready!(to.poll_flush(cx)).map_err(|_| Side::To)?;
                        return Poll::Pending;
                    }
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}
