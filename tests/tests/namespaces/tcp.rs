//! Protocols other than HTTP: Redis, a server-first protocol, TLS of the app's own.

use serde_json::json;

use crate::mesh::{Mesh, NAMESPACE, Workload, host, need, program, python};

#[test]
fn redis_works_declared_and_detected() {
    need("redis-server", "redis-server");
    need("redis-benchmark", "redis-tools");
    let mesh = Mesh::new();
    let script = "exec redis-server --port 6379 --save '' --protected-mode no --bind '* -::*'";
    mesh.add(&Workload::new("declared", script).port(6379, 6379, Some("redis")));
    mesh.add(&Workload::new("detected", script).port(6379, 6379, None));
    let written = mesh.run(
        "for server in declared detected; do\n\
           redis-cli -h $server ping\n\
           head -c 10000000 /dev/urandom | base64 -w0 > value\n\
           redis-cli -h $server -x set large < value\n\
           redis-cli -h $server get large | tr -d '\\n' | cmp - value\n\
           redis-benchmark -h $server -n 5000 -c 20 -P 4 -t set,get,lpush -q\n\
         done",
    );
    assert_eq!(written.matches("PONG").count(), 2, "{written}");
    assert_eq!(written.matches("OK").count(), 2, "{written}");
}

#[test]
fn a_server_first_protocol_has_no_delay_and_half_closed_connections_stay_half_open() {
    let mesh = Mesh::new();
    let (python, banner) = (python(), program("banner.py"));
    let server = Workload::new("greeter", &format!("exec {python} {banner} server 2525"));
    mesh.add(&server.port(25, 2525, None));
    let written = mesh.run(&format!("{python} {banner} client greeter 25"));
    let slowest: f64 = written
        .split_whitespace()
        .rev()
        .nth(1)
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("{written}"));
    // No fixed timeout fits into this.
    assert!(slowest < 100.0, "{written}");
}

#[test]
fn tls_of_the_app_is_passed_through_untouched() {
    need("openssl", "openssl");
    let mesh = Mesh::new();
    let (key, certificate) = (mesh.path("app.key"), mesh.path("app.crt"));
    let (key, certificate) = (key.display(), certificate.display());
    host(&format!(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
         -subj /CN=app -addext subjectAltName=DNS:secure -keyout {key} -out {certificate}"
    ));
    let script = format!("exec openssl s_server -accept 8443 -key {key} -cert {certificate} -www");
    mesh.add(&Workload::new("secure", &script).port(443, 8443, None));
    let written = mesh.run(&format!(
        "curl -sS -m 10 --cacert {certificate} https://secure/ | grep -i 'protocol'"
    ));
    assert!(written.contains("TLSv1.3"), "{written}");
}

#[test]
fn the_sni_of_openssl_decides_which_server_certificate_it_gets() {
    need("openssl", "openssl");
    let mesh = Mesh::new();
    for name in ["eu", "us"] {
        let (key, certificate) = (format!("{name}.key"), format!("{name}.crt"));
        let (key, certificate) = (mesh.path(&key), mesh.path(&certificate));
        let (key, certificate) = (key.display(), certificate.display());
        host(&format!(
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
             -subj /CN={name}-server -keyout {key} -out {certificate} && chmod a+r {key}"
        ));
        let script =
            format!("exec openssl s_server -accept 8443 -key {key} -cert {certificate} -www");
        mesh.add(&Workload::new(name, &script).port(443, 8443, None));
        mesh.put(&json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "TLSRoute",
            "metadata": { "name": name, "namespace": NAMESPACE },
            "spec": {
                "parentRefs": [{ "group": "", "kind": "Service", "name": "us" }],
                "hostnames": [format!("*.{name}.example")],
                "rules": [{ "backendRefs": [{ "name": name, "port": 443 }] }],
            },
        }));
    }
    let written = mesh.run(
        "for asked in '-servername a.eu.example' '-servername A.US.example' \
           '-tls1_2 -servername b.eu.example' '-servername other.example' -noservername; do\n\
           openssl s_client -connect us:443 $asked < /dev/null > answer 2>&1 || true\n\
           grep -o 'subject=CN = .*' answer || echo refused\n\
         done",
    );
    let lines: Vec<&str> = written.lines().collect();
    let (eu, us) = ("subject=CN = eu-server", "subject=CN = us-server");
    assert_eq!(lines, [eu, us, eu, "refused", "refused"], "{written}");
}
