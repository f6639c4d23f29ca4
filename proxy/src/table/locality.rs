//! Which endpoints of a Service this proxy uses, with the same decisions as kube-proxy. In: the
//! place of the proxy, and the controller's hints for the endpoints. Out: the preferred ones, and
//! those used while no preferred one is available; all others are dropped. Decided when a set of
//! endpoints is built, never for a request.

use std::sync::Arc;

/// The place of the proxy's own pod, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub node: Option<Arc<str>>,
    pub zone: Option<Arc<str>>,
}

/// The place and topology hints of an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Hints {
    /// The node of the endpoint, if it has one.
    pub node: Option<Arc<str>>,
    /// Zones and nodes whose clients should prefer it.
    pub for_zones: Vec<Arc<str>>,
    pub for_nodes: Vec<Arc<str>>,
}

/// Endpoints by their use for this proxy.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Split<T> {
    pub preferred: Vec<T>,
    /// Used while no preferred endpoint is available.
    pub fallback: Vec<T>,
}

/// Splits endpoints. `node_local`: those on other nodes are dropped, and hints are ignored.
pub(super) fn split<'a, T>(
    place: &Place,
    node_local: bool,
    endpoints: impl Iterator<Item = (&'a Hints, T)> + Clone,
) -> Split<T> {
    if node_local {
        // Without node names, all endpoints count as on the same node.
        let here = endpoints.filter(|(hints, _)| hints.node == place.node);
        return Split {
            preferred: here.map(|(_, endpoint)| endpoint).collect(),
            fallback: Vec::new(),
        };
    }
    let hints = endpoints.clone().map(|(hints, _)| hints);
    let nodes = hold(&place.node, hints.clone().map(|hints| &*hints.for_nodes));
    let zones = hold(&place.zone, hints.map(|hints| &*hints.for_zones));
    let mut split = Split {
        preferred: Vec::new(),
        fallback: Vec::new(),
    };
    for (hints, endpoint) in endpoints {
        let preferred = match (nodes, zones) {
            (true, _) => names(&hints.for_nodes, &place.node),
            (false, true) => names(&hints.for_zones, &place.zone),
            (false, false) => true,
        };
        match preferred {
            true => split.preferred.push(endpoint),
            false => split.fallback.push(endpoint),
        }
    }
    split
}

/// Whether hints of one kind apply here: every endpoint has some, and one of them names this place.
fn hold<'a>(
    place: &Option<Arc<str>>,
    mut hints: impl Iterator<Item = &'a [Arc<str>]> + Clone,
) -> bool {
    hints.clone().any(|hints| names(hints, place)) && hints.all(|hints| !hints.is_empty())
}

fn names(hints: &[Arc<str>], place: &Option<Arc<str>>) -> bool {
    place.as_ref().is_some_and(|place| hints.contains(place))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: (&str, &str) = ("n1", "z1");

    /// Empty: unknown.
    fn known(name: &str) -> Option<Arc<str>> {
        (!name.is_empty()).then(|| name.into())
    }

    fn place((node, zone): (&str, &str)) -> Place {
        Place {
            node: known(node),
            zone: known(zone),
        }
    }

    /// An endpoint with hints for the nodes and zones in two texts, as `n1,n2` and `z1`.
    fn hinted((nodes, zones): &(&str, &str)) -> Hints {
        let names = |text: &str| -> Vec<Arc<str>> {
            let names = text.split(',').filter(|name| !name.is_empty());
            names.map(Arc::from).collect()
        };
        Hints {
            node: None,
            for_nodes: names(nodes),
            for_zones: names(zones),
        }
    }

    /// Which of the endpoints are preferred; all others must be fallbacks.
    fn preferred(at: (&str, &str), endpoints: &[(&str, &str)]) -> Vec<usize> {
        let hints: Vec<Hints> = endpoints.iter().map(hinted).collect();
        let split = split(&place(at), false, hints.iter().zip(0..));
        let mut all = [split.preferred.clone(), split.fallback].concat();
        all.sort_unstable();
        assert_eq!(all, (0..endpoints.len()).collect::<Vec<_>>());
        split.preferred
    }

    #[test]
    fn hints_for_the_own_node_precede_those_for_the_zone_and_those_precede_none() {
        assert_eq!(
            preferred(HERE, &[("n1", "z1"), ("n2", "z1"), ("n3", "z2")]),
            [0]
        );
        assert_eq!(
            preferred(HERE, &[("n2", "z1"), ("n3", "z1,z2"), ("n4", "z2")]),
            [0, 1]
        );
        assert_eq!(preferred(HERE, &[("n2", "z2"), ("n3", "z3")]), [0, 1]);
        assert_eq!(preferred(HERE, &[("", ""), ("", "")]), [0, 1]);
        assert!(preferred(HERE, &[]).is_empty());
    }

    #[test]
    fn hints_of_a_kind_that_one_endpoint_lacks_are_ignored() {
        assert_eq!(
            preferred(HERE, &[("n1", "z1"), ("", "z1"), ("n3", "z2")]),
            [0, 1]
        );
        assert_eq!(preferred(HERE, &[("", "z1"), ("", "")]), [0, 1]);
        assert_eq!(preferred(HERE, &[("n1", ""), ("n2", "z1")]), [0]);
    }

    #[test]
    fn without_a_known_place_no_endpoint_is_preferred() {
        assert_eq!(preferred(("", ""), &[("n1", "z1"), ("n2", "z2")]), [0, 1]);
        assert_eq!(preferred(("n1", ""), &[("", "z1"), ("", "z2")]), [0, 1]);
    }

    #[test]
    fn a_node_local_service_uses_the_endpoints_of_the_own_node_regardless_of_hints() {
        let on = |node: &str| Hints {
            node: known(node),
            ..hinted(&("n2", "z2"))
        };
        let local = |at: &str, nodes: &[&str]| {
            let hints: Vec<Hints> = nodes.iter().map(|node| on(node)).collect();
            let split = split(&place((at, "z2")), true, hints.iter().zip(0_usize..));
            assert!(split.fallback.is_empty());
            split.preferred
        };
        assert_eq!(local("n1", &["n1", "n2", "n1", ""]), [0, 2]);
        assert!(local("n3", &["n1", "n2", ""]).is_empty());
        assert!(local("", &["n1", "n2"]).is_empty());
        assert_eq!(local("", &["", ""]), [0, 1], "there are no nodes");
    }
}
