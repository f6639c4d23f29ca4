use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;

/// The number of Services in the cluster, of which one part changes.
const SERVICES: usize = 500;
/// The bound for "a handful": far below the number of Services.
const HANDFUL: usize = 8;
const SLICE_PORT: &str = "{ name: http, port: 8080 }";

fn slice_of(i: usize, conditions: &str) -> String {
    slice(
        &format!("s{i}"),
        &format!("w{i}"),
        SLICE_PORT,
        &format!(
            "{}, {}",
            endpoint(
                &format!("10.1.{}.{}", i / 250, i % 250),
                &format!("p{i}"),
                conditions
            ),
            endpoint(
                &format!("10.2.{}.{}", i / 250, i % 250),
                &format!("q{i}"),
                ""
            ),
        ),
    )
}

fn pod_of(i: usize, meshed: bool) -> String {
    pod(
        "shop",
        &format!("p{i}"),
        &format!("10.1.{}.{}", i / 250, i % 250),
        meshed,
    )
    .replace("app: web", &format!("app: w{i}"))
}

fn route_of_service(i: usize, weight: u32) -> String {
    route(
        "shop",
        &format!("r{i}"),
        &format!(
            "parentRefs: [{{ group: \"\", kind: Service, name: w{i} }}], rules: [{{ backendRefs: \
             [{{ name: w{i}, port: 80, weight: {weight} }}] }}]"
        ),
    )
}

fn service_number(i: usize) -> String {
    let ip = format!("10.0.{}.{}", i / 250, i % 250);
    service(
        "shop",
        &format!("w{i}"),
        &ip,
        "{ name: http, port: 80, targetPort: web }",
    )
}

#[test]
fn one_change_among_500_services_affects_a_handful() {
    let mut catalog = Catalog::new(options());
    for i in 0..SERVICES {
        apply(&mut catalog, &service_number(i));
        apply(&mut catalog, &pod_of(i, true));
        apply(&mut catalog, &slice_of(i, ""));
        apply(&mut catalog, &route_of_service(i, 1));
    }
    let has = |changed: &[Changed], name: &str| changed.contains(&change(name));

    let changed = apply(&mut catalog, &slice_of(7, "ready: false"));
    assert!(has(&changed, "endpoints/shop/w7/80"));
    assert_eq!(changed.len(), 1, "{changed:?}");

    let changed = apply(&mut catalog, &pod_of(7, false));
    assert!(has(&changed, "endpoints/shop/w7/80") && has(&changed, "destination/10.1.0.7:*"));
    assert!(changed.len() <= HANDFUL, "{changed:?}");

    let changed = apply(&mut catalog, &route_of_service(7, 2));
    assert!(has(&changed, "http-route/shop/r7"));
    assert_eq!(changed.len(), 1, "{changed:?}");

    let changed = delete(&mut catalog, &route_of_service(7, 2));
    assert!(has(&changed, "service/*/shop/w7/80"));
    assert!(changed.len() <= HANDFUL, "{changed:?}");

    let changed = delete(&mut catalog, &service_number(7));
    assert!(has(&changed, "destination/10.0.0.7:*") && has(&changed, "endpoints/shop/w7/80"));
    assert!(changed.len() <= HANDFUL, "{changed:?}");
    let inbound = Changed::Inbound {
        namespace: "shop".into(),
        pod: "p7".into(),
    };
    assert!(changed.contains(&inbound));
}

#[test]
fn the_same_object_again_changes_nothing() {
    let mut catalog = catalog(&[&service_number(1), &slice_of(1, "")]);
    assert!(apply(&mut catalog, &service_number(1)).is_empty());
    assert!(apply(&mut catalog, &slice_of(1, "")).is_empty());
    assert!(delete(&mut catalog, &slice_of(2, "")).is_empty());
}

