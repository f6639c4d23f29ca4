//! The addresses of the node, of pods and of Services.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The node's name.
pub const NODE_NAME: &str = "naru-sandbox";
/// The node's own address, which is its pods' gateway and name server.
pub const NODE_V4: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
pub const NODE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 1);
/// Pods have addresses 10.244.x.y, numbered from 2 to this after the prefix.
const LAST_POD: u16 = u16::MAX - 1;
/// The networks of ClusterIPs.
pub const SERVICES_V4: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 96, 0, 0), 16);
pub const SERVICES_V6: (Ipv6Addr, u8) = (Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0), 112);
/// Where the node's forwarder listens for connections to ClusterIPs.
pub const FORWARDER_PORT: u16 = 15_090;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// The addresses of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    pub v4: Ipv4Addr,
    pub v6: Option<Ipv6Addr>,
}

/// Assigns addresses to pods. A released address is reused last.
#[derive(Debug)]
pub struct Addressing {
    ipv6: bool,
    last: u16,
    used: BTreeSet<u16>,
}

impl Addressing {
    pub fn new(ipv6: bool) -> Self {
        Self {
            ipv6,
            last: 1,
            used: BTreeSet::new(),
        }
    }

    pub fn ipv6(&self) -> bool {
        self.ipv6
    }

    /// A number that no pod has, and its addresses. There are fewer pods than numbers.
    pub fn take(&mut self) -> (u16, Addresses) {
        loop {
            self.last = if self.last >= LAST_POD {
                2
            } else {
                self.last + 1
            };
            if self.used.insert(self.last) {
                return (self.last, self.of(self.last));
            }
        }
    }

    pub fn give_back(&mut self, number: u16) {
        self.used.remove(&number);
    }

    fn of(&self, number: u16) -> Addresses {
        let [high, low] = number.to_be_bytes();
        let [a, b, c, d, e, f, g, _] = NODE_V6.segments();
        Addresses {
            v4: Ipv4Addr::new(NODE_V4.octets()[0], NODE_V4.octets()[1], high, low),
            v6: self
                .ipv6
                .then(|| Ipv6Addr::new(a, b, c, d, e, f, g, number)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_released_address_is_not_given_to_the_next_pod() {
        let mut addressing = Addressing::new(true);
        let (first, addresses) = addressing.take();
        assert_eq!(addresses.v4, Ipv4Addr::new(10, 244, 0, 2));
        assert_eq!(addresses.v6, Some("fd00:10:244::2".parse().unwrap()));
        addressing.give_back(first);
        assert_eq!(addressing.take().1.v4, Ipv4Addr::new(10, 244, 0, 3));
    }

    #[test]
    fn addresses_wrap_around_and_skip_those_in_use() {
        let mut addressing = Addressing::new(false);
        addressing.take();
        addressing.last = LAST_POD;
        let (number, addresses) = addressing.take();
        assert_eq!((number, addresses.v6), (3, None));
    }
}
