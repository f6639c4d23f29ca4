//! The nodes' own addresses, from the status of the pods on them. Every node has some pod, so the
//! right to read Nodes is not needed.

use std::collections::HashMap;
use std::net::IpAddr;

#[derive(Default)]
pub struct NodeIps(HashMap<IpAddr, usize>);

impl NodeIps {
    /// Records that a pod is on the node with these addresses, or no longer is.
    pub fn set(&mut self, ips: &[IpAddr], there: bool) {
        for (i, ip) in ips.iter().enumerate() {
            // A pod's status lists the first address twice.
            if ips[..i].contains(ip) {
                continue;
            }
            let count = self.0.entry(*ip).or_default();
            match there {
                true => *count += 1,
                false => *count = count.saturating_sub(1),
            }
            if *count == 0 {
                self.0.remove(ip);
            }
        }
    }

    /// The number of pods on the node with that address.
    pub fn count(&self, ip: IpAddr) -> usize {
        self.0.get(&ip).copied().unwrap_or(0)
    }

    pub fn all(&self) -> impl Iterator<Item = IpAddr> {
        self.0.keys().copied()
    }
}
