//! Sockets: the listeners of the data path, the original destinations of their connections, and the
//! options of every socket.
//!
//! # Floors
//!
//! ```text
//! listening proxy_protocol
//! ```

pub mod listening;
pub mod proxy_protocol;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::num::NonZeroU16;
use std::str::FromStr;
use std::time::Duration;

use nix::sys::socket::{SetSockOpt as _, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpSocket, TcpStream};

/// Connections that the kernel completes before they are accepted. The kernel caps this at its own
/// limit.
const BACKLOG: i32 = 4_096;
/// `SO_PRIORITY` of the connections that the inbound side opens to its own app, and of no others.
/// 5 is the highest that no Linux traffic class uses by default and that needs no capability.
pub const APP_SOCKET_PRIORITY: u32 = 5;
/// A silent connection is probed by TCP keepalive after this time …
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
/// … at this interval …
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// … and closed after this many probes without an answer: a pod that vanished is noticed within a
/// minute.
///
/// TCP_USER_TIMEOUT is not set on all of them. It bounds the wait for acknowledgements as well, but
/// Linux also applies it to a live peer that has not read for that long, which apps may do
/// indefinitely: see [`await_acknowledgements`].
const KEEPALIVE_PROBES: u32 = 3;

/// The direction of a connection, seen from the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    Inbound,
    Outbound,
}

impl Direction {
    pub const ALL: [Self; 2] = [Self::Inbound, Self::Outbound];

    /// The value in metrics and the access log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// The listeners of the data path.
#[derive(Debug)]
pub struct Listeners {
    pub listeners: Vec<Listener>,
}

/// The addresses and ports to listen on.
#[derive(Clone, Copy, Debug)]
pub struct Ports<'a> {
    /// For redirected connections, if there is a listener for them.
    pub outbound: Option<NonZeroU16>,
    pub inbound: Option<NonZeroU16>,
    /// Listeners whose connections are treated as having a given original destination.
    pub map_outbound: &'a [MappedListener],
    pub map_inbound: &'a [MappedListener],
}

/// One listener.
#[derive(Debug)]
pub struct Listener {
    pub socket: TcpListener,
    pub direction: Direction,
    /// The original destination of its connections. `None`: they are redirected, and the kernel
    /// knows it.
    pub destination: Option<SocketAddr>,
}

/// A listener with a fixed original destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedListener {
    pub listen: SocketAddr,
    pub destination: SocketAddr,
}

