//! `naru sandbox` itself: its forwarding of output and signals, changes of manifests, and clean-up.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use naru_tests::programs;
use serde_json::json;

use crate::http::nginx;
use crate::mesh::{Mesh, NAMESPACE, Workload, host};

#[test]
fn the_command_keeps_its_exit_code_output_and_directory() {
    let mesh = Mesh::new();
    let mut running = mesh.start_in(
        "client",
        "echo to stdout; echo to stderr >&2; hostname; cat /etc/resolv.conf; exit 42",
    );
    let status = running.wait();
    let written = running.written();
    assert_eq!(status.code(), Some(42), "{written}");
    assert!(written.starts_with("to stdout\n"), "{written}");
    assert!(written.contains("client"), "the name of the pod: {written}");
    assert!(written.contains("test.svc.cluster.local"), "{written}");
}

/// Traces of a sandbox on the machine, as far as they can be listed.
fn traces() -> BTreeSet<String> {
    let list = "ls -d /tmp/naru-sandbox* /run/naru* /var/lib/naru* /run/netns/* 2> /dev/null; \
                ip -o link | cut -d: -f2; ip netns; nft list ruleset; ip route; ip -6 route; \
                cut -d' ' -f2 /proc/mounts; \
                ps -eo comm | grep -E '^(naru|shop|nginx)'";
    host(&format!("({list}) || true"))
        .lines()
        .map(str::to_owned)
        .collect()
}

#[test]
fn it_leaves_nothing_behind_after_an_exit_and_after_an_interrupt() {
    let before = traces();
    let mesh = Mesh::new();
    mesh.add(&nginx(&mesh, "nginx", "").replicas(2));
    mesh.run("curl -sS -m 10 http://nginx/");
    assert_eq!(traces(), before, "after its end");

    let mut running = mesh.start_in("client", "echo inside; sleep 600");
    running.wait_for("inside");
    assert_ne!(traces(), before, "there is something to clean up");
    running.stop();
    assert_eq!(traces(), before, "after an interrupt");
}

#[test]
fn an_interrupt_at_any_moment_of_the_start_ends_it() {
    let mesh = Mesh::new().timeout(Duration::from_secs(20));
    for milliseconds in [20, 60, 100, 150, 200, 300, 400, 600] {
        let mut running = mesh.start_in("client", "sleep 600");
        std::thread::sleep(Duration::from_millis(milliseconds));
        running.interrupt();
        // Until it has a handler, the signal itself terminates it.
        let status = running.wait();
        let by_signal = status.signal() == Some(2);
        assert!(by_signal || status.code() == Some(130), "{status}");
    }
}

#[test]
fn programs_in_a_directory_that_only_root_can_enter_still_run() {
    let mesh = Mesh::new();
    let private = mesh.path("private");
    std::fs::create_dir_all(private.join("bin")).expect("create");
    for program in ["naru", "naru-proxy", "naru-controller", "shop"] {
        let copy = private.join("bin").join(program);
        std::fs::copy(programs().join(program), copy).expect("copy");
    }
    let only_root = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(&private, only_root).expect("chmod");
    let mesh = mesh.programs(&private.join("bin"));
    let mut store = Workload::new("store", "exec shop store --listen [::]:6379")
        .port(6379, 6379, Some("redis"))
        .deployment();
    store["spec"]["template"]["spec"]["securityContext"] =
        json!({ "runAsUser": 65_532, "runAsGroup": 65_532 });
    mesh.put(&store);
    mesh.put(
        &Workload::new("store", "")
            .port(6379, 6379, Some("redis"))
            .service(),
    );
    let answer = mesh.run("redis-cli -h store ping");
    assert_eq!(answer, "PONG\n");
}

