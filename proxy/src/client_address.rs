//! The address that the app sees its clients come from: the client's own, as without a mesh.
//!
//! The proxy may not send from another pod's address: that takes a capability which a sidecar does not have. So `naru-proxy init`
//! makes a range of addresses local to the pod for each network that clients live in (an AnyIP route), and has the kernel turn a
//! source in that range into the client's (a prefix NAT). The proxy binds to the client's address moved into the range, and answers
//! find their way back by connection tracking. Nothing of this leaves the pod.
//!
//! ```text
//! client 10.244.3.7 ─▶ proxy ─ bound to 241.244.3.7 ─▶ lo ─ postrouting: 241.0.0.0/8 becomes 10.0.0.0/8 ─▶ app sees 10.244.3.7
//! client 93.184.1.9 ─▶ proxy ─ bound to 169.254.6.6 ─▶ lo ───────────────────────────────────────────────▶ app sees 169.254.6.6
//! ```
//!
//! A client outside those networks is seen as [`NOBODY`]: apps trust their own pod's address (`Require local`, `samehost`), which no
//! client may have. In: the client's address. Out: the one to bind to. What the kernel allows is tried once, at start.

use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::Serialize;
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::config::ClientAddress;
use crate::init::{NETWORKS, NOBODY, own_address};
use crate::metrics::Shown;
use crate::socket::dial_app;

/// Where a connection to the app comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Source {
    /// To bind to. `None`: the pod's own address.
    pub address: Option<IpAddr>,
    /// Whom the app is told of in the connection's first bytes ([`crate::proxy_protocol`]), where its port wants to be.
    pub told: Option<SocketAddr>,
}

/// Which addresses the proxy can take here. The default is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientAddresses {
    networks: [bool; NETWORKS.len()],
    nobody: [bool; NOBODY.len()],
}

impl ClientAddresses {
    /// Where the connection of a client at `client` comes from.
    pub fn of(&self, client: IpAddr) -> Source {
        let client = client.to_canonical();
        let found = NETWORKS.iter().zip(self.networks);
        let found = found
            .filter(|(_, works)| *works)
            .find(|(network, _)| network.clients.contains(client));
        match found {
            Some((network, _)) => Source {
                address: Some(network.moved(client)),
                told: None,
            },
            None => self.nobody(client),
        }
    }

    /// Where the connection of somebody who is not to be known comes from. `client`: of which family.
    pub fn nobody(&self, client: IpAddr) -> Source {
        let client = client.to_canonical();
        let mut nobody = NOBODY.iter().zip(self.nobody);
        let found = nobody.find(|(address, works)| *works && address.is_ipv4() == client.is_ipv4());
        Source {
            address: found.map(|(address, _)| *address),
            told: None,
        }
    }

    /// Tries what works, by connections of the proxy to itself which the rules treat like those to the app.
    pub async fn find(mark: Option<u32>) -> Self {
        let mut found = Self::default();
        let routes = local_routes_v6();
        for v4 in [true, false] {
            let Some(trial) = Trial::new(v4, mark).await else {
                continue;
            };
            // An IPv6 socket may take any address, and an answer to one that is not of this pod would leave it.
            let is_local = |address, prefix| v4 || routes.contains(&(address, prefix));
            for (nobody, works) in NOBODY.iter().zip(&mut found.nobody) {
                let prefix = if v4 { 32 } else { 128 };
                if nobody.is_ipv4() == v4 && is_local(*nobody, prefix) {
                    *works = trial.shows(*nobody, *nobody).await;
                }
            }
            for (network, works) in NETWORKS.iter().zip(&mut found.networks) {
                let (client, local) = (network.example(), network.local);
                if client.is_ipv4() == v4 && is_local(local.address, local.prefix) {
                    *works = trial.shows(network.moved(client), client).await;
                }
            }
        }
        found
    }

    /// For people and programs.
    pub fn view(&self, mode: ClientAddress) -> View {
        let networks = NETWORKS.iter().zip(self.networks);
        let nobody = NOBODY.iter().zip(self.nobody);
        View {
            http: match mode {
                ClientAddress::Preserve => "preserve",
                ClientAddress::Hide => "hide",
            },
            preserved: networks
                .filter(|(_, works)| *works)
                .map(|(network, _)| network.clients.to_string())
                .collect(),
            others: nobody
                .filter(|(_, works)| *works)
                .map(|(address, _)| *address)
                .collect(),
        }
    }
}

impl Source {
    /// What it shows of the client.
    pub fn shows(self) -> Shown {
        match self.address {
            None => Shown::Own,
            Some(address) if NOBODY.contains(&address) => Shown::Hidden,
            Some(_) => Shown::Client,
        }
    }
}

/// What apps see of their clients here, as `/config` shows it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct View {
    /// `preserve` or `hide`.
    http: &'static str,
    /// Networks whose clients' addresses the app sees.
    preserved: Vec<String>,
    /// What all others are seen as. None: as this pod itself.
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

/// The networks that the kernel takes for this machine's own, by IPv6.
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

/// How long a connection of the trial may take. It does not leave the machine.
const PATIENCE: Duration = Duration::from_secs(1);

/// A listener at the pod's own address, to be called from others.
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

    /// Whether a connection that is bound to `bound` is seen as coming from `seen`.
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

    fn all() -> ClientAddresses {
        ClientAddresses {
            networks: [true; NETWORKS.len()],
            nobody: [true; NOBODY.len()],
        }
    }

    fn shown(addresses: &ClientAddresses, client: &str) -> Option<String> {
        let source = addresses.of(client.parse().expect("an address"));
        source.address.map(|address| address.to_string())
    }

    #[test]
    fn a_client_keeps_its_place_within_its_network() {
        for (client, local) in [
            ("10.244.3.7", "241.244.3.7"),
            ("100.127.255.254", "242.127.255.254"),
            ("172.31.0.1", "243.31.0.1"),
            ("192.168.9.1", "244.168.9.1"),
            ("::ffff:10.1.2.3", "241.1.2.3"),
            ("fd00:10:244::7", "9d00:10:244::7"),
            ("2001:db8::7", "4001:db8::7"),
        ] {
            assert_eq!(shown(&all(), client).as_deref(), Some(local), "{client}");
        }
    }

    #[test]
    fn every_other_client_is_nobody_and_never_the_pod() {
        for client in ["93.184.1.9", "172.32.0.1", "169.254.1.1", "127.0.0.1"] {
            assert_eq!(shown(&all(), client).as_deref(), Some("169.254.6.6"));
        }
        for client in ["fe80::1", "64:ff9b::1"] {
            let nobody = Some("fd6e:6172:7500::6");
            assert_eq!(shown(&all(), client).as_deref(), nobody);
        }
        let mut some = all();
        some.networks[0] = false;
        assert_eq!(shown(&some, "10.1.2.3").as_deref(), Some("169.254.6.6"));
    }

    #[test]
    fn what_the_kernel_does_not_allow_is_not_tried_with_connections() {
        let none = ClientAddresses::default();
        assert_eq!(shown(&none, "10.1.2.3"), None);
        assert_eq!(none.of(NOBODY[0]).shows(), Shown::Own);
        let view = none.view(ClientAddress::Preserve);
        assert_eq!(view.to_string(), "the pod's own, for every client");
    }

    #[test]
    fn a_range_that_is_not_there_is_found_out() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let found = runtime.block_on(ClientAddresses::find(None));
        assert_eq!(found, ClientAddresses::default());
    }
}
