//! The three commands of an installation, on manifests without a mesh, and the results: sidecars,
//! TLS between the nodes, metrics that Prometheus discovers by itself.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use naru_tests::repository;
use serde_json::Value;

use crate::controllers;
use crate::kubernetes::{Namespace, READY, control, eventually, full, get, kubectl, run, scratch};
use crate::turns;

/// The shop from the repository, in a namespace with these labels.
pub fn shop(labels: Value) -> Namespace {
    let namespace = Namespace::with_labels("shop", labels);
    let shop = repository().join("deploy/sandbox");
    for file in ["web", "catalog", "cart", "store", "load", "routes"] {
        let file = shop.join(file).with_extension("yaml");
        kubectl(&["apply", "-f", &file.display().to_string()]);
    }
    namespace
}

pub const SHOP: [&str; 6] = [
    "deployment/web",
    "deployment/catalog-v1",
    "deployment/catalog-v2",
    "deployment/cart",
    "deployment/store",
    "deployment/load",
];

fn sidecars(pods: &[Value]) -> usize {
    let injected = pods.iter().filter(|pod| {
        let mut inits = pod["spec"]["initContainers"]
            .as_array()
            .into_iter()
            .flatten();
        inits.any(|container| container["name"] == "naru-proxy")
    });
    injected.count()
}

fn visit(namespace: &Namespace, name: &str) {
    namespace.kubectl(&["create", "job", name, "--from=cronjob/visit"]);
    namespace.completed(name);
}

/// How many requests of the shop's own load have succeeded so far, and how many have failed.
pub fn load(namespace: &Namespace) -> (u64, u64) {
    let line = namespace.kubectl(&["logs", "deployment/load", "-c", "load", "--tail=1"]);
    let number = |after: &str| -> Option<u64> {
        let rest = line.split(after).nth(1)?;
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        rest[..digits].parse().ok()
    };
    let numbers = number("ok ").zip(number("failed "));
    numbers.unwrap_or_else(|| panic!("a line of the load: {line}"))
}

/// A packet capture between pods on the two nodes.
struct Capture {
    tcpdump: Child,
    file: String,
}

impl Capture {
    fn start() -> Self {
        let file = scratch("wire.pcap");
        let tcpdump = control("tcpdump")
            .args(["-i", "v1", "--immediate-mode", "-U", "-s", "0", "-w", &file])
            // 64 MiB: with dropped packets, a connection would appear to have no handshake.
            .args(["-B", "65536"])
            .arg("tcp and src net 10.244.0.0/16 and dst net 10.244.0.0/16")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("tcpdump");
        eventually("tcpdump writes", Duration::from_secs(10), || {
            let written = std::fs::metadata(&file).map_err(|error| error.to_string())?;
            match written.len() {
                0 => Err("nothing yet".to_owned()),
                _ => Ok(()),
            }
        });
        Self { tcpdump, file }
    }

    fn stop(&mut self) {
        // Each packet is written immediately.
        let _ended = self.tcpdump.kill();
        let _reaped = self.tcpdump.wait();
    }

    /// One field of the matching packets, by tshark.
    fn fields(&self, filter: &str, field: &str) -> Vec<String> {
        let mut tshark = Command::new("tshark");
        tshark.args(["-r", &self.file]);
        // By their ports tshark would take some for other protocols.
        for port in [80, 6379, 8080, 9000, 15010] {
            tshark.args(["-d", &format!("tcp.port=={port},tls")]);
        }
        let text = run(tshark.args(["-Y", filter, "-T", "fields", "-e", field])).expect("tshark");
        let mut found: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        found.sort();
        found.dedup();
        found
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            return eprintln!("the capture is kept: {}", self.file);
        }
        let _only_litter = std::fs::remove_file(&self.file);
    }
}

