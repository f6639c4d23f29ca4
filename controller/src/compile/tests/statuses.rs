//! Incrementally maintained statuses against statuses computed from scratch.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::changes::manifests;
use super::*;
use crate::source::RouteName;

fn event(manifest: &str, gone: bool) -> Event {
    let object = parse::objects(manifest, false).unwrap().pop().unwrap();
    match gone {
        true => Event::Delete(object.key()),
        false => Event::Apply(object),
    }
}

fn names(taken: &[(RouteName, Option<RouteStatus>)]) -> Vec<String> {
    let names = taken.iter().map(|(route, _)| route.to_string());
    names.collect()
}

/// Route `i` of those that share the Service `web`.
fn sharing(i: usize, backend: &str) -> String {
    let spec = format!(
        "parentRefs: [{{ group: \"\", kind: Service, name: web }}], rules: [{{ backendRefs: [{{ \
         name: {backend}, port: 80 }}] }}]"
    );
    route("shop", &format!("r{i}"), &spec)
}

#[test]
fn only_the_routes_that_a_change_affects_are_evaluated_again() {
    let mut statuses = RouteStatuses::default();
    let mut apply = |manifest: &str, gone: bool| {
        statuses.apply(event(manifest, gone));
        names(&statuses.take())
    };
    let web = service("shop", "web", "10.0.0.1", "{ port: 80 }");
    assert!(apply(&web, false).is_empty());
    for i in 0..3 {
        apply(&sharing(i, "web"), false);
    }
    // Among others of its kind that share the Service.
    assert_eq!(apply(&sharing(1, "db"), false), ["HTTPRoute shop/r1"]);
    assert!(apply(&sharing(1, "db"), false).is_empty());
    // Its backend is created.
    let db = service("shop", "db", "10.0.0.2", "{ port: 80 }");
    assert_eq!(apply(&db, false), ["HTTPRoute shop/r1"]);
    // Changes that affect clients alone, and changes that affect no route.
    assert!(apply(&web.replace("10.0.0.1", "10.0.0.9"), false).is_empty());
    assert!(apply(&pod("shop", "p", "10.1.0.1", true), false).is_empty());
    // A GRPCRoute that outranks the Service's other routes, and is deleted again.
    let grpc = sharing(4, "web").replace("HTTPRoute", "GRPCRoute");
    let all = [
        "HTTPRoute shop/r0",
        "HTTPRoute shop/r1",
        "HTTPRoute shop/r2",
        "GRPCRoute shop/r4",
    ];
    assert_eq!(apply(&grpc, false), all);
    assert_eq!(apply(&grpc, true), all);
    // A port of the Service changes, and the Service is deleted.
    let other = web.replace("port: 80", "port: 81");
    assert_eq!(apply(&other, false), all[..3]);
    assert_eq!(apply(&other, true), all[..3]);
}

#[test]
fn a_deleted_route_is_reported_as_gone() {
    let mut statuses = RouteStatuses::default();
    statuses.apply(event(&sharing(0, "web"), false));
    assert!(statuses.take()[0].1.is_some());
    statuses.apply(event(&sharing(0, "web"), true));
    assert_eq!(statuses.take()[0].1, None);
    statuses.apply(event(&sharing(0, "web"), false));
    assert!(statuses.take()[0].1.is_some());
    statuses.apply(event(&sharing(0, "web"), true));
    statuses.apply(event(&sharing(0, "web"), false));
    let taken = statuses.take();
    assert!(taken[0].1.is_none() && taken[1].1.is_some(), "{taken:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn incremental_statuses_match_those_computed_from_scratch(
        steps in proptest::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 1..60)
    ) {
        let manifests = manifests();
        let (mut catalog, mut statuses) = (Catalog::new(options()), RouteStatuses::default());
        let mut kept: BTreeMap<RouteName, RouteStatus> = BTreeMap::new();
        for (which, gone) in steps {
            let manifest: &String = which.get(&manifests);
            let event = event(manifest, gone);
            catalog.apply(event.clone());
            statuses.apply(event);
            for (route, status) in statuses.take() {
                match status {
                    Some(status) => kept.insert(route, status),
                    None => kept.remove(&route),
                };
            }
            let kept: Vec<_> = kept.values().cloned().collect();
            prop_assert_eq!(kept, catalog.route_statuses());
        }
    }
}
