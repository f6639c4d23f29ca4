//! A node without a network: the rest of the mesh continues.

use std::time::Duration;

use serde_json::json;

use crate::kubernetes::{Namespace, READY, control, eventually, get, kubectl, pod_ready, run};
use crate::load::Load;
use crate::objects::{deployment, pod_spec, server, service};
use crate::turns;

/// `--peer-timeout` of the sidecars, by default.
const PEER_TIMEOUT: Duration = Duration::from_secs(10);

/// An unreachable node, until this is dropped.
struct CutOff(&'static str);

impl CutOff {
    fn link(&self, state: &str) {
        let link = format!("v{}", &self.0[1..]);
        run(control("ip").args(["link", "set", &link, state])).expect("ip link");
    }

    fn cut(node: &'static str) -> Self {
        let cut = Self(node);
        cut.link("down");
        cut
    }
}

impl Drop for CutOff {
    fn drop(&mut self) {
        self.link("up");
        kubectl(&[
            "wait",
            "--for=condition=Ready",
            "node",
            self.0,
            "--timeout=120s",
        ]);
    }
}

#[test]
fn requests_leave_an_unreachable_node() {
    let _turn = turns::alone();
    let namespace = Namespace::meshed("nodes");
    // The name server is on the node that stays reachable.
    let dns = get(&["-n", "kube-system", "pods", "-l", "k8s-app=kube-dns"]);
    let (stays, cut) = match dns["items"][0]["spec"]["nodeName"].as_str() {
        Some("n1") => ("n1", "n2"),
        _ => ("n2", "n1"),
    };
    let mut spec = pod_spec(server());
    spec["topologySpreadConstraints"] = json!([{
        "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": { "matchLabels": { "app": "web" } },
    }]);
    namespace.apply(&[deployment("web", 4, spec), service("web")]);
    namespace.rolled_out("deployment/web");
    let load = Load::start_on(&namespace, "load", "http://web", 200, Some(stays));
    let before = load.totals();
    assert_eq!(before.failed, 0, "{before:?}");

    let cut = CutOff::cut(cut);
    // The load's timeout allows each request 5 seconds more.
    std::thread::sleep(PEER_TIMEOUT + Duration::from_secs(6));
    let left = load.totals();
    println!("while requests left the node: {left:?}");
    std::thread::sleep(Duration::from_secs(30));
    let after = load.totals();
    println!("afterwards: {after:?}");
    assert_eq!(
        after.failed, left.failed,
        "requests failed after --peer-timeout: {after:?}"
    );
    assert!(after.ok > left.ok + 200 * 25, "{left:?}, then {after:?}");
    // Requests that were at the node's pods when it became unreachable, and those sent until that
    // was detected.
    assert!(left.failed < 100, "{left:?}");
    drop(cut);

    eventually("its pods are back", READY, || {
        let pods = namespace.pods("app=web");
        match pods.iter().filter(|pod| pod_ready(pod)).count() {
            4 => Ok(()),
            ready => Err(format!("{ready} are ready")),
        }
    });
    let back = load.totals();
    std::thread::sleep(Duration::from_secs(10));
    assert_eq!(load.totals().failed, back.failed);
}
