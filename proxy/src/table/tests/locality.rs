//! The endpoints in force depend on the place of the proxy.

use proptest::collection::{btree_map, vec};

use super::*;
use crate::balance::Endpoint;

/// An endpoint on a node, hinted for a zone.
fn on(ip: &str, node: &str, zone: &str) -> contract::Endpoint {
    let hints = |name: &str| match name {
        "" => Vec::new(),
        name => vec![name.to_owned()],
    };
    contract::Endpoint {
        node: node.to_owned(),
        for_zones: hints(zone),
        ..endpoint(ip, WEB)
    }
}

fn spread(version: u64, node_local: bool, all: &[contract::Endpoint]) -> Resource {
    let body = contract::Endpoints {
        namespace: "shop".to_owned(),
        service: "web".to_owned(),
        port: 80,
        endpoints: all.to_vec(),
        node_local,
        ..contract::Endpoints::default()
    };
    resource(ENDPOINTS, version, Body::Endpoints(body))
}

fn delta_of(base: u64, upserted: contract::Endpoint) -> Resource {
    let body = contract::EndpointsDelta {
        base_version: base,
        upserted: vec![upserted],
        removed: Vec::new(),
    };
    resource(ENDPOINTS, base + 1, Body::EndpointsDelta(body))
}

fn inbound_at(version: u64, node: &str, zone: &str) -> Resource {
    let body = contract::Inbound {
        node: node.to_owned(),
        zone: zone.to_owned(),
        ..contract::Inbound::default()
    };
    resource("inbound", version, Body::Inbound(body))
}

/// Addresses of the preferred endpoints, and of the fallbacks.
fn split(cell: &DestinationCell) -> (Vec<String>, Vec<String>) {
    let logical = logical(cell);
    let backend = logical.default_rule.backends[0].backend.clone().unwrap();
    let set = backend.endpoints();
    let ip = |endpoint: &Arc<Endpoint>| endpoint.address.ip().to_string();
    let preferred = set.preferred().len();
    let mut ips = set.endpoints.iter().map(ip);
    (ips.by_ref().take(preferred).collect(), ips.collect())
}

fn zones() -> [contract::Endpoint; 3] {
    [
        on("10.0.0.1", "", "z1"),
        on("10.0.0.2", "", "z2"),
        on("10.0.0.3", "", "z1"),
    ]
}

fn ips<const N: usize>(ips: [&str; N]) -> Vec<String> {
    ips.map(str::to_owned).to_vec()
}

