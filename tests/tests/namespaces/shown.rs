//! Faults that a mesh has to tolerate: endpoints that come and go, failing endpoints, a killed
//! controller, an address that was reassigned.
//!
//! `NARU_TEST_FULL=1` runs the tests at full length; otherwise they are shorter but the same.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::http::nginx;
use crate::mesh::{Mesh, NAMESPACE, full, need};

/// The line of hey's report with the count of a status.
fn answered(report: &str, status: u16) -> u64 {
    report
        .lines()
        .filter_map(|line| line.trim().strip_prefix(&format!("[{status}]")))
        .filter_map(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .sum()
}

/// The sum of a metric's samples whose labels contain every one of `labels`.
fn sum(metrics: &str, name: &str, labels: &[&str]) -> f64 {
    metrics
        .lines()
        .filter(|line| line.starts_with(name))
        .filter(|line| matches!(line.as_bytes().get(name.len()), Some(b'{' | b' ')))
        .filter(|line| labels.iter().all(|label| line.contains(label)))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

#[test]
fn no_request_fails_while_endpoints_are_added_and_removed_every_second() {
    need("hey", "hey");
    let mesh = Mesh::new().timeout(Duration::from_secs(300));
    let workload = nginx(&mesh, "nginx", "").replicas(3);
    mesh.add(&workload);
    // At 500 requests a second, or 1000.
    let (requests, each) = if full() { (100_000, 50) } else { (5_000, 25) };
    let mut running = mesh.start_in(
        "client",
        &format!("echo begun; hey -c 20 -q {each} -n {requests} -t 20 http://nginx/"),
    );
    running.wait_for("begun");
    for replicas in [2, 4, 3, 5, 1].into_iter().cycle() {
        std::thread::sleep(Duration::from_secs(1));
        if running.ended().is_some() {
            break;
        }
        mesh.put(&workload.clone().replicas(replicas).deployment());
    }
    let report = running.succeed();
    println!("{report}");
    assert_eq!(answered(&report, 200), requests, "{report}");
    assert!(!report.contains("Error distribution"), "{report}");
}

#[test]
fn retries_hide_an_endpoint_that_fails_half_of_its_requests_and_the_budget_holds() {
    need("hey", "hey");
    let mesh = Mesh::new();
    mesh.add(&nginx(&mesh, "nginx", "").replicas(3));
    let failing = "if ($request_id ~ \"^[0-7]\") { return 503; }";
    mesh.add(&nginx(&mesh, "failing", failing).behind("nginx"));
    mesh.put(&route(
        "nginx",
        json!({ "codes": [503], "attempts": 2, "backoff": "10ms" }),
    ));
    let requests = if full() { 20_000 } else { 4_000 };
    let seconds = requests as f64 / 400.0;
    let report = mesh.run(&format!(
        "hey -c 20 -q 20 -n {requests} http://nginx/\n\
         curl -sS -m 10 http://127.0.0.1:15020/metrics"
    ));
    let failed = requests - answered(&report, 200);
    let sent = sum(&report, "naru_retries_total", &["outcome=\"sent\""]);
    let total = requests as f64;
    println!("{failed} of {requests} failed, {sent} were sent again");
    assert!((failed as f64) < total / 1000.0, "{report}");
    assert!(sent > 0.0, "nothing was sent again: {report}");
    // A fifth of the requests, ten more per second, and the balance at the start.
    assert!(sent <= total * 0.2 + 10.0 * (seconds + 10.0), "{report}");
}

fn route(service: &str, retry: Value) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": { "name": service, "namespace": NAMESPACE },
        "spec": {
            "parentRefs": [{ "group": "", "kind": "Service", "name": service, "port": 80 }],
            "rules": [{
                "backendRefs": [{ "name": service, "port": 80 }],
                "retry": retry,
            }],
        },
    })
}

#[test]
fn nothing_fails_while_the_controller_is_gone_and_nothing_unchanged_is_resent() {
    need("hey", "hey");
    let gone = Duration::from_secs(if full() { 60 } else { 5 });
    let mesh = Mesh::new().timeout(gone + Duration::from_secs(120));
    mesh.add(&nginx(&mesh, "nginx", "").replicas(2));
    // 300 requests a second: before, while it is gone, and after.
    let requests = 300 * (gone.as_secs() + 10);
    let mut running = mesh.start_in(
        "client",
        &format!(
            "metrics() {{ curl -sS -m 10 http://127.0.0.1:15020/metrics | grep '^naru_' > $1; }}\n\
             for family in -4 -6; do curl $family -sS -m 10 http://nginx/; done; metrics before\n\
             hey -c 20 -q 15 -n {requests} http://nginx/ & load=$!\n\
             wait $load\n\
             for attempt in $(seq 200); do\n\
               metrics after; if grep -q '^naru_controller_connected 1' after; then break; fi; \
               sleep 0.1\n\
             done"
        ),
    );
    running.wait_for("this is nginx");
    std::thread::sleep(Duration::from_secs(2));
    let controllers = running.processes("naru-controller");
    assert_eq!(controllers.len(), 1, "one controller: {controllers:?}");
    let controller = Restart::of(controllers[0]);
    kill(Pid::from_raw(controllers[0].cast_signed()), Signal::SIGKILL).expect("kill");
    std::thread::sleep(gone);
    let _again = controller.start_unless(|| !running.processes("naru-controller").is_empty());
    let report = running.succeed();
    println!("{report}");
    assert_eq!(answered(&report, 200), requests, "{report}");
    let (before, after) = (mesh.read("before"), mesh.read("after"));
    assert_eq!(
        sum(&after, "naru_controller_connected", &[]),
        1.0,
        "{after}"
    );
    let received = "naru_table_received_resources_total";
    assert_eq!(
        sum(&before, received, &[]),
        sum(&after, received, &[]),
        "{after}"
    );
}

