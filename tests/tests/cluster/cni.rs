//! Redirection by the CNI plugin: pods without privileges, also on nodes where other programs
//! change the CNI configuration.

use std::process::Command;
use std::time::Duration;

use naru_tests::repository;
use serde_json::{Value, json};

use crate::chart::no_pod_has_a_sidecar;
use crate::install;
use crate::kubernetes::{
    Namespace, READY, eventually, get, install_naru, kubectl, run, script, sum, try_apply,
    try_install_naru,
};
use crate::load::Load;
use crate::objects::{deployment, pod_spec, server, service};
use crate::turns;

const NODES: [&str; 2] = ["1", "2"];
/// How long the agent may take to repair something: it checks every second. Pods of a deleted
/// DaemonSet take a while to end.
const REPAIRED: Duration = Duration::from_secs(120);
/// How long a pod may take to recover by itself once the agent runs: the kubelet backs off between
/// restarts of a failing container.
const RECOVERED: Duration = Duration::from_secs(300);

/// Naru with the CNI plugin, until the end of the test.
struct Plugin;

impl Plugin {
    fn installed() -> Self {
        install_naru(&["--set", "redirection=cni"]);
        Self
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        if let Err(error) = try_install_naru(&[]) {
            eprintln!("putting the chart back as it was: {error}");
        }
    }
}

/// Runs a shell command on a node.
fn on_node(node: &str, command: &str) -> String {
    let common = repository().join("tests/cluster/common.sh");
    let script = "source \"$1\"; in_node \"$2\" sh -c \"$3\"";
    let mut shell = Command::new("bash");
    shell
        .args(["-c", script, "tests"])
        .arg(common)
        .args([node, command]);
    run(&mut shell).unwrap_or_else(|error| panic!("on node {node}: {command}: {error}"))
}

/// Naru's traces on a node: files with its name, and configurations with its plugin.
fn traces(node: &str) -> String {
    on_node(
        node,
        "ls /opt/cni/bin /etc/cni/net.d | grep naru-cni; grep -l naru-cni -r /etc/cni/net.d; true",
    )
}

fn in_place(node: &str) -> Result<(), String> {
    let found = traces(node);
    match found.contains("naru-cni\n") && found.contains("conflist") {
        true => Ok(()),
        false => Err(format!("node {node} has {found:?}")),
    }
}

fn gone(node: &str) -> Result<(), String> {
    match traces(node) {
        found if found.is_empty() => Ok(()),
        found => Err(format!("node {node} has {found:?}")),
    }
}

/// How many pods had to request their rules from the agents.
fn asked() -> f64 {
    let agents = get(&[
        "-n",
        "naru-system",
        "pods",
        "-l",
        "app.kubernetes.io/component=cni",
    ]);
    let agents = agents["items"].as_array().expect("a list").iter();
    let metrics: Vec<String> = agents
        .filter_map(|agent| agent["metadata"]["name"].as_str())
        .map(|name| {
            let path = format!("/api/v1/namespaces/naru-system/pods/{name}:15031/proxy/metrics");
            kubectl(&["get", "--raw", &path])
        })
        .collect();
    assert_eq!(metrics.len(), NODES.len());
    metrics
        .iter()
        .map(|metrics| sum(metrics, "naru_cni_pods_total", &[]))
        .sum()
}

fn restricted_labels() -> Value {
    json!({ "naru.dev/inject": "enabled", "pod-security.kubernetes.io/enforce": "restricted" })
}

fn on(node: &str, mut spec: Value) -> Value {
    spec["nodeName"] = format!("n{node}").into();
    spec
}

#[test]
fn a_namespace_that_enforces_restricted_is_in_the_mesh() {
    let _turn = turns::alone();
    let _plugin = Plugin::installed();
    let namespace = Namespace::with_labels("restricted", restricted_labels());
    let mut rights = pod_spec(server());
    rights["containers"][0]["securityContext"]["capabilities"]["add"] = json!(["NET_ADMIN"]);
    let refused = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "rights", "namespace": namespace.0 }, "spec": rights,
    });
    let error = try_apply(&refused.to_string()).expect_err("PodSecurity is not enforced");
    assert!(error.contains("violates PodSecurity"), "{error}");

    namespace.serve_web(2);
    let load = Load::start(&namespace, "load", "http://web", 50);
    let before = load.totals();
    load.assert_none_failed(&before);
    let client = "client=\"spiffe://cluster.local/ns/restricted/sa/default\"";
    for pod in namespace.pod_names("app=web") {
        let requests = sum(
            &namespace.metrics(&pod, 15020),
            "naru_requests_total",
            &["direction=\"inbound\"", client],
        );
        assert!(requests > 0.0, "{pod} had no request from a proven client");
    }
    the_shop_works_there();
    // The plugin set the rules when the pods' networks were created: no pod had to ask the agent.
    assert_eq!(asked(), 0.0);
}

