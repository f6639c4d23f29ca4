//! The table in the kernel: installed, compared with the rules in force, removed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nlink::netlink::nftables::{
    BaseChain, Chain, Family, NFT_MSG_NEWTABLE, NFTA_TABLE_NAME, RawMessage,
};
use nlink::netlink::route::{Ipv4Route, Ipv6Route, RouteType};
use nlink::netlink::{Connection, Nftables, Route};
use thiserror::Error;

use super::rules::{Extent, TABLE, chains, rules};
use super::{CLASS_E, Cidr, RedirectRules, STAND_INS, own_address};

/// `NLM_F_CREATE` without `NLM_F_EXCL`: create it, or keep the existing one.
const CREATE_OR_KEEP: u16 = 0x400;
/// The kernel's routing table of local addresses.
const LOCAL_TABLE: u32 = 255;

/// Why the rules are not in force.
#[derive(Debug, Error)]
pub enum RedirectError {
    #[error(
        "no permission to change this network namespace: run it with CAP_NET_ADMIN (in Kubernetes \
         an init container with securityContext.capabilities.add: [NET_ADMIN]), or inside a user \
         namespace that owns the network namespace"
    )]
    Permission(#[source] nlink::Error),
    #[error(
        "the kernel of this machine cannot redirect by nftables: it needs nf_tables with inet NAT \
         (Linux 5.2 or later, CONFIG_NF_TABLES_INET, CONFIG_NFT_NAT, CONFIG_NFT_REDIR, \
         CONFIG_NF_CONNTRACK); where these are modules, load them on the host: \
         modprobe -a nf_tables nft_chain_nat nft_redir"
    )]
    Unsupported(#[source] nlink::Error),
    #[error("the kernel refused the redirect rules")]
    Refused(#[source] nlink::Error),
    #[error("there are no redirect rules: {TABLE} is not among the inet tables")]
    Absent,
    #[error("the redirect rules in force differ: expected `{expected}`, found `{found}`")]
    Different { expected: String, found: String },
}

impl From<nlink::Error> for RedirectError {
    fn from(error: nlink::Error) -> Self {
        // The error for an unknown netlink subsystem is EINVAL, for an unknown family or expression
        // one of the others.
        const EPROTONOSUPPORT: i32 = 93;
        const EAFNOSUPPORT: i32 = 97;
        if error.is_permission_denied() {
            Self::Permission(error)
        } else if error.is_not_supported()
            || error.is_not_found()
            || error.is_invalid_argument()
            || matches!(error.errno(), Some(EPROTONOSUPPORT | EAFNOSUPPORT))
        {
            Self::Unsupported(error)
        } else {
            Self::Refused(error)
        }
    }
}

/// Installs the rules, replacing those of an earlier run. Atomic: at no moment is a part of them
/// missing. Where the kernel redirects but can't map addresses, apps don't see those of their
/// clients, which is reported without failing.
pub async fn install(wanted: &RedirectRules) -> Result<(), RedirectError> {
    let wanted = &seen_here(wanted).await;
    match put_in_force(wanted, Extent::Whole).await {
        Err(error @ (RedirectError::Unsupported(_) | RedirectError::Refused(_))) => {
            put_in_force(wanted, Extent::Redirection).await?;
            eprintln!(
                "naru-proxy: this kernel maps no prefixes (nftables NAT with netmap, Linux 5.8 or \
                 later), so that apps do not see the addresses of their clients: {error}"
            );
        }
        done => done?,
    }
    let networks = local_networks(wanted).await;
    // The flags of an earlier run may have been different. A kernel that refuses routes altogether
    // has none to remove, and redirects all the same.
    if let Err(error) = remove_local(&networks).await {
        eprintln!("naru-proxy: cannot remove the local routes of an earlier run: {error}");
    }
    let mut refused = None;
    for network in networks {
        if let Err(error) = add_local(network).await {
            refused = Some((network, error));
        }
    }
    if let Some((network, error)) = refused {
        eprintln!(
            "naru-proxy: the kernel refused the local route {network}, so that apps do not see the \
             addresses of all clients: {error}"
        );
    }
    Ok(())
}

/// The rules for this pod, which may itself have a class E address.
async fn seen_here(wanted: &RedirectRules) -> RedirectRules {
    let own = own_address(true).await;
    let in_class_e = own.is_some_and(|own| CLASS_E.contains(own.ip()));
    RedirectRules {
        class_e_in_use: wanted.class_e_in_use || in_class_e,
        ..wanted.clone()
    }
}

/// The networks to make local for client addresses: of the pod's families, without any that the pod
/// has an address in or calls.
async fn local_networks(wanted: &RedirectRules) -> Vec<Cidr> {
    let (v4, v6) = (own_address(true).await, own_address(false).await);
    let stand_ins = STAND_INS.map(|address| Cidr {
        address,
        prefix: if address.is_ipv4() { 32 } else { 128 },
    });
    // Shorter prefixes stand for the whole family rather than for a network in it.
    let skipped = wanted.outbound_cidrs_skipped.iter();
    let called: Vec<_> = skipped.filter(|network| network.prefix >= 3).collect();
    wanted
        .networks()
        .map(|network| network.local)
        .filter(|range| !called.iter().any(|called| range.overlaps(called)))
        .chain(stand_ins)
        .filter(|range| match range.address.is_ipv4() {
            true => v4.is_some(),
            false => v6.is_some(),
        })
        .collect()
}

async fn add_local(network: Cidr) -> Result<(), nlink::Error> {
    let connection = Connection::<Route>::new()?;
    match network.address {
        IpAddr::V4(address) => {
            connection
                .replace_route(local_v4(address, network.prefix))
                .await
        }
        IpAddr::V6(address) => {
            connection
                .replace_route(local_v6(address, network.prefix))
                .await
        }
    }
}

fn local_v4(address: Ipv4Addr, prefix: u8) -> Ipv4Route {
    Ipv4Route::new(address, prefix)
        .route_type(RouteType::Local)
        .table(LOCAL_TABLE)
        .dev("lo")
}

fn local_v6(address: Ipv6Addr, prefix: u8) -> Ipv6Route {
    Ipv6Route::new(address, prefix)
        .route_type(RouteType::Local)
        .table(LOCAL_TABLE)
        .dev("lo")
}

async fn put_in_force(wanted: &RedirectRules, extent: Extent) -> Result<(), RedirectError> {
    let connection = Connection::<Nftables>::new()?;
    // Created if absent, so that deleting it cannot fail; then deleted with its content.
    let mut transaction = connection
        .transaction()
        .raw(
            RawMessage::new(NFT_MSG_NEWTABLE, Family::Inet)
                .flags(CREATE_OR_KEEP)
                .attrs(text_attribute(NFTA_TABLE_NAME, TABLE)),
        )
        .del_table(TABLE, Family::Inet)
        .add_table(TABLE, Family::Inet);
    for (name, base) in chains(extent) {
        let chain = Chain::new(TABLE, name)?.family(Family::Inet);
        transaction = transaction.add_chain(match base {
            Some(base) => chain.base(base),
            None => chain,
        });
    }
    for (_, rule) in rules(wanted, extent)? {
        transaction = transaction.add_rule(rule);
    }
    transaction.commit(&connection).await?;
    Ok(())
}

/// Removes the rules, if there are any. Redirected connections continue.
pub async fn remove() -> Result<(), RedirectError> {
    let connection = Connection::<Nftables>::new()?;
    connection.del_table_if_exists(TABLE, Family::Inet).await?;
    remove_local(&[]).await
}

/// Removes the local routes of earlier runs, but for those of `kept`.
async fn remove_local(kept: &[Cidr]) -> Result<(), RedirectError> {
    let routes = Connection::<Route>::new()?;
    let all = RedirectRules::of_pod(super::LeftAlone::default());
    let networks = local_networks(&all).await;
    for network in networks.iter().filter(|network| !kept.contains(network)) {
        match network.address {
            IpAddr::V4(address) => {
                let route = local_v4(address, network.prefix);
                routes.del_route_if_exists(route).await?;
            }
            IpAddr::V6(address) => {
                let route = local_v6(address, network.prefix);
                routes.del_route_if_exists(route).await?;
            }
        }
    }
    Ok(())
}

/// Whether exactly these rules are in force, with or without those for client addresses.
pub async fn check(wanted: &RedirectRules) -> Result<(), RedirectError> {
    let wanted = &seen_here(wanted).await;
    let connection = Connection::<Nftables>::new()?;
    let tables = connection.list_tables_in(Family::Inet).await?;
    if !tables.iter().any(|table| table.name == TABLE) {
        return Err(RedirectError::Absent);
    }
    let mut found = Vec::new();
    for chain in connection.list_chains_in(TABLE, Family::Inet).await? {
        let base = chain.kind().and_then(|kind| kind.base().cloned());
        found.push(chain_line(&chain.name, base.as_ref()));
    }
    for rule in connection.list_rules(TABLE, Family::Inet).await? {
        found.push(rule_line(&rule.chain, rule.nft_syntax()));
    }
    let different = first_difference(lines(wanted, Extent::Whole)?, found.clone());
    match (different, lines(wanted, Extent::Redirection)?) {
        (Some(_), without) if without == found => Ok(()),
        (Some(different), _) => Err(different),
        (None, _) => Ok(()),
    }
}

/// The table as [`check`] compares it.
fn lines(wanted: &RedirectRules, extent: Extent) -> Result<Vec<String>, RedirectError> {
    let chains = chains(extent);
    let chains = chains
        .iter()
        .map(|(name, base)| chain_line(name, base.as_ref()));
    let rules = rules(wanted, extent)?.into_iter();
    Ok(chains
        .chain(rules.map(|(chain, rule)| rule_line(chain, rule.nft_syntax())))
        .collect())
}

fn chain_line(name: &str, base: Option<&BaseChain>) -> String {
    match base {
        None => format!("chain {name}"),
        Some(base) => format!("chain {name}: {base:?}"),
    }
}

fn rule_line(chain: &str, rule: Option<String>) -> String {
    format!("{chain}: {}", rule.as_deref().unwrap_or("a rule of others"))
}

/// The kernel lists chains in the order of their creation, and the rules of each in theirs.
fn first_difference(expected: Vec<String>, found: Vec<String>) -> Option<RedirectError> {
    let longest = expected.len().max(found.len());
    let padded = |lines: Vec<String>| {
        let missing = longest - lines.len();
        lines
            .into_iter()
            .chain(std::iter::repeat_n("nothing".to_owned(), missing))
    };
    padded(expected)
        .zip(padded(found))
        .find(|(expected, found)| expected != found)
        .map(|(expected, found)| RedirectError::Different { expected, found })
}

/// A netlink attribute with a text: length, type, the text with its terminating zero, padding.
fn text_attribute(kind: u16, text: &str) -> Vec<u8> {
    const HEADER: usize = 4;
    let length = HEADER + text.len() + 1;
    let mut bytes = Vec::with_capacity(length.next_multiple_of(4));
    bytes.extend((length as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(text.as_bytes());
    bytes.push(0);
    bytes.resize(length.next_multiple_of(4), 0);
    bytes
}