#[tokio::test]
async fn endpoints_of_the_own_zone_are_preferred_once_it_is_known() {
    let (mut fixture, cell) = Fixture::with_service();
    assert_eq!(fixture.push([spread(2, false, &zones())]), []);
    let all = ips(["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
    assert_eq!(split(&cell), (ips([]), all));
    assert_eq!(fixture.push([inbound_at(1, "n1", "z1")]), []);
    let near = ips(["10.0.0.1", "10.0.0.3"]);
    assert_eq!(split(&cell), (near, ips(["10.0.0.2"])));
    assert_eq!(fixture.push([inbound_at(2, "n1", "z2")]), []);
    assert_eq!(
        split(&cell),
        (ips(["10.0.0.2"]), ips(["10.0.0.1", "10.0.0.3"]))
    );
}

#[tokio::test]
async fn place_and_endpoints_of_one_push_are_applied_together() {
    let (mut fixture, cell) = Fixture::with_service();
    let both = [spread(2, false, &zones()), inbound_at(1, "n1", "z2")];
    assert_eq!(fixture.push(both), []);
    assert_eq!(split(&cell).0, ["10.0.0.2"]);
}

#[tokio::test]
async fn an_endpoint_keeps_its_state_when_its_preference_changes() {
    let (mut fixture, cell) = Fixture::with_service();
    let before = backend_endpoints(&cell);
    let two = [on("10.0.0.1", "", "z1"), on("10.0.0.2", "", "z2")];
    fixture.push([spread(2, false, &two), inbound_at(1, "", "z2")]);
    let after = backend_endpoints(&cell);
    assert!(Arc::ptr_eq(&before[0], &after[1]) && Arc::ptr_eq(&before[1], &after[0]));
}

#[tokio::test]
async fn a_delta_carries_hints() {
    let (mut fixture, cell) = Fixture::with_service();
    fixture.push([spread(2, false, &zones()), inbound_at(1, "n1", "z2")]);
    // An endpoint without a hint: all hints are ignored from now on.
    assert_eq!(fixture.push([delta_of(2, on("10.0.0.4", "", ""))]), []);
    assert_eq!(split(&cell).0, ips([]));
    assert_eq!(fixture.push([delta_of(3, on("10.0.0.4", "", "z2"))]), []);
    assert_eq!(split(&cell).0, ["10.0.0.2", "10.0.0.4"]);
}

#[tokio::test]
async fn a_node_local_service_uses_the_endpoints_of_the_own_node_only() {
    let (mut fixture, cell) = Fixture::with_service();
    let members = [on("10.0.0.1", "n1", ""), on("10.0.0.2", "n2", "")];
    fixture.push([spread(2, true, &members), inbound_at(1, "n1", "z1")]);
    assert_eq!(addresses(&cell), ["10.0.0.1"]);
    assert_eq!(fixture.push([delta_of(2, on("10.0.0.3", "n1", ""))]), []);
    assert_eq!(addresses(&cell), ["10.0.0.1", "10.0.0.3"]);
    fixture.push([inbound_at(2, "n3", "z1")]);
    assert!(addresses(&cell).is_empty());
    fixture.push([spread(4, false, &members)]);
    assert_eq!(addresses(&cell), ["10.0.0.1", "10.0.0.2"]);
}

#[tokio::test]
async fn the_view_shows_which_endpoints_are_used() {
    let (mut fixture, _cell) = Fixture::with_service();
    fixture.push([spread(2, false, &zones()), inbound_at(1, "n1", "z2")]);
    let used = |fixture: &Fixture| -> Vec<String> {
        let view = serde_json::to_value(fixture.store.view()).unwrap();
        let resources = view["resources"].as_array().unwrap();
        let find = |name: &str| resources.iter().find(|r| r["name"] == name).unwrap();
        assert_eq!(
            (&find("inbound")["node"], &find("inbound")["zone"]),
            (&"n1".into(), &"z2".into())
        );
        let endpoints = find(ENDPOINTS)["endpoints"].as_array().unwrap().iter();
        endpoints
            .map(|e| e["used"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(used(&fixture), ["fallback", "preferred", "fallback"]);
    let members = [on("10.0.0.1", "n1", ""), on("10.0.0.2", "n2", "")];
    fixture.push([spread(3, true, &members)]);
    assert_eq!(used(&fixture), ["preferred", "never"]);
    fixture.push([spread(4, false, &members)]);
    assert_eq!(used(&fixture), ["preferred", "preferred"]);
}

proptest! {
    /// After any steps, wholes, deltas and moves of the proxy, the preference depends only on the
    /// current endpoints and place.
    #[test]
    fn the_preference_follows_endpoints_and_place(
        steps in vec((0_u8..3, btree_map(0_u8..5, 0_u8..3, 1..4), 0_u8..3), 1..20)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (mut fixture, cell) = Fixture::with_service();
            let zone = |number: u8| ["", "z1", "z2"][usize::from(number)];
            let member = |(last, hint): (u8, u8)| on(&format!("10.0.0.{last}"), "", zone(hint));
            let mut all = std::collections::BTreeMap::from([(1, 0), (2, 0)]);
            let (mut own, mut version) = (0, 1);
            for (kind, members, place) in steps {
                version += 1;
                let update = match kind {
                    0 => {
                        all = members;
                        let members: Vec<_> = all.clone().into_iter().map(member).collect();
                        spread(version, false, &members)
                    }
                    1 => {
                        let (last, hint) = members.into_iter().next().expect("one");
                        all.insert(last, hint);
                        delta_of(version - 1, member((last, hint)))
                    }
                    _ => {
                        version -= 1;
                        own = place;
                        inbound_at(u64::from(place) + 1, "n1", zone(place))
                    }
                };
                prop_assert_eq!(fixture.push([update]), []);
                let all_have_hints = all.values().all(|hint| *hint != 0);
                let holds = own != 0 && all_have_hints && all.values().any(|hint| *hint == own);
                let is_near = |(_, hint): &(&u8, &u8)| holds && **hint == own;
                let (near, far): (Vec<_>, Vec<_>) = all.iter().partition(is_near);
                let text = |of: Vec<(&u8, &u8)>| {
                    let addresses = of.into_iter().map(|(last, _)| format!("10.0.0.{last}"));
                    addresses.collect::<Vec<_>>()
                };
                let (near, far) = (text(near), text(far));
                // Where all are preferred, there is no preference.
                let expected = if far.is_empty() { (far, near) } else { (near, far) };
                prop_assert_eq!(split(&cell), expected);
            }
            Ok(())
        })?;
    }
}