#[test]
fn three_commands_put_the_shop_into_the_mesh() {
    let _turn = turns::alone();
    // The first command, helm install, was run when the cluster was started.
    let namespace = shop(serde_json::json!({}));
    let more = repository().join("tests/tests/cluster/workloads.yaml");
    kubectl(&["apply", "-f", &more.display().to_string()]);
    for rollout in SHOP.iter().chain(&["statefulset/peers"]) {
        namespace.rolled_out(rollout);
    }
    assert_eq!(sidecars(&namespace.pods("app")), 0, "before the label");
    visit(&namespace, "outside");

    kubectl(&["label", "namespace", "shop", "naru.dev/inject=enabled"]);
    namespace.kubectl(&["rollout", "restart", "deployment,statefulset"]);
    for rollout in SHOP.iter().chain(&["statefulset/peers"]) {
        namespace.rolled_out(rollout);
    }
    eventually("old pods are gone, those that end as well", READY, || {
        let all = namespace.get(&["pods", "-l", "app"])["items"].clone();
        let pods = all.as_array().cloned().unwrap_or_default();
        match sidecars(&pods) == pods.len() && pods.len() == 11 {
            true => Ok(()),
            false => Err(format!("{} of {}", sidecars(&pods), pods.len())),
        }
    });

    // Restart the clients with connections to the database's former pod.
    for deployment in [
        "deployment/catalog-v1",
        "deployment/catalog-v2",
        "deployment/cart",
    ] {
        namespace.kubectl(&["rollout", "restart", deployment]);
    }
    for rollout in SHOP {
        namespace.rolled_out(rollout);
    }
    // While the only database was replaced, calls to it failed as they would without a mesh: within
    // five seconds, which the load reports every second.
    std::thread::sleep(Duration::from_secs(7));
    let before = load(&namespace);
    let mut capture = Capture::start();
    visit(&namespace, "inside");
    // New pods open new connections between all of them.
    for deployment in ["deployment/web", "deployment/cart"] {
        namespace.kubectl(&["rollout", "restart", deployment]);
        namespace.rolled_out(deployment);
    }
    std::thread::sleep(Duration::from_secs(if full() { 20 } else { 5 }));
    capture.stop();
    let after = load(&namespace);
    println!("the shop's own load: {before:?} to {after:?} (ok, failed)");
    assert!(
        after.0 > before.0 + 50 && after.1 == before.1,
        "{}",
        namespace.kubectl(&["logs", "deployment/load", "-c", "load", "--tail=1"])
    );

    let versions = capture.fields(
        "tls.handshake.type == 2",
        "tls.handshake.extensions.supported_version",
    );
    assert_eq!(versions, ["0x0304"], "versions of TLS in server hellos");
    // Of the connections that began during the capture, each one with data began with a TLS
    // handshake.
    let begun = capture.fields("tcp.flags.syn == 1 && tcp.flags.ack == 0", "tcp.stream");
    let talked: Vec<String> = capture.fields("tcp.len > 0", "tcp.stream");
    let shaken = capture.fields("tls.handshake.type == 1", "tcp.stream");
    let in_plain: Vec<&String> = talked
        .iter()
        .filter(|stream| begun.contains(stream) && !shaken.contains(stream))
        .collect();
    assert!(shaken.len() > 3, "too few handshakes: {shaken:?}");
    assert!(in_plain.is_empty(), "connections without TLS: {in_plain:?}");
    // Older connections may lead to deleted pods from before the label.
    for word in ["HTTP/1.", "healthz", "product", "spiffe:"] {
        let seen = capture.fields(&format!("frame contains \"{word}\""), "tcp.stream");
        let seen: Vec<&String> = seen
            .iter()
            .filter(|stream| begun.contains(stream))
            .collect();
        assert!(
            seen.is_empty(),
            "{word:?} can be read between the nodes: {seen:?}"
        );
    }

    prometheus();
}