#[test]
fn a_changed_weight_changes_routing_at_once() {
    let mesh = Mesh::new();
    for version in ["v1", "v2"] {
        let location = format!("location = /version {{ return 200 \"{version}\\n\"; }}");
        mesh.add(&nginx(&mesh, version, &location));
    }
    mesh.put(
        &Workload::new("both", "")
            .port(80, 8080, Some("http"))
            .service(),
    );
    let route = |weights: [u32; 2]| {
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": { "name": "split", "namespace": NAMESPACE },
            "spec": {
                "parentRefs": [{ "group": "", "kind": "Service", "name": "both" }],
                "rules": [{ "backendRefs": [
                    { "name": "v1", "port": 80, "weight": weights[0] },
                    { "name": "v2", "port": 80, "weight": weights[1] },
                ] }],
            },
        })
    };
    mesh.put(&route([1, 0]));
    let mut running = mesh.start_in(
        "client",
        "while [[ ! -e done ]]; do curl -sS -m 10 http://both/version; sleep 0.01; done",
    );
    running.wait_for("v1");
    for (weights, answer) in [([0, 1], "v2"), ([1, 0], "v1"), ([0, 1], "v2")] {
        let seen = running.written().len();
        mesh.put(&route(weights));
        let changed = Instant::now();
        while !running.written()[seen..].contains(answer) {
            assert!(
                changed.elapsed() < Duration::from_secs(30),
                "{}",
                running.written()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        println!("{answer} after {:?}", changed.elapsed());
        // From then on no request follows the old weights.
        let seen = running.written().len();
        std::thread::sleep(Duration::from_millis(500));
        let since = running.written()[seen..].to_owned();
        let other = if answer == "v1" { "v2" } else { "v1" };
        assert!(!since.contains(other), "{since}");
    }
    mesh.file("done", "");
    running.succeed();
}

#[test]
fn a_manifest_that_does_not_parse_leaves_the_last_good_state_in_force() {
    let mesh = Mesh::new();
    mesh.add(&nginx(&mesh, "nginx", ""));
    let mut running = mesh.start_in(
        "client",
        "curl -sS -m 10 http://nginx/; until [[ -e go ]]; do sleep 0.05; done\n\
         for i in $(seq 20); do curl -sS -m 10 http://nginx/; sleep 0.1; done",
    );
    running.wait_for("this is nginx");
    // As left briefly by an editor that writes in place, or for longer by a person.
    mesh.file(
        "manifests/service-test-nginx.json",
        "{ \"apiVersion\": \"v1\", \"kind\": ",
    );
    mesh.file(
        "manifests/new.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: { name: [1] }\n",
    );
    std::thread::sleep(Duration::from_millis(500));
    mesh.put(&json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": { "name": "wrong", "namespace": NAMESPACE },
        "spec": { "rules": [{ "timeouts": { "request": "soon" } }] },
    }));
    let wrong = "spec.rules[0].timeouts.request";
    let since = Instant::now();
    while !running.said().contains(wrong) {
        assert!(
            since.elapsed() < Duration::from_secs(30),
            "{}",
            running.said()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    mesh.file("go", "");
    let written = running.succeed();
    assert_eq!(written.matches("this is nginx").count(), 21, "{written}");
}

#[test]
fn the_shop_of_the_manifests_works_page_by_page() {
    let mesh = Mesh::shop();
    let written = mesh.run_in(
        "shop/load",
        "for page in / /product/2 /cart/add/4 /cart /cart/watch; do\n\
           curl -sS -m 10 -w ' %{http_code}\\n' http://web$page\n\
         done\n\
         for i in $(seq 10); do curl -sS -m 10 -H 'x-version: v2' http://catalog/products/1; done\n\
         echo split; for i in $(seq 300); do curl -sS -m 10 http://catalog/products/1; done",
    );
    let (pages, split) = written.split_once("split\n").expect("both parts");
    assert_eq!(pages.matches(" 200\n").count(), 5, "{written}");
    assert!(
        pages.matches("\"catalog\":\"v2\",\"cents\":1250").count() >= 10,
        "{written}"
    );
    let new = split.matches("\"catalog\":\"v2\"").count();
    let old = split.matches("\"catalog\":\"v1\"").count();
    assert_eq!(new + old, 300, "{written}");
    // 30 of 300 are expected: outside this range once in some ten thousand runs.
    assert!((10..=55).contains(&new), "{new} of 300 went to v2");
}