#[test]
fn a_port_that_a_service_loses_is_named_as_changed() {
    let mut catalog = catalog(&[&service("shop", "w1", "10.0.0.1", "{ port: 80 }")]);
    let changed = apply(
        &mut catalog,
        &service("shop", "w1", "10.0.0.2", "{ port: 81 }"),
    );
    for name in [
        "service/*/shop/w1/80",
        "service/*/shop/w1/81",
        "endpoints/shop/w1/80",
        "endpoints/shop/w1/81",
        "destination/10.0.0.1:*",
        "destination/10.0.0.2:*",
    ] {
        assert!(changed.contains(&change(name)), "{name}");
    }
}

/// Objects that depend on each other, each in several variants.
pub fn manifests() -> Vec<String> {
    let mut all = Vec::new();
    for i in 0..2 {
        all.extend([
            service_number(i),
            service_number(i).replace("port: 80", "port: 81"),
            service_number(i).replace("targetPort: web", "targetPort: web, appProtocol: tcp"),
            service_number(i).replace("clusterIP: \"10.0.0.1\"", "clusterIP: None"),
            service_number(i).replace(&format!("app: w{i}"), "app: w0"),
            service_number(i).replace("spec: {", "spec: { externalIPs: [10.9.0.1],"),
            service_number(i).replace("port: 80", "nodePort: 30080, port: 80"),
            service_number(i)
                .replace("port: 80", "nodePort: 30080, port: 81")
                .replace("spec: {", "spec: { externalIPs: [10.2.0.1],"),
            pod_of(i, true).replace("phase:", "hostIP: 10.8.0.1, phase:"),
            pod_of(i, true),
            pod_of(i, false),
            pod_of(i, true).replace("containerPort: 8080", "containerPort: 8081"),
            pod_of(i, true).replace("Running", "Failed"),
            pod_of(i, true).replace("10.1.0.0", "10.1.0.1"),
            slice_of(i, ""),
            slice_of(i, "ready: false"),
            slice_of(i, "").replace("port: 8080", "port: 8082"),
            slice_of(i, "").replace("zone: z1", "nodeName: n1, zone: z1"),
            slice_of(i, "").replace("zone: z1", "nodeName: n1, zone: z0"),
            slice_of(i, "").replace(
                "zone: z1",
                "nodeName: n2, hints: { forZones: [{ name: z1 }], forNodes: [{ name: n2 }] }",
            ),
            service_number(i).replace("spec: {", "spec: { internalTrafficPolicy: Local,"),
            pod_of(i, true).replace("spec: {", "spec: { nodeName: n1,"),
            pod_of(i, true)
                .replace("spec: {", "spec: { nodeName: n1,")
                .replace("app: w", "topology.kubernetes.io/zone: z5, app: w"),
            slice(
                &format!("s{i}"),
                "w0",
                SLICE_PORT,
                "{ addresses: [10.1.0.0] }",
            ),
            route_of_service(i, 1),
            route_of_service(i, 1).replace("name: w0", "name: w1"),
            route_of_service(i, 1).replace("kind: HTTPRoute", "kind: TCPRoute"),
            route_of_service(i, 2)
                .replace("kind: HTTPRoute", "kind: TCPRoute")
                .replace("kind: Service", "kind: Service, namespace: shop")
                .replace("namespace: shop }\nspec", "namespace: other }\nspec"),
            route_of_service(i, 1)
                .replace("kind: HTTPRoute", "kind: TLSRoute")
                .replace("spec: {", "spec: { hostnames: [a.example],"),
            route_of_service(i, 1)
                .replace("kind: HTTPRoute", "kind: TLSRoute")
                .replace("spec: {", "spec: { hostnames: [b.example],"),
            route_of_service(i, 1).replace("namespace: shop", "namespace: other"),
            route_of_service(i, 1)
                .replace("kind: Service", "kind: Service, namespace: shop")
                .replace("namespace: shop }\nspec", "namespace: other }\nspec"),
            route_of_service(i, 1).replace("rules: [{", "rules: [{ filters: [{ type: Unknown }],"),
        ]);
    }
    let namespace = |annotations: &str| {
        format!(
            "apiVersion: v1\n\
             kind: Namespace\n\
             metadata: {{ name: shop, annotations: {{ {annotations} }} }}\n"
        )
    };
    all.push(namespace("naru.dev/mtls: strict"));
    all.push(namespace("naru.dev/opaque-ports: \"80,8080\""));
    all.push(
        "apiVersion: gateway.networking.x-k8s.io/v1alpha1\n\
        kind: XBackendTrafficPolicy\n\
        metadata: { name: p, namespace: shop }\n\
        spec: { targetRefs: [{ group: \"\", kind: Service, name: w0 }], \
        retryConstraint: { budget: { percent: 50 } } }\n"
            .into(),
    );
    all.push(
        "apiVersion: gateway.networking.k8s.io/v1\n\
        kind: ReferenceGrant\n\
        metadata: { name: g, namespace: other }\n\
        spec: { from: [{ group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop }], \
        to: [{ group: \"\", kind: Service }] }\n"
            .into(),
    );
    all
}

