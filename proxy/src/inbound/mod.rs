//! A connection that a client has opened to the app.
//!
//! In: the connection, and its original destination. A peer's sidecar opens TLS, selects the inner
//! protocol by ALPN and proves its identity. Other clients are accepted as they are or refused,
//! according to the controller's table for this pod.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use naru_listen::Place;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::connection::{self, FirstSpeaker, Opening};
use crate::http::{http1, http2};
use crate::identity::{Alpn, SpiffeId};
use crate::observe::reason::Reason;
use crate::route::{Logical, Protocol};
use crate::session::Session;
use crate::session::worker::Worker;
use crate::socket::{self, Direction};
use crate::table::Destination;
use crate::wire::buffered::Buffered;
use crate::wire::client_hello::{self, Hello};
use crate::wire::closing::Closing;
use crate::wire::detect::Detected;
use crate::wire::pipe::Pipe;
use crate::{opaque, tls};

pub(crate) mod streams;
#[cfg(test)]
mod tests;

/// How long a client is silent before the proxy connects to the app, in case the app sends first.
/// Longer than on the outbound side: a peer's proxy does send first, but its bytes cross the
/// network.
const SILENCE: std::time::Duration = std::time::Duration::from_millis(10);

type PeerStream = tls::Stream<TcpStream>;

/// Carries one connection to its end. Until the client's protocol or identity is known, the
/// connection occupies a waiting place, and its task may be ended to make room for another one.
pub async fn serve(worker: Rc<Worker>, client: TcpStream, destination: SocketAddr, place: Place) {
    let _busy = worker.drain.busy();
    let app = worker.tables.app(destination);
    let Destination::Logical(logical) = app.load().as_ref().clone() else {
        return;
    };
    let strict = worker.tables.inbound().strict;
    // The port of a client that is already gone is unknown.
    let port = client.peer_addr().map_or(0, |address| address.port());
    let address = SocketAddr::new(place.source(), port);
    let stranger = Session::unauthenticated(worker, app, address);
    let mut client = Buffered::new(client);
    if strict {
        let hello = hello_in_time(&stranger.worker, &mut client).await;
        return match is_peer(&hello) {
            true => Box::pin(serve_peer(stranger, address, client, place)).await,
            false => refuse(&stranger, &logical, &client),
        };
    }
    let mut opening = Opening::new(&stranger, &logical);
    let silence = match logical.protocol {
        Protocol::Detect | Protocol::Tcp => Some(SILENCE),
        Protocol::Http | Protocol::Http2 => None,
    };
    let first_speaker = opening.first_speaker(&mut client, silence);
    let first_speaker = match silence {
        Some(_) => first_speaker.await,
        None => {
            let said = in_time(&stranger.worker, first_speaker).await;
            said.unwrap_or(FirstSpeaker::Gone)
        }
    };
    let first_speaker = match first_speaker {
        FirstSpeaker::Client(Detected::Tls) => {
            let hello = hello_in_time(&stranger.worker, &mut client).await;
            if is_peer(&hello) {
                opening.abandon();
                return Box::pin(serve_peer(stranger, address, client, place)).await;
            }
            match hello {
                // It only began like a ClientHello.
                Hello::Other => FirstSpeaker::Client(Detected::Other),
                Hello::Complete(_) | Hello::Unreadable | Hello::Incomplete => first_speaker,
            }
        }
        first_speaker => first_speaker,
    };
    let closing = match first_speaker {
        FirstSpeaker::Gone => Closing::Done,
        said @ (FirstSpeaker::Client(_) | FirstSpeaker::Server) if place.take().is_err() => {
            opening.abandon();
            Box::pin(overload(&stranger, client, said)).await
        }
        FirstSpeaker::Client(detected) => {
            let http = match (logical.protocol, detected) {
                // The app's own TLS, whatever protocol its port declares.
                (_, Detected::Tls) => None,
                (Protocol::Http, Detected::Http2) | (Protocol::Http2, _) => Some(Detected::Http2),
                (Protocol::Http, _) => Some(Detected::Http1),
                (Protocol::Detect, Detected::Http1 | Detected::Http2) => Some(detected),
                (Protocol::Detect | Protocol::Tcp, _) => None,
            };
            match http {
                Some(Detected::Http2) if logical.protocol == Protocol::Http2 => {
                    opening.abandon();
                    Box::pin(connection::serve_declared_http2(stranger.clone(), client)).await
                }
                Some(Detected::Http2) => {
                    opening.abandon();
                    Box::pin(connection::serve_http2(stranger.clone(), client)).await
                }
                Some(_) => {
                    opening.abandon();
                    Box::pin(connection::serve_http1(stranger.clone(), client)).await
                }
                None => {
                    let upstream = opening.into_upstream().await;
                    Box::pin(opaque::serve(&stranger, &logical, client, upstream)).await
                }
            }
        }
        FirstSpeaker::Server => {
            let upstream = opening.into_upstream().await;
            Box::pin(opaque::serve(&stranger, &logical, client, upstream)).await
        }
    };
    if let Closing::Reset(client) = closing {
        socket::reset(&client);
    }
}

