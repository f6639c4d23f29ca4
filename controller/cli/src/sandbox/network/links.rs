//! The node's links: a bridge with a veth pair for every pod, routes, and the rule that redirects
//! ClusterIPs to the node's forwarder.
//!
//! ```text
//! pod: eth0 10.244.0.n, fd00:10:244::n ── veth ── naru0 10.244.0.1, fd00:10:244::1 (the node)
//! ```

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, ensure};
use nlink::netlink::addr::{Ipv4Address, Ipv6Address};
use nlink::netlink::link::{BridgeLink, VethLink};
use nlink::netlink::nftables::{BaseChain, Chain, Family, NatHook, Policy, Priority, Rule};
use nlink::netlink::route::{Ipv4Route, Ipv6Route};
use nlink::netlink::{Connection, Nftables, Route};

use super::address::{Addresses, FORWARDER_PORT, NODE_V4, NODE_V6, SERVICES_V4, SERVICES_V6};
use crate::sandbox::process::Namespaces;

const BRIDGE: &str = "naru0";
const POD_PREFIX_V4: u8 = 16;
const POD_PREFIX_V6: u8 = 64;
const TABLE: &str = "naru-node";
const CHAIN: &str = "services";
const TCP: u8 = 6;

/// Whether the kernel supports IPv6.
pub fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6/conf/all/forwarding").exists()
}

/// Sets up the node's network in the network namespace of the caller.
pub async fn set_up(ipv6: bool) -> anyhow::Result<()> {
    // A router rejects unroutable packets at once, while a host drops them.
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("forwarding IPv4")?;
    if ipv6 {
        fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").context("forwarding IPv6")?;
    }
    let route = Connection::<Route>::new().context("opening a netlink socket")?;
    route.set_link_up("lo").await.context("setting up lo")?;
    route
        .add_link(BridgeLink::new(BRIDGE))
        .await
        .context("making a bridge (the kernel needs the module bridge)")?;
    route
        .add_address(Ipv4Address::new(BRIDGE, NODE_V4, POD_PREFIX_V4))
        .await
        .context("addressing the bridge")?;
    if ipv6 {
        route
            .add_address(Ipv6Address::new(BRIDGE, NODE_V6, POD_PREFIX_V6).nodad())
            .await
            .context("addressing the bridge with IPv6")?;
    }
    route
        .set_link_up(BRIDGE)
        .await
        .context("setting up the bridge")?;
    redirect_services(ipv6)
        .await
        .context("redirecting ClusterIPs (the kernel needs nf_tables with inet NAT)")
}

async fn redirect_services(ipv6: bool) -> anyhow::Result<()> {
    let rule = || Rule::new(TABLE, CHAIN).family(Family::Inet);
    let nft = Connection::<Nftables>::new()?;
    let base = BaseChain::nat(NatHook::Prerouting, Priority::DstNat).policy(Policy::Accept);
    let mut transaction = nft
        .transaction()
        .add_table(TABLE, Family::Inet)
        .add_chain(Chain::new(TABLE, CHAIN)?.family(Family::Inet).base(base))
        .add_rule(
            rule()
                .match_daddr_v4(SERVICES_V4.0, SERVICES_V4.1)
                .match_l4proto(TCP)
                .redirect(Some(FORWARDER_PORT)),
        );
    if ipv6 {
        transaction = transaction.add_rule(
            rule()
                .match_daddr_v6(SERVICES_V6.0, SERVICES_V6.1)
                .match_l4proto(TCP)
                .redirect(Some(FORWARDER_PORT)),
        );
    }
    transaction.commit(&nft).await?;
    Ok(())
}

/// Sets up a pod's veth pair, addresses and routes.
pub async fn connect_pod(
    namespaces: &Namespaces,
    number: u16,
    addresses: Addresses,
) -> anyhow::Result<()> {
    let cable = format!("pod{number}");
    let network = namespaces.network()?;
    let node = Connection::<Route>::new()?;
    node.add_link(VethLink::new(&cable, "eth0").peer_netns_fd(&network))
        .await
        .context("making a veth pair (the kernel needs the module veth)")?;
    node.set_link_master(cable.as_str(), BRIDGE).await?;
    node.set_link_up(cable.as_str()).await?;

    let pod = Connection::<Route>::new_in(network.as_fd())?;
    pod.set_link_up("lo").await?;
    pod.add_address(Ipv4Address::new("eth0", addresses.v4, POD_PREFIX_V4))
        .await?;
    if let Some(v6) = addresses.v6 {
        pod.add_address(Ipv6Address::new("eth0", v6, POD_PREFIX_V6).nodad())
            .await?;
    }
    pod.set_link_up("eth0").await?;
    pod.add_route(Ipv4Route::default_route().gateway(NODE_V4))
        .await?;
    if addresses.v6.is_some() {
        pod.add_route(Ipv6Route::default_route().gateway(NODE_V6).dev("eth0"))
            .await?;
    }
    let links = pod.get_links().await?;
    ensure!(
        links.iter().any(|link| link.name() == Some("eth0")),
        "the pod got no eth0"
    );
    Ok(())
}

/// Deletes a pod's veth pair at once: its namespace may stay a moment longer.
pub async fn disconnect_pod(number: u16) {
    if let Ok(node) = Connection::<Route>::new() {
        let _gone_with_the_pod = node
            .del_link_if_exists(format!("pod{number}").as_str())
            .await;
    }
}
