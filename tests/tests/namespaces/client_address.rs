//! The address that an app sees its clients come from.

use crate::mesh::{Mesh, Workload, program, python};

/// An app that tells its clients where it sees them.
fn whoami(name: &str) -> Workload {
    let script = format!("exec {} {} server", python(), program("whoami.py"));
    Workload::new(name, &script)
        .port(8080, 8080, Some("http"))
        .port(5432, 5432, Some("tcp"))
}

fn asked(mesh: &Mesh, client: &str, server: &str) -> Vec<String> {
    let script = format!("{} {} client {server}", python(), program("whoami.py"));
    let mut lines: Vec<String> = mesh
        .run_in(client, &script)
        .lines()
        .map(str::to_owned)
        .collect();
    lines.dedup();
    lines
}

#[test]
fn an_app_sees_the_address_of_its_client_over_http_and_in_bytes() {
    let mesh = Mesh::new();
    mesh.add(&whoami("server"));
    let seen = asked(&mesh, "client", "server");
    let wanted = ["IPv4 http client", "IPv4 tcp client"];
    assert_eq!(seen, wanted);
}

#[test]
fn http_clients_that_are_hidden_are_nobody_and_never_the_pod() {
    let mesh = Mesh::new();
    mesh.add(&whoami("server").annotate("naru.dev/client-address", "hide"));
    let seen = asked(&mesh, "client", "server");
    let wanted = ["IPv4 http 169.254.6.6", "IPv4 tcp client"];
    assert_eq!(seen, wanted);
}

#[test]
fn an_app_is_told_its_clients_addresses_where_it_asks_for_them() {
    let mesh = Mesh::new();
    let server = whoami("server").annotate("naru.dev/proxy-protocol", "8080,5432");
    mesh.add(&server);
    let seen = asked(&mesh, "client", "server");
    let wanted = ["IPv4 http told client", "IPv4 tcp told client"];
    assert_eq!(seen, wanted);
}

#[test]
fn an_app_is_told_in_fields_of_requests_who_calls() {
    let mesh = Mesh::new();
    let fields = "x-forwarded-for,forwarded";
    mesh.add(&whoami("server").annotate("naru.dev/forwarded-headers", fields));
    let written =
        mesh.run("curl -sS -H 'X-Forwarded-Client-Cert: URI=spiffe://forged' http://server:8080/");
    let identity = "spiffe://cluster.local/ns/test/sa/";
    let proved = format!("X-Forwarded-Client-Cert: By={identity}server;URI={identity}client");
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
