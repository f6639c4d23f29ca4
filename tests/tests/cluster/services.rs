//! All kinds of Services, called from inside the mesh.

use serde_json::{Value, json};

use crate::kubernetes::Namespace;
use crate::objects::{calling_job, deployment, pod_spec, server};
use crate::turns;

fn service(name: &str, spec: Value) -> Value {
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": name }, "spec": spec,
    });
    if service["spec"]["type"] != "ExternalName" {
        service["spec"]["selector"] = json!({ "app": "web" });
    }
    service
}

#[test]
fn every_kind_of_service_is_reached() {
    let _turn = turns::beside_others();
    let namespace = Namespace::meshed("services");
    let mut container = server();
    container["ports"] = json!([{ "name": "http", "containerPort": 8080 }]);
    // The pods are in strict mode: only calls that are recognized as the Service's reach them.
    let mut web = deployment("web", 2, pod_spec(container));
    web["spec"]["template"]["metadata"]["annotations"] = json!({ "naru.dev/mtls": "strict" });
    namespace.apply(&[
        web,
        service(
            "named",
            json!({ "ports": [{ "port": 80, "targetPort": "http" }] }),
        ),
        service(
            "headless",
            json!({ "clusterIP": "None", "ports": [{ "port": 8080 }] }),
        ),
        service(
            "ports",
            json!({ "ports": [
                { "name": "first", "port": 80, "targetPort": 8080 },
                { "name": "second", "port": 8443, "targetPort": 8080, "appProtocol": "http" },
            ] }),
        ),
        service(
            "dual",
            json!({
                "ipFamilyPolicy": "RequireDualStack", "ports": [{ "port": 80, "targetPort": 8080 }],
            }),
        ),
        service(
            "alias",
            json!({ "type": "ExternalName", "externalName": "named.services.svc.cluster.local" }),
        ),
        service(
            "nodes",
            json!({
                "type": "NodePort",
                "ports": [{ "port": 80, "targetPort": 8080, "appProtocol": "http" }],
            }),
        ),
        service(
            "outside",
            json!({ "externalIPs": ["192.0.2.80"], "ports": [{ "port": 80, "targetPort": 8080 }] }),
        ),
    ]);
    namespace.rolled_out("deployment/web");
    let dual = namespace.get(&["service", "dual"]);
    let addresses = dual["spec"]["clusterIPs"].as_array().expect("addresses");
    let ipv6 = addresses
        .iter()
        .filter_map(Value::as_str)
        .find(|ip| ip.contains(':'));
    let ipv6 = format!("http://[{}]", ipv6.expect("an IPv6 address"));
    let pods = namespace.pods("app=web");
    let pod = format!(
        "http://{}:8080",
        pods[0]["status"]["podIP"].as_str().expect("an address")
    );
    let node = pods[0]["status"]["hostIP"].as_str().expect("a node");
    let nodes = namespace.get(&["service", "nodes"]);
    let node = format!("http://{node}:{}", nodes["spec"]["ports"][0]["nodePort"]);
    let calls = [
        ("named", "http://named"),
        ("headless", "http://headless:8080"),
        ("first-port", "http://ports"),
        ("second-port", "http://ports.services:8443"),
        ("by-ipv6", &ipv6),
        ("alias", "http://alias"),
        ("node-port", "http://nodes.services.svc.cluster.local"),
        ("node", &node),
        ("external-address", "http://192.0.2.80"),
        ("pod-address", &pod),
    ];
    let jobs = calls
        .iter()
        .map(|(name, url)| calling_job(name, url, "20", "20"));
    namespace.apply(&jobs.collect::<Vec<Value>>());
    for (name, _) in calls {
        namespace.completed(name);
    }
}
