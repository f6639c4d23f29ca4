//! `naru-proxy init --verify`: whether connections of this pod are redirected. It needs no
//! privileges: instead of reading the rules, it makes connections and accepts them where the rules
//! would redirect them.
//!
//! ```text
//! any user:          to an unassigned address (192.0.2.1, …) ─▶ arrives at the outbound port
//! the proxy's user:  to the pod's own address             ─▶ arrives at the inbound port
//! ```
//!
//! All rules are installed in one step, so that one of them stands for all. The second check is for
//! pods that skip all networks. It runs before the proxy, on whose ports it listens briefly. While
//! the rules are missing it requests them from the node's agent (see `request`), and tries again
//! until the time is over.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::linux::net::SocketAddrExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::unistd::geteuid;
use socket2::{Domain, Socket, Type};
use thiserror::Error;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UdpSocket, UnixListener, UnixStream};
use tokio::time::{Instant, sleep, timeout};

use super::{Exempt, LeftAlone, RedirectRules, Request, SOCKET_NAME};

/// How long one connection may take to arrive. A redirected one stays on this machine.
const ARRIVAL: Duration = Duration::from_secs(1);
/// Wait before another attempt.
const PAUSE: Duration = Duration::from_millis(250);
/// How long the agent may take to read and to answer, and the bound on its answer.
const AGENT: Duration = Duration::from_secs(5);
const MAX_ANSWER: u64 = 1024;
/// Addresses for documentation (RFC 5737, RFC 3849, RFC 9637), which are never assigned. Several,
/// as a pod may skip some of their networks.
const UNASSIGNED: [IpAddr; 5] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)),
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 1)),
];
/// First candidate for a port that is not skipped: "discard".
const FIRST_PORT: u16 = 9;

