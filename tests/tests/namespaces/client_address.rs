//! The address that an app sees its clients come from.

use std::collections::BTreeSet;

use crate::mesh::{Mesh, Workload, program, python};

/// An app that tells its clients where it sees them.
fn whoami(name: &str) -> Workload {
    let script = format!("exec {} {} server", python(), program("whoami.py"));
    Workload::new(name, &script)
        .port(8080, 8080, Some("http"))
        .port(5432, 5432, Some("tcp"))
}

/// What a server says that it sees, over HTTP and in bytes, by whichever family it is called.
fn asked(mesh: &Mesh, server: &str) -> Vec<String> {
    let script = format!("{} {} client {server}", python(), program("whoami.py"));
    let said = mesh.run(&script);
    println!("{said}");
    let lines = said.lines().filter_map(|line| line.split_once(' '));
    let lines: BTreeSet<String> = lines.map(|(_, seen)| seen.to_owned()).collect();
    lines.into_iter().collect()
}

#[test]
fn an_app_sees_the_address_of_its_client_over_http_and_in_bytes() {
    let mesh = Mesh::new();
    mesh.add(&whoami("server"));
    assert_eq!(asked(&mesh, "server"), ["http client", "tcp client"]);
}

#[test]
fn an_app_that_is_called_at_its_own_address_sees_its_client_by_either_family() {
    let mesh = Mesh::new();
    mesh.add(&whoami("server").headless());
    assert_eq!(asked(&mesh, "server"), ["http client", "tcp client"]);
}

#[test]
fn http_clients_that_are_hidden_have_a_stand_in_and_never_the_pod() {
    let mesh = Mesh::new();
    mesh.add(&whoami("server").annotate("naru.dev/client-address", "hide"));
    assert_eq!(asked(&mesh, "server"), ["http 169.254.6.6", "tcp client"]);
}

#[test]
fn an_app_is_told_its_clients_addresses_where_it_asks_for_them() {
    let mesh = Mesh::new();
    let server = whoami("server").annotate("naru.dev/proxy-protocol", "8080,5432");
    mesh.add(&server);
    assert_eq!(
        asked(&mesh, "server"),
        ["http told client", "tcp told client"]
    );
}

#[test]
fn an_app_is_told_in_fields_of_requests_who_calls() {
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
