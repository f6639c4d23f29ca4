//! Sockets: the listeners of the data path, where their connections were going, and what every socket is set to.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream};

use crate::config::Config;
use crate::init::APP_SOCKET_PRIORITY;
use crate::metrics::Direction;
use crate::table::Peer;

/// Connections that the kernel completes before they are accepted. It cuts this to its own limit.
const BACKLOG: i32 = 4_096;
/// A connection on which nothing is said is asked after this long whether the other end is there …
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
/// … this often …
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// … and given up after this many questions without an answer: a pod that vanished is noticed within a minute.
///
/// There is no TCP_USER_TIMEOUT beside it. It would end the wait for acknowledgements as soon, but Linux also ends by it whoever
/// is alive and has not read for that long, which apps may do for as long as they like.
const KEEPALIVE_PROBES: u32 = 3;

/// The listeners of the data path.
#[derive(Debug)]
pub struct Listeners {
    pub listeners: Vec<Listener>,
}

/// One of them.
#[derive(Debug)]
pub struct Listener {
    pub socket: TcpListener,
    pub direction: Direction,
    /// Where its connections are taken to have been going. `None`: the kernel's rules have redirected them, and it knows.
    pub destination: Option<SocketAddr>,
}

impl Listeners {
    /// Opens all of them.
    pub fn bind(config: &Config) -> io::Result<Self> {
        let mut listeners = Vec::new();
        let redirected = [
            (
                Direction::Outbound,
                config.outbound_port,
                [IpAddr::V4(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()],
                "--outbound-port",
            ),
            (
                Direction::Inbound,
                config.inbound_port,
                [
                    IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                    Ipv6Addr::UNSPECIFIED.into(),
                ],
                "--inbound-port",
            ),
        ];
        for (direction, port, addresses, flag) in redirected {
            for address in addresses {
                if port == 0 {
                    continue;
                }
                match listen(SocketAddr::new(address, port)) {
                    Ok(socket) => listeners.push(Listener {
                        socket,
                        direction,
                        destination: None,
                    }),
                    Err(error) if address.is_ipv6() && is_without_ipv6(&error) => {
                        tracing::debug!(%error, flag, "there is no IPv6 here");
                    }
                    Err(error) => return Err(named(flag, SocketAddr::new(address, port), &error)),
                }
            }
        }
        let mapped = [
            (Direction::Outbound, &config.map_outbound, "--map-outbound"),
            (Direction::Inbound, &config.map_inbound, "--map-inbound"),
        ];
        for (direction, maps, flag) in mapped {
            for map in maps {
                let socket = listen(map.listen).map_err(|error| named(flag, map.listen, &error))?;
                tracing::info!(
                    direction = direction.as_str(),
                    listen = %socket.local_addr()?,
                    destination = %map.destination,
                    "listening in place of redirect rules"
                );
                listeners.push(Listener {
                    socket,
                    direction,
                    destination: Some(map.destination),
                });
            }
        }
        Ok(Self { listeners })
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // The sockets of a proxy that has just ended do not keep the next one from starting.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn is_without_ipv6(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable
        || error.raw_os_error() == Some(AF_NOT_SUPPORTED)
}

/// `EAFNOSUPPORT` of Linux.
const AF_NOT_SUPPORTED: i32 = 97;

fn named(flag: &str, address: SocketAddr, error: &io::Error) -> io::Error {
    let text = format!(
        "{flag}: can't listen on {address}: {error}; end what uses it, or choose another port"
    );
    io::Error::new(error.kind(), text)
}

/// Where a redirected connection was going. `None`: it was made to the listener itself.
pub fn original_destination(stream: &TcpStream) -> io::Result<Option<SocketAddr>> {
    let local = stream.local_addr()?;
    let socket = SockRef::from(stream);
    let original = match local {
        SocketAddr::V4(_) => socket.original_dst_v4(),
        SocketAddr::V6(_) => socket.original_dst_v6(),
    };
    match original {
        Ok(original) => Ok(original.as_socket().filter(|original| *original != local)),
        // Nothing is known of a connection that no rule has touched.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// What holds for every connection of the data path.
pub fn prepare(stream: &TcpStream) -> io::Result<()> {
    // Messages are written whole: there is nothing to wait for.
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// Connects to a pod, or to the app in this one.
pub async fn dial(
    address: SocketAddr,
    peer: Option<&Peer>,
    mark: Option<u32>,
) -> io::Result<TcpStream> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    if let Some(mark) = mark {
        SockRef::from(&socket).set_mark(mark)?;
    }
    if peer == Some(&Peer::App) {
        // By this the redirect rules tell it from a pod's call to itself.
        SockRef::from(&socket).set_priority(APP_SOCKET_PRIORITY)?;
    }
    let stream = socket.connect(address).await?;
    prepare(&stream)?;
    Ok(stream)
}

/// Makes the other end see a reset in place of an orderly end, once the stream is dropped.
pub fn reset(stream: &TcpStream) {
    // Fails only for a socket that is over anyway.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