/// Every resource that a proxy could request.
fn everything() -> Vec<(Viewer, ResourceName)> {
    let mut names: Vec<String> = Vec::new();
    for i in 0..2 {
        for address in ["10.0.0", "10.1.0", "10.2.0"] {
            names.extend(
                [80, 81, 8080, 8082].map(|port| format!("destination/{address}.{i}:{port}")),
            );
        }
        names.extend(["10.9.0.1:80", "10.8.0.1:30080"].map(|at| format!("destination/{at}")));
        for port in [80, 81] {
            names.push(format!("endpoints/shop/w{i}/{port}"));
            names.extend(
                ["shop", "other", "third"].map(|c| format!("service/{c}/shop/w{i}/{port}")),
            );
        }
        for kind in ["http", "tls", "tcp"] {
            names.extend(["shop", "other"].map(|ns| format!("{kind}-route/{ns}/r{i}")));
        }
    }
    let viewer = |pod: String| Viewer {
        namespace: "shop".into(),
        pod,
    };
    (names.iter())
        .map(|name| (viewer("client".into()), name.parse().unwrap()))
        .chain((0..2).map(|i| (viewer(format!("p{i}")), ResourceName::Inbound)))
        .collect()
}

/// Whether one of the changes names the resource.
fn is_named(changed: &HashSet<Changed>, viewer: &Viewer, name: &ResourceName) -> bool {
    if changed.contains(&Changed::Resource(name.clone())) {
        return true;
    }
    match name {
        ResourceName::Inbound => changed.contains(&Changed::Inbound {
            namespace: viewer.namespace.clone(),
            pod: viewer.pod.clone(),
        }),
        ResourceName::Destination(address) => changed.contains(&Changed::Address(address.ip())),
        ResourceName::Service {
            namespace,
            name,
            port,
            ..
        } => changed.contains(&Changed::Service {
            namespace: namespace.clone(),
            name: name.clone(),
            port: *port,
        }),
        _ => false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn no_resource_changes_without_being_named(
        steps in proptest::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 1..40)
    ) {
        let manifests = manifests();
        let everything = everything();
        let mut catalog = Catalog::new(options());
        let mut versions: HashMap<usize, u64> = HashMap::new();
        for (which, gone) in steps {
            let manifest = which.get(&manifests);
            let changed: HashSet<Changed> = match gone {
                true => delete(&mut catalog, manifest),
                false => apply(&mut catalog, manifest),
            }
            .into_iter()
            .collect();
            for (i, (viewer, name)) in everything.iter().enumerate() {
                let now = catalog.compile(viewer, name).map_or(0, |compiled| compiled.version);
                let before = versions.insert(i, now).unwrap_or(now);
                prop_assert!(
                    now == before || is_named(&changed, viewer, name),
                    "{} changed unnamed by {} of:\n{}",
                    name, if gone { "deletion" } else { "application" }, manifest
                );
            }
        }
        // The result depends on the current objects only, not on their history.
        let mut again = Catalog::new(options());
        for manifest in manifests.iter().rev() {
            delete(&mut catalog, manifest);
            apply(&mut again, manifest);
            delete(&mut again, manifest);
        }
        for (viewer, name) in &everything {
            prop_assert_eq!(catalog.compile(viewer, name), again.compile(viewer, name));
        }
    }
}
