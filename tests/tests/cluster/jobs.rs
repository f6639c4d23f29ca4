//! Pods that end by themselves, and apps that are quicker than their sidecars.

use serde_json::{Value, json};

use crate::kubernetes::{Namespace, READY, eventually};
use crate::objects::{deployment, pod_spec, server, service, shop};

/// A Job of the shop's load: it succeeds only if every request does.
fn job(name: &str) -> Value {
    // No retry, no wait before the first: the network has to be there.
    let mut spec = pod_spec(shop(&[
        "load",
        "--url",
        "http://web",
        "--paths",
        "/healthz",
        "--rate",
        "100",
        "--requests",
        "100",
    ]));
    spec["restartPolicy"] = "Never".into();
    json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": { "name": name },
        "spec": { "backoffLimit": 0, "template": { "metadata": { "labels": { "job": name } }, "spec": spec } },
    })
}

/// When a container of the pod ended, and how.
fn ended(pod: &Value, statuses: &str, container: &str) -> Option<(String, i64)> {
    let statuses = pod["status"][statuses].as_array()?;
    let status = statuses.iter().find(|status| status["name"] == container)?;
    let ended = &status["state"]["terminated"];
    Some((
        ended["finishedAt"].as_str()?.to_owned(),
        ended["exitCode"].as_i64()?,
    ))
}

#[test]
fn an_app_has_network_from_its_first_instruction_and_its_job_completes() {
    let namespace = Namespace::meshed("jobs");
    namespace.apply(&[deployment("web", 2, pod_spec(server())), service("web")]);
    namespace.rolled_out("deployment/web");
    for number in 1..=3 {
        let name = format!("quick-{number}");
        namespace.apply(&[job(&name)]);
        eventually("the job completes", READY, || {
            let status = &namespace.get(&["job", &name])["status"];
            match (&status["succeeded"], &status["failed"]) {
                (Value::Number(_), _) => Ok(()),
                (_, Value::Number(_)) => panic!("the job failed: {status}"),
                _ => Err(status.to_string()),
            }
        });
        let pods = namespace.get(&["pods", "-l", &format!("job={name}")]);
        let pod = &pods["items"][0];
        let (app, app_code) = ended(pod, "containerStatuses", "shop").expect("the app has ended");
        let (sidecar, code) =
            ended(pod, "initContainerStatuses", "naru-proxy").expect("the sidecar has ended");
        let completed = namespace.get(&["job", &name])["status"]["completionTime"].clone();
        println!("job: the app ended at {app}, the sidecar at {sidecar}; completed at {completed}");
        assert_eq!((app_code, code), (0, 0));
    }
}
