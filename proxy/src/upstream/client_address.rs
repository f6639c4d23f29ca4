//! The source address that the app sees: the client's own, as without a mesh.
//!
//! The proxy may not send from another pod's address: that takes a capability which a sidecar does
//! not have. So `naru-proxy init` makes a range of addresses local to the pod for each client
//! network (an AnyIP route), and has the kernel translate a source in that range into the client's
//! address (a prefix NAT). The proxy binds to the client's address moved into the range, and
//! connection tracking translates the replies back. No packet of this leaves the pod.
//!
//! ```text
//! client 10.244.3.7 ─▶ proxy, bound to 241.244.3.7 ─▶ lo: 241/8 becomes 10/8 ─▶ app: 10.244.3.7
//! client 93.184.1.9 ─▶ proxy, bound to 169.254.6.6 ─▶ lo ────────────────────▶ app: 169.254.6.6
//! ```
//!
//! A client outside those networks appears as one of [`STAND_INS`]: apps trust their own pod's
//! address (`Require local`, `samehost`), so no client may appear with it. In: the client's
//! address. Out: the address to bind to. What the kernel supports is probed once, at start.

use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::Serialize;
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::config::ClientAddress;
use crate::node::redirect::{NETWORKS, STAND_INS, own_address};
use crate::observe::metrics::Shown;
use crate::socket::dial_app;

/// The source of a connection to the app.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SourceAddress {
    /// The address to bind to. `None`: the pod's own.
    pub address: Option<IpAddr>,
    /// The client that the connection's first bytes name ([`crate::socket::proxy_protocol`]), if
    /// the port is configured for the PROXY protocol.
    pub proxy_header: Option<SocketAddr>,
}

/// Which source addresses the proxy can use. The default has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientAddresses {
    /// The families of [`STAND_INS`] in which the pod has an address.
    families: [bool; STAND_INS.len()],
    networks: [bool; NETWORKS.len()],
    stand_ins: [bool; STAND_INS.len()],
}

impl ClientAddresses {
    /// The source of a connection for a client at `client`.
    pub fn of(&self, client: IpAddr) -> SourceAddress {
        let client = client.to_canonical();
        let found = NETWORKS.iter().zip(self.networks);
        let found = found
            .filter(|(_, works)| *works)
            .find(|(network, _)| network.clients.contains(client));
        match found {
            Some((network, _)) => SourceAddress {
                address: Some(network.moved(client)),
                proxy_header: None,
            },
            None => self.stand_in(client),
        }
    }

    /// The stand-in, of the same family, for a client whose address is hidden.
    pub fn stand_in(&self, client: IpAddr) -> SourceAddress {
        let client = client.to_canonical();
        let mut stand_ins = STAND_INS.iter().zip(self.stand_ins);
        let found =
            stand_ins.find(|(address, works)| *works && address.is_ipv4() == client.is_ipv4());
        SourceAddress {
            address: found.map(|(address, _)| *address),
            proxy_header: None,
        }
    }

    /// Probes what works, by connections of the proxy to itself that the rules treat like those to
    /// the app.
    pub async fn find(mark: Option<u32>) -> Self {
        let mut found = Self::default();
        let routes = local_routes_v6();
        let families = found.families.iter_mut().zip(&mut found.stand_ins);
        for (stand_in, (family, hides)) in STAND_INS.iter().zip(families) {
            let v4 = stand_in.is_ipv4();
            let Some(trial) = Trial::new(v4, mark).await else {
                continue;
            };
            *family = true;
            // An IPv6 socket may bind to any address, and a reply to one that is not of this pod
            // would leave it.
            let is_local = |address, prefix| v4 || routes.contains(&(address, prefix));
            if is_local(*stand_in, if v4 { 32 } else { 128 }) {
                *hides = trial.shows(*stand_in, *stand_in).await;
            }
            for (network, works) in NETWORKS.iter().zip(&mut found.networks) {
                let local = network.local;
                if local.address.is_ipv4() != v4 || !is_local(local.address, local.prefix) {
                    continue;
                }
                for client in network.examples(trial.address.ip()) {
                    *works = *works || trial.shows(network.moved(client), client).await;
                }
            }
        }
        found
    }