/// A Prometheus with only Kubernetes' service discovery finds all of them, and the queries of
/// proxy/README.md return results.
fn prometheus() {
    let prometheus = Prometheus::start();
    let controllers = controllers::names().len();
    eventually("every target is up", READY, || {
        // Other tests' pods may still be terminating.
        let pods = get(&[
            "pods",
            "-A",
            "-l",
            "naru.dev/injected=true",
            "--field-selector=status.phase=Running",
        ]);
        let sidecars = pods["items"].as_array().map_or(0, Vec::len);
        let up = |job: &str| prometheus.ask(&format!("sum(up{{job=\"naru-{job}\"}})"));
        let found = (up("proxy")?, up("controller")?);
        match found == (vec![sidecars as f64], vec![controllers as f64]) {
            true => Ok(()),
            false => Err(format!("{found:?}, and not {sidecars} and {controllers}")),
        }
    });
    // Causes a push.
    kubectl(&["-n", "shop", "rollout", "restart", "deployment/web"]);
    let readme =
        std::fs::read_to_string(repository().join("proxy/README.md")).expect("proxy/README.md");
    let section = readme
        .split("| question | query |")
        .nth(1)
        .expect("the table of queries");
    let queries: Vec<&str> = section
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .filter_map(|line| line.split('`').nth(1))
        .collect();
    assert!(queries.len() > 5, "{queries:?}");
    for query in queries {
        // Without problems, comparison queries and retries have no results.
        let happens = !["==", "> 0", "retries"]
            .iter()
            .any(|word| query.contains(word));
        eventually(query, Duration::from_secs(60), || {
            // The queries use rates over minutes, but there are only seconds of data.
            let query = query
                .replace("[5m]", "[30s]")
                .replace("[1m]", "[30s]")
                .replace("[1h]", "[30s]");
            let values = prometheus.ask(&query.replace("\\|", "|"))?;
            match !happens || values.iter().any(|value| !value.is_nan()) {
                true => Ok(()),
                false => Err(format!("{values:?}")),
            }
        });
    }
}

struct Prometheus {
    child: Child,
    directory: String,
}

impl Prometheus {
    fn start() -> Self {
        let directory = scratch("prometheus");
        std::fs::create_dir_all(&directory).expect("a scratch directory");
        let configuration = format!("{directory}/prometheus.yml");
        let kubeconfig = format!(
            "/tmp/naru-cluster-{}/pki/admin.kubeconfig",
            crate::kubernetes::name()
        );
        // As in proxy/README.md, but with a short interval, and from outside the cluster.
        let readme =
            std::fs::read_to_string(repository().join("proxy/README.md")).expect("proxy/README.md");
        let scraping = readme
            .split("```yaml\n")
            .map(|rest| rest.split("```").next().unwrap_or_default())
            .find(|block| block.contains("kubernetes_sd_configs"))
            .expect("the configuration in proxy/README.md")
            .replace(
                "role: pod",
                &format!("role: pod, kubeconfig_file: {kubeconfig}"),
            );
        let often = "global: { scrape_interval: 2s, scrape_timeout: 2s }\n";
        std::fs::write(&configuration, format!("{often}{scraping}")).expect("write");
        let child = control(&format!(
            "/tmp/naru-cluster-{}/bin/prometheus",
            crate::kubernetes::name()
        ))
        .arg(format!("--config.file={configuration}"))
        .arg(format!("--storage.tsdb.path={directory}/data"))
        .arg("--web.listen-address=127.0.0.1:9090")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(format!("{directory}/log")).expect("a log"))
        .spawn()
        .expect("prometheus");
        Self { child, directory }
    }

    /// The values of a query's answer.
    fn ask(&self, query: &str) -> Result<Vec<f64>, String> {
        let answer = run(control("curl")
            .args([
                "-sS",
                "-m",
                "10",
                "-G",
                "http://127.0.0.1:9090/api/v1/query",
            ])
            .arg("--data-urlencode")
            .arg(format!("query={query}")))?;
        let answer: Value =
            serde_json::from_str(&answer).map_err(|error| format!("{error}: {answer}"))?;
        let results = answer["data"]["result"].as_array();
        let results = results.ok_or_else(|| answer.to_string())?.iter();
        Ok(results
            .filter_map(|result| result["value"][1].as_str()?.parse().ok())
            .collect())
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(format!("{}/log", self.directory));
            eprintln!("== prometheus\n{}", log.unwrap_or_default());
        }
        let _only_litter = std::fs::remove_dir_all(&self.directory);
    }
}
