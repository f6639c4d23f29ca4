//! The client address that an app sees.

use std::collections::BTreeSet;

use crate::mesh::{Mesh, Workload, program, python};

/// An app that returns the address of its clients.
fn whoami(name: &str) -> Workload {
    let script = format!("exec {} {} server", python(), program("whoami.py"));
    Workload::new(name, &script)
        .port(8080, 8080, Some("http"))
        .port(5432, 5432, Some("tcp"))
}

/// The client addresses that a server sees, over HTTP and TCP, on each family.
fn asked(mesh: &Mesh, server: &str) -> Vec<String> {
    let script = format!("{} {} client {server}", python(), program("whoami.py"));
    let said = mesh.run(&script);
    println!("{said}");
    let lines = said.lines().filter_map(|line| line.split_once(' '));
    let lines: BTreeSet<String> = lines.map(|(_, seen)| seen.to_owned()).collect();
    lines.into_iter().collect()
}

#[test]
fn an_app_sees_the_address_of_its_client_over_http_and_tcp() {
    let mesh = Mesh::new();
    mesh.add(&whoami("server"));
    assert_eq!(asked(&mesh, "server"), ["http client", "tcp client"]);
}

#[test]
fn an_app_at_its_own_address_sees_its_client_on_either_family() {
    let mesh = Mesh::new();
    mesh.add(&whoami("server").headless());
    assert_eq!(asked(&mesh, "server"), ["http client", "tcp client"]);
}

#[test]
fn hidden_http_clients_have_a_substitute_and_never_the_pods_address() {
    let mesh = Mesh::new();
    mesh.add(&whoami("server").annotate("naru.dev/client-address", "hide"));
    assert_eq!(asked(&mesh, "server"), ["http 169.254.6.6", "tcp client"]);
}

#[test]
fn an_app_gets_its_clients_addresses_by_the_proxy_protocol_on_request() {
    let mesh = Mesh::new();
    let server = whoami("server").annotate("naru.dev/proxy-protocol", "8080,5432");
    mesh.add(&server);
    assert_eq!(
        asked(&mesh, "server"),
        ["http told client", "tcp told client"]
    );
}

#[test]
fn an_app_gets_its_clients_addresses_in_header_fields() {
    let mesh = Mesh::new();
    let fields = "x-forwarded-for,forwarded";
    mesh.add(&whoami("server").annotate("naru.dev/forwarded-headers", fields));
    let written =
        mesh.run("curl -sS -H 'X-Forwarded-Client-Cert: URI=spiffe://forged' http://server:8080/");
    let identity = "spiffe://cluster.local/ns/test/sa/";
    let proved = format!("x-forwarded-client-cert: By={identity}server;URI={identity}client");
    assert!(written.contains(&proved), "{written}");
    assert!(!written.contains("forged"), "{written}");
    let seen = written.lines().next().expect("an address");
    let element = match seen.contains(':') {
        true => format!("forwarded: for=\"[{seen}]\""),
        false => format!("forwarded: for={seen}"),
    };
    for field in [format!("x-forwarded-for: {seen}"), element] {
        assert!(written.lines().any(|line| line == field), "{written}");
    }
}