    /// The worst case of what the app sees of clients in [`NETWORKS`], by the pod's address
    /// families.
    pub fn at_worst(&self) -> impl Iterator<Item = (&'static str, Shown)> {
        let families = STAND_INS.iter().zip(self.families).zip(self.stand_ins);
        let families = families.filter(|((_, exists), _)| *exists);
        families.map(|((stand_in, _), hides)| {
            let is_v4 = stand_in.is_ipv4();
            let mut networks = NETWORKS.iter().zip(self.networks);
            let all =
                networks.all(|(network, works)| works || network.local.address.is_ipv4() != is_v4);
            let shown = match (all, hides) {
                (_, false) => Shown::Own,
                (true, true) => Shown::Client,
                (false, true) => Shown::Hidden,
            };
            (if is_v4 { "ipv4" } else { "ipv6" }, shown)
        })
    }

    /// The state in `/config`.
    pub fn view(&self, mode: ClientAddress) -> View {
        let networks = NETWORKS.iter().zip(self.networks);
        let stand_ins = STAND_INS.iter().zip(self.stand_ins);
        View {
            http: match mode {
                ClientAddress::Preserve => "preserve",
                ClientAddress::Hide => "hide",
            },
            preserved: networks
                .filter(|(_, works)| *works)
                .map(|(network, _)| network.clients.to_string())
                .collect(),
            others: stand_ins
                .filter(|(_, works)| *works)
                .map(|(address, _)| *address)
                .collect(),
        }
    }
}

#[cfg(test)]
impl ClientAddresses {
    /// As on a kernel that supports everything.
    pub fn all() -> Self {
        Self {
            families: [true; STAND_INS.len()],
            networks: [true; NETWORKS.len()],
            stand_ins: [true; STAND_INS.len()],
        }
    }
}

impl SourceAddress {
    /// How much of the client it shows.
    pub fn shows(self) -> Shown {
        match self.address {
            None => Shown::Own,
            Some(address) if STAND_INS.contains(&address) => Shown::Hidden,
            Some(_) => Shown::Client,
        }
    }
}

/// How apps see their clients, as in `/config`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct View {
    /// `preserve` or `hide`.
    http: &'static str,
    /// Networks whose clients' addresses the app sees.
    preserved: Vec<String>,
    /// The addresses that all other clients appear as. Empty: this pod's own.
    others: Vec<IpAddr>,
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&*self.preserved, &*self.others) {
            ([], []) => f.write_str("the pod's own, for every client"),
            (preserved, _) => write!(f, "the client's, of {}", preserved.join(", ")),
        }
    }
}

/// The IPv6 networks that the kernel treats as local to this machine.
fn local_routes_v6() -> Vec<(IpAddr, u8)> {
    /// `RTF_LOCAL`.
    const LOCAL: u32 = 0x8000_0000;
    let text = fs::read_to_string("/proc/thread-self/net/ipv6_route").unwrap_or_default();
    let routes = text.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let address = u128::from_str_radix(words.first()?, 16).ok()?;
        let prefix = u8::from_str_radix(words.get(1)?, 16).ok()?;
        let flags = u32::from_str_radix(words.get(8)?, 16).ok()?;
        (flags & LOCAL != 0).then_some((IpAddr::V6(address.into()), prefix))
    });
    routes.collect()
}

/// How long a probe's connection may take. It does not leave the machine.
const PATIENCE: Duration = Duration::from_secs(1);

/// A listener at the pod's own address, to which the probes connect.
struct Trial {
    listener: TcpListener,
    address: SocketAddr,
    mark: Option<u32>,
}

