//! Pods that run to completion, and apps that start faster than their sidecars.

use serde_json::Value;

use crate::kubernetes::Namespace;
use crate::objects::calling_job;
use crate::turns;

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
    let _turn = turns::beside_others();
    let namespace = Namespace::meshed("jobs");
    namespace.serve_web(2);
    for number in 1..=3 {
        let name = format!("quick-{number}");
        // The first call has no delay: the network has to work.
        namespace.apply(&[calling_job(&name, "http://web", "100", "100")]);
        namespace.completed(&name);
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
