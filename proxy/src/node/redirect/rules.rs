//! Builds the rules of the table `inet naru`, in order. Pure: `kernel` installs them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nlink::Result;
use nlink::netlink::nftables::{
    BaseChain, ChainName, CmpOp, Expr, Family, MetaKey, NatHook, NatStatement, Policy, Priority,
    Register, Rule,
};

use super::{Exempt, Network, RedirectRules};
use crate::socket::APP_SOCKET_PRIORITY;

/// Naru's own table.
pub const TABLE: &str = "naru";

const OUTPUT: &str = "output";
const PREROUTING: &str = "prerouting";
const POSTROUTING: &str = "postrouting";
/// The chain of both hooks for an incoming connection.
const INBOUND: &str = "inbound";
/// The chain of the output hook for a connection of the app.
const OUTBOUND: &str = "outbound";

const TCP: u8 = 6;
const LOOPBACK_V4: (Ipv4Addr, u8) = (Ipv4Addr::new(127, 0, 0, 0), 8);
const LOOPBACK_V6: (Ipv6Addr, u8) = (Ipv6Addr::LOCALHOST, 128);

/// A rule and the chain it is in.
pub type Placed = (&'static str, Rule);

/// How much of the table to build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Redirection, and the mapping of client addresses.
    Whole,
    /// Redirection alone, for kernels that cannot map prefixes.
    Redirection,
}

/// The chains and their hooks; targets of jumps come first.
pub fn chains(extent: Extent) -> Vec<(&'static str, Option<BaseChain>)> {
    let base = |hook, priority| Some(BaseChain::nat(hook, priority).policy(Policy::Accept));
    let mut chains = vec![
        (INBOUND, None),
        (OUTBOUND, None),
        (OUTPUT, base(NatHook::Output, Priority::DstNat)),
        (PREROUTING, base(NatHook::Prerouting, Priority::DstNat)),
    ];
    if extent == Extent::Whole {
        chains.push((POSTROUTING, base(NatHook::Postrouting, Priority::SrcNat)));
    }
    chains
}

/// Every rule, chain by chain, in the order of evaluation.
pub fn rules(wanted: &RedirectRules, extent: Extent) -> Result<Vec<Placed>> {
    let clients = match extent {
        Extent::Whole => postrouting(wanted),
        Extent::Redirection => Vec::new(),
    };
    let placed = |chain, rules: Vec<Rule>| rules.into_iter().map(move |rule| (chain, rule));
    Ok(placed(INBOUND, inbound(wanted))
        .chain(placed(OUTBOUND, outbound(wanted)))
        .chain(placed(OUTPUT, output(wanted)?))
        .chain(placed(PREROUTING, prerouting()?))
        .chain(placed(POSTROUTING, clients))
        .collect())
}

/// A connection of the proxy to its app with a source in a local range gets the client's address.
fn postrouting(wanted: &RedirectRules) -> Vec<Rule> {
    let networks = wanted.networks().map(|Network { clients, local }| {
        let source = NatStatement::snat(clients.address).to(clients.last());
        exempt(in_chain(POSTROUTING), wanted.exempt)
            .match_oif("lo")
            .match_saddr(local.address, local.prefix)
            .nat(source.netmap())
    });
    networks.collect()
}

fn output(wanted: &RedirectRules) -> Result<Vec<Rule>> {
    // A pod's call to itself stays on lo and bypasses the prerouting hook, so the proxy's
    // connection is sent to the inbound listener here.
    let self_call = || {
        let rule = exempt(in_chain(OUTPUT), wanted.exempt).match_oif("lo");
        meta(rule, MetaKey::Priority, CmpOp::Neq, APP_SOCKET_PRIORITY)
    };
    let outbound = ChainName::new(OUTBOUND)?;
    let inbound = ChainName::new(INBOUND)?;
    Ok(vec![
        self_call()
            .match_daddr_v4_not(LOOPBACK_V4.0, LOOPBACK_V4.1)
            .goto(inbound.clone()),
        self_call()
            .match_daddr_v6_not(LOOPBACK_V6.0, LOOPBACK_V6.1)
            .goto(inbound),
        exempt(in_chain(OUTPUT), wanted.exempt).accept(),
        in_chain(OUTPUT)
            .match_daddr_v4(LOOPBACK_V4.0, LOOPBACK_V4.1)
            .accept(),
        in_chain(OUTPUT)
            .match_daddr_v6(LOOPBACK_V6.0, LOOPBACK_V6.1)
            .accept(),
        in_chain(OUTPUT).match_l4proto(TCP).goto(outbound),
    ])
}

fn prerouting() -> Result<Vec<Rule>> {
    let inbound = ChainName::new(INBOUND)?;
    Ok(vec![
        in_chain(PREROUTING).match_iif("lo").accept(),
        in_chain(PREROUTING).match_l4proto(TCP).goto(inbound),
    ])
}

fn inbound(wanted: &RedirectRules) -> Vec<Rule> {
    let mut skipped = wanted.inbound_ports_skipped.clone();
    skipped.extend([wanted.inbound_port, wanted.outbound_port]);
    let mut rules = skip_ports(INBOUND, skipped);
    rules.push(redirect(INBOUND, wanted.inbound_port));
    rules
}

fn outbound(wanted: &RedirectRules) -> Vec<Rule> {
    let mut rules = skip_ports(OUTBOUND, wanted.outbound_ports_skipped.clone());
    let mut networks = wanted.outbound_cidrs_skipped.clone();
    networks.sort_unstable();
    networks.dedup();
    rules.extend(networks.into_iter().map(|network| {
        match network.address {
            // A prefix of 0 compares no bits: the family alone decides.
            IpAddr::V4(_) if network.prefix == 0 => family_only(in_chain(OUTBOUND), NFPROTO_IPV4),
            IpAddr::V6(_) if network.prefix == 0 => family_only(in_chain(OUTBOUND), NFPROTO_IPV6),
            address => in_chain(OUTBOUND).match_daddr(address, network.prefix),
        }
        .accept()
    }));
    rules.push(redirect(OUTBOUND, wanted.outbound_port));
    rules
}

fn skip_ports(chain: &str, mut ports: Vec<u16>) -> Vec<Rule> {
    ports.sort_unstable();
    ports.dedup();
    ports
        .into_iter()
        .map(|port| in_chain(chain).match_tcp_dport(port).accept())
        .collect()
}

fn redirect(chain: &str, port: u16) -> Rule {
    in_chain(chain).match_l4proto(TCP).redirect(Some(port))
}

fn exempt(rule: Rule, exempt: Exempt) -> Rule {
    match exempt {
        Exempt::Uid(uid) => meta(rule, MetaKey::SkUid, CmpOp::Eq, uid),
        Exempt::Mark(mark) => rule.match_mark(mark),
    }
}

const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;

fn family_only(rule: Rule, family: u8) -> Rule {
    rule.expr(Expr::Meta {
        dreg: Register::R0,
        key: MetaKey::NfProto,
    })
    .expr(Expr::Cmp {
        sreg: Register::R0,
        op: CmpOp::Eq,
        data: vec![family],
    })
}

/// Compares a number that the kernel stores in host order.
fn meta(rule: Rule, key: MetaKey, op: CmpOp, value: u32) -> Rule {
    rule.expr(Expr::Meta {
        dreg: Register::R0,
        key,
    })
    .expr(Expr::Cmp {
        sreg: Register::R0,
        op,
        data: value.to_ne_bytes().to_vec(),
    })
}

fn in_chain(chain: &str) -> Rule {
    Rule::new(TABLE, chain).family(Family::Inet)
}
