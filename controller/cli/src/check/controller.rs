//! The controller: whether it is running, its version and its permissions.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::api::ListParams;
use kube::{Api, Client, Error};

use super::api::{Installation, all, label};
use super::finding::{Found, Group, failure, info, ok, warning};
use super::names::{CONTROLLER, VERSION_LABEL};
use super::rights;

/// The version of this program.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Its pods.
pub const SELECTOR: &str = "app.kubernetes.io/name=naru,app.kubernetes.io/component=controller";

pub async fn check(client: &Client, installed: &Installation) -> Group {
    let mut group = Group::new("controller");
    group.check("ready", ready(client, installed)).await;
    group
        .check("version", async { Ok(vec![version(installed)]) })
        .await;
    group
        .check("rights", rights::complete(client, installed))
        .await;
    group
}

async fn ready(client: &Client, installed: &Installation) -> Result<Vec<Found>, Error> {
    let namespace = &installed.namespace;
    let wanted = installed.deployment.spec.replicas.unwrap_or(1);
    let status = installed.deployment.status.as_ref();
    let ready = status
        .and_then(|status| status.ready_replicas)
        .unwrap_or_default();
    let updated = status
        .and_then(|status| status.updated_replicas)
        .unwrap_or_default();
    if ready >= wanted && updated >= wanted && wanted > 0 {
        let mut found = vec![ok(format!("{ready} of {wanted} controllers are ready"))];
        if wanted == 1 {
            found.push(info(
                "with one controller, no pod gets a sidecar while it is away; \
                 charts/naru/values-ha.yaml has two",
            ));
        }
        return Ok(found);
    }
    let api = Api::<Pod>::namespaced(client.clone(), namespace);
    let pods = all(&api, ListParams::default().labels(SELECTOR)).await?;
    let ours = pods
        .iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none());
    let why = ours.filter_map(waits_for).next();
    let why = why.map_or(String::new(), |why| format!(": {why}"));
    let text = format!("{ready} of {wanted} controllers are ready{why}");
    let fix = match wanted {
        0 => format!("kubectl -n {namespace} scale deployment/{CONTROLLER} --replicas=1"),
        _ => format!(
            "see kubectl -n {namespace} describe pods -l {SELECTOR} and kubectl -n {namespace} \
             logs deployment/{CONTROLLER}"
        ),
    };
    Ok(vec![match ready {
        0 => failure(text, fix),
        _ => warning(text, fix),
    }])
}

/// Why a pod is not ready, from its status.
fn waits_for(pod: &Pod) -> Option<String> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let status = pod.status.as_ref()?;
    let containers = status.container_statuses.iter().flatten();
    if let Some(why) = containers.filter_map(trouble).next() {
        return Some(format!("{name}: {why}"));
    }
    let conditions = status.conditions.iter().flatten();
    conditions
        .filter(|condition| condition.status == "False")
        .find_map(|condition| condition.message.as_ref())
        .map(|message| format!("{name}: {message}"))
}

/// Why a container is not ready.
pub fn trouble(status: &ContainerStatus) -> Option<String> {
    if status.ready {
        return None;
    }
    let state = status.state.as_ref();
    let last = status
        .last_state
        .as_ref()
        .and_then(|state| state.terminated.as_ref());
    if let Some(waiting) = state.and_then(|state| state.waiting.as_ref()) {
        // The reason of the last termination is more useful than CrashLoopBackOff.
        let message = last.and_then(|last| last.message.as_ref());
        let message = message.or(waiting.message.as_ref());
        let reason = waiting.reason.as_deref().unwrap_or("waiting");
        return Some(match message {
            Some(message) => format!("{reason}: {}", last_line(message)),
            None => reason.to_owned(),
        });
    }
    // A container that keeps failing runs for a moment between restarts: the reason is then its
    // last termination.
    let ended = state.and_then(|state| state.terminated.as_ref());
    let ended = ended.or(last).filter(|ended| ended.exit_code != 0)?;
    let message = ended.message.as_deref().unwrap_or_default();
    Some(format!(
        "ended with {}: {}",
        ended.exit_code,
        last_line(message)
    ))
}

fn last_line(text: &str) -> &str {
    text.trim().lines().last().unwrap_or_default()
}

/// Adjacent versions are compatible, but the same version is intended.
fn version(installed: &Installation) -> Found {
    let labels = installed.deployment.metadata.labels.as_ref();
    match label(labels, VERSION_LABEL) {
        Some(VERSION) => ok(format!("its version is {VERSION}, as this program's")),
        Some(other) => warning(
            format!("its version is {other}, and this program's {VERSION}"),
            format!(
                "take the naru of version {other}, or helm upgrade naru charts/naru -n {}",
                installed.namespace
            ),
        ),
        None => info("it does not say its version: it was not installed by the chart"),
    }
}
