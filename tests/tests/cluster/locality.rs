//! Calls stay in the client's zone or on its node, if the Service is configured so. Each node is a
//! zone of its own: n1 is zone-1.

use std::time::Duration;

use serde_json::{Value, json};

use crate::kubernetes::{Namespace, READY, eventually, sum};
use crate::load::Load;
use crate::objects::{deployment, pod_spec, server, service};
use crate::turns;

/// Long enough for some hundred requests.
const A_WHILE: Duration = Duration::from_secs(5);

/// A Deployment on one node, as part of `web`.
fn web_on(node: &str) -> Value {
    let mut spec = pod_spec(server());
    spec["nodeSelector"] = json!({ "kubernetes.io/hostname": node });
    let mut web = deployment(&format!("web-{node}"), 1, spec);
    web["spec"]["template"]["metadata"]["labels"]["part-of"] = "web".into();
    web
}

fn service_with(field: &str, value: &str) -> Value {
    let mut service = service("web");
    service["spec"]["selector"] = json!({ "part-of": "web" });
    service["spec"][field] = value.into();
    service
}

/// How many of the load's requests the sidecars on a node have accepted.
fn taken_in(namespace: &Namespace, node: &str) -> f64 {
    let pods = namespace.pod_names(&format!("app=web-{node}"));
    let labels = ["direction=\"inbound\"", "client=\"spiffe:"];
    let counts = pods.iter().map(|pod| {
        sum(
            &namespace.metrics(pod, 15020),
            "naru_requests_total",
            &labels,
        )
    });
    counts.sum()
}

/// How many requests the pods on n1 and on n2 accept meanwhile.
fn taken_in_during(namespace: &Namespace, time: Duration) -> [f64; 2] {
    let count = || ["n1", "n2"].map(|node| taken_in(namespace, node));
    let before = count();
    std::thread::sleep(time);
    let after = count();
    [after[0] - before[0], after[1] - before[1]]
}

/// Waits until only the pods on n1 get requests.
fn eventually_only_n1(namespace: &Namespace) {
    eventually("requests stay on n1", READY, || {
        match taken_in_during(namespace, Duration::from_secs(2)) {
            [near, 0.0] if near > 0.0 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    let [near, far] = taken_in_during(namespace, A_WHILE);
    assert!(near > 100.0 && far == 0.0, "{near} and {far}");
}

#[test]
fn requests_stay_in_the_zone_while_it_has_endpoints() {
    let _turn = turns::beside_others();
    let namespace = Namespace::meshed("zones");
    let zonal = service_with("trafficDistribution", "PreferSameZone");
    namespace.apply(&[web_on("n1"), web_on("n2"), zonal]);
    namespace.rolled_out("deployment/web-n1");
    namespace.rolled_out("deployment/web-n2");
    let load = Load::start_on(&namespace, "load", "http://web", 50, Some("n1"));
    eventually_only_n1(&namespace);
    let before = load.totals();
    namespace.kubectl(&["scale", "deployment/web-n1", "--replicas=0"]);
    eventually(
        "the other zone takes over",
        READY,
        || match taken_in_during(&namespace, Duration::from_secs(2)) {
            [_, far] if far > 50.0 => Ok(()),
            other => Err(format!("{other:?}")),
        },
    );
    namespace.kubectl(&["scale", "deployment/web-n1", "--replicas=1"]);
    namespace.rolled_out("deployment/web-n1");
    eventually_only_n1(&namespace);
    load.assert_none_failed(&before);
}

#[test]
fn requests_stay_on_the_node_with_a_local_traffic_policy() {
    let _turn = turns::beside_others();
    let namespace = Namespace::meshed("node-local");
    let local = service_with("internalTrafficPolicy", "Local");
    namespace.apply(&[web_on("n1"), web_on("n2"), local]);
    namespace.rolled_out("deployment/web-n1");
    namespace.rolled_out("deployment/web-n2");
    let load = Load::start_on(&namespace, "load", "http://web", 50, Some("n1"));
    eventually_only_n1(&namespace);
    load.assert_none_failed(&load.totals());
    namespace.kubectl(&["scale", "deployment/web-n1", "--replicas=0"]);
    eventually("there is no endpoint on the node", READY, || {
        let metrics = namespace.metrics("load", 15020);
        let labels = ["direction=\"outbound\"", "reason=\"no-endpoint\""];
        match sum(&metrics, "naru_responses_total", &labels) {
            0.0 => Err("none failed for that".to_owned()),
            _ => Ok(()),
        }
    });
    let [_, far] = taken_in_during(&namespace, A_WHILE);
    assert_eq!(far, 0.0, "went to another node");
}