/// Refuses a client that has no identity.
fn refuse(stranger: &Session, logical: &Logical, client: &Buffered<TcpStream>) {
    let metrics = stranger.tcp_metrics(logical);
    metrics.opened();
    metrics.closed(Some(Reason::IdentityRequired));
    tracing::debug!(
        port = logical.port,
        "a client without an identity is refused"
    );
    socket::reset(&client.io);
}

/// Refuses a client for which there is no place. HTTP/1 gets a response; other protocols have no
/// way to report it.
async fn overload(
    stranger: &Session,
    client: Buffered<TcpStream>,
    said: FirstSpeaker,
) -> Closing<TcpStream> {
    tracing::debug!("a client without an identity is refused: there is no place for it");
    match said {
        FirstSpeaker::Client(Detected::Http1) => {
            http1::refuse(stranger, client, Reason::Overload).await;
            Closing::Done
        }
        _ => Closing::Reset(client.io),
    }
}

/// Waits for the first bytes of a client that sends first. `None`: they are not there in time.
async fn in_time<T>(worker: &Worker, first_speaker: impl Future<Output = T>) -> Option<T> {
    let leaving = async {
        worker.drain.started().await;
        sleep(http1::LEAVING).await;
    };
    tokio::select! {
        biased;
        first_speaker = first_speaker => Some(first_speaker),
        () = leaving => None,
        () = sleep(worker.config.limits.first_byte_timeout) => None,
    }
}

/// The client's ClientHello. One that is not there in time is incomplete.
async fn hello_in_time(worker: &Worker, client: &mut Buffered<TcpStream>) -> Hello {
    let patience = worker.config.limits.handshake_timeout;
    match timeout(patience, client_hello::read(client)).await {
        Ok(Ok(hello)) => hello,
        Ok(Err(_)) | Err(_) => Hello::Incomplete,
    }
}

/// Whether the client is a peer's sidecar: its ClientHello offers one of Naru's protocols.
fn is_peer(hello: &Hello) -> bool {
    match hello {
        Hello::Complete(hello) => hello
            .protocols()
            .any(|name| Alpn::from_bytes(name).is_some()),
        Hello::Incomplete | Hello::Unreadable | Hello::Other => false,
    }
}

