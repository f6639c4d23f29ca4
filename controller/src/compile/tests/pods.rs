use naru_contract::{Inbound, PodDestination, Protocol};

use super::*;

fn pod_target(catalog: &Catalog, address: &str) -> PodDestination {
    match target(catalog, address) {
        Some(destination::Target::Pod(pod)) => *pod,
        other => panic!("{other:?}"),
    }
}

fn inbound(catalog: &Catalog) -> Inbound {
    let viewer = Viewer {
        namespace: "shop".into(),
        pod: "a".into(),
    };
    match catalog
        .compile(&viewer, &ResourceName::Inbound)
        .unwrap()
        .body
    {
        Body::Inbound(inbound) => inbound,
        other => panic!("{other:?}"),
    }
}

fn ports(catalog: &Catalog) -> Vec<(u32, Protocol)> {
    (inbound(catalog).ports.iter())
        .map(|port| (port.port, port.protocol()))
        .collect()
}

fn namespace(annotations: &str) -> String {
    format!(
        "apiVersion: v1\n\
         kind: Namespace\n\
         metadata: {{ name: shop, annotations: {{ {annotations} }} }}\n"
    )
}

fn annotated(text: &str, annotations: &str) -> String {
    text.replacen(
        "metadata: {",
        &format!("metadata: {{ annotations: {{ {annotations} }},"),
        1,
    )
}

#[test]
fn a_cluster_ip_with_one_of_its_ports_is_its_service_in_both_families() {
    let text = service(
        "shop",
        "web",
        "10.0.0.1",
        "{ name: a, port: 80 }, { name: b, port: 81 }",
    )
    .replace(
        "clusterIP:",
        "clusterIPs: [10.0.0.1, \"fd00:1::1\"], clusterIP:",
    );
    let mut catalog = catalog(&[&text]);
    for (address, port) in [
        ("10.0.0.1:80", 80),
        ("10.0.0.1:81", 81),
        ("[fd00:1::1]:80", 80),
        ("[::ffff:10.0.0.1]:80", 80),
    ] {
        let expected = format!("service/shop/shop/web/{port}");
        assert_eq!(
            target(&catalog, address),
            Some(destination::Target::Service(expected))
        );
    }
    assert_eq!(target(&catalog, "10.0.0.1:82"), None);
    assert_eq!(target(&catalog, "192.0.2.1:80"), None);
    let changed = delete(&mut catalog, &text);
    assert!(changed.contains(&change("destination/10.0.0.1:*")));
    assert_eq!(target(&catalog, "10.0.0.1:80"), None);
}

