//! Services at their external addresses.

use super::*;

/// The Service at an address, with its port.
fn called(catalog: &Catalog, address: &str) -> Option<String> {
    match target(catalog, address)? {
        destination::Target::Service(name) => Some(name),
        destination::Target::Pod(pod) => Some(format!("pod of {}", pod.namespace)),
    }
}

fn outside(name: &str, ip: &str, spec: &str, ports: &str) -> String {
    service("shop", name, ip, ports).replace("spec: {", &format!("spec: {{ {spec},"))
}

const BALANCED: &str = "status: { loadBalancer: { ingress: [{ ip: 192.0.2.7, ipMode: VIP }, \
    { ip: 192.0.2.8, ipMode: Proxy }, { hostname: a.example }, { ip: 192.0.2.9 }] } }\n";

#[test]
fn external_addresses_and_those_of_load_balancers_are_the_service() {
    let ports = "{ name: http, port: 80 }, { name: dns, port: 53, protocol: UDP }";
    let mut catalog = catalog(&[&outside(
        "web",
        "10.0.0.1",
        "externalIPs: [192.0.2.1]",
        ports,
    )]);
    let balanced = service("shop", "lb", "10.0.0.2", ports) + BALANCED;
    apply(&mut catalog, &balanced);
    let web = Some("service/shop/shop/web/80".to_owned());
    let lb = Some("service/shop/shop/lb/80".to_owned());
    for (address, expected) in [
        ("10.0.0.1:80", &web),
        ("192.0.2.1:80", &web),
        ("192.0.2.1:81", &None),
        ("192.0.2.1:53", &None),
        ("192.0.2.7:80", &lb),
        ("192.0.2.9:80", &lb),
        // The load balancer itself has to be called.
        ("192.0.2.8:80", &None),
    ] {
        assert_eq!(called(&catalog, address), *expected, "{address}");
    }
    delete(&mut catalog, &balanced);
    assert_eq!(called(&catalog, "192.0.2.7:80"), None);
}

#[test]
fn an_external_address_does_not_shadow_services_and_pods() {
    let ips = "externalIPs: [10.0.0.1, 10.1.0.1, 192.0.2.1]";
    let headless = outside("none", "None", "externalIPs: [192.0.2.2]", "{ port: 80 }");
    let catalog = catalog(&[
        &service("shop", "web", "10.0.0.1", "{ port: 80 }"),
        &pod("shop", "p", "10.1.0.1", true),
        &outside(
            "bad",
            "10.0.0.9",
            ips,
            "{ port: 80 }, { name: b, port: 8080 }",
        ),
        &headless,
    ]);
    let web = Some("service/shop/shop/web/80".to_owned());
    assert_eq!(called(&catalog, "10.0.0.1:80"), web);
    assert_eq!(
        called(&catalog, "10.1.0.1:8080").as_deref(),
        Some("pod of shop")
    );
    assert_eq!(called(&catalog, "192.0.2.2:80"), None);
}

#[test]
fn a_node_port_is_its_service_on_any_node() {
    let ports = "{ port: 80, nodePort: 30080 }";
    let web = outside("web", "10.0.0.1", "type: NodePort", ports);
    let on_node = |name: &str, ips: &str| {
        pod("shop", name, "10.1.0.1", true).replace("phase:", &format!("{ips}, phase:"))
    };
    let two = on_node(
        "b",
        "hostIP: 10.8.0.2, hostIPs: [{ ip: 10.8.0.2 }, { ip: \"fd00::2\" }]",
    );
    let mut catalog = catalog(&[&web, &on_node("a", "hostIP: 10.8.0.1")]);
    let expected = Some("service/shop/shop/web/80".to_owned());
    assert_eq!(called(&catalog, "10.8.0.1:30080"), expected);
    assert_eq!(called(&catalog, "10.8.0.1:80"), None);
    assert_eq!(called(&catalog, "10.8.0.2:30080"), None);
    let known = |changed: &[Changed], address: &str| {
        changed.contains(&change(&format!("destination/{address}")))
    };
    // The first pod on the node, the second, and the last.
    assert!(known(&apply(&mut catalog, &two), "10.8.0.2:*"));
    assert_eq!(called(&catalog, "10.8.0.2:30080"), expected);
    assert_eq!(called(&catalog, "[fd00::2]:30080"), expected);
    let second = two
        .replace("name: b", "name: c")
        .replace("10.1.0.1", "10.1.0.3");
    assert!(!known(&apply(&mut catalog, &second), "10.8.0.2:*"));
    assert!(!known(&delete(&mut catalog, &two), "10.8.0.2:*"));
    assert!(known(&delete(&mut catalog, &second), "10.8.0.2:*"));
    assert_eq!(called(&catalog, "10.8.0.2:30080"), None);
    assert!(known(&delete(&mut catalog, &web), "10.8.0.1:30080"));
    assert_eq!(called(&catalog, "10.8.0.1:30080"), None);
}