async fn serve_peer(
    stranger: Session,
    address: SocketAddr,
    client: Buffered<TcpStream>,
    place: Place,
) {
    let worker = stranger.worker.clone();
    let handshake = Box::pin(shake_hands(&worker, client));
    let accepted = timeout(worker.config.limits.handshake_timeout, handshake)
        .await
        .unwrap_or(Err(Reason::TlsFailed));
    worker
        .metrics
        .handshake(Direction::Inbound, accepted.as_ref().err().copied());
    let (client, id, left, alpn) = match accepted {
        Ok(accepted) => accepted,
        Err(reason) => {
            tracing::debug!(%reason, "a peer's handshake failed");
            return;
        }
    };
    if let Err(limit) = place.prove() {
        tracing::debug!(?limit, client = %id, "a peer is refused");
        return;
    }
    let session = Session::peer(worker, stranger.destination, id, address).expiring(left);
    let closing = match alpn {
        Alpn::Http1 => {
            streams::serve(session, client).await;
            Closing::Done
        }
        Alpn::Http2 => {
            Box::pin(http2::serve(session, client)).await;
            Closing::Done
        }
        Alpn::Tcp => Box::pin(opaque::serve_peer(&session, client, serve_http)).await,
    };
    if let Closing::Reset(client) = closing {
        socket::reset(client.get_ref());
    }
}

/// Carries a peer's opaque connection to a port that is declared as HTTP: a TCPRoute of the caller
/// may cause that. Unless it is the app's own TLS, it is read as HTTP, as everything else that
/// reaches this port, so that no client can forge `X-Forwarded-Client-Cert`.
async fn serve_http(session: Session, client: Pipe) {
    let mut client = Buffered::new(client);
    let destination = session.destination.load().clone();
    let Destination::Logical(logical) = &*destination else {
        return client.io.break_off();
    };
    let Some(Ok(detected)) = in_time(&session.worker, protocol(&mut client)).await else {
        if !client.read.is_empty() {
            let metrics = session.tcp_metrics(logical);
            metrics.opened();
            metrics.closed(Some(Reason::ClientGone));
            client.io.break_off();
        }
        return;
    };
    let closing = match (logical.protocol, detected) {
        (_, Detected::Tls) => Box::pin(opaque::serve(&session, logical, client, None)).await,
        (Protocol::Http2, _) => Box::pin(connection::serve_declared_http2(session, client)).await,
        (_, Detected::Http2) => Box::pin(connection::serve_http2(session, client)).await,
        _ => Box::pin(connection::serve_http1(session, client)).await,
    };
    if let Closing::Reset(client) = closing {
        client.break_off();
    }
}

/// Detects the protocol of a client. TLS needs a ClientHello.
async fn protocol(client: &mut Buffered<Pipe>) -> io::Result<Detected> {
    let detected = connection::first_bytes(client).await?;
    if detected != Detected::Tls {
        return Ok(detected);
    }
    Ok(match client_hello::read(client).await? {
        // What the proxy can't read in it is between the client and the app.
        Hello::Complete(_) | Hello::Unreadable => Detected::Tls,
        Hello::Incomplete | Hello::Other => Detected::Other,
    })
}

/// The TLS handshake with a peer. Returns its identity, how long its certificate is still valid,
/// and the protocol that ALPN selected.
async fn shake_hands(
    worker: &Worker,
    client: Buffered<TcpStream>,
) -> Result<(PeerStream, SpiffeId, Duration, Alpn), Reason> {
    let config = worker
        .identity
        .server_config()
        .ok_or(Reason::NoCertificate)?;
    let accepted = tls::accept(config, client.read, client.io)
        .await
        .map_err(|error| {
            tracing::debug!(%error, "a TLS handshake failed");
            match error.kind() {
                // A connection that was opened in advance, and closed before the handshake was
                // complete.
                ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset => Reason::ClientGone,
                _ => Reason::TlsFailed,
            }
        })?;
    let alpn = accepted.alpn.as_deref().and_then(Alpn::from_bytes);
    let id = worker.identity.peer_identity(&accepted.certificates);
    let left = worker.identity.peer_validity(&accepted.certificates);
    match (id.zip(left), alpn) {
        (Some((id, left)), Some(alpn)) => Ok((accepted.stream, id, left, alpn)),
        (None, _) => Err(Reason::IdentityRequired),
        (_, None) => Err(Reason::TlsFailed),
    }
}
