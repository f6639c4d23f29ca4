//! The node's kube-proxy. A rule redirects the ClusterIP connections of pods without a sidecar to
//! this forwarder, which connects them to ready endpoints in turn. It runs on a thread of its own,
//! so that bulk data does not delay anything else.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context;
use socket2::{SockRef, Socket};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use super::address::FORWARDER_PORT;

/// Concurrent connections: further ones wait in the accept queue.
const MAX_CONNECTIONS: usize = 4_096;
/// Connect timeout of an endpoint, after which the next one is tried.
const CONNECT: Duration = Duration::from_secs(2);
/// Endpoints that are tried for each connection.
const ATTEMPTS: usize = 3;
/// Pause after an accept error (usually no file descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The endpoints of each ClusterIP and port.
pub type Table = BTreeMap<SocketAddr, Vec<SocketAddr>>;

/// Starts the thread.
pub fn start(ipv6: bool, table: watch::Receiver<Arc<Table>>) -> anyhow::Result<()> {
    let listen = |address: SocketAddr| -> anyhow::Result<std::net::TcpListener> {
        let domain = socket2::Domain::for_address(address);
        let socket = Socket::new(domain, socket2::Type::STREAM, None)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(1_024)?;
        Ok(socket.into())
    };
    let mut listeners = vec![listen((Ipv4Addr::UNSPECIFIED, FORWARDER_PORT).into())?];
    if ipv6 {
        listeners.push(listen((Ipv6Addr::UNSPECIFIED, FORWARDER_PORT).into())?);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting a runtime")?;
    std::thread::Builder::new()
        .name("forwarder".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
                let turn = Arc::new(AtomicUsize::new(0));
                for listener in listeners {
                    // Inside a runtime this cannot fail for a non-blocking socket.
                    if let Ok(listener) = TcpListener::from_std(listener) {
                        tokio::spawn(serve(listener, table.clone(), places.clone(), turn.clone()));
                    }
                }
                std::future::pending::<()>().await;
            });
        })
        .context("starting the forwarder's thread")?;
    Ok(())
}

async fn serve(
    listener: TcpListener,
    table: watch::Receiver<Arc<Table>>,
    places: Arc<Semaphore>,
    turn: Arc<AtomicUsize>,
) {
    while let Ok(place) = places.clone().acquire_owned().await {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let table = table.borrow().clone();
        let turn = turn.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            // Both peers see the connection close, which is all the error handling needed.
            let _ended = forward(stream, &table, turn).await;
            drop(place);
        });
    }
}

async fn forward(mut client: TcpStream, table: &Table, turn: usize) -> io::Result<()> {
    let socket = SockRef::from(&client);
    let original = match client.local_addr()? {
        SocketAddr::V4(_) => socket.original_dst_v4()?,
        SocketAddr::V6(_) => socket.original_dst_v6()?,
    };
    let none = || io::Error::from(io::ErrorKind::NotFound);
    let original = original.as_socket().ok_or_else(none)?;
    let endpoints = table.get(&original).map_or(&[][..], Vec::as_slice);
    match connect(endpoints, turn).await {
        Some(mut server) => {
            client.set_nodelay(true)?;
            server.set_nodelay(true)?;
            tokio::io::copy_bidirectional(&mut client, &mut server).await?;
            Ok(())
        }
        None => {
            // The client gets a reset, as from a closed port.
            client.set_zero_linger()?;
            Err(none())
        }
    }
}

async fn connect(endpoints: &[SocketAddr], turn: usize) -> Option<TcpStream> {
    for attempt in 0..ATTEMPTS.min(endpoints.len()) {
        let endpoint = endpoints[(turn + attempt) % endpoints.len()];
        if let Ok(Ok(server)) = tokio::time::timeout(CONNECT, TcpStream::connect(endpoint)).await {
            return Some(server);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn endpoints_take_turns_and_a_dead_one_is_skipped() {
        let alive = [
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
        ];
        let dead = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dead_address = dead.local_addr().unwrap();
        drop(dead);
        let endpoints = [
            alive[0].local_addr().unwrap(),
            dead_address,
            alive[1].local_addr().unwrap(),
        ];
        let peer = async |turn| {
            connect(&endpoints, turn)
                .await
                .unwrap()
                .peer_addr()
                .unwrap()
        };
        assert_eq!(peer(0).await, endpoints[0]);
        assert_eq!(peer(1).await, endpoints[2]);
        assert_eq!(peer(2).await, endpoints[2]);
        assert!(connect(&[], 0).await.is_none());
        assert!(connect(&[dead_address], 0).await.is_none());
    }
}
