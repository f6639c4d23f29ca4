//! Redirect rules: which connections of a pod are sent to the proxy instead of their destination.
//!
//! In: the pod owner's exceptions (ports and networks to skip) and how to identify the proxy's own
//! sockets. Out: one nftables table, `inet naru`, in the network namespace of the caller, replaced
//! in one transaction. No command is executed: the kernel is configured by netlink. Where a CNI
//! plugin installs the rules ([`crate::node::cni`]), `verify` proves from inside the pod, without
//! privileges, that they are in force.
//!
//! ```text
//! app ─ connect ─▶ output ─┬─ proxy's own? ─┬─ over lo, not loopback, not app-bound ─▶ inbound
//!                          │                └─ else: let through
//!                          ├─ loopback destination: let through
//!                          └─▶ outbound chain ─ skipped port or network: let through
//!                                             └─ any other TCP ─▶ outbound port
//! wire ───────────▶ prerouting ─▶ inbound chain ─ skipped port, proxy's own port: let through
//!                                               └─ any other TCP ─▶ inbound port
//! ```
//!
//! In addition to the table there are routes which make a range of addresses local to the pod for
//! each network of clients, and the `postrouting` chain rewrites a source in one of them to the
//! client's address: see [`crate::upstream::client_address`].
//!
//! ## Requirements on the proxy
//!
//! * The **outbound** listener belongs on loopback (`127.0.0.1` and `[::1]`): a redirect in the
//!   output hook goes to the loopback address of its family, which is unreachable from outside.
//! * The **inbound** listener belongs on the wildcard addresses: a redirect in the prerouting hook
//!   goes to the address of the interface on which the connection arrived.
//! * A connection whose original destination is the listener itself was made to it directly: the
//!   listener must close it, or the proxy would call itself endlessly.
//! * A pod that calls itself: the outbound side connects to the pod's own address like to any
//!   other, and the rules redirect that connection to the inbound listener, with the original
//!   destination kept. The inbound side's own connection to the app must *not* be redirected again,
//!   so it carries [`APP_SOCKET_PRIORITY`](crate::socket::APP_SOCKET_PRIORITY) (`SO_PRIORITY`, set
//!   before `connect`; 0 to 6 need no capability). The priority is matched in the output hook and
//!   leaves no trace on the wire; it works for both families with any source address, so no address
//!   has to be added or bound. No other socket of the proxy may set it.
//!
//! # Floors
//!
//! ```text
//! kernel              writes the rules to the kernel, and reads them back
//! rules verify
//! request
//! clients
//! ```

mod clients;
mod kernel;
mod request;
mod rules;
mod verify;

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use naru_contract::PROXY_ADMIN_PORT;

use crate::socket::parse_mark;

pub use clients::{CLASS_E, NETWORKS, Network, STAND_INS};
pub use kernel::{RedirectError, check, install, remove};
pub use request::{LeftAlone, Request, SOCKET_NAME};
pub use verify::{Unverified, own_address, verify};

/// The user that the proxy's container runs as.
const DEFAULT_PROXY_UID: u32 = 1337;
const DEFAULT_OUTBOUND_PORT: u16 = 15001;
const DEFAULT_INBOUND_PORT: u16 = 15006;
/// How long `--verify` waits for the rules. Then its container ends, so that the reason appears in
/// the pod's status.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(15);

/// How the rules distinguish the proxy's own connections from the app's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exempt {
    /// By the user that opened the socket.
    Uid(u32),
    /// By `SO_MARK`, where the proxy cannot have a user of its own.
    Mark(u32),
}

/// What is redirected and to which ports, and the exceptions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedirectRules {
    pub outbound_port: u16,
    pub inbound_port: u16,
    pub exempt: Exempt,
    /// Ports of this pod that bypass the proxy; the proxy's admin port is one.
    pub inbound_ports_skipped: Vec<u16>,
    /// Destination ports that bypass the proxy.
    pub outbound_ports_skipped: Vec<u16>,
    /// Destination networks that bypass the proxy.
    pub outbound_cidrs_skipped: Vec<Cidr>,
    /// [`CLASS_E`] is in use by others: none of it is made local for client addresses.
    pub class_e_in_use: bool,
}