impl Trial {
    /// `None`: the pod has no address of that family.
    async fn new(v4: bool, mark: Option<u32>) -> Option<Self> {
        let own = own_address(v4).await?;
        let listener = TcpListener::bind((own.ip(), 0)).await.ok()?;
        Some(Self {
            address: listener.local_addr().ok()?,
            listener,
            mark,
        })
    }

    /// Whether a connection that is bound to `bound` appears as coming from `seen`.
    async fn shows(&self, bound: IpAddr, seen: IpAddr) -> bool {
        let called = timeout(PATIENCE, async {
            let dialled = dial_app(self.address, Some(bound), None, self.mark);
            let (stream, accepted) = tokio::try_join!(dialled, self.listener.accept())?;
            drop(stream);
            Ok::<_, io::Error>(accepted.1.ip())
        });
        match called.await {
            Ok(Ok(from)) => from == seen,
            Ok(Err(error)) => {
                tracing::debug!(%bound, %error, "an address can't be taken");
                false
            }
            Err(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(addresses: &ClientAddresses, client: &str) -> Option<String> {
        let source = addresses.of(client.parse().expect("an address"));
        source.address.map(|address| address.to_string())
    }

    #[test]
    fn a_client_keeps_its_host_part_within_its_network() {
        for (client, local) in [
            ("10.244.3.7", "241.244.3.7"),
            ("100.127.255.254", "242.127.255.254"),
            ("172.31.0.1", "243.31.0.1"),
            ("192.168.9.1", "244.168.9.1"),
            ("::ffff:10.1.2.3", "241.1.2.3"),
            ("fd00:10:244::7", "9d00:10:244::7"),
            ("2001:db8::7", "4001:db8::7"),
        ] {
            assert_eq!(
                shown(&ClientAddresses::all(), client).as_deref(),
                Some(local),
                "{client}"
            );
        }
    }

    #[test]
    fn every_other_client_is_hidden_and_never_the_pod() {
        for client in ["93.184.1.9", "172.32.0.1", "169.254.1.1", "127.0.0.1"] {
            assert_eq!(
                shown(&ClientAddresses::all(), client).as_deref(),
                Some("169.254.6.6")
            );
        }
        for client in ["fe80::1", "64:ff9b::1"] {
            let hidden = Some("fd6e:6172:7500::6");
            assert_eq!(shown(&ClientAddresses::all(), client).as_deref(), hidden);
        }
        let mut some = ClientAddresses::all();
        some.networks[0] = false;
        assert_eq!(shown(&some, "10.1.2.3").as_deref(), Some("169.254.6.6"));
    }

    #[test]
    fn unsupported_addresses_are_not_used_for_connections() {
        let none = ClientAddresses::default();
        assert_eq!(shown(&none, "10.1.2.3"), None);
        assert_eq!(none.of(STAND_INS[0]).shows(), Shown::Own);
        let view = none.view(ClientAddress::Preserve);
        assert_eq!(view.to_string(), "the pod's own, for every client");
    }

    #[test]
    fn the_worst_case_is_reported_by_family() {
        let at_worst = |addresses: &ClientAddresses| addresses.at_worst().collect::<Vec<_>>();
        let both = |v4, v6| vec![("ipv4", v4), ("ipv6", v6)];
        assert_eq!(
            at_worst(&ClientAddresses::all()),
            both(Shown::Client, Shown::Client)
        );
        let mut some = ClientAddresses::all();
        some.networks[0] = false;
        some.stand_ins[1] = false;
        assert_eq!(at_worst(&some), both(Shown::Hidden, Shown::Own));
        some.families[0] = false;
        assert_eq!(at_worst(&some), [("ipv6", Shown::Own)]);
    }

    #[test]
    fn a_missing_range_is_detected() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let found = runtime.block_on(ClientAddresses::find(None));
        assert_eq!((found.networks, found.stand_ins), Default::default());
    }
}
