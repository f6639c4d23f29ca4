//! A downstream connection whose destination is known: determines its protocol, and hands it to the
//! module for that protocol.
//!
//! ```text
//!                    declared or detected
//! outbound ─┐                 ┌─▶ http1
//!           ├─▶ connection ───┼─▶ http2
//! inbound ──┘                 └─▶ opaque
//! ```
//!
//! The proxy never waits for bytes that may never come: in server-first protocols the client is
//! silent. So once a client has been silent for a moment, the proxy connects to an endpoint as if
//! the connection were opaque; the side that sends first then decides. In HTTP/2 either side may
//! send first: after a server's SETTINGS the client still decides.
//!
//! The futures of all protocols except HTTP/1 are boxed: a task reserves space for its largest
//! future for as long as its connection lives, and most connections are idle HTTP/1.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

use crate::http::{http1, http2};
use crate::observe::reason::Reason;
use crate::opaque::{self, OpaqueUpstream};
use crate::route::{Logical, Protocol};
use crate::session::Session;
use crate::socket;
use crate::table::Destination;
use crate::wire::buffered::Buffered;
use crate::wire::closing::Closing;
use crate::wire::detect::{Detected, HTTP2_PREFACE, detect, detect_tls};
use prefixed::Prefixed;

mod prefixed;
#[cfg(test)]
mod tests;

/// How long a client is silent before the proxy connects to an endpoint. Clients that send first do
/// so right after connecting.
pub const SILENCE: Duration = Duration::from_millis(1);
/// How long a client may stay silent after no endpoint could be connected to. A client that sends
/// first gets the error in its own protocol; a client of a server-first protocol gets it as the end
/// of its connection.
const HOPELESS: Duration = Duration::from_secs(1);
/// How long the first bytes of a client or a server may stay ambiguous. Requests arrive in one
/// piece; a line that stops in the middle waits for an answer, and is not a request that the proxy
/// could count.
const AMBIGUITY: Duration = Duration::from_millis(500);

/// Carries a connection of a protocol still to be detected to its end.
pub async fn serve(session: Session, client: Buffered<TcpStream>) {
    let destination = session.destination.load().clone();
    let closing = match &*destination {
        Destination::Passthrough => {
            let address = session.destination.address;
            Box::pin(opaque::pass_through(&session.worker, address, client)).await
        }
        Destination::Unknown => Box::pin(serve_unknown(session, client)).await,
        Destination::Logical(logical) => serve_logical(session, logical, client).await,
    };
    if let Closing::Reset(client) = closing {
        socket::reset(&client);
    }
}

async fn serve_logical(
    session: Session,
    logical: &Arc<Logical>,
    mut client: Buffered<TcpStream>,
) -> Closing<TcpStream> {
    if let Some(routes) = &logical.opaque_routes {
        return Box::pin(opaque::serve_routed(&session, logical, routes, client)).await;
    }
    match logical.protocol {
        Protocol::Tcp => Box::pin(opaque::serve(&session, logical, client, None)).await,
        Protocol::Http2 => Box::pin(serve_declared_http2(session, client)).await,
        Protocol::Http => match is_http2(&mut client).await {
            Ok(true) => serve_http2(session, client).await,
            Ok(false) => serve_http1(session, client).await,
            Err(_) => Closing::Done,
        },
        Protocol::Detect => {
            let mut opening = Opening::new(&session, logical);
            match opening.first_speaker(&mut client, Some(SILENCE)).await {
                FirstSpeaker::Client(Detected::Http1) => {
                    opening.abandon();
                    serve_http1(session, client).await
                }
                FirstSpeaker::Client(Detected::Http2) => {
                    opening.abandon();
                    serve_http2(session, client).await
                }
                FirstSpeaker::Client(Detected::Tls | Detected::Other) | FirstSpeaker::Server => {
                    let upstream = opening.into_upstream().await;
                    Box::pin(opaque::serve(&session, logical, client, upstream)).await
                }
                FirstSpeaker::Gone => Closing::Done,
            }
        }
    }
}

/// Answers HTTP clients that their destination is unknown. Other protocols have no such answer.
async fn serve_unknown(session: Session, mut client: Buffered<TcpStream>) -> Closing<TcpStream> {
    loop {
        match detect(&client.read) {
            Some(Detected::Http1) => return serve_http1(session, client).await,
            Some(Detected::Http2) => return serve_http2(session, client).await,
            Some(_) => return Closing::Reset(client.io),
            None => {}
        }
        // A client that waits for the server to send first is not kept waiting.
        let filled = poll_fn(|cx| client.poll_fill(cx));
        match tokio::time::timeout(UNKNOWN_PATIENCE, filled).await {
            Ok(Ok(1..)) => {}
            _ => return Closing::Reset(client.io),
        }
    }
}

