//! Filters with references, and filters that make their route invalid.

use naru_contract::http_filter::Kind;

use super::*;

const PARENT: &str = "parentRefs: [{ group: \"\", kind: Service, name: web }]";

fn mirroring(backend: &str) -> String {
    format!("{{ type: RequestMirror, requestMirror: {{ backendRef: {{ {backend} }} }} }}")
}

fn shop(routes: &[String]) -> Catalog {
    let mut manifests = vec![
        service("shop", "web", "10.0.0.1", "{ port: 80 }"),
        service("shop", "shadow", "10.0.0.2", "{ port: 80 }"),
        service("other", "dark", "10.0.0.3", "{ port: 80 }"),
    ];
    manifests.extend_from_slice(routes);
    catalog(&manifests.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Endpoints of a route's mirrors: those of the first rule, and those of the rule's first backend.
fn mirrors(catalog: &Catalog, name: &str) -> (Vec<String>, Vec<String>) {
    let route = route_of(compile(catalog, name));
    let of = |filters: &[naru_contract::HttpFilter]| {
        let each = filters.iter().filter_map(|filter| match &filter.kind {
            Some(Kind::Mirror(mirror)) => Some(mirror.endpoints.clone()),
            _ => None,
        });
        each.collect()
    };
    let rule = &route.rules[0];
    (of(&rule.filters), of(&rule.backends[0].filters))
}

fn refs(catalog: &Catalog, name: &str) -> (bool, &'static str, bool, &'static str) {
    let statuses = catalog.route_statuses();
    let mut statuses = statuses.iter();
    let status = statuses.find(|status| status.route.name.name == name);
    let parent = &status.unwrap().parents[0];
    let (accepted, refs) = (&parent.accepted, &parent.resolved_refs);
    (accepted.holds, accepted.reason, refs.holds, refs.reason)
}

#[test]
fn mirrors_of_a_rule_and_of_a_backend_are_resolved_and_listed_as_needs() {
    let spec = format!(
        "{PARENT}, rules: [{{ filters: [{}, {}], backendRefs: [{{ name: web, port: 80, filters: \
         [{}] }}] }}]",
        mirroring("name: shadow, port: 80"),
        mirroring("name: web, port: 80"),
        mirroring("name: shadow, port: 80"),
    );
    let catalog = shop(&[route("shop", "r", &spec)]);
    let shadow = "endpoints/shop/shadow/80".to_owned();
    assert_eq!(
        mirrors(&catalog, "http-route/shop/r"),
        (
            vec![shadow.clone(), "endpoints/shop/web/80".to_owned()],
            vec![shadow.clone()]
        )
    );
    let needs = compile(&catalog, "http-route/shop/r").unwrap().needs;
    assert!(needs.contains(&shadow.parse().unwrap()), "{needs:?}");
    assert_eq!(
        refs(&catalog, "r"),
        (true, "Accepted", true, "ResolvedRefs")
    );
}

#[test]
fn a_mirror_that_can_not_be_resolved_is_left_out_and_reported() {
    for (backend, reason) in [
        ("name: gone, port: 80", "BackendNotFound"),
        ("name: shadow, port: 81", "BackendNotFound"),
        ("name: dark, namespace: other, port: 80", "RefNotPermitted"),
        ("group: x.example, kind: Bucket, name: b", "InvalidKind"),
    ] {
        let of_rule = format!(
            "{PARENT}, rules: [{{ filters: [{}], backendRefs: [{{ name: web, port: 80 }}] }}]",
            mirroring(backend)
        );
        let of_backend = format!(
            "{PARENT}, rules: [{{ backendRefs: [{{ name: web, port: 80, filters: [{}] }}] }}]",
            mirroring(backend)
        );
        for spec in [of_rule, of_backend] {
            let catalog = shop(&[route("shop", "r", &spec)]);
            assert_eq!(refs(&catalog, "r"), (true, "Accepted", false, reason));
            assert_eq!(mirrors(&catalog, "http-route/shop/r"), (vec![], vec![]));
            let route = route_of(compile(&catalog, "http-route/shop/r"));
            assert_eq!(route.rules[0].backends[0].invalid, "");
        }
    }
}

#[test]
fn a_mirror_resolves_once_its_service_or_grant_exists() {
    let spec = |backend: &str| {
        format!(
            "{PARENT}, rules: [{{ filters: [{}], backendRefs: [{{ name: web, port: 80 }}] }}]",
            mirroring(backend)
        )
    };
    let mut catalog = shop(&[
        route("shop", "late", &spec("name: late, port: 80")),
        route(
            "shop",
            "far",
            &spec("name: dark, namespace: other, port: 80"),
        ),
    ]);
    let has = |changed: &[Changed], name: &str| changed.contains(&change(name));
    let changed = apply(
        &mut catalog,
        &service("shop", "late", "10.0.0.4", "{ port: 80 }"),
    );
    assert!(has(&changed, "http-route/shop/late"));
    assert_eq!(mirrors(&catalog, "http-route/shop/late").0.len(), 1);
    let grant = "apiVersion: gateway.networking.k8s.io/v1\n\
        kind: ReferenceGrant\n\
        metadata: { name: g, namespace: other }\n\
        spec: { from: [{ group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop }], \
        to: [{ group: \"\", kind: Service }] }\n";
    let changed = apply(&mut catalog, grant);
    assert!(has(&changed, "http-route/shop/far"));
    assert_eq!(
        mirrors(&catalog, "http-route/shop/far").0,
        ["endpoints/other/dark/80"]
    );
}

#[test]
fn a_grpc_route_supports_mirrors_too() {
    let spec = format!(
        "{PARENT}, rules: [{{ filters: [{}], backendRefs: [{{ name: web, port: 80 }}] }}]",
        mirroring("name: shadow, port: 80")
    );
    let route = route("shop", "r", &spec).replace("HTTPRoute", "GRPCRoute");
    let catalog = shop(&[route]);
    assert_eq!(
        mirrors(&catalog, "grpc-route/shop/r").0,
        ["endpoints/shop/shadow/80"]
    );
}

#[test]
fn a_route_that_becomes_unsupported_is_taken_out_of_force() {
    let backend = |filters: &str| {
        format!(
            "{PARENT}, rules: [{{ backendRefs: [{{ name: web, port: 80, filters: [{filters}] }}] \
             }}]"
        )
    };
    let rule = |filters: &str| {
        format!(
            "{PARENT}, rules: [{{ filters: [{filters}], backendRefs: [{{ name: web, port: 80 }}] \
             }}]"
        )
    };
    let extension = "{ type: ExtensionRef, extensionRef: { group: x.example, kind: X, name: x } }";
    let cors = "{ type: CORS, cors: { allowOrigins: [\"*\"] } }";
    let authorization = "{ type: ExternalAuth, externalAuth: { protocol: HTTP } }";
    let mut catalog = shop(&[route("shop", "r", &rule(cors))]);
    let service = "service/shop/shop/web/80";
    let attached = |catalog: &Catalog| service_of(compile(catalog, service)).http_routes;
    for unsupported in [
        rule(extension),
        rule(authorization),
        backend(extension),
        backend(authorization),
        backend(cors),
    ] {
        apply(&mut catalog, &route("shop", "r", &rule(cors)));
        assert_eq!(attached(&catalog), ["http-route/shop/r"]);
        let changed = apply(&mut catalog, &route("shop", "r", &unsupported));
        for name in ["service/*/shop/web/80", "http-route/shop/r"] {
            let name = change(name);
            assert!(changed.contains(&name), "{changed:?}");
        }
        assert!(compile(&catalog, "http-route/shop/r").is_none());
        assert_eq!(attached(&catalog), <[String; 0]>::default());
        let (accepted, reason, ..) = refs(&catalog, "r");
        assert_eq!((accepted, reason), (false, "UnsupportedValue"));
    }
}
