//! The app of a probe: how it is reached, and why a probe of it fails.

use std::io;
use std::net::{IpAddr, SocketAddr};

use crate::socket;

/// The client of a probe, and its User-Agent.
#[derive(Clone, Copy, Debug)]
pub struct ProbeContext<'a> {
    /// The pod's address on which the probe arrived.
    pub here: IpAddr,
    pub user_agent: &'a str,
    /// The source address shown to the app: the kubelet's where that is possible.
    pub source: Option<IpAddr>,
    pub socket_mark: Option<u32>,
}

/// Why the probe failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("connecting to the app: {0}")]
    Connect(#[source] io::Error),
    #[error("TLS with the app: {0}")]
    Tls(#[source] io::Error),
    #[error("talking with the app: {0}")]
    Talk(#[source] io::Error),
    #[error("the app's answer is not HTTP/1: {0}")]
    Answer(#[from] httparse::Error),
    #[error("the probe's {0} cannot be sent")]
    Request(&'static str),
    #[error("talking HTTP/2 with the app: {0}")]
    Http2(#[from] h2::Error),
    #[error("the app reports that it is not serving: {0}")]
    NotServing(String),
    #[error("the app took longer than {0} s")]
    Slow(u32),
}

/// Connects to the address that the kubelet would have called, bypassing the redirect rules.
pub async fn connect(
    context: ProbeContext<'_>,
    port: u16,
) -> Result<tokio::net::TcpStream, Failure> {
    let address = SocketAddr::new(context.here, port);
    socket::dial_app(address, context.source, None, context.socket_mark)
        .await
        .map_err(Failure::Connect)
}