#[test]
fn a_headless_service_s_pod_has_the_protocol_of_the_service_port() {
    let mut catalog = catalog(&[
        &service(
            "shop",
            "db",
            "None",
            "{ name: pg, port: 5432, targetPort: 5433, appProtocol: postgresql }",
        ),
        &pod("shop", "a", "10.1.0.1", true),
        &slice(
            "s",
            "db",
            "{ name: pg, port: 5433 }",
            &endpoint("10.1.0.1", "a", "ready: false"),
        ),
    ]);
    let pod = pod_target(&catalog, "10.1.0.1:5433");
    assert_eq!(
        (pod.service.as_str(), pod.protocol()),
        ("db", Protocol::Tcp)
    );
    let endpoint = pod.endpoint.unwrap();
    assert_eq!(endpoint.identity, "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!((endpoint.port, endpoint.zone.as_str()), (5433, "z1"));

    let changed = apply(
        &mut catalog,
        &service(
            "shop",
            "db",
            "None",
            "{ name: pg, port: 5432, targetPort: 5433, appProtocol: http }",
        ),
    );
    assert!(changed.contains(&change("destination/10.1.0.1:*")));
    assert_eq!(
        pod_target(&catalog, "10.1.0.1:5433").protocol(),
        Protocol::Http1
    );
}

#[test]
fn any_port_of_a_pod_is_that_pod() {
    let mut catalog = catalog(&[&pod("shop", "a", "10.1.0.1", true)]);
    let pod_at = pod_target(&catalog, "10.1.0.1:1234");
    assert_eq!(
        (pod_at.service.as_str(), pod_at.protocol()),
        ("", Protocol::Detect)
    );
    assert_eq!(pod_at.namespace, "shop");
    apply(&mut catalog, &namespace("naru.dev/opaque-ports: \"1234\""));
    assert_eq!(
        pod_target(&catalog, "10.1.0.1:1234").protocol(),
        Protocol::Tcp
    );
    apply(&mut catalog, &pod("shop", "a", "10.1.0.1", false));
    assert_eq!(
        pod_target(&catalog, "10.1.0.1:1234")
            .endpoint
            .unwrap()
            .identity,
        ""
    );
}

#[test]
fn an_address_belongs_to_the_running_pod_and_never_to_one_in_the_host_network() {
    let ended = pod("shop", "a-job", "10.1.0.1", true).replace("Running", "Succeeded");
    let host =
        pod("shop", "node", "10.9.0.1", true).replace("spec: {", "spec: { hostNetwork: true,");
    let mut catalog = catalog(&[&ended, &host]);
    assert_eq!(target(&catalog, "10.1.0.1:80"), None);
    assert_eq!(target(&catalog, "10.9.0.1:80"), None);
    apply(&mut catalog, &pod("shop", "b", "10.1.0.1", true));
    assert_eq!(
        pod_target(&catalog, "10.1.0.1:80").endpoint.unwrap().pod,
        "b"
    );
    assert_eq!(catalog.service_account("shop", "a-job"), None);
    assert_eq!(catalog.service_account("shop", "b"), Some("web"));
}

#[test]
fn inbound_ports_are_those_that_services_declare_with_names_resolved() {
    let mut catalog = catalog(&[
        &pod("shop", "a", "10.1.0.1", true),
        &service(
            "shop",
            "web",
            "10.0.0.1",
            "{ name: a, port: 80, targetPort: web, appProtocol: grpc }, { name: b, port: 90 }",
        ),
        &service(
            "shop",
            "unrelated",
            "10.0.0.2",
            "{ port: 7000, appProtocol: tcp }",
        ),
    ]);
    assert_eq!(ports(&catalog), [(8080, Protocol::Http2)]);
    assert_eq!(inbound(&catalog).workload, "pod/a");

    let other = service(
        "shop",
        "web2",
        "10.0.0.3",
        "{ port: 80, targetPort: 8080, appProtocol: http }",
    )
    .replace("app: web2", "app: web");
    let changed = apply(&mut catalog, &other);
    assert!(changed.contains(&Changed::Inbound {
        namespace: "shop".into(),
        pod: "a".into()
    }));
    assert!(ports(&catalog).is_empty(), "contradictions declare nothing");
}

#[test]
fn opaque_ports_come_from_the_most_specific_object() {
    let web = service("shop", "web", "10.0.0.1", "{ port: 80, targetPort: 8080 }");
    let mut catalog = catalog(&[&pod("shop", "a", "10.1.0.1", true), &web]);
    let protocol =
        |catalog: &Catalog| service_of(compile(catalog, "service/shop/shop/web/80")).protocol();
    assert_eq!(protocol(&catalog), Protocol::Detect);
    let changed = apply(
        &mut catalog,
        &namespace("naru.dev/opaque-ports: \"80,9000\""),
    );
    for name in [
        "service/*/shop/web/80",
        "endpoints/shop/web/80",
        "destination/10.1.0.1:*",
    ] {
        assert!(changed.contains(&change(name)), "{name}");
    }
    assert_eq!(protocol(&catalog), Protocol::Tcp);
    assert_eq!(
        ports(&catalog),
        [
            (80, Protocol::Tcp),
            (8080, Protocol::Tcp),
            (9000, Protocol::Tcp)
        ]
    );
    apply(
        &mut catalog,
        &annotated(&web, "naru.dev/opaque-ports: \"\""),
    );
    assert_eq!(protocol(&catalog), Protocol::Detect);
    apply(
        &mut catalog,
        &annotated(
            &pod("shop", "a", "10.1.0.1", true),
            "naru.dev/opaque-ports: \"3306\"",
        ),
    );
    assert_eq!(ports(&catalog), [(3306, Protocol::Tcp)]);
}

#[test]
fn the_most_specific_mtls_setting_applies() {
    let mut catalog = catalog(&[&pod("shop", "a", "10.1.0.1", true)]);
    assert_eq!(inbound(&catalog).mtls(), MtlsMode::Permissive);
    let changed = apply(&mut catalog, &namespace("naru.dev/mtls: strict"));
    assert_eq!(
        changed,
        [Changed::Inbound {
            namespace: "shop".into(),
            pod: "a".into()
        }]
    );
    assert_eq!(inbound(&catalog).mtls(), MtlsMode::Strict);
    apply(
        &mut catalog,
        &annotated(
            &pod("shop", "a", "10.1.0.1", true),
            "naru.dev/mtls: permissive",
        ),
    );
    assert_eq!(inbound(&catalog).mtls(), MtlsMode::Permissive);
}

#[test]
fn ports_that_bypass_the_sidecar_are_in_plaintext() {
    let bare = annotated(
        &pod("shop", "a", "10.1.0.1", true),
        "naru.dev/skip-inbound-ports: \"9090, 9091\"",
    );
    let mut catalog = catalog(&[&bare]);
    let identity = |catalog: &Catalog, port: u16| {
        let endpoint = pod_target(catalog, &format!("10.1.0.1:{port}")).endpoint;
        endpoint.expect("an endpoint").identity
    };
    for port in [9090, 9091, naru_contract::PROXY_ADMIN_PORT] {
        assert_eq!(identity(&catalog, port), "");
    }
    assert_ne!(identity(&catalog, 8080), "");
    // The change affects the pod's clients.
    let changed = apply(&mut catalog, &pod("shop", "a", "10.1.0.1", true));
    assert!(!changed.is_empty());
    assert_ne!(identity(&catalog, 9090), "");
}

/// The pod `a` on a node, with a label for its zone.
fn pod_on(node: &str, zone: &str) -> String {
    pod("shop", "a", "10.1.0.1", true)
        .replace("spec: {", &format!("spec: {{ nodeName: {node},"))
        .replace(
            "app: web,",
            &format!("app: web, topology.kubernetes.io/zone: \"{zone}\","),
        )
}

fn place(catalog: &Catalog) -> (String, String) {
    let inbound = inbound(catalog);
    (inbound.node, inbound.zone)
}

#[test]
fn a_pod_gets_its_node_and_the_zone_from_its_label_or_else_from_a_slice() {
    let inbound_of_a = Changed::Inbound {
        namespace: "shop".into(),
        pod: "a".into(),
    };
    let mut catalog = catalog(&[&pod_on("n1", "")]);
    assert_eq!(place(&catalog), ("n1".into(), "".into()));

    let said = |zone: &str, more: &str| {
        let other = endpoint("10.1.0.2", "b", more)
            .replace("zone: z1", &format!("nodeName: n1, zone: {zone}"));
        slice("s", "other", "{ port: 80 }", &other)
    };
    let changed = apply(&mut catalog, &said("z1", ""));
    assert!(changed.contains(&inbound_of_a), "{changed:?}");
    assert_eq!(place(&catalog), ("n1".into(), "z1".into()));

    // An unchanged zone wakes no stream.
    let changed = apply(&mut catalog, &said("z1", "ready: false"));
    assert!(!changed.contains(&inbound_of_a), "{changed:?}");
    let again = said("z1", "").replace("name: s,", "name: again,");
    let changed = apply(&mut catalog, &again);
    assert!(!changed.contains(&inbound_of_a), "{changed:?}");
    let changed = delete(&mut catalog, &again);
    assert!(!changed.contains(&inbound_of_a), "{changed:?}");

    let changed = apply(&mut catalog, &said("z2", ""));
    assert!(changed.contains(&inbound_of_a), "{changed:?}");
    assert_eq!(place(&catalog), ("n1".into(), "z2".into()));

    apply(&mut catalog, &pod_on("n1", "z3"));
    assert_eq!(place(&catalog), ("n1".into(), "z3".into()));
    let changed = delete(&mut catalog, &said("z2", ""));
    assert!(!changed.contains(&inbound_of_a), "{changed:?}");
}
