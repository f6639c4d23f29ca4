use super::*;

fn conditions(catalog: &Catalog, name: &str) -> Vec<(bool, &'static str, bool, &'static str)> {
    let statuses = catalog.route_statuses();
    let status = statuses
        .iter()
        .find(|status| status.route.name.name == name);
    (status.unwrap().parents.iter())
        .map(|parent| {
            let (accepted, refs) = (&parent.accepted, &parent.resolved_refs);
            (accepted.holds, accepted.reason, refs.holds, refs.reason)
        })
        .collect()
}

fn with_parent(name: &str, parent: &str, rest: &str) -> String {
    let spec = format!("parentRefs: [{{ group: \"\", kind: Service, {parent} }}], {rest}");
    route("shop", name, &spec)
}

#[test]
fn a_route_is_accepted_by_the_ports_that_it_names() {
    let catalog = catalog(&[
        &service("shop", "web", "10.0.0.1", "{ name: http, port: 80 }"),
        &with_parent("good", "name: web, port: 80", "hostnames: []"),
        &with_parent("named", "name: web, sectionName: http", "hostnames: []"),
        &with_parent("port", "name: web, port: 81", "hostnames: []"),
        &with_parent("section", "name: web, sectionName: grpc", "hostnames: []"),
        &with_parent("gone", "name: other", "hostnames: []"),
        &route("shop", "edge", "parentRefs: [{ name: gateway }]"),
    ]);
    let accepted = [(true, "Accepted", true, "ResolvedRefs")];
    let unmatched = [(false, "NoMatchingParent", true, "ResolvedRefs")];
    assert_eq!(conditions(&catalog, "good"), accepted);
    assert_eq!(conditions(&catalog, "named"), accepted);
    assert_eq!(conditions(&catalog, "port"), unmatched);
    assert_eq!(conditions(&catalog, "section"), unmatched);
    assert_eq!(conditions(&catalog, "gone"), unmatched);
    assert_eq!(conditions(&catalog, "edge"), []);
}

#[test]
fn an_unsupported_route_is_not_accepted() {
    let rules = "rules: [{ sessionPersistence: { type: Cookie } }]";
    let catalog = catalog(&[
        &service("shop", "web", "10.0.0.1", "{ port: 80 }"),
        &with_parent("sticky", "name: web", rules),
    ]);
    let refused = [(false, "UnsupportedValue", true, "ResolvedRefs")];
    assert_eq!(conditions(&catalog, "sticky"), refused);
    let message = &catalog.route_statuses()[0].parents[0].accepted.message;
    assert!(
        message.contains("spec.rules[0].sessionPersistence"),
        "{message}"
    );
}

#[test]
fn references_are_resolved_as_in_the_routing_table() {
    let catalog = catalog(&[
        &service("shop", "web", "10.0.0.1", "{ port: 80 }"),
        &service("other", "own", "10.0.0.2", "{ port: 80 }"),
        &route_to("shop", "gone", "name: gone, port: 80"),
        &route_to("shop", "port", "name: web, port: 81"),
        &route_to("shop", "foreign", "name: own, namespace: other, port: 80"),
        &route_to("shop", "kind", "group: x.example, kind: Bucket, name: b"),
    ]);
    for (name, reason) in [
        ("gone", "BackendNotFound"),
        ("port", "BackendNotFound"),
        ("foreign", "RefNotPermitted"),
        ("kind", "InvalidKind"),
    ] {
        assert_eq!(
            conditions(&catalog, name),
            [(true, "Accepted", false, reason)]
        );
        let compiled = route_of(compile(&catalog, &format!("http-route/shop/{name}")));
        let invalid = &compiled.rules[0].backends[0].invalid;
        assert!(invalid.starts_with(&format!("{reason}: ")), "{invalid}");
    }
}
