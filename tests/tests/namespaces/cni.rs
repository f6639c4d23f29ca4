//! The CNI plugin as run by a container runtime, the check in a pod without privileges, and the
//! agent that sets missing rules.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use naru_proxy::node::redirect::SOCKET_NAME;
use naru_tests::programs;
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};

/// A user without privileges, like the check container's.
const ANOTHER_UID: &str = "65532";

/// A process in a network namespace of its own, dual-stack, without a peer on the wire.
struct Pod {
    process: Child,
}

impl Pod {
    fn new() -> Self {
        let set_up = "ip link set lo up && ip link add eth0 type veth peer name wire && ip address \
            add 10.9.0.5/24 dev eth0 && ip address add fd00:9::5/64 dev eth0 nodad && ip link set \
            wire up && ip link set eth0 up && ip route add default dev eth0 && ip -6 route add \
            default dev eth0 && echo up && exec sleep 600";
        let mut process = Command::new("unshare")
            .args(["--net", "sh", "-c", set_up])
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare: install util-linux");
        let mut line = String::new();
        let stdout = process.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        assert_eq!(line, "up\n", "a network namespace: this layer needs root");
        Self { process }
    }

    /// The path that a container runtime would pass.
    fn network(&self) -> String {
        format!("/proc/{}/ns/net", self.process.id())
    }

    /// Runs a program in the pod's network.
    fn run(&self, arguments: &[&str]) -> Output {
        let pid = self.process.id().to_string();
        Command::new("nsenter")
            .args(["-t", &pid, "-n"])
            .args(arguments)
            .output()
            .expect("nsenter")
    }

    fn rules(&self) -> String {
        text(&self.run(&["nft", "list", "ruleset"]).stdout)
    }

    /// `naru-proxy init --verify`, as it runs in a pod.
    fn verify(&self, flags: &[&str]) -> Output {
        self.verify_as(ANOTHER_UID, flags)
    }

    fn verify_as(&self, user: &str, flags: &[&str]) -> Output {
        let program = programs().join("naru-proxy");
        let program = program.to_str().expect("a path");
        let as_user = [
            "setpriv",
            "--reuid",
            user,
            "--regid",
            user,
            "--clear-groups",
            "--bounding-set=-all",
            "--no-new-privs",
        ];
        self.run(&[&as_user[..], &[program, "init", "--verify"], flags].concat())
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _gone = self.process.kill();
        let _reaped = self.process.wait();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A directory of the test's own, deleted on drop.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("naru-{name}-{}", std::process::id()));
        let _of_an_earlier_run = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    /// A directory in it.
    fn with(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::create_dir_all(&path).expect("a directory");
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _cleared_by_the_system = std::fs::remove_dir_all(&self.0);
    }
}

fn configuration(annotations: Value) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "pods", "type": "naru-cni",
        "runtimeConfig": { "io.kubernetes.cri.pod-annotations": annotations },
        "prevResult": {
            "cniVersion": "1.0.0",
            "interfaces": [{ "name": "eth0", "sandbox": "/var/run/netns/x" }],
            "ips": [{ "interface": 0, "address": "10.9.0.5/24" }],
        },
    })
}

fn injected() -> Value {
    json!({ "naru.dev/redirection": "cni", "naru.dev/skip-inbound-ports": "9100" })
}