impl RedirectRules {
    /// The rules of an injected pod, whose ports and user are the defaults.
    pub fn of_pod(left_alone: LeftAlone) -> Self {
        let mut inbound_ports_skipped = left_alone.inbound_ports;
        inbound_ports_skipped.push(PROXY_ADMIN_PORT);
        Self {
            outbound_port: DEFAULT_OUTBOUND_PORT,
            inbound_port: DEFAULT_INBOUND_PORT,
            exempt: Exempt::Uid(DEFAULT_PROXY_UID),
            inbound_ports_skipped,
            outbound_ports_skipped: left_alone.outbound_ports,
            outbound_cidrs_skipped: left_alone.outbound_cidrs,
            class_e_in_use: left_alone.class_e_in_use,
        }
    }

    /// The networks whose clients have an address in a local range.
    fn networks(&self) -> impl Iterator<Item = &'static Network> {
        let v6_alone = self.class_e_in_use;
        NETWORKS
            .iter()
            .filter(move |network| !(v6_alone && network.local.address.is_ipv4()))
    }
}

/// A network: an address and its prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cidr {
    pub address: IpAddr,
    pub prefix: u8,
}

impl FromStr for Cidr {
    type Err = String;

    /// `10.0.0.0/8`, `fd00::/8`, or one address. Bits after the prefix are cleared.
    fn from_str(text: &str) -> Result<Self, String> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address
            .parse()
            .map_err(|_| format!("{text:?} is no network: expected ADDRESS or ADDRESS/BITS"))?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => bits,
            Some(prefix) => prefix
                .parse()
                .ok()
                .filter(|prefix| *prefix <= bits)
                .ok_or_else(|| format!("{text:?} is no network: the prefix is 0 to {bits}"))?,
        };
        Ok(Self {
            address: masked(address, prefix),
            prefix,
        })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl Cidr {
    /// The last address of this network.
    pub fn last(&self) -> IpAddr {
        let prefix = u32::from(self.prefix);
        match self.address {
            IpAddr::V4(v4) => {
                let hosts = u32::MAX.checked_shr(prefix).unwrap_or(0);
                IpAddr::V4((v4.to_bits() | hosts).into())
            }
            IpAddr::V6(v6) => {
                let hosts = u128::MAX.checked_shr(prefix).unwrap_or(0);
                IpAddr::V6((v6.to_bits() | hosts).into())
            }
        }
    }

    /// Whether an address is in this network.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4() && masked(address, self.prefix) == self.address
    }

    /// Whether the networks have addresses in common.
    fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }
}

fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    let prefix = u32::from(prefix);
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - prefix).unwrap_or(0);
            IpAddr::V4((v4.to_bits() & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - prefix).unwrap_or(0);
            IpAddr::V6((v6.to_bits() & mask).into())
        }
    }
}

/// Flags of `naru-proxy init`.
#[derive(Args, Clone, Debug)]
pub struct InitArgs {
    /// User ID of the proxy, whose connections are not redirected.
    #[arg(long, env = "NARU_PROXY_UID", default_value_t = DEFAULT_PROXY_UID)]
    proxy_uid: u32,
    /// Exempt connections with this socket mark, instead of those of a user.
    #[arg(long, env = "NARU_PROXY_MARK", value_name = "MARK", value_parser = parse_mark)]
    proxy_mark: Option<u32>,
    /// The proxy's port for redirected connections of the app.
    #[arg(long, env = "NARU_OUTBOUND_PORT", default_value_t = DEFAULT_OUTBOUND_PORT)]
    outbound_port: u16,
    /// The proxy's port for redirected connections to the pod.
    #[arg(long, env = "NARU_INBOUND_PORT", default_value_t = DEFAULT_INBOUND_PORT)]
    inbound_port: u16,
    /// The proxy's port for metrics and probes, which is never redirected.
    #[arg(long, env = "NARU_ADMIN_PORT", default_value_t = PROXY_ADMIN_PORT)]
    admin_port: u16,
    /// Ports of this pod that bypass the proxy: `8081,9000`.
    #[arg(
        long,
        env = "NARU_SKIP_INBOUND_PORTS",
        default_value = "",
        value_parser = parse_list::<u16>
    )]
    skip_inbound_ports: List<u16>,
    /// Destination ports that bypass the proxy: `25,587`.
    #[arg(
        long,
        env = "NARU_SKIP_OUTBOUND_PORTS",
        default_value = "",
        value_parser = parse_list::<u16>
    )]
    skip_outbound_ports: List<u16>,
    /// Destination networks that bypass the proxy: `169.254.169.254/32,fd00:ec2::/32`.
    #[arg(
        long,
        env = "NARU_SKIP_OUTBOUND_CIDRS",
        default_value = "",
        value_parser = parse_list::<Cidr>
    )]
    skip_outbound_cidrs: List<Cidr>,
    /// Addresses in 240.0.0.0/4 are in use by pods, nodes or other hosts: IPv4 clients then appear
    /// to the app as 169.254.6.6.
    #[arg(long, env = "NARU_CLASS_E_IN_USE")]
    class_e_in_use: bool,
    /// Remove the rules.
    #[arg(long, conflicts_with_all = ["check", "verify"])]
    undo: bool,
    /// Verify that exactly these rules are in force, without a change.
    #[arg(long, conflicts_with = "verify")]
    check: bool,
    /// Verify without privileges that connections are redirected. Missing rules are requested from
    /// the node's agent (`naru-proxy cni-install`).
    #[arg(long)]
    verify: bool,
}

