//! Rotation of the certificate authority: under load, with connections that stay open, and without
//! restarts.

use std::time::Duration;

use serde_json::{Value, json};

use crate::controllers::{self, SYSTEM};
use crate::kubernetes::{Namespace, READY, eventually, get, kubectl, sum};
use crate::load::Load;
use crate::objects::{deployment, pod_spec, server, service, shell, shop};
use crate::turns;

/// How long each step may take: the test cluster's terms are below a minute.
const STEP: Duration = Duration::from_secs(180);
/// Carts in one long stream, ten a second: longer than a rotation.
const WATCHED: usize = 1_000;

/// The value of a metric's label `issuer`.
fn issuer(metrics: &str, name: &str) -> Option<String> {
    let prefix = format!("{name}{{");
    let series = metrics.lines().find(|line| line.starts_with(&prefix))?;
    Some(
        series
            .split("issuer=\"")
            .nth(1)?
            .split('"')
            .next()?
            .to_owned(),
    )
}

/// The authority that all controllers issue with.
fn authority() -> Result<String, String> {
    let found: Vec<_> = (controllers::metrics().iter())
        .map(|metrics| issuer(metrics, "naru_controller_authority_info"))
        .collect();
    match &found[..] {
        [Some(first), rest @ ..] if rest.iter().all(|other| other.as_ref() == Some(first)) => {
            Ok(first.clone())
        }
        _ => Err(format!("{found:?}")),
    }
}

/// Waits until all controllers are in a state.
fn until_state(state: &str) {
    let labels = [&*format!("state=\"{state}\"")];
    eventually(&format!("the authority is {state}"), STEP, || {
        let metrics = controllers::metrics();
        let name = "naru_controller_authority_state";
        let there = |metrics: &String| sum(metrics, name, &labels) == 1.0;
        match !metrics.is_empty() && metrics.iter().all(there) {
            true => Ok(()),
            false => Err(metrics.concat()),
        }
    });
}

/// How often each container in a list of pods has started.
fn starts(pods: &Value) -> Vec<(String, u64)> {
    let pods = pods["items"].as_array().expect("a list").iter();
    let mut starts: Vec<_> = pods
        .flat_map(|pod| {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            let lists = ["initContainerStatuses", "containerStatuses"];
            let containers = lists.map(|list| pod["status"][list].as_array().cloned());
            let containers = containers.into_iter().flatten().flatten();
            containers.map(move |container| {
                let key = format!("{name}/{}", container["name"]);
                (key, container["restartCount"].as_u64().unwrap_or(u64::MAX))
            })
        })
        .collect();
    starts.sort();
    starts
}

/// A pod that runs one line of shell.
fn client(name: &str, line: &str) -> Value {
    let mut spec = pod_spec(shell("client", line));
    spec["restartPolicy"] = "Never".into();
    spec["terminationGracePeriodSeconds"] = 1.into();
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "labels": { "app": name } },
        "spec": spec,
    })
}

/// A Deployment of one of the shop's programs and its Service.
fn program(name: &str, arguments: &[&str], port: u16, target: u16, protocol: &str) -> [Value; 2] {
    let mut container = shop(arguments);
    container["ports"] = json!([{ "name": "main", "containerPort": target }]);
    container["readinessProbe"] = json!({ "tcpSocket": { "port": "main" }, "periodSeconds": 1 });
    let mut service = service(name);
    service["spec"]["ports"] =
        json!([{ "name": "main", "port": port, "targetPort": "main", "appProtocol": protocol }]);
    [deployment(name, 1, pod_spec(container)), service]
}

