use super::*;

const PORT: &str = "{ name: http, port: 80, targetPort: web }";
const WEB: &str = "endpoints/shop/web/80";

fn web() -> Catalog {
    catalog(&[
        &service("shop", "web", "10.0.0.1", PORT),
        &pod("shop", "a", "10.1.0.1", true),
        &pod("shop", "b", "10.1.0.2", true),
        &pod("shop", "c", "10.1.0.3", false),
    ])
}

const SLICE_PORT: &str = "{ name: http, port: 8080 }";

#[test]
fn ready_endpoints_are_used_and_terminating_ones_only_if_none_is_ready() {
    let mut catalog = web();
    for (a, b, expected) in [
        (
            "ready: true",
            "ready: true",
            vec!["10.1.0.1:8080", "10.1.0.2:8080"],
        ),
        ("", "ready: false", vec!["10.1.0.1:8080"]),
        (
            "ready: true",
            "ready: false, serving: true, terminating: true",
            vec!["10.1.0.1:8080"],
        ),
        (
            "ready: false",
            "ready: false, serving: true, terminating: true",
            vec!["10.1.0.2:8080"],
        ),
        (
            "ready: false, serving: false, terminating: true",
            "ready: false",
            vec![],
        ),
    ] {
        let both = format!(
            "{}, {}",
            endpoint("10.1.0.1", "a", a),
            endpoint("10.1.0.2", "b", b)
        );
        apply(&mut catalog, &slice("s", "web", SLICE_PORT, &both));
        assert_eq!(addresses(&catalog, WEB), expected, "{a} / {b}");
    }
}

#[test]
fn a_service_may_publish_unready_endpoints() {
    let mut catalog = web();
    let text = service("shop", "web", "10.0.0.1", PORT)
        .replace("spec: {", "spec: { publishNotReadyAddresses: true,");
    apply(&mut catalog, &text);
    apply(
        &mut catalog,
        &slice(
            "s",
            "web",
            SLICE_PORT,
            &endpoint("10.1.0.1", "a", "ready: false"),
        ),
    );
    assert_eq!(addresses(&catalog, WEB), ["10.1.0.1:8080"]);
}

#[test]
fn a_port_is_found_by_its_name_in_every_slice() {
    let mut catalog = catalog(&[
        &service(
            "shop",
            "web",
            "10.0.0.1",
            &format!("{PORT}, {{ name: admin, port: 9000 }}"),
        ),
        &pod("shop", "a", "10.1.0.1", true),
        &pod("shop", "b", "10.1.0.2", true),
    ]);
    let ports = "{ name: admin, port: 9000 }, { name: http, port: 8080 }, { name: http2, port: 1 }";
    apply(
        &mut catalog,
        &slice("s1", "web", ports, &endpoint("10.1.0.1", "a", "")),
    );
    apply(
        &mut catalog,
        &slice(
            "s2",
            "web",
            "{ name: http, port: 8081 }",
            &endpoint("10.1.0.2", "b", ""),
        ),
    );
    assert_eq!(addresses(&catalog, WEB), ["10.1.0.1:8080", "10.1.0.2:8081"]);
    assert_eq!(
        addresses(&catalog, "endpoints/shop/web/9000"),
        ["10.1.0.1:9000"]
    );
    assert_eq!(compile(&catalog, "endpoints/shop/web/8080"), None);
}

#[test]
fn identities_workloads_and_zones_come_from_pod_and_slice() {
    let mut catalog = web();
    let both = format!(
        "{}, {}",
        endpoint("10.1.0.1", "a", ""),
        endpoint("10.1.0.3", "c", "")
    );
    apply(&mut catalog, &slice("s", "web", SLICE_PORT, &both));
    let endpoints = endpoints(&catalog, WEB).endpoints;
    assert_eq!(
        endpoints[0].identity,
        "spiffe://cluster.local/ns/shop/sa/web"
    );
    assert_eq!(endpoints[0].workload, "pod/a");
    assert_eq!(endpoints[0].zone, "z1");
    assert_eq!(endpoints[1].identity, "", "no sidecar");
}

#[test]
fn an_endpoint_with_an_unknown_pod_is_left_out_since_plaintext_would_be_a_guess() {
    let mut catalog = web();
    let text = slice("s", "web", SLICE_PORT, &endpoint("10.1.0.9", "later", ""));
    apply(&mut catalog, &text);
    assert!(addresses(&catalog, WEB).is_empty());
    let changed = apply(&mut catalog, &pod("shop", "later", "10.1.0.9", true));
    assert!(changed.contains(&change(WEB)));
    assert_eq!(addresses(&catalog, WEB), ["10.1.0.9:8080"]);
}

