//! The difference between two versions of one `endpoints/…`.

use std::collections::HashMap;

use naru_contract::{Endpoint, Endpoints, EndpointsDelta};

type Key<'a> = (&'a [u8], u32);

/// The delta from `old` (in version `base_version`) to `new`. `None`: the change cannot be
/// expressed as a delta.
pub fn between(old: &Endpoints, base_version: u64, new: &Endpoints) -> Option<EndpointsDelta> {
    let about = |e: &Endpoints| (e.port, e.protocol, e.node_local);
    let same_name = old.namespace == new.namespace && old.service == new.service;
    if !same_name || about(old) != about(new) {
        return None;
    }
    let before = by_address(old)?;
    let after = by_address(new)?;
    let upserted = new
        .endpoints
        .iter()
        .filter(|endpoint| before.get(&key(endpoint)) != Some(endpoint))
        .cloned()
        .collect();
    let removed = old
        .endpoints
        .iter()
        .filter(|endpoint| !after.contains_key(&key(endpoint)))
        .map(|endpoint| Endpoint {
            ip: endpoint.ip.clone(),
            port: endpoint.port,
            ..Endpoint::default()
        })
        .collect();
    Some(EndpointsDelta {
        base_version,
        upserted,
        removed,
    })
}

fn key(endpoint: &Endpoint) -> Key<'_> {
    (&endpoint.ip, endpoint.port)
}

/// `None`: two endpoints have the same address.
fn by_address(endpoints: &Endpoints) -> Option<HashMap<Key<'_>, &Endpoint>> {
    let endpoints = &endpoints.endpoints;
    let map: HashMap<_, _> = endpoints.iter().map(|e| (key(e), e)).collect();
    (map.len() == endpoints.len()).then_some(map)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn endpoints() -> impl Strategy<Value = Endpoints> {
        let member = ("[ab]", "[mn]", proptest::collection::vec("[yz]", 0..3));
        proptest::collection::btree_map((0u8..20, 80u32..82), member, 0..12).prop_map(|pods| {
            let pods = pods.into_iter();
            let endpoints = pods.map(|((last, port), (pod, node, hints))| Endpoint {
                ip: vec![10, 0, 0, last].into(),
                port,
                pod,
                node,
                for_zones: hints.clone(),
                for_nodes: hints,
                ..Endpoint::default()
            });
            Endpoints {
                endpoints: endpoints.collect(),
                ..Endpoints::default()
            }
        })
    }

    proptest! {
        #[test]
        fn a_delta_applied_to_the_old_gives_the_new(old in endpoints(), new in endpoints()) {
            let delta = between(&old, 7, &new).unwrap();
            prop_assert_eq!(delta.base_version, 7);
            let mut result: std::collections::BTreeMap<_, _> =
                old.endpoints.iter().map(|e| ((e.ip.clone(), e.port), e.clone())).collect();
            for gone in delta.removed {
                prop_assert!(result.remove(&(gone.ip, gone.port)).is_some());
            }
            for e in delta.upserted {
                result.insert((e.ip.clone(), e.port), e);
            }
            prop_assert_eq!(result.into_values().collect::<Vec<_>>(), new.endpoints);
        }
    }

    #[test]
    fn a_change_other_than_of_endpoints_needs_the_whole_resource() {
        let old = Endpoints::default();
        for new in [
            Endpoints {
                protocol: 1,
                ..Endpoints::default()
            },
            Endpoints {
                node_local: true,
                ..Endpoints::default()
            },
        ] {
            assert_eq!(between(&old, 1, &new), None);
        }
    }
}
