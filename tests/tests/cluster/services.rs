//! The kinds of Services that there are, called from inside the mesh.

use serde_json::{Value, json};

use crate::kubernetes::Namespace;
use crate::objects::{calling_job, deployment, pod_spec, server};

fn service(name: &str, spec: Value) -> Value {
    let mut service = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name }, "spec": spec });
    if service["spec"]["type"] != "ExternalName" {
        service["spec"]["selector"] = json!({ "app": "web" });
    }
    service
}

#[test]
fn every_kind_of_service_is_reached() {
    let namespace = Namespace::meshed("services");
    let mut container = server();
    container["ports"] = json!([{ "name": "http", "containerPort": 8080 }]);
    namespace.apply(&[
        deployment("web", 2, pod_spec(container)),
        service("named", json!({ "ports": [{ "port": 80, "targetPort": "http" }] })),
        service("headless", json!({ "clusterIP": "None", "ports": [{ "port": 8080 }] })),
        service(
            "ports",
            json!({ "ports": [
                { "name": "first", "port": 80, "targetPort": 8080 },
                { "name": "second", "port": 8443, "targetPort": 8080, "appProtocol": "http" },
            ] }),
        ),
        service("dual", json!({ "ipFamilyPolicy": "RequireDualStack", "ports": [{ "port": 80, "targetPort": 8080 }] })),
        service(
            "alias",
            json!({ "type": "ExternalName", "externalName": "named.services.svc.cluster.local" }),
        ),
        service(
            "nodes",
            json!({ "type": "NodePort", "ports": [{ "port": 80, "targetPort": 8080, "appProtocol": "http" }] }),
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
    let calls = [
        ("named", "http://named"),
        ("headless", "http://headless:8080"),
        ("first-port", "http://ports"),
        ("second-port", "http://ports.services:8443"),
        ("by-ipv6", &ipv6),
        ("alias", "http://alias"),
        ("node-port", "http://nodes.services.svc.cluster.local"),
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
