//! HTTP between programs without support for a mesh: nginx, curl, hey, wrk, h2load, nghttpd and a
//! WebSocket library.

use serde_json::json;

use crate::mesh::{Mesh, Workload, namespace, need, pods_of, program, python};

/// nginx on port 8080 of every address, with `locations` in addition to its files.
pub fn nginx(mesh: &Mesh, name: &str, locations: &str) -> Workload {
    need("nginx", "nginx-light");
    let root = mesh.path("htdocs");
    mesh.file("htdocs/index.html", "this is nginx\n");
    let scratch = mesh.path(&format!("nginx-{name}"));
    std::fs::create_dir_all(&scratch).expect("create");
    let scratch = scratch.display();
    let configuration = mesh.file(
        &format!("nginx-{name}.conf"),
        format!(
            "user root; daemon off; worker_processes 1; error_log stderr;\n\
             events {{ worker_connections 1024; }}\n\
             http {{\n\
               access_log {scratch}/access.log; client_max_body_size 0;\n\
               client_body_temp_path {scratch}/body; proxy_temp_path {scratch}/proxy;\n\
               fastcgi_temp_path {scratch}/f; uwsgi_temp_path {scratch}/u; scgi_temp_path \
               {scratch}/s;\n\
               server {{\n\
                 listen 8080; listen [::]:8080; root {};\n\
                 location = /name {{ return 200 \"$server_addr\\n\"; }}\n\
                 {locations}\n\
               }}\n\
             }}\n",
            root.display()
        ),
    );
    // As in nginx's image (STOPSIGNAL): SIGQUIT, for a graceful shutdown.
    let script = format!(
        "nginx -e stderr -c {configuration} -g \"pid {scratch}/$$.pid;\" & trap 'kill -QUIT $!' \
         TERM; wait $!; trap - TERM; wait $!"
    );
    Workload::new(name, &script).port(80, 8080, None)
}

#[test]
fn curl_gets_the_same_from_nginx_as_without_a_mesh() {
    need("curl", "curl");
    let mesh = Mesh::new();
    let upload = mesh.path("upload");
    std::fs::create_dir_all(&upload).expect("create");
    let locations = format!(
        "location /cased {{ add_header X-CaSe-KePt yes always; return 207 \"cased\\n\"; }}\n\
         location /put {{\n\
           client_body_in_file_only on; client_body_temp_path {};\n\
           proxy_set_body off; proxy_pass http://127.0.0.1:8080/index.html; proxy_method GET;\n\
         }}\n\
         location /chunked {{ gzip on; gzip_types *; gzip_min_length 1; alias {}; }}",
        upload.display(),
        mesh.path("htdocs").display(),
    );
    mesh.add(&nginx(&mesh, "nginx", &locations));
    mesh.put(&pods_of("nginx"));
    let random = mesh.path("htdocs/random");
    crate::mesh::host(&format!(
        "head -c 50000000 /dev/urandom > {0}; head -c 3000000 /dev/zero > {0}.zero",
        random.display()
    ));
    let random = random.display();
    let upload = upload.display();
    mesh.run(&format!(
        r#"
        expect() {{ if [[ "$2" != "$3" ]]; then echo "$1: expected <$2>, got <$3>"; exit 1; fi; }}
        for name in nginx nginx.test nginx.test.svc nginx.test.svc.cluster.local; do
          expect "$name" "this is nginx" "$(curl -sS -m 10 http://$name/)"
        done
        expect "IPv4" "this is nginx" "$(curl -4 -sS -m 10 http://nginx/)"
        expect "IPv6" "this is nginx" "$(curl -6 -sS -m 10 http://nginx/)"
        expect "a large file" "$(sha256sum < {random})" \
          "$(curl -sS -m 60 http://nginx/random | sha256sum)"
        expect "HTTP/1.0" "200 1.1" \
          "$(curl -0 -sS -m 10 -o /dev/null -w '%{{http_code}} %{{http_version}}' http://nginx/)"
        expect "keep-alive" "1 0 0 " \
          "$(curl -sS -m 10 -o /dev/null -o /dev/null -o /dev/null -w '%{{num_connects}} ' \
            http://nginx/ http://nginx/ http://nginx/)"
        expect "HEAD's length" "Content-Length: 14" \
          "$(curl -I -sS -m 10 http://nginx/ | tr -d '\r' | grep -i content-length)"
        expect "a range" "is nginx" "$(curl -sS -m 10 -r 5-12 http://nginx/)"
        expect "a status of its own" "207" \
          "$(curl -sS -m 10 -o /dev/null -w '%{{http_code}}' http://nginx/cased)"
        expect "a name in its own case" "X-CaSe-KePt: yes" \
          "$(curl -sS -m 10 -D - -o /dev/null http://nginx/cased | tr -d '\r' | grep -i case)"
        expect "404" "404" "$(curl -sS -m 10 -o /dev/null -w '%{{http_code}}' http://nginx/missing)"
        expect "chunks" "$(sha256sum < {random}.zero)" \
          "$(curl --compressed -sS -m 30 http://nginx/chunked/random.zero | sha256sum)"
        if curl -sS -m 10 -D - http://nginx/missing | grep -i naru-; then
          echo "the app answered, not the proxy"; exit 1
        fi

        curl -sS -m 60 -v -T {random} http://nginx/put 2> put.log > /dev/null \
          || {{ cat put.log; exit 1; }}
        grep -q "HTTP/1.1 100 Continue" put.log || {{ cat put.log; exit 1; }}
        expect "an upload" "$(sha256sum < {random})" "$(cat {upload}/* | sha256sum)"

        pod=$(getent ahostsv4 nginx-pods | head -1 | cut -d' ' -f1)
        curl -sS -m 10 "http://$pod:15020/metrics" > metrics
        grep 'naru_responses_total{{.*direction="inbound"' metrics \
          | grep -q 'client="spiffe://cluster.local/ns/test/sa/client"' \
          || {{ grep naru_responses_total metrics; exit 1; }}
        "#
    ));
}