#[test]
fn the_certificate_authority_is_rotated_without_a_disruption() {
    let _turn = turns::alone();
    let namespace = Namespace::meshed("rotation");
    let watched = WATCHED.to_string();
    let front = ["web", "--listen", "[::]:8080", "--watched", &watched];
    let objects = [
        program("front", &front, 80, 8080, "http"),
        program(
            "cart",
            &["cart", "--listen", "[::]:9000"],
            80,
            9000,
            "kubernetes.io/h2c",
        ),
        program(
            "store",
            &["store", "--listen", "[::]:6379"],
            6379,
            6379,
            "redis",
        ),
        [deployment("web", 2, pod_spec(server())), service("web")],
    ];
    namespace.apply(&objects.concat());
    for name in ["front", "cart", "store", "web"] {
        namespace.rolled_out(&format!("deployment/{name}"));
    }
    // Two controllers have to agree at each step.
    assert_eq!(controllers::names().len(), 2);
    let old = eventually("there is one authority", STEP, authority);
    until_state("steady");
    let load = Load::start(&namespace, "load", "http://web", 200);
    // One connection to the database, and one gRPC stream from `front` to `cart`, for the whole
    // rotation.
    let ping = r"while :; do printf '*1\r\n$4\r\nPING\r\n'; sleep 1; done | nc store 6379";
    let watch = "wget -q -O - http://front/cart/watch";
    namespace.apply(&[client("connection", ping), client("stream", watch)]);
    let pongs = || {
        let logs = namespace.kubectl(&["logs", "connection", "-c", "client"]);
        logs.matches("+PONG").count()
    };
    let ready = [
        "wait",
        "--for=condition=Ready",
        "pod/connection",
        "pod/stream",
    ];
    let timeout = format!("--timeout={}s", READY.as_secs());
    namespace.kubectl(&[&ready[..], &[&timeout]].concat());
    eventually("the database answers", READY, || match pongs() {
        0 => Err("nothing".to_owned()),
        _ => Ok(()),
    });
    let pods = || namespace.get(&["pods", "-l", "app!=late"]);
    let system = || get(&["-n", SYSTEM, "pods"]);
    let (started, controllers_started) = (starts(&pods()), starts(&system()));
    let before = load.totals();

    let wish = format!("naru.dev/rotate={}", std::process::id());
    kubectl(&[
        "-n",
        SYSTEM,
        "annotate",
        "secret",
        "naru-ca",
        "--overwrite",
        &wish,
    ]);
    until_state("trusting");
    // A pod that starts during the rotation joins.
    namespace.apply(&[deployment("late", 1, pod_spec(server()))]);
    until_state("retiring");
    let new = eventually("there is one authority", STEP, authority);
    assert_ne!(new, old);
    namespace.rolled_out("deployment/late");
    eventually("every certificate is of the new one", STEP, || {
        let names = namespace.pod_names("naru.dev/injected=true,app!=stream");
        let of = |pod: &String| {
            let metrics = namespace.metrics(pod, 15020);
            (pod.clone(), issuer(&metrics, "naru_certificate_info"))
        };
        let found: Vec<_> = names.iter().map(of).collect();
        let all = found
            .iter()
            .all(|(_, issuer)| issuer.as_ref() == Some(&new));
        match all && found.len() >= 8 {
            true => Ok(()),
            false => Err(format!("{found:?}")),
        }
    });
    until_state("steady");
    for metrics in controllers::metrics() {
        assert_eq!(sum(&metrics, "naru_controller_trust_anchors", &[]), 1.0);
    }
    let anchors = namespace.get(&["configmap", "naru-trust-anchors"]);
    let anchors = anchors["data"]["trust-anchors.pem"].as_str().expect("PEM");
    assert_eq!(anchors.matches("BEGIN").count(), 1);

    // Open connections are still open and work.
    let answered = pongs();
    eventually("the connection carries", STEP, || match pongs() {
        more if more > answered => Ok(()),
        same => Err(format!("{same} answers")),
    });
    eventually("the stream ends as it should", STEP, || {
        let carts = namespace.kubectl(&["logs", "stream", "-c", "client"]);
        match carts.matches("\"products\"").count() {
            WATCHED => Ok(()),
            other => Err(format!("{other} carts: {carts}")),
        }
    });
    assert_eq!(starts(&pods()), started);
    assert_eq!(starts(&system()), controllers_started);
    println!(
        "rotation: {before:?} to {:?}",
        load.assert_none_failed(&before)
    );
}