/// How long a client may take to show its protocol, if the connection can only be refused.
const UNKNOWN_PATIENCE: Duration = Duration::from_secs(1);

pub async fn serve_http1<S>(session: Session, client: Buffered<S>) -> Closing<S>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let closing = http1::serve(session, Prefixed::new(client.read, client.io)).await;
    closing.map(|client| client.io)
}

pub async fn serve_http2<S>(session: Session, client: Buffered<S>) -> Closing<S>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    Box::pin(http2::serve(session, Prefixed::new(client.read, client.io))).await;
    Closing::Done
}

/// Carries the connection of a port that is declared as HTTP/2. A client that sends another
/// protocol is counted, and answered if it is HTTP/1. A silent client may wait for SETTINGS.
pub async fn serve_declared_http2<S>(session: Session, mut client: Buffered<S>) -> Closing<S>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    match tokio::time::timeout(AMBIGUITY, first_bytes(&mut client)).await {
        Err(_) | Ok(Ok(Detected::Http2)) => serve_http2(session, client).await,
        Ok(Ok(Detected::Http1)) if session.is_unwelcome() => {
            http1::turn_away(&session);
            Closing::Reset(client.io)
        }
        Ok(Ok(Detected::Http1)) => {
            tracing::debug!("a client speaks HTTP/1 to a port that is declared to speak HTTP/2");
            http1::refuse(&session, client, Reason::VersionNotSupported).await;
            Closing::Done
        }
        Ok(Ok(Detected::Tls | Detected::Other)) => {
            tracing::debug!("a client of a port that is declared to speak HTTP/2 does not");
            if let Destination::Logical(logical) = &**session.destination.load() {
                let metrics = session.tcp_metrics(logical);
                metrics.opened();
                metrics.closed(Some(Reason::BadRequest));
            }
            Closing::Reset(client.io)
        }
        Ok(Err(_)) => Closing::Done,
    }
}

/// The protocol of a client, once its bytes are unambiguous.
pub async fn first_bytes<S>(client: &mut Buffered<S>) -> std::io::Result<Detected>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        if let Some(detected) = detect(&client.read) {
            return Ok(detected);
        }
        if poll_fn(|cx| client.poll_fill(cx)).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Whether a client that is known to send HTTP sends HTTP/2.
