//! The zone of each node, from the endpoints in EndpointSlices: Nodes are not watched.

use std::collections::{BTreeMap, HashMap};

/// The number of endpoints by node and zone.
#[derive(Default)]
pub struct NodeZones(HashMap<String, BTreeMap<String, usize>>);

impl NodeZones {
    /// Adds or removes one endpoint.
    pub fn set(&mut self, node: &str, zone: &str, there: bool) {
        if there {
            let zones = self.0.entry(node.to_owned()).or_default();
            *zones.entry(zone.to_owned()).or_default() += 1;
            return;
        }
        let Some(zones) = self.0.get_mut(node) else {
            return;
        };
        if let Some(count) = zones.get_mut(zone) {
            *count -= 1;
            if *count == 0 {
                zones.remove(zone);
            }
        }
        if zones.is_empty() {
            self.0.remove(node);
        }
    }

    /// The node's zone, if it is known. If endpoints disagree, the first zone by name, so that
    /// every replica answers alike.
    pub fn of(&self, node: &str) -> Option<&str> {
        let (zone, _) = self.0.get(node)?.first_key_value()?;
        Some(zone)
    }

    /// The number of endpoints that place the node in that zone.
    pub fn count(&self, node: &str, zone: &str) -> usize {
        let zones = self.0.get(node);
        (zones.and_then(|zones| zones.get(zone))).map_or(0, |count| *count)
    }
}