#[test]
fn hey_and_wrk_see_no_failure() {
    need("hey", "hey");
    need("wrk", "wrk");
    let mesh = Mesh::new();
    mesh.add(&nginx(&mesh, "nginx", "").replicas(2));
    let written = mesh.run(
        "hey -n 3000 -c 25 http://nginx/\n\
         wrk -t 1 -c 25 -d 2s http://nginx/\n\
         for i in $(seq 40); do curl -sS -m 10 http://nginx/name; done | sort | uniq -c",
    );
    assert!(written.contains("[200]\t3000 responses"), "{written}");
    assert!(!written.contains("Error distribution"), "{written}");
    assert!(!written.contains("Non-2xx"), "{written}");
    assert!(!written.contains("Socket errors"), "{written}");
}

#[test]
fn requests_of_one_connection_are_balanced_over_the_endpoints() {
    let mesh = Mesh::new();
    mesh.add(&nginx(&mesh, "nginx", "").replicas(3));
    let written = mesh.run(
        "urls=$(for i in $(seq 300); do echo http://nginx/name; done)\n\
         curl -sS -m 60 $urls | sort | uniq -c",
    );
    let shares: Vec<u32> = written
        .lines()
        .filter_map(|line| line.split_whitespace().next()?.parse().ok())
        .collect();
    assert_eq!(shares.len(), 3, "{written}");
    // After the third response, an endpoint that was slow on a busy machine is avoided for seconds:
    // only these are certain.
    assert!(shares.iter().all(|share| *share >= 3), "{written}");
}

#[test]
fn h2load_and_nghttpd_speak_http2_with_prior_knowledge() {
    need("h2load", "nghttp2-client");
    need("nghttpd", "nghttp2-server");
    let mesh = Mesh::new();
    mesh.file("htdocs/index.html", "h2".repeat(1000));
    let root = mesh.path("htdocs");
    let script = format!("exec nghttpd --no-tls -d {} 8080", root.display());
    let declared = Workload::new("declared", &script).port(80, 8080, Some("kubernetes.io/h2c"));
    mesh.add(&declared.replicas(2));
    mesh.add(&Workload::new("detected", &script).port(80, 8080, None));
    let written = mesh.run(
        "h2load -n 3000 -c 4 -m 25 http://declared/index.html\n\
         h2load -n 3000 -c 4 -m 25 http://detected/index.html",
    );
    let clean =
        "3000 total, 3000 started, 3000 done, 3000 succeeded, 0 failed, 0 errored, 0 timeout";
    assert_eq!(written.matches(clean).count(), 2, "{written}");
    assert_eq!(written.matches("3000 2xx").count(), 2, "{written}");
}

#[test]
fn a_websocket_goes_through() {
    let mesh = Mesh::new();
    let (python, echo) = (python(), program("websocket_echo.py"));
    let server = Workload::new("socket", &format!("exec {python} {echo} server 8080"));
    mesh.add(&server.port(80, 8080, None));
    mesh.run(&format!("{python} {echo} client ws://socket/"));
}

#[test]
fn a_pod_that_calls_its_own_service_reaches_itself_through_both_sides() {
    let mesh = Mesh::new();
    mesh.add(&nginx(&mesh, "nginx", ""));
    let written = mesh.run_in(
        "nginx",
        "for family in -4 -6; do curl $family -sS -m 10 http://nginx/; done\n\
         curl -sS -m 10 http://127.0.0.1:8080/\n\
         curl -sS -m 10 http://127.0.0.1:15020/metrics | grep naru_responses_total",
    );
    assert_eq!(written.matches("this is nginx").count(), 3, "{written}");
    let own = "client=\"spiffe://cluster.local/ns/test/sa/nginx\"";
    assert!(written.contains(own), "{written}");
}

#[test]
fn a_client_without_a_sidecar_is_accepted_unless_the_namespace_is_strict() {
    let mesh = Mesh::new();
    let strict = json!({ "naru.dev/mtls": "strict" });
    let label = json!({ "naru.dev/inject": "enabled" });
    mesh.put(&namespace("strict", label, strict));
    mesh.put(&namespace("bare", json!({}), json!({})));
    mesh.add(&nginx(&mesh, "nginx", ""));
    mesh.add(&nginx(&mesh, "guarded", "").namespace("strict"));
    mesh.put(&pods_of("nginx"));
    let mut guarded_pods = pods_of("guarded");
    guarded_pods["metadata"]["namespace"] = json!("strict");
    mesh.put(&guarded_pods);
    mesh.add(&Workload::new("visitor", "sleep infinity").namespace("bare"));
    let written = mesh.run_in(
        "bare/visitor",
        "address() { getent ahostsv4 $1 | head -1 | cut -d' ' -f1; }\n\
         call() { curl -sS -m 10 \"http://$(address $1):8080/\"; }\n\
         call nginx-pods.test\n\
         if call guarded-pods.strict; then echo 'a stranger was let in'; exit 1; fi",
    );
    assert!(written.contains("this is nginx"), "{written}");
    // The same for a client with a sidecar: it has an identity, and is accepted.
    let written = mesh.run("curl -sS -m 10 http://guarded.strict/");
    assert!(written.contains("this is nginx"), "{written}");
}