impl Listeners {
    /// Opens all listeners.
    pub fn bind(ports: &Ports<'_>) -> io::Result<Self> {
        let mut listeners = Vec::new();
        let redirected = [
            (
                Direction::Outbound,
                ports.outbound,
                [IpAddr::V4(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()],
                "--outbound-port",
            ),
            (
                Direction::Inbound,
                ports.inbound,
                [
                    IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                    Ipv6Addr::UNSPECIFIED.into(),
                ],
                "--inbound-port",
            ),
        ];
        for (direction, port, addresses, flag) in redirected {
            let Some(port) = port.map(NonZeroU16::get) else {
                continue;
            };
            for address in addresses {
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
            (Direction::Outbound, ports.map_outbound, "--map-outbound"),
            (Direction::Inbound, ports.map_inbound, "--map-inbound"),
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

impl FromStr for MappedListener {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not LISTEN=DESTINATION, as 127.0.0.1:8001=10.0.0.1:80");
        let (listen, destination) = text.split_once('=').ok_or_else(wrong)?;
        Ok(Self {
            listen: listen.parse().map_err(|_| wrong())?,
            destination: destination.parse().map_err(|_| wrong())?,
        })
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // Sockets of a proxy that has just ended must not prevent the next one from starting.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    // Accepted connections inherit these on Linux: six system calls less for each.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&keepalive())?;
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

/// The original destination of a redirected connection. `None`: it was made to the listener itself.
/// `listener`: its address.
pub fn original_destination(
    stream: &TcpStream,
    listener: SocketAddr,
) -> io::Result<Option<SocketAddr>> {
    let socket = SockRef::from(stream);
    let original = match listener {
        SocketAddr::V4(_) => socket.original_dst_v4(),
        SocketAddr::V6(_) => socket.original_dst_v6(),
    };
    match original.map(|original| original.as_socket()) {
        Ok(Some(original)) if original.port() == listener.port() => {
            Ok((original != stream.local_addr()?).then_some(original))
        }
        Ok(original) => Ok(original),
        // The kernel has no entry for a connection that no rule has redirected.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES)
}

/// Connects to a pod, or to another address outside of this pod.
pub async fn dial(address: SocketAddr, mark: Option<u32>) -> io::Result<TcpStream> {
    connect(open(address, mark)?, address).await
}

fn open(address: SocketAddr, mark: Option<u32>) -> io::Result<TcpSocket> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    if let Some(mark) = mark {
        SockRef::from(&socket).set_mark(mark)?;
    }
    Ok(socket)
}

async fn connect(socket: TcpSocket, address: SocketAddr) -> io::Result<TcpStream> {
    let stream = socket.connect(address).await?;
    // Messages are written whole, so Nagle's algorithm would only add delay.
    stream.set_nodelay(true)?;
    SockRef::from(&stream).set_tcp_keepalive(&keepalive())?;
    Ok(stream)
}

/// Connects to the app in this pod. `source`: the local address to bind, one that the pod's rules
/// provide ([`crate::upstream::client_address`]). If it can't be bound, the connection fails: the
/// pod's own address would stand for more than one client. `proxy_header`: the client to name in a
/// PROXY protocol header.
pub async fn dial_app(
    address: SocketAddr,
    source: Option<IpAddr>,
    proxy_header: Option<SocketAddr>,
    mark: Option<u32>,
) -> io::Result<TcpStream> {
    let socket = open(address, mark)?;
    // The redirect rules distinguish it by this from a pod's call to itself.
    SockRef::from(&socket).set_priority(APP_SOCKET_PRIORITY)?;
    if let Some(source) = source.filter(|_| !address.ip().is_loopback()) {
        // The port is chosen at connect, so that one port serves many destinations.
        sockopt::IpBindAddressNoPort.set(&socket, &true)?;
        if source.is_ipv6() {
            // IPv6 requires the address itself, and a route is not enough.
            SockRef::from(&socket).set_freebind_v6(true)?;
        }
        socket.bind(SocketAddr::new(source, 0))?;
    }
    let mut stream = connect(socket, address).await?;
    if let Some(client) = proxy_header {
        // The header fits into the socket's buffer.
        let header = proxy_protocol::header(client, address);
        stream.write_all(&header).await?;
    }
    Ok(stream)
}

/// Bounds how long sent data may stay unacknowledged; `None`: the kernel's own limits, some 15
/// minutes. Only for amounts that any receiver accepts at once, or for a receiver that always
/// reads.
pub fn await_acknowledgements(stream: &TcpStream, bound: Option<Duration>) {
    // Fails only for a socket that is closed anyway.
    let _ = SockRef::from(stream).set_tcp_user_timeout(bound);
}

/// Closes the connection with a reset instead of a FIN once the stream is dropped.
pub fn reset(stream: &TcpStream) {
    // Fails only for a socket that is closed anyway.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Parses a socket mark (SO_MARK), in decimal or, after `0x`, in hexadecimal.
pub fn parse_mark(text: &str) -> Result<u32, String> {
    let mark = match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => text.parse(),
    };
    match mark {
        Ok(0) => Err("0 is what a socket without a mark has".to_owned()),
        Ok(mark) => Ok(mark),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    }

    #[test]
    fn a_port_in_use_is_named_with_its_flag() {
        let taken = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let mut config = Config::for_tests();
        (config.outbound_port, config.inbound_port) = (None, NonZeroU16::new(port));
        let error = Listeners::bind(&config.ports()).unwrap_err().to_string();
        assert!(
            error.contains("--inbound-port") && error.contains(&format!(":{port}")),
            "{error}"
        );
        let map = format!("127.0.0.1:{port}=10.0.0.1:80");
        config.inbound_port = None;
        config.map_outbound = vec![map.parse().unwrap()];
        let error = Listeners::bind(&config.ports()).unwrap_err().to_string();
        assert!(error.contains("--map-outbound"), "{error}");
    }

    #[test]
    fn without_a_port_there_is_no_listener_and_a_mapped_listener_has_its_destination() {
        let mut config = Config::for_tests();
        (config.outbound_port, config.inbound_port) = (None, None);
        assert!(
            Listeners::bind(&config.ports())
                .unwrap()
                .listeners
                .is_empty()
        );
        config.map_inbound = vec!["127.0.0.1:0=127.0.0.1:8080".parse().unwrap()];
        let listeners = Listeners::bind(&config.ports()).unwrap().listeners;
        assert_eq!(listeners.len(), 1);
        assert_eq!(listeners[0].direction, Direction::Inbound);
        let destination = "127.0.0.1:8080".parse().unwrap();
        assert_eq!(listeners[0].destination, Some(destination));
    }

    #[test]
    fn a_direct_connection_to_the_listener_has_no_original_destination() {
        runtime().block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let (_client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
            let found = original_destination(&accepted.unwrap().0, address);
            assert!(!matches!(found, Ok(Some(_))), "{found:?}");
        });
    }

    #[test]
    fn only_connections_to_the_own_app_have_the_priority() {
        runtime().block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let app = dial_app(address, None, None, None).await.unwrap();
            let other = dial(address, None).await.unwrap();
            let priorities = [app, other].map(|stream| SockRef::from(&stream).priority().unwrap());
            assert_eq!(priorities, [APP_SOCKET_PRIORITY, 0]);
        });
    }

    #[test]
    fn every_connection_has_nodelay_and_keepalive() {
        runtime().block_on(async {
            let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
            let address = listener.local_addr().unwrap();
            let dialled = dial(address, None).await.unwrap();
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let (accepted, _) = listener.accept().await.unwrap();
            for stream in [dialled, accepted] {
                assert!(stream.nodelay().unwrap());
                let socket = SockRef::from(&stream);
                assert!(socket.keepalive().unwrap());
                let noticed_after = socket.tcp_keepalive_time().unwrap()
                    + socket.tcp_keepalive_interval().unwrap()
                        * socket.tcp_keepalive_retries().unwrap();
                assert!(noticed_after <= Duration::from_secs(60));
            }
        });
    }
}