pub async fn is_http2(client: &mut Buffered<TcpStream>) -> std::io::Result<bool> {
    loop {
        let length = client.read.len().min(HTTP2_PREFACE.len());
        if client.read[..length] != HTTP2_PREFACE[..length] {
            return Ok(false);
        }
        if length == HTTP2_PREFACE.len() {
            return Ok(true);
        }
        if poll_fn(|cx| client.poll_fill(cx)).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Which side sent first, and what it sent.
pub enum FirstSpeaker {
    Client(Detected),
    /// The server; or the client has ended its half without sending a byte; or there is no server
    /// to wait for.
    Server,
    Gone,
}

/// A connection whose protocol is not known yet.
pub struct Opening<'a> {
    session: &'a Session,
    logical: &'a Arc<Logical>,
    upstream: Speculation,
    /// The client has sent a byte.
    begun: bool,
}

/// A speculative connection to an endpoint, which may turn out not to be needed.
enum Speculation {
    None,
    Connecting(Pin<Box<dyn Future<Output = Result<OpaqueUpstream, Reason>>>>),
    Done(Result<Box<OpaqueUpstream>, Reason>),
    /// The server has sent HTTP/2's SETTINGS, with `parameters` or without, and the client nothing
    /// yet.
    Settings {
        upstream: Box<OpaqueUpstream>,
        parameters: bool,
    },
    /// It could not be opened, and the client has waited for the server long enough.
    Hopeless(Reason),
}

impl<'a> Opening<'a> {
    pub fn new(session: &'a Session, logical: &'a Arc<Logical>) -> Self {
        Self {
            session,
            logical,
            upstream: Speculation::None,
            begun: false,
        }
    }

    /// Waits for the first bytes of either side. `silence`: the delay before the speculative
    /// connection; `None` if the client is known to send first.
    pub async fn first_speaker(
        &mut self,
        client: &mut Buffered<TcpStream>,
        silence: Option<Duration>,
    ) -> FirstSpeaker {
        let mut timer = pin!(sleep(silence.unwrap_or(AMBIGUITY)));
        let speculates = silence.is_some();
        poll_fn(|cx| self.poll_first_speaker(cx, client, timer.as_mut(), speculates)).await
    }

    fn poll_first_speaker(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut Buffered<TcpStream>,
        mut timer: Pin<&mut Sleep>,
        speculates: bool,
    ) -> Poll<FirstSpeaker> {
        let detect = match self.logical.protocol {
            Protocol::Tcp => detect_tls,
            _ => detect,
        };
        loop {
            if let Some(detected) = detect(&client.read) {
                return Poll::Ready(FirstSpeaker::Client(detected));
            }
            match client.poll_fill(cx) {
                Poll::Pending => break,
                Poll::Ready(Ok(0)) if speculates => return Poll::Ready(FirstSpeaker::Server),
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(FirstSpeaker::Gone),
                Poll::Ready(Ok(_)) => {}
            }
        }
        if !client.read.is_empty() {
            if !std::mem::replace(&mut self.begun, true) {
                timer.as_mut().reset(Instant::now() + AMBIGUITY);
            }
            return timer
                .poll(cx)
                .map(|()| FirstSpeaker::Client(Detected::Other));
        }
        if !speculates {
            return Poll::Pending;
        }
        self.poll_server(cx, timer)
    }

    /// Waits for the first bytes of a server that may send first.
    fn poll_server(
        &mut self,
        cx: &mut Context<'_>,
        mut timer: Pin<&mut Sleep>,
    ) -> Poll<FirstSpeaker> {
        let worker = &self.session.worker;
        let is_opaque = self.logical.protocol == Protocol::Tcp;
        loop {
            match &mut self.upstream {
                Speculation::None => {
                    ready!(timer.as_mut().poll(cx));
                    let (worker, logical) = (worker.clone(), self.logical.clone());
                    let source = self.session.source();
                    let connecting =
                        async move { opaque::connect(&worker, &logical, source).await };
                    self.upstream = Speculation::Connecting(Box::pin(connecting));
                }
                Speculation::Connecting(connecting) => {
                    let connected = ready!(connecting.as_mut().poll(cx));
                    timer.as_mut().reset(Instant::now() + HOPELESS);
                    self.upstream = Speculation::Done(connected.map(Box::new));
                }
                // Wait for its first bytes or its end.
                Speculation::Done(Ok(upstream)) => match upstream.poll_server_first(cx, worker) {
                    // Part of a greeting may be ambiguous.
                    Poll::Pending if upstream.has_begun() => {
                        return timer.poll(cx).map(|()| FirstSpeaker::Server);
                    }
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(opaque::ServerFirst::Bytes) => {
                        return Poll::Ready(FirstSpeaker::Server);
                    }
                    Poll::Ready(opaque::ServerFirst::Settings { .. }) if is_opaque => {
                        return Poll::Ready(FirstSpeaker::Server);
                    }
                    Poll::Ready(opaque::ServerFirst::Settings { parameters }) => {
                        timer.as_mut().reset(Instant::now() + AMBIGUITY);
                        let Speculation::Done(Ok(upstream)) =
                            std::mem::replace(&mut self.upstream, Speculation::None)
                        else {
                            return Poll::Ready(FirstSpeaker::Server);
                        };
                        self.upstream = Speculation::Settings {
                            upstream,
                            parameters,
                        };
                    }
                    Poll::Ready(opaque::ServerFirst::Stale(backend)) => {
                        let worker = worker.clone();
                        let connecting =
                            async move { opaque::connect_new(&worker, &backend).await };
                        self.upstream = Speculation::Connecting(Box::pin(connecting));
                    }
                },
                // An HTTP/2 client that waits for the server's SETTINGS gets the proxy's own. The
                // nine bytes of an empty frame are not enough evidence.
                Speculation::Settings { parameters, .. } => {
                    let word = match parameters {
                        true => FirstSpeaker::Client(Detected::Http2),
                        false => FirstSpeaker::Server,
                    };
                    return timer.poll(cx).map(|()| word);
                }
                Speculation::Done(Err(reason)) => {
                    let reason = *reason;
                    ready!(timer.as_mut().poll(cx));
                    self.upstream = Speculation::Hopeless(reason);
                }
                Speculation::Hopeless(_) => return Poll::Ready(FirstSpeaker::Server),
            }
        }
    }

    /// Ends the speculative connection: before requests are carried, since an app may accept one
    /// connection at a time.
    pub fn abandon(self) {}

    /// The speculative connection, if one was started.
    pub async fn into_upstream(self) -> Option<Result<OpaqueUpstream, Reason>> {
        match self.upstream {
            Speculation::Connecting(connecting) => Some(connecting.await),
            Speculation::Done(Ok(upstream)) | Speculation::Settings { upstream, .. } => {
                Some(Ok(*upstream))
            }
            Speculation::Hopeless(reason) => Some(Err(reason)),
            // A failure from some time ago does not predict the next attempt.
            Speculation::None | Speculation::Done(Err(_)) => None,
        }
    }
}