#[test]
fn an_address_that_was_reassigned_gets_no_request() {
    need("hey", "hey");
    let mesh = Mesh::new();
    let victim = nginx(&mesh, "victim", "").replicas(2);
    mesh.add(&victim);
    mesh.add(&nginx(&mesh, "rogue", "").headless());
    let requests = 2_000;
    let mut running = mesh.start_in(
        "client",
        &format!(
            "curl -sS -m 10 http://victim/\n\
             echo rogue $(getent ahostsv4 rogue | head -1 | cut -d' ' -f1)\n\
             until [[ -e go ]]; do sleep 0.05; done\n\
             hey -c 10 -q 40 -n {requests} http://victim/\n\
             curl -sS -m 10 http://127.0.0.1:15020/metrics"
        ),
    );
    running.wait_for("rogue ");
    running.wait_for("\n");
    std::thread::sleep(Duration::from_millis(200));
    let written = running.written();
    let address = written
        .lines()
        .find_map(|line| line.strip_prefix("rogue "))
        .unwrap_or_else(|| panic!("{written}"));
    // A stale object of the API server: a pod of the victim's with an address of another pod.
    mesh.put(&json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "victim-gone", "namespace": NAMESPACE,
            "labels": { "app": "victim", "naru.dev/injected": "true" },
        },
        "spec": { "serviceAccountName": "victim" },
        "status": { "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }] },
    }));
    mesh.put(&json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": "victim-stale", "namespace": NAMESPACE,
            "labels": { "kubernetes.io/service-name": "victim" },
        },
        "addressType": "IPv4",
        "ports": [{ "name": "p80", "port": 8080, "protocol": "TCP" }],
        "endpoints": [{
            "addresses": [address],
            "conditions": { "ready": true, "serving": true, "terminating": false },
            "targetRef": { "kind": "Pod", "name": "victim-gone", "namespace": NAMESPACE },
        }],
    }));
    std::thread::sleep(Duration::from_secs(1));
    mesh.file("go", "");
    let report = running.succeed();
    assert_eq!(answered(&report, 200), requests, "{report}");
    assert_eq!(
        mesh.read("nginx-rogue/access.log"),
        "",
        "the rogue got requests"
    );
    let refused = sum(
        &report,
        "naru_endpoint_ejections_total",
        &["reason=\"identity-mismatch\""],
    );
    assert!(refused > 0.0, "the rogue was never refused: {report}");
}

/// The data to restart a process with the same command.
struct Restart {
    command: Vec<String>,
    environment: Vec<(String, String)>,
    network: std::fs::File,
}

impl Restart {
    fn of(pid: u32) -> Self {
        let texts = |name: &str| -> Vec<String> {
            std::fs::read_to_string(format!("/proc/{pid}/{name}"))
                .expect("read")
                .split_terminator('\0')
                .map(str::to_owned)
                .collect()
        };
        let split = |text: &String| {
            text.split_once('=')
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
        };
        Self {
            command: texts("cmdline"),
            environment: texts("environ").iter().filter_map(split).collect(),
            network: std::fs::File::open(format!("/proc/{pid}/ns/net")).expect("open"),
        }
    }

    /// Restarts it, unless it was already restarted.
    fn start_unless(self, started: impl Fn() -> bool) -> Option<Killed> {
        if started() {
            return None;
        }
        use std::os::fd::AsRawFd;
        let network = format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            self.network.as_raw_fd()
        );
        let child = std::process::Command::new("nsenter")
            .arg(format!("--net={network}"))
            .args(&self.command)
            .env_clear()
            .envs(self.environment)
            .spawn()
            .expect("nsenter: install util-linux");
        Some(Killed(child))
    }
}

/// A process that is killed on drop.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// Parsing of hey's report and of Prometheus' text format.
#[test]
fn reports_are_parsed() {
    let report = "Status code distribution:\n  [200]\t4990 responses\n  [503]\t10 responses\n";
    assert_eq!(
        (
            answered(report, 200),
            answered(report, 503),
            answered(report, 404)
        ),
        (4990, 10, 0)
    );
    let metrics = "a_total{x=\"1\"} 2\na_total{x=\"2\"} 3\na_total_more 9\nb 1\n";
    assert_eq!(sum(metrics, "a_total", &[]), 5.0);
    assert_eq!(sum(metrics, "a_total", &["x=\"2\""]), 3.0);
}
