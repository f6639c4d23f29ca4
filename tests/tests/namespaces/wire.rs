//! The traffic on the wire between two pods: TLS 1.3, and no plaintext.

use crate::http::nginx;
use crate::mesh::{Mesh, Workload, host, need, program, python};

/// Contained in every request and response of the test; the capture must not contain it.
const MARKER: &str = "a-word-that-must-stay-secret";

#[test]
fn between_pods_there_is_tls_1_3_and_no_plaintext() {
    need("tcpdump", "tcpdump");
    need("tshark", "tshark");
    let mesh = Mesh::new();
    let marked = format!("location /marked {{ return 200 \"{MARKER}\\n\"; }}");
    mesh.add(&nginx(&mesh, "nginx", &marked));
    let greeter = format!("exec {} {} server 2525", python(), program("banner.py"));
    mesh.add(&Workload::new("greeter", &greeter).port(25, 2525, None));
    mesh.add(
        &Workload::new(
            "store",
            "exec redis-server --port 6379 --save '' --protected-mode no --bind '* -::*'",
        )
        .port(6379, 6379, None),
    );
    let capture = mesh.path("wire.pcap").display().to_string();
    mesh.run(&format!(
        "tcpdump -i eth0 --immediate-mode -U -s 0 -w {capture} tcp 2> {capture}.log & dump=$!\n\
         until grep -q 'listening on' {capture}.log; do sleep 0.1; done\n\
         for family in -4 -6; do curl $family -sS -m 10 http://nginx/marked?{MARKER} | grep -q \
         {MARKER}; done\n\
         curl -sS -m 10 -H 'secret: {MARKER}' -d {MARKER} -o /dev/null http://nginx/marked\n\
         redis-cli -h store set {MARKER} {MARKER} | grep -q OK\n\
         redis-cli -h store get {MARKER} | grep -q {MARKER}\n\
         {} {} client greeter 25\n\
         sleep 0.5; kill $dump; wait $dump || true",
        python(),
        program("banner.py"),
    ));
    for word in [
        MARKER,
        "HTTP/1.",
        "PING",
        "220 at your service",
        "naru-http",
        "spiffe:",
    ] {
        // The ALPN in the ClientHello is the only plaintext that TLS 1.3 shows.
        if word == "naru-http" {
            continue;
        }
        let found = host(&format!("grep -a -c -F '{word}' {capture} || true"));
        assert_eq!(found.trim(), "0", "{word:?} can be read on the wire");
    }
    let fields = |filter: &str, field: &str| -> Vec<String> {
        host(&format!(
            "tshark -r {capture} -d tcp.port==8080,tls -d tcp.port==2525,tls -d tcp.port==6379,tls \
             -Y '{filter}' -T fields -e {field} 2> /dev/null"
        ))
        .split_whitespace()
        .map(str::to_owned)
        .collect()
    };
    let versions = fields(
        "tls.handshake.type == 2",
        "tls.handshake.extensions.supported_version",
    );
    // At least one with each server: later requests on an open connection need none.
    assert!(versions.len() >= 3, "too few handshakes: {versions:?}");
    assert!(
        versions.iter().all(|version| version == "0x0304"),
        "{versions:?}"
    );
    let groups = fields(
        "tls.handshake.type == 2",
        "tls.handshake.extensions_key_share_group",
    );
    // X25519MLKEM768.
    assert!(
        groups
            .iter()
            .all(|group| ["4588", "0x11ec"].contains(&group.as_str())),
        "{groups:?}"
    );
    // Every connection with data began with a TLS handshake. The proxy's stream from the controller
    // is older than the capture.
    let mut talked = fields("tcp.len > 0 && !(tcp.port == 15010)", "tcp.stream");
    let mut shaken = fields(
        "tls.handshake.type == 1 && !(tcp.port == 15010)",
        "tcp.stream",
    );
    for streams in [&mut talked, &mut shaken] {
        streams.sort();
        streams.dedup();
    }
    assert_eq!(
        talked, shaken,
        "connections that talked, and those that began with TLS"
    );
}
