//! Listening, and accepting connections indefinitely.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tracing::warn;

use crate::places::{Place, Places};

/// Connections that the kernel completes before they are accepted. The kernel caps this at its own
/// limit.
const BACKLOG: i32 = 4_096;
/// Bytes that the kernel buffers for a client that does not read: its default limit is megabytes.
const SEND_BUFFER: usize = 128 * 1024;
/// Wait after an error of accept that is due to the machine: no file descriptors, no memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Interval at which such errors are logged.
const ACCEPT_ERROR_EVERY: Duration = Duration::from_secs(1);

/// Listens on `address`. Without IPv6, `[::]` falls back to `0.0.0.0`.
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
    // Accepted connections inherit this on Linux.
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Accepts indefinitely, and starts each connection with its place.
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
                // The started task is polled before a later connection can evict it.
                tokio::task::yield_now().await;
            }
            Err(error) => {
                if logged.is_none_or(|at| at.elapsed() >= ACCEPT_ERROR_EVERY) {
                    logged = Some(Instant::now());
                    warn!(
                        %error,
                        "cannot accept connections: raise the limit of open files (ulimit -n)"
                    );
                }
                places.exhausted();
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