#[test]
fn a_meshed_pod_is_found_by_its_address_if_the_slice_has_no_target_ref() {
    let mut catalog = web();
    let anonymous = "{ addresses: [10.1.0.1] }, { addresses: [192.0.2.1] }";
    apply(&mut catalog, &slice("s", "web", SLICE_PORT, anonymous));
    let endpoints = endpoints(&catalog, WEB).endpoints;
    assert_eq!(
        endpoints[0].identity,
        "spiffe://cluster.local/ns/shop/sa/web"
    );
    assert_eq!(endpoints[1].identity, "");
}

#[test]
fn a_dual_stack_pod_counts_once_and_an_ipv6_only_one_counts() {
    let mut catalog = web();
    apply(
        &mut catalog,
        &slice("v4", "web", SLICE_PORT, &endpoint("10.1.0.1", "a", "")),
    );
    let v6 = format!(
        "{}, {}",
        endpoint("fd00::1", "a", ""),
        endpoint("fd00::2", "b", "")
    );
    apply(&mut catalog, &slice("v6", "web", SLICE_PORT, &v6));
    assert_eq!(addresses(&catalog, WEB), ["10.1.0.1:8080", "v6-2:8080"]);
}

#[test]
fn a_version_depends_on_content_alone() {
    let (a, b) = (endpoint("10.1.0.1", "a", ""), endpoint("10.1.0.2", "b", ""));
    let mut one = web();
    apply(
        &mut one,
        &slice("s1", "web", SLICE_PORT, &format!("{a}, {b}")),
    );
    let mut other = web();
    apply(&mut other, &slice("t2", "web", SLICE_PORT, &b));
    apply(&mut other, &slice("t1", "web", SLICE_PORT, &a));
    let version = |catalog: &Catalog| compile(catalog, WEB).unwrap().version;
    assert_eq!(version(&one), version(&other));
    // The hash must never change: proxies hold versions across restarts of the controller.
    assert_eq!(version(&web()), version(&web()));
    assert_ne!(version(&one), version(&web()));
    assert_ne!(version(&web()), 0);
}

/// The endpoints of a Service with a policy.
fn spread(policy: &str, endpoints: &str) -> naru_contract::Endpoints {
    let mut catalog = web();
    let text =
        service("shop", "web", "10.0.0.1", PORT).replace("spec: {", &format!("spec: {{ {policy}"));
    apply(&mut catalog, &text);
    apply(&mut catalog, &slice("s", "web", SLICE_PORT, endpoints));
    super::endpoints(&catalog, WEB)
}

fn on(node: &str, hints: &str, endpoint: &str) -> String {
    let more = format!("nodeName: {node}, hints: {{ {hints} }}, zone: z1");
    endpoint.replace("zone: z1", &more)
}

const HINTS: &str = "forZones: [{ name: z1 }, { name: z2 }], forNodes: [{ name: n1 }]";
const LOCAL: &str = "internalTrafficPolicy: Local,";
const LEAVING: &str = "ready: false, serving: true, terminating: true";

#[test]
fn hints_are_passed_on_and_nodes_only_if_they_decide() {
    let one = on("n1", HINTS, &endpoint("10.1.0.1", "a", ""));
    let anywhere = spread("", &one);
    assert!(!anywhere.node_local);
    assert_eq!(anywhere.endpoints[0].for_zones, ["z1", "z2"]);
    assert_eq!(anywhere.endpoints[0].for_nodes, ["n1"]);
    assert_eq!(anywhere.endpoints[0].node, "");
    let local = spread(LOCAL, &one);
    assert!(local.node_local);
    assert_eq!(local.endpoints[0].node, "n1");
    assert!(local.endpoints[0].for_zones.is_empty() && local.endpoints[0].for_nodes.is_empty());
    assert!(!spread("internalTrafficPolicy: Cluster,", &one).node_local);
}

#[test]
fn terminating_endpoints_have_no_hints_if_none_is_ready() {
    let one = on("n1", HINTS, &endpoint("10.1.0.1", "a", LEAVING));
    let endpoints = spread("", &one).endpoints;
    assert_eq!(endpoints.len(), 1);
    assert!(endpoints[0].for_zones.is_empty() && endpoints[0].for_nodes.is_empty());
}

#[test]
fn a_node_without_a_ready_endpoint_keeps_terminating_ones_if_clients_are_bound_to_it() {
    let members = [
        ("10.1.0.1", "a", "n1", LEAVING),
        ("10.1.0.2", "b", "n2", ""),
        ("10.1.0.3", "c", "n2", LEAVING),
    ]
    .map(|(ip, pod, node, conditions)| on(node, "", &endpoint(ip, pod, conditions)))
    .join(", ");
    let pods = |endpoints: naru_contract::Endpoints| -> Vec<String> {
        endpoints.endpoints.into_iter().map(|e| e.pod).collect()
    };
    assert_eq!(pods(spread("", &members)), ["b"]);
    assert_eq!(pods(spread(LOCAL, &members)), ["a", "b"]);
}
