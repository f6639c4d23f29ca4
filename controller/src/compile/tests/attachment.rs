use super::*;

const PORT: &str = "{ port: 80 }";

fn shop() -> Catalog {
    catalog(&[
        &service(
            "shop",
            "web",
            "10.0.0.1",
            "{ name: a, port: 80 }, { name: b, port: 81 }",
        ),
        &service("shop", "web-v2", "10.0.0.2", PORT),
        &service("other", "own", "10.0.0.3", PORT),
    ])
}

fn routes(catalog: &Catalog, client: &str, port: u16) -> Vec<String> {
    let name = format!("service/{client}/shop/web/{port}");
    service_of(compile_for(catalog, client, &name)).http_routes
}

#[test]
fn a_producer_s_route_applies_to_everyone_and_a_consumer_s_replaces_it_in_its_namespace() {
    let mut catalog = shop();
    apply(
        &mut catalog,
        &route_to("shop", "producer", "name: web-v2, port: 80"),
    );
    assert_eq!(routes(&catalog, "other", 80), ["http-route/shop/producer"]);
    let changed = apply(
        &mut catalog,
        &route_to("other", "consumer", "name: own, port: 80"),
    );
    assert!(changed.contains(&change("service/other/shop/web/80")));
    assert_eq!(routes(&catalog, "other", 80), ["http-route/other/consumer"]);
    assert_eq!(routes(&catalog, "shop", 80), ["http-route/shop/producer"]);
    assert_eq!(routes(&catalog, "third", 80), ["http-route/shop/producer"]);
    assert!(
        routes(&catalog, "other", 81).is_empty(),
        "the parent names a port"
    );
}

#[test]
fn a_parent_without_a_port_is_every_port_and_a_section_is_a_port_s_name() {
    let parent =
        |more: &str| format!("parentRefs: [{{ group: \"\", kind: Service, name: web{more} }}]");
    let mut catalog = shop();
    apply(&mut catalog, &route("shop", "all", &parent("")));
    apply(
        &mut catalog,
        &route("shop", "b", &parent(", sectionName: b")),
    );
    assert_eq!(routes(&catalog, "shop", 80), ["http-route/shop/all"]);
    assert_eq!(
        routes(&catalog, "shop", 81),
        ["http-route/shop/all", "http-route/shop/b"]
    );
}

#[test]
fn a_parent_that_is_a_gateway_attaches_nothing() {
    let mut catalog = shop();
    apply(
        &mut catalog,
        &route("shop", "r", "parentRefs: [{ name: web }]"),
    );
    assert!(routes(&catalog, "shop", 80).is_empty());
}

#[test]
fn the_oldest_route_comes_first_and_then_the_first_by_name() {
    let mut catalog = shop();
    let created = |name: &str, time: &str| {
        route_to("shop", name, "name: web, port: 80").replace(
            "namespace: shop }",
            &format!("namespace: shop, creationTimestamp: \"{time}\" }}"),
        )
    };
    apply(
        &mut catalog,
        &route_to("shop", "a-new", "name: web, port: 80"),
    );
    apply(&mut catalog, &created("c", "2026-01-01T00:00:00Z"));
    apply(&mut catalog, &created("b", "2026-01-01T00:00:00Z"));
    apply(&mut catalog, &created("z", "2025-01-01T00:00:00Z"));
    let expected = ["z", "b", "c", "a-new"].map(|name| format!("http-route/shop/{name}"));
    assert_eq!(routes(&catalog, "shop", 80), expected);
}

#[test]
fn a_refused_route_is_not_attached_and_its_neighbours_stay() {
    let mut catalog = shop();
    apply(
        &mut catalog,
        &route_to("shop", "good", "name: web, port: 80"),
    );
    let text = route_to("shop", "bad", "name: web, port: 80")
        .replace("rules: [{", "rules: [{ filters: [{ type: ExtensionRef }],");
    apply(&mut catalog, &text);
    assert_eq!(routes(&catalog, "shop", 80), ["http-route/shop/good"]);
    assert_eq!(compile(&catalog, "http-route/shop/bad"), None);
}

fn invalid(catalog: &Catalog, name: &str) -> String {
    let route = route_of(compile(catalog, name));
    let backend = &route.rules[0].backends[0];
    assert_eq!(backend.endpoints.is_empty(), !backend.invalid.is_empty());
    backend.invalid.clone()
}

#[test]
fn a_missing_backend_is_invalid_until_it_exists() {
    let mut catalog = shop();
    apply(
        &mut catalog,
        &route_to("shop", "r", "name: later, port: 80"),
    );
    let name = "http-route/shop/r";
    assert!(invalid(&catalog, name).starts_with("BackendNotFound: "));
    let changed = apply(&mut catalog, &service("shop", "later", "10.0.0.9", PORT));
    assert!(changed.contains(&change(name)));
    assert_eq!(invalid(&catalog, name), "");
    let needs = compile(&catalog, name).unwrap().needs;
    assert_eq!(needs, ["endpoints/shop/later/80".parse().unwrap()]);

    apply(
        &mut catalog,
        &route_to("shop", "r", "name: later, port: 81"),
    );
    assert!(
        invalid(&catalog, name).starts_with("BackendNotFound: "),
        "no such port"
    );
    apply(
        &mut catalog,
        &route_to("shop", "r", "group: a.example, kind: Bucket, name: later"),
    );
    assert!(invalid(&catalog, name).starts_with("InvalidKind: "));
}