/// The complete shop from the repository.
fn the_shop_works_there() {
    let shop = install::shop(restricted_labels());
    for rollout in install::SHOP {
        shop.rolled_out(rollout);
    }
    // Calls from before the Service was ready have failed.
    eventually("the shop's load goes well", READY, || {
        let before = install::load(&shop);
        std::thread::sleep(Duration::from_secs(3));
        let now = install::load(&shop);
        match now.0 > before.0 + 30 && now.1 == before.1 {
            true => Ok(()),
            false => Err(format!("{before:?} to {now:?} (ok, failed)")),
        }
    });
}

#[test]
fn the_plugin_is_restored_and_survives_a_restart_of_its_agent() {
    let _turn = turns::alone();
    let _plugin = Plugin::installed();
    for node in NODES {
        in_place(node).unwrap_or_else(|error| panic!("{error}"));
    }
    // As the cluster's own plugin would during an upgrade.
    let path = "/etc/cni/net.d/10-naru-test.conflist";
    let mut list: Value =
        serde_json::from_str(&on_node("1", &format!("cat {path}"))).expect("JSON");
    let plugins = list["plugins"].as_array_mut().expect("plugins");
    plugins.retain(|plugin| plugin["type"] != "naru-cni");
    on_node(
        "1",
        &format!("printf %s '{list}' > {path} && rm /opt/cni/bin/naru-cni"),
    );
    eventually("the plugin is put back", REPAIRED, || in_place("1"));

    let written = || {
        NODES.map(|node| {
            on_node(
                node,
                "stat -c '%i %z' /etc/cni/net.d/*.conflist /opt/cni/bin/naru-cni",
            )
        })
    };
    let before = written();
    kubectl(&[
        "-n",
        "naru-system",
        "rollout",
        "restart",
        "daemonset/naru-cni",
    ]);
    kubectl(&[
        "-n",
        "naru-system",
        "rollout",
        "status",
        "daemonset/naru-cni",
        "--timeout=120s",
    ]);
    assert_eq!(written(), before);
}

#[test]
fn a_pod_that_started_without_the_plugin_is_stopped_with_the_reason_and_recovers() {
    let _turn = turns::alone();
    let plugin = Plugin::installed();
    let namespace = Namespace::with_labels("late", restricted_labels());
    kubectl(&["-n", "naru-system", "delete", "daemonset", "naru-cni"]);
    for node in NODES {
        eventually("the plugin goes with its DaemonSet", REPAIRED, || {
            gone(node)
        });
    }
    namespace.apply(&[
        deployment("web", 1, on("1", pod_spec(server()))),
        service("web"),
    ]);
    eventually("the pod says what is missing", READY, || {
        let pods = namespace.pods("app=web");
        let status = pods
            .first()
            .map_or(&Value::Null, |pod| &pod["status"])
            .clone();
        let init = &status["initContainerStatuses"][0];
        let missing = |state: &str| {
            let message = init[state]["terminated"]["message"].as_str();
            message.is_some_and(|message| {
                message.contains("the redirect rules of this pod are missing")
            })
        };
        match missing("state") || missing("lastState") {
            true => {
                assert!(
                    status["containerStatuses"][0]["state"]["waiting"].is_object(),
                    "{status}"
                );
                Ok(())
            }
            false => Err(init.to_string()),
        }
    });
    install_naru(&["--set", "redirection=cni"]);
    let name = namespace.pod_names("app=web");
    eventually("the pod recovers", RECOVERED, || {
        let pods = namespace.pods("app=web");
        let ready = pods
            .iter()
            .filter_map(|pod| pod["status"]["containerStatuses"][0]["ready"].as_bool());
        match ready.eq([true]) {
            true => Ok(()),
            false => Err(pods[0]["status"].to_string()),
        }
    });
    // The same pod.
    assert_eq!(namespace.pod_names("app=web"), name);

    drop(namespace);
    no_pod_has_a_sidecar();
    run(script("helm").args(["uninstall", "naru", "--namespace", "naru-system", "--wait"]))
        .unwrap_or_else(|error| panic!("{error}"));
    for node in NODES {
        eventually("nothing is left on the nodes", REPAIRED, || gone(node));
    }
    drop(plugin);
}