/// Why redirection could not be verified.
#[derive(Debug, Error)]
pub enum Unverified {
    #[error(
        "the redirect rules of this pod are missing: a connection to {to} did not arrive at the \
         proxy's port {port}. Nothing was started, as its traffic would pass the mesh by. The \
         node's CNI plugin naru-cni did not set them when the pod's network was made, and the \
         node's agent has not done so since{said}. See that the agent is ready on this node \
         (kubectl -n naru-system get pods -o wide -l app.kubernetes.io/component=cni); the pod \
         then goes on by itself"
    )]
    Missing {
        to: SocketAddr,
        port: u16,
        /// The agent's answer, if it was reached.
        said: String,
    },
    #[error(
        "cannot verify the redirect rules: the pod has neither an IPv4 nor an IPv6 route to other \
         hosts"
    )]
    NoNetwork,
    #[error(
        "all networks are skipped, so that no redirected connection can be seen: run this check as \
         the proxy's user, as injection does in that case"
    )]
    AllSkipped,
    #[error("listening on {0}, the proxy's port, to see what is redirected to it")]
    Listen(SocketAddr, #[source] io::Error),
    #[error("opening a socket")]
    Socket(#[from] io::Error),
}

/// Returns once connections are redirected, or after `within` with an error that names what is
/// missing.
pub async fn verify(
    rules: &RedirectRules,
    left_alone: LeftAlone,
    within: Duration,
) -> Result<(), Unverified> {
    let deadline = Instant::now() + within;
    let said = Arc::new(Mutex::new(String::new()));
    let mut asking = None;
    loop {
        let missing = match attempt(rules).await {
            Err(Unverified::Missing { to, port, .. }) => (to, port),
            done => return done,
        };
        if Instant::now() >= deadline {
            let (to, port) = missing;
            let said = said.lock().unwrap_or_else(PoisonError::into_inner).clone();
            return Err(Unverified::Missing { to, port, said });
        }
        if asking.is_none() {
            eprintln!(
                "naru-proxy: the redirect rules are missing; asking the node's agent for them"
            );
            asking = Some(tokio::spawn(ask(
                bind_request()?,
                (&left_alone).into(),
                said.clone(),
            )));
        }
        sleep(PAUSE).await;
    }
}

async fn attempt(rules: &RedirectRules) -> Result<(), Unverified> {
    let exempt = rules.exempt == Exempt::Uid(geteuid().as_raw());
    let (mut families, mut tried) = (0, 0);
    for v4 in [true, false] {
        // Where no route leads to others, no connection to them can be tried either.
        let Some(own) = source_address(v4).await else {
            continue;
        };
        families += 1;
        let (to, at) = if exempt {
            let mut to = own;
            to.set_port(port_outside(&rules.inbound_ports_skipped, rules));
            (to, SocketAddr::new(unspecified(v4), rules.inbound_port))
        } else if let Some(unassigned) = unassigned(v4, rules) {
            let port = port_outside(&rules.outbound_ports_skipped, rules);
            let to = SocketAddr::new(unassigned, port);
            (to, SocketAddr::new(loopback(v4), rules.outbound_port))
        } else {
            continue;
        };
        tried += 1;
        arrives(to, at).await?;
    }
    match (families, tried) {
        (0, _) => Err(Unverified::NoNetwork),
        (_, 0) => Err(Unverified::AllSkipped),
        _ => Ok(()),
    }
}

fn unspecified(v4: bool) -> IpAddr {
    match v4 {
        true => Ipv4Addr::UNSPECIFIED.into(),
        false => Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn loopback(v4: bool) -> IpAddr {
    match v4 {
        true => Ipv4Addr::LOCALHOST.into(),
        false => Ipv6Addr::LOCALHOST.into(),
    }
}

/// The pod's source address for calls to others; without a default route, its first address. No
/// packet is sent.
pub async fn own_address(v4: bool) -> Option<SocketAddr> {
    match source_address(v4).await {
        Some(address) => Some(address),
        None => Some(SocketAddr::new(first_address(v4)?, 0)),
    }
}

/// The first address of an interface that is up, except link-local ones.
fn first_address(v4: bool) -> Option<IpAddr> {
    let interfaces = getifaddrs().ok()?;
    let interfaces = interfaces.filter(|interface| {
        interface.flags.contains(InterfaceFlags::IFF_UP)
            && !interface.flags.contains(InterfaceFlags::IFF_LOOPBACK)
    });
    let mut addresses = interfaces.filter_map(|interface| {
        let address = interface.address?;
        match address.as_sockaddr_in() {
            Some(address) => Some(IpAddr::V4(address.ip())),
            None => Some(IpAddr::V6(address.as_sockaddr_in6()?.ip())),
        }
    });
    addresses.find(|address| match address {
        IpAddr::V4(address) => v4 && !address.is_link_local(),
        IpAddr::V6(address) => !v4 && !address.is_unicast_link_local(),
    })
}

async fn source_address(v4: bool) -> Option<SocketAddr> {
    let far = UNASSIGNED
        .into_iter()
        .find(|address| address.is_ipv4() == v4)?;
    let socket = UdpSocket::bind((unspecified(v4), 0)).await.ok()?;
    socket.connect((far, FIRST_PORT)).await.ok()?;
    socket.local_addr().ok()
}

/// An unassigned address that is not skipped. `None`: the whole family is skipped.
fn unassigned(v4: bool, rules: &RedirectRules) -> Option<IpAddr> {
    let skipped = |address| {
        rules
            .outbound_cidrs_skipped
            .iter()
            .any(|cidr| cidr.contains(address))
    };
    UNASSIGNED
        .into_iter()
        .find(|address| address.is_ipv4() == v4 && !skipped(*address))
}

fn port_outside(skipped: &[u16], rules: &RedirectRules) -> u16 {
    let taken = |port: &u16| {
        skipped.contains(port) || [rules.inbound_port, rules.outbound_port].contains(port)
    };
    // A list of all ports exceeds the bound on a request.
    (FIRST_PORT..u16::MAX)
        .find(|port| !taken(port))
        .unwrap_or(FIRST_PORT)
}

/// Whether a connection to `to` arrives at `at`, where this function listens in the meantime.
async fn arrives(to: SocketAddr, at: SocketAddr) -> Result<(), Unverified> {
    let listener = listen(at).map_err(|error| Unverified::Listen(at, error))?;
    let both = timeout(ARRIVAL, async {
        let ours = TcpStream::connect(to).await?.local_addr()?;
        loop {
            // Other clients may connect as well.
            let (_, caller) = listener.accept().await?;
            if caller == ours {
                return Ok::<_, io::Error>(());
            }
        }
    });
    match both.await {
        Ok(Ok(())) => Ok(()),
        // Refused by another listener, or lost on its way to an unassigned address.
        Ok(Err(_)) | Err(_) => Err(Unverified::Missing {
            to,
            port: at.port(),
            said: String::new(),
        }),
    }
}

fn listen(at: SocketAddr) -> io::Result<TcpListener> {
    const BACKLOG: i32 = 16;
    let socket = Socket::new(Domain::for_address(at), Type::STREAM.nonblocking(), None)?;
    if at.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // The connection of a previous attempt lingers.
    socket.set_reuse_address(true)?;
    socket.bind(&at.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn bind_request() -> io::Result<UnixListener> {
    let name = std::os::unix::net::SocketAddr::from_abstract_name(SOCKET_NAME)?;
    let listener = std::os::unix::net::UnixListener::bind_addr(&name)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// Sends every caller the wanted rules, and keeps the answer.
async fn ask(listener: UnixListener, request: Request, said: Arc<Mutex<String>>) {
    while let Ok((stream, _)) = listener.accept().await {
        let answer = match timeout(AGENT, exchange(stream, &request)).await {
            Ok(Ok(answer)) if answer.trim() == "ok" => String::new(),
            Ok(Ok(answer)) => format!(", but said: {}", answer.trim()),
            Ok(Err(error)) => format!(", but hung up: {error}"),
            Err(_) => ", but was asked and said nothing".to_owned(),
        };
        *said.lock().unwrap_or_else(PoisonError::into_inner) = answer;
    }
}

async fn exchange(mut stream: UnixStream, request: &Request) -> io::Result<String> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    let mut answer = String::new();
    BufReader::new(stream.take(MAX_ANSWER))
        .read_line(&mut answer)
        .await?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(request: Request) -> RedirectRules {
        RedirectRules::of_pod(request.parse().expect("lists"))
    }

    #[test]
    fn probes_never_use_what_the_pod_has_skipped() {
        let rules = rules(Request {
            skip_inbound_ports: "9,10".to_owned(),
            skip_outbound_ports: "11".to_owned(),
            skip_outbound_cidrs: "192.0.2.0/24,::/0".to_owned(),
            class_e_in_use: String::new(),
        });
        assert_eq!(port_outside(&rules.inbound_ports_skipped, &rules), 11);
        assert_eq!(port_outside(&rules.outbound_ports_skipped, &rules), 9);
        assert_eq!(unassigned(true, &rules), Some(UNASSIGNED[1]));
        assert_eq!(unassigned(false, &rules), None);
    }
}
