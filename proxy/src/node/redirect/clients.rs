//! The local ranges that stand for client addresses inside the pod, so that the app sees a
//! connection of its proxy come from its client: see [`crate::upstream::client_address`]. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Cidr;

/// The source addresses for clients whose own address can't be shown. No pod, node or machine has
/// these: one is link-local (RFC 3927), the other of a random private network (RFC 4193).
pub const STAND_INS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 6, 6)),
    IpAddr::V6(Ipv6Addr::new(0xfd6e, 0x6172, 0x7500, 0, 0, 0, 0, 6)),
];

/// A network of clients, and the range of the same size that stands for it inside the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    pub clients: Cidr,
    pub local: Cidr,
}

/// The networks of pods and nodes: those for private use (RFC 1918, RFC 6598, RFC 4193) and all of
/// IPv6 that is in use (2000::/3). They are mapped to unused ranges: class E (RFC 1112), and IPv6
/// that has never been assigned.
pub const NETWORKS: [Network; 6] = [
    v4([10, 0], [241, 0], 8),
    v4([100, 64], [242, 64], 10),
    v4([172, 16], [243, 16], 12),
    v4([192, 168], [244, 168], 16),
    v6(0xfc00, 0x9c00, 7),
    v6(0x2000, 0x4000, 3),
];

const fn v4(clients: [u8; 2], local: [u8; 2], prefix: u8) -> Network {
    Network {
        clients: Cidr {
            address: IpAddr::V4(Ipv4Addr::new(clients[0], clients[1], 0, 0)),
            prefix,
        },
        local: Cidr {
            address: IpAddr::V4(Ipv4Addr::new(local[0], local[1], 0, 0)),
            prefix,
        },
    }
}

const fn v6(clients: u16, local: u16, prefix: u8) -> Network {
    Network {
        clients: Cidr {
            address: IpAddr::V6(Ipv6Addr::new(clients, 0, 0, 0, 0, 0, 0, 0)),
            prefix,
        },
        local: Cidr {
            address: IpAddr::V6(Ipv6Addr::new(local, 0, 0, 0, 0, 0, 0, 0)),
            prefix,
        },
    }
}

/// Class E. Where pods themselves have addresses in it, it stands for no other network.
pub const CLASS_E: Cidr = Cidr {
    address: IpAddr::V4(Ipv4Addr::new(240, 0, 0, 0)),
    prefix: 4,
};

impl Network {
    /// The address in the local range for an address of this network.
    pub fn moved(&self, client: IpAddr) -> IpAddr {
        let prefix = u32::from(self.local.prefix);
        match (self.local.address, client) {
            (IpAddr::V4(local), IpAddr::V4(client)) => {
                let host = client.to_bits() & u32::MAX.checked_shr(prefix).unwrap_or(0);
                IpAddr::V4((local.to_bits() | host).into())
            }
            (IpAddr::V6(local), IpAddr::V6(client)) => {
                let host = client.to_bits() & u128::MAX.checked_shr(prefix).unwrap_or(0);
                IpAddr::V6((local.to_bits() | host).into())
            }
            _ => client,
        }
    }

    /// Addresses for a test. No packet leaves the pod. The app answers only if there is a route; a
    /// pod without a default route has one to its neighbours.
    pub fn examples(&self, own: IpAddr) -> impl Iterator<Item = IpAddr> {
        let first = match self.clients.address {
            IpAddr::V4(address) => IpAddr::V4((address.to_bits() | 1).into()),
            IpAddr::V6(address) => IpAddr::V6((address.to_bits() | 1).into()),
        };
        let neighbour = match own {
            IpAddr::V4(own) => IpAddr::V4((own.to_bits() ^ 1).into()),
            IpAddr::V6(own) => IpAddr::V6((own.to_bits() ^ 1).into()),
        };
        let neighbour = self.clients.contains(own).then_some(neighbour);
        [first].into_iter().chain(neighbour)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_local_range_covers_another_or_a_network_of_clients() {
        for (index, network) in NETWORKS.iter().enumerate() {
            assert_eq!(network.clients.prefix, network.local.prefix);
            let others = NETWORKS.iter().enumerate();
            for (_, other) in others.filter(|(other, _)| *other != index) {
                assert!(!other.local.contains(network.local.address));
            }
            for other in &NETWORKS {
                assert!(!other.clients.contains(network.local.address));
                assert!(!network.local.contains(other.clients.address));
            }
            for stand_in in STAND_INS {
                assert!(!network.local.contains(stand_in));
            }
        }
    }
}
