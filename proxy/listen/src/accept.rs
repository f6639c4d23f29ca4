//! Listening, and accepting without end.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tracing::warn;

use crate::places::{Place, Places};

/// Connections that the kernel completes before they are accepted. It cuts this to its own limit.
const BACKLOG: i32 = 4_096;
/// Bytes that the kernel takes of what one client does not read: its own limit is megabytes.
const SEND_BUFFER: usize = 128 * 1024;
/// Wait after an error of accept, which is one of the machine's: no file descriptors, no memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often such an error is logged.
const ACCEPT_ERROR_EVERY: Duration = Duration::from_secs(1);

/// Listens on `address`. Where there is no IPv6, `[::]` is taken as `0.0.0.0`.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    match listen(address) {
        Err(error)
            if address.is_ipv6()
                && address.ip().is_unspecified()
                && error.kind() != io::ErrorKind::AddrInUse =>
        {
            listen((Ipv4Addr::UNSPECIFIED, address.port()).into())
        }
        result => result,
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    // Linux gives this on to the connections that are accepted.
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Accepts for ever, and starts each connection with its place.
pub async fn accept(
    listener: TcpListener,
    places: Places,
    mut start: impl FnMut(TcpStream, SocketAddr, Place),
) {
    let mut logged: Option<Instant> = None;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                start(stream, peer, places.enter(peer.ip()));
                // What has been started is looked at before a later one can take its place.
                tokio::task::yield_now().await;
            }
            Err(error) => {
                if logged.is_none_or(|at| at.elapsed() >= ACCEPT_ERROR_EVERY) {
                    logged = Some(Instant::now());
                    warn!(%error, "cannot accept connections: raise the limit of open files (ulimit -n)");
                }
                places.exhausted();
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