/// A list of values in one flag or variable, separated by commas; an empty text is an empty list.
#[derive(Clone, Debug)]
struct List<T>(Vec<T>);

fn parse_list<T: FromStr<Err: std::fmt::Display>>(text: &str) -> Result<List<T>, String> {
    text.split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
        .map(|item| item.parse().map_err(|error| format!("{item:?}: {error}")))
        .collect::<Result<_, _>>()
        .map(List)
}

impl InitArgs {
    /// The rules that the flags ask for.
    pub fn rules(&self) -> RedirectRules {
        let mut inbound_ports_skipped = self.skip_inbound_ports.0.clone();
        inbound_ports_skipped.push(self.admin_port);
        RedirectRules {
            outbound_port: self.outbound_port,
            inbound_port: self.inbound_port,
            exempt: match self.proxy_mark {
                Some(mark) => Exempt::Mark(mark),
                None => Exempt::Uid(self.proxy_uid),
            },
            inbound_ports_skipped,
            outbound_ports_skipped: self.skip_outbound_ports.0.clone(),
            outbound_cidrs_skipped: self.skip_outbound_cidrs.0.clone(),
            class_e_in_use: self.class_e_in_use,
        }
    }
}

/// `naru-proxy init`: sets, checks, verifies or removes the rules of the network namespace it runs
/// in.
pub fn run(args: InitArgs) -> anyhow::Result<()> {
    let rules = args.rules();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting a runtime")?;
    runtime.block_on(async {
        if args.undo {
            remove().await.context("removing the redirect rules")
        } else if args.check {
            check(&rules).await.context("checking the redirect rules")
        } else if args.verify {
            let left_alone = LeftAlone {
                inbound_ports: args.skip_inbound_ports.0,
                outbound_ports: args.skip_outbound_ports.0,
                outbound_cidrs: args.skip_outbound_cidrs.0,
                class_e_in_use: args.class_e_in_use,
            };
            Ok(verify(&rules, left_alone, VERIFY_TIMEOUT).await?)
        } else {
            install(&rules).await.context("setting the redirect rules")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_parsed_and_cleared_after_their_prefix() {
        let parsed = |text: &str| {
            text.parse::<Cidr>()
                .map(|c| (c.address.to_string(), c.prefix))
        };
        assert_eq!(parsed("10.1.2.3/8"), Ok(("10.0.0.0".to_owned(), 8)));
        assert_eq!(parsed("10.1.2.3"), Ok(("10.1.2.3".to_owned(), 32)));
        assert_eq!(parsed("1.2.3.4/0"), Ok(("0.0.0.0".to_owned(), 0)));
        assert_eq!(parsed("fd00:1::5/16"), Ok(("fd00::".to_owned(), 16)));
        assert_eq!(parsed("fd00::5/0"), Ok(("::".to_owned(), 0)));
        for wrong in [
            "",
            "10.0.0.0/33",
            "fd00::/129",
            "10.0.0.0/x",
            "host/8",
            "10.0.0.0/",
        ] {
            assert!(parsed(wrong).is_err(), "{wrong:?} was taken as a network");
        }
    }

    #[test]
    fn lists_may_be_empty_and_an_error_names_the_wrong_item() {
        assert_eq!(parse_list::<u16>("").unwrap().0, Vec::<u16>::new());
        assert_eq!(parse_list::<u16>(" 1, 2,").unwrap().0, [1, 2]);
        let error = parse_list::<u16>("80,http").unwrap_err();
        assert!(error.starts_with("\"http\":"), "{error}");
    }

    #[test]
    fn a_mark_is_parsed_in_both_notations_and_is_never_zero() {
        assert_eq!(parse_mark("0x6e61"), Ok(0x6e61));
        assert_eq!(parse_mark("7"), Ok(7));
        assert!(parse_mark("0").is_err());
        assert!(parse_mark("0x").is_err());
    }
}
