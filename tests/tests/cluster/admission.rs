//! Pods that constrain their sidecar, admitted by a real API server and started by a real kubelet.

use std::time::Duration;

use serde_json::json;

use crate::kubernetes::{Namespace, eventually, get, pod_ready};
use crate::objects::{deployment, pod_spec, server};
use crate::turns;

/// How long a pod may take to become ready during heavy builds.
const READY: Duration = Duration::from_secs(180);

#[test]
fn a_pod_with_pod_level_resources_runs_with_its_sidecar() {
    let _turn = turns::beside_others();
    let namespace = Namespace::meshed("whole-pod");
    let mut spec = pod_spec(server());
    // The container requests all of it: nothing is left for a sidecar.
    spec["resources"] = json!({
        "requests": { "cpu": "10m", "memory": "16Mi" }, "limits": { "cpu": "1", "memory": "128Mi" },
    });
    namespace.apply(&[deployment("web", 1, spec)]);
    namespace.rolled_out("deployment/web");
    let pods = namespace.pods("app=web");
    let sidecar = &pods[0]["spec"]["initContainers"][1];
    assert_eq!(sidecar["name"], "naru-proxy");
    assert_eq!(sidecar["resources"]["requests"]["memory"], "0");
    assert_eq!(sidecar["resources"]["limits"]["memory"], "134217728");
}

#[test]
fn a_pod_with_name_servers_and_no_search_list_starts() {
    let _turn = turns::beside_others();
    let namespace = Namespace::meshed("dns-none");
    let dns = get(&["-n", "kube-system", "service", "kube-dns"]);
    let mut spec = pod_spec(server());
    spec["dnsPolicy"] = "None".into();
    spec["dnsConfig"] = json!({ "nameservers": [dns["spec"]["clusterIP"]] });
    namespace.apply(&[deployment("web", 1, spec)]);
    namespace.rolled_out("deployment/web");
}

#[test]
fn a_copy_of_a_pod_for_debugging_is_in_the_mesh() {
    let _turn = turns::beside_others();
    let namespace = Namespace::meshed("copies");
    namespace.serve_web(1);
    let original = &namespace.pod_names("app=web")[0];
    let image = "--image=naru.test/busybox:1";
    let arguments = [
        "debug",
        original,
        image,
        "--copy-to=copy",
        "--",
        "sleep",
        "600",
    ];
    namespace.kubectl(&arguments);
    eventually("the copy", READY, || {
        let copy = namespace.get(&["pod", "copy"]);
        match copy["metadata"]["labels"]["naru.dev/injected"] == "true" && pod_ready(&copy) {
            true => Ok(()),
            false => Err(copy["status"].to_string()),
        }
    });
}