/// Runs the plugin as a runtime does: by its name, with a clean environment. Returns whether it
/// succeeded, and its output.
fn plugin(
    directory: &Directory,
    command: &str,
    network: &str,
    configuration: &Value,
) -> (bool, Value) {
    let path = directory.with("bin").join("naru-cni");
    if !path.exists() {
        std::os::unix::fs::symlink(programs().join("naru-proxy"), &path).expect("a link");
    }
    let mut child = Command::new(path)
        .env_clear()
        .envs([
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_NETNS", network),
            ("CNI_IFNAME", "eth0"),
            (
                "CNI_ARGS",
                "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1",
            ),
            ("CNI_PATH", "/opt/cni/bin"),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("naru-cni");
    let mut stdin = child.stdin.take().expect("piped");
    stdin
        .write_all(configuration.to_string().as_bytes())
        .expect("written");
    drop(stdin);
    let output = child.wait_with_output().expect("an end");
    let said = match output.stdout.is_empty() {
        true => Value::Null,
        false => serde_json::from_slice(&output.stdout).expect("JSON"),
    };
    (output.status.success(), said)
}

#[test]
fn the_plugin_redirects_an_injected_pod_and_an_unprivileged_check_verifies_it() {
    let (pod, directory) = (Pod::new(), Directory::new("cni-add"));
    let input = configuration(injected());
    let add = plugin(&directory, "ADD", &pod.network(), &input);
    assert_eq!(add, (true, input["prevResult"].clone()));
    let rules = pod.rules();
    assert!(rules.contains("tcp dport 9100 accept"), "{rules}");
    assert!(
        rules.contains("meta skuid 1337") && rules.contains("redirect to :15001"),
        "{rules}"
    );
    assert_eq!(
        plugin(&directory, "CHECK", &pod.network(), &input),
        (true, Value::Null)
    );
    let verified = pod.verify(&["--skip-inbound-ports", "9100"]);
    assert!(verified.status.success(), "{}", text(&verified.stderr));
    // With every network skipped, the proxy's user verifies it with inbound connections.
    let verified = pod.verify_as("1337", &["--skip-inbound-ports", "9100"]);
    assert!(verified.status.success(), "{}", text(&verified.stderr));
    // Again, as when a runtime retries.
    assert!(plugin(&directory, "ADD", &pod.network(), &input).0);
    assert_eq!(pod.rules(), rules);

    pod.run(&["nft", "flush", "chain", "inet", "naru", "outbound"]);
    let (fine, said) = plugin(&directory, "CHECK", &pod.network(), &input);
    assert!(!fine && said["code"] == 101, "{said}");
    assert!(
        said["msg"]
            .as_str()
            .is_some_and(|text| text.contains("the redirect rules in force differ")),
        "{said}"
    );
    assert_eq!(
        plugin(&directory, "DEL", &pod.network(), &input),
        (true, Value::Null)
    );
}

#[test]
fn the_plugin_ignores_other_pods_and_the_hosts_network() {
    let (pod, directory) = (Pod::new(), Directory::new("cni-leave"));
    let input = configuration(json!({ "team": "shop" }));
    assert_eq!(
        plugin(&directory, "ADD", &pod.network(), &input),
        (true, input["prevResult"].clone())
    );
    assert_eq!(pod.rules(), "");
    let (fine, said) = plugin(
        &directory,
        "ADD",
        "/proc/self/ns/net",
        &configuration(injected()),
    );
    assert!(!fine && said["code"] == 101, "{said}");
    let (fine, said) = plugin(
        &directory,
        "ADD",
        "/var/run/netns/none",
        &configuration(injected()),
    );
    assert!(!fine && said["code"] == 101, "{said}");
}

#[test]
fn a_pod_without_rules_fails_its_check() {
    let pod = Pod::new();
    let verified = pod.verify(&[]);
    assert!(!verified.status.success());
    let said = text(&verified.stderr);
    assert!(
        said.contains("the redirect rules of this pod are missing"),
        "{said}"
    );
    // Rules for one family only fail the check as well.
    let half = "add table ip half; add chain ip half output \
        { type nat hook output priority -100; }; add rule ip half output ip daddr 192.0.2.1 tcp \
        dport 9 redirect to :15001";
    let set = pod.run(&["nft", half]);
    assert!(set.status.success(), "{}", text(&set.stderr));
    let said = text(&pod.verify(&[]).stderr);
    assert!(
        said.contains("a connection to [2001:db8::1]:9 did not arrive"),
        "{said}"
    );
}

/// `naru-proxy cni-install` on folders of the test's own.
struct Agent {
    process: Child,
    admin: String,
}

impl Agent {
    fn start(directory: &Directory) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").expect("a port");
        let admin = free.local_addr().expect("an address").to_string();
        drop(free);
        let process = Command::new(programs().join("naru-proxy"))
            .args(["cni-install", "--admin", &admin])
            .args(["--bin-dir".into(), directory.with("bin")])
            .args(["--conf-dir".into(), directory.with("net.d")])
            .args(["--netns-dir".into(), directory.with("netns")])
            .spawn()
            .expect("naru-proxy");
        Self { process, admin }
    }

    /// The admin port's response, with the status.
    fn ask(&self, path: &str) -> String {
        let url = format!("http://{}{path}", self.admin);
        let output = Command::new("curl")
            .args(["-s", "-m", "5", "-w", "%{http_code}", &url])
            .output();
        text(&output.expect("curl").stdout)
    }

    fn eventually(&self, path: &str, expected: &str) {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let said = self.ask(path);
            if said.contains(expected) {
                return;
            }
            assert!(Instant::now() < deadline, "{path}: {said}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _gone = self.process.kill();
        let _reaped = self.process.wait();
    }
}

#[test]
fn the_agent_sets_missing_rules_of_a_pod_and_changes_no_others() {
    let (pod, directory) = (Pod::new(), Directory::new("cni-agent"));
    let agent = Agent::start(&directory);
    agent.eventually("/ready", "there is no network configuration in ");
    std::os::unix::fs::symlink(pod.network(), directory.with("netns").join("pod")).expect("a link");
    let verified = pod.verify(&["--skip-outbound-cidrs", "198.51.100.0/24"]);
    assert!(verified.status.success(), "{}", text(&verified.stderr));
    let rules = pod.rules();
    assert!(rules.contains("ip daddr 198.51.100.0/24 accept"), "{rules}");
    agent.eventually("/metrics", "naru_cni_pods_total{outcome=\"redirected\"} 1");

    // Now the pod is running, and one of its processes tries to bypass its sidecar.
    let network = std::fs::File::open(pod.network()).expect("the pod's network");
    let answer = std::thread::spawn(move || {
        setns(&network, CloneFlags::CLONE_NEWNET).expect("the pod's network");
        let name = SocketAddr::from_abstract_name(SOCKET_NAME).expect("a name");
        let listener = UnixListener::bind_addr(&name).expect("a socket");
        let (mut stream, _) = listener.accept().expect("the agent");
        let request = json!({ "skipOutboundCidrs": "0.0.0.0/0,::/0" });
        writeln!(stream, "{request}").expect("written");
        let mut answer = String::new();
        BufReader::new(stream)
            .read_line(&mut answer)
            .expect("an answer");
        answer
    });
    let answer = answer.join().expect("an answer");
    assert!(
        answer.starts_with("the redirect rules in force differ"),
        "{answer}"
    );
    assert_eq!(pod.rules(), rules);
}

#[test]
fn the_agent_installs_and_restores_the_plugin() {
    let directory = Directory::new("cni-place");
    let list = directory.with("net.d").join("10-pods.conflist");
    let network = json!({ "cniVersion": "1.0.0", "name": "pods", "plugins": [{ "type": "ptp" }] });
    std::fs::write(&list, network.to_string()).expect("written");
    let agent = Agent::start(&directory);
    agent.eventually("/ready", "the plugin is in place");
    agent.eventually("/metrics", "naru_cni_in_place 1");
    std::fs::write(&list, network.to_string()).expect("written");
    agent.eventually(
        "/metrics",
        "naru_cni_repairs_total{what=\"configuration\"} 2",
    );
    let list: Value = serde_json::from_slice(&std::fs::read(&list).expect("a file")).expect("JSON");
    assert_eq!(list["plugins"][1]["type"], "naru-cni");
    // The installed file is the plugin.
    let said = Command::new(directory.with("bin").join("naru-cni"))
        .env("CNI_COMMAND", "VERSION")
        .stdin(Stdio::null())
        .output()
        .expect("the plugin");
    assert!(
        text(&said.stdout).contains("supportedVersions"),
        "{}",
        text(&said.stderr)
    );
}
