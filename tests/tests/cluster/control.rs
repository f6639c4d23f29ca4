//! Traffic continues without the control plane: without controllers, and without an API server.

use std::process::Command;
use std::time::Duration;

use crate::controllers::Away;
use crate::kubernetes::{Namespace, READY, eventually, full, name, run, sum, try_kubectl};
use crate::load::Load;
use crate::turns;

/// How many resources a sidecar has received.
fn received(namespace: &Namespace, app: &str) -> f64 {
    let pods = namespace.pod_names(&format!("app={app}"));
    let metrics = pods.iter().map(|pod| namespace.metrics(pod, 15020));
    metrics
        .map(|metrics| sum(&metrics, "naru_table_received_resources_total", &[]))
        .sum()
}

#[test]
fn nothing_fails_without_controllers_and_new_pods_are_injected_when_they_are_back() {
    let _turn = turns::alone();
    let namespace = Namespace::meshed("headless");
    namespace.serve_web(2);
    let load = Load::start(&namespace, "load", "http://web", 200);
    let before = load.totals();
    let away = Away::take();
    // A pod without a sidecar would be worse than a rejected one.
    namespace.kubectl(&["scale", "deployment/web", "--replicas=3"]);
    std::thread::sleep(Duration::from_secs(if full() { 300 } else { 20 }));
    assert_eq!(
        namespace.pods("app=web").len(),
        2,
        "a pod came in without a sidecar"
    );
    let gone = load.assert_none_failed(&before);
    drop(away);
    // The Deployment's controller retries by itself, with a growing backoff.
    namespace.kubectl(&["annotate", "deployment/web", "tried=again"]);
    eventually(
        "the third pod has its sidecar, and is ready",
        Duration::from_secs(180),
        || {
            let pods = namespace.pods("app=web");
            let ready = pods.iter().filter(|pod| {
                let statuses = pod["status"]["initContainerStatuses"].as_array();
                statuses
                    .into_iter()
                    .flatten()
                    .any(|status| status["name"] == "naru-proxy" && status["ready"] == true)
            });
            match ready.count() {
                3 => Ok(()),
                other => Err(format!("{other} of {}", pods.len())),
            }
        },
    );
    println!("without controllers: {:?}", load.assert_none_failed(&gone));
}

/// The API server, stopped until this is dropped.
struct Stopped;

impl Stopped {
    fn file(of: &str) -> String {
        format!("/tmp/naru-cluster-{}/run/kube-apiserver{of}", name())
    }

    fn take() -> Self {
        let pid = std::fs::read_to_string(Self::file(".pid")).expect("the API server's process id");
        run(Command::new("kill").arg(pid.trim())).expect("kill");
        eventually("it is gone", READY, || {
            match try_kubectl(&["get", "--raw", "/readyz", "--request-timeout=2s"]) {
                Ok(_) => Err("it answers".to_owned()),
                Err(_) => Ok(()),
            }
        });
        Self
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // In a session of its own, as in `up`.
        let mut again = Command::new("setsid");
        again.arg("--fork").arg(Self::file(""));
        run(&mut again).expect("setsid");
        eventually("the API server answers", READY, || {
            try_kubectl(&["get", "--raw", "/readyz", "--request-timeout=2s"])
        });
    }
}

#[test]
fn nothing_fails_without_the_api_server_and_no_stream_is_woken_without_a_change() {
    let _turn = turns::alone();
    let namespace = Namespace::meshed("leaderless");
    namespace.serve_web(2);
    let load = Load::start(&namespace, "load", "http://web", 200);
    // Late updates of the start have arrived.
    std::thread::sleep(Duration::from_secs(3));
    let before = load.totals();
    let told = || ["load", "web"].map(|app| received(&namespace, app));
    let told_before = told();
    assert!(told_before[0] > 0.0);
    let stopped = Stopped::take();
    std::thread::sleep(Duration::from_secs(if full() { 120 } else { 20 }));
    drop(stopped);
    // Watches are restarted, and everything is listed again.
    std::thread::sleep(Duration::from_secs(15));
    let back = load.assert_none_failed(&before);
    println!("without an API server: {back:?}");
    assert_eq!(told(), told_before, "somebody was told something");
    // Changes arrive again.
    namespace.kubectl(&["scale", "deployment/web", "--replicas=3"]);
    namespace.rolled_out("deployment/web");
    eventually("the change arrives", READY, || {
        match received(&namespace, "load") > told_before[0] {
            true => Ok(()),
            false => Err("nothing came".to_owned()),
        }
    });
    load.assert_none_failed(&back);
}