#[test]
fn another_namespace_s_backend_needs_a_grant() {
    let mut catalog = shop();
    apply(
        &mut catalog,
        &route_to("shop", "r", "namespace: other, name: own, port: 80"),
    );
    let name = "http-route/shop/r";
    assert!(invalid(&catalog, name).starts_with("RefNotPermitted: "));
    let grant = |to: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1beta1\n\
             kind: ReferenceGrant\n\
             metadata: {{ name: g, namespace: other }}\n\
             spec: {{ from: [{{ group: gateway.networking.k8s.io, kind: HTTPRoute, \
             namespace: shop }}], to: [{{ group: \"\", kind: Service{to} }}] }}\n"
        )
    };
    let changed = apply(&mut catalog, &grant(""));
    assert_eq!(changed, [change(name)]);
    assert_eq!(invalid(&catalog, name), "");
    apply(&mut catalog, &grant(", name: something-else"));
    assert!(invalid(&catalog, name).starts_with("RefNotPermitted: "));
    apply(&mut catalog, &grant(", name: own"));
    assert_eq!(invalid(&catalog, name), "");
    delete(&mut catalog, &grant(""));
    assert!(invalid(&catalog, name).starts_with("RefNotPermitted: "));
}

#[test]
fn a_consumer_may_send_to_the_producer_s_namespace_without_a_grant() {
    let mut catalog = shop();
    apply(
        &mut catalog,
        &route_to("other", "r", "namespace: shop, name: web-v2, port: 80"),
    );
    assert_eq!(invalid(&catalog, "http-route/other/r"), "");
}

#[test]
fn routes_on_an_opaque_port_do_not_apply() {
    let mut catalog = shop();
    apply(
        &mut catalog,
        &service(
            "shop",
            "web",
            "10.0.0.1",
            "{ port: 80, appProtocol: redis }",
        ),
    );
    apply(&mut catalog, &route_to("shop", "r", "name: web, port: 80"));
    assert!(routes(&catalog, "shop", 80).is_empty());
}

#[test]
fn a_retry_budget_is_that_of_the_policy_for_the_service() {
    let mut catalog = shop();
    let policy = "apiVersion: gateway.networking.x-k8s.io/v1alpha1\n\
        kind: XBackendTrafficPolicy\n\
        metadata: { name: p, namespace: shop }\n\
        spec: { targetRefs: [{ group: \"\", kind: Service, name: web }], \
        retryConstraint: { budget: { percent: 50 } } }\n";
    let changed = apply(&mut catalog, policy);
    assert!(changed.contains(&change("service/*/shop/web/80")));
    let budget = |catalog: &Catalog| {
        let name = "service/other/shop/web/80";
        service_of(compile(catalog, name))
            .retry_budget
            .map(|budget| budget.percent)
    };
    assert_eq!(budget(&catalog), Some(50));
    delete(&mut catalog, policy);
    assert_eq!(budget(&catalog), None);
}

fn grpc_route(namespace: &str, name: &str) -> String {
    route_to(namespace, name, "name: web-v2, port: 80")
        .replace("kind: HTTPRoute", "kind: GRPCRoute")
}

#[test]
fn a_grpc_route_wins_over_an_http_route_on_the_same_port_and_they_stay_distinct() {
    let mut catalog = shop();
    apply(
        &mut catalog,
        &route_to("shop", "one", "name: web-v2, port: 80"),
    );
    let changed = apply(&mut catalog, &grpc_route("shop", "one"));
    assert!(changed.contains(&change("grpc-route/shop/one")));
    assert!(!changed.contains(&change("http-route/shop/one")));
    assert_eq!(routes(&catalog, "shop", 80), ["grpc-route/shop/one"]);
    let compiled = route_of(compile(&catalog, "grpc-route/shop/one"));
    assert_eq!(
        compiled.rules[0].backends[0].endpoints,
        "endpoints/shop/web-v2/80"
    );
    let reasons: Vec<_> = (catalog.route_statuses().iter())
        .map(|status| (status.route.to_string(), status.parents[0].accepted.reason))
        .collect();
    assert_eq!(
        reasons,
        [
            ("HTTPRoute shop/one".to_owned(), "Conflicted"),
            ("GRPCRoute shop/one".to_owned(), "Accepted"),
        ]
    );
    delete(&mut catalog, &grpc_route("shop", "one"));
    assert_eq!(routes(&catalog, "shop", 80), ["http-route/shop/one"]);
}
