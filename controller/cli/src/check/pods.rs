//! Pods that have a sidecar, and pods that should have one.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::ListParams;
use kube::{Api, Client, Error};

use super::api::{Installation, all, label, labelled};
use super::cluster::some;
use super::controller::trouble;
use super::finding::{Found, Group, Level, failure, info, ok, warning};
use super::names::{
    INIT_CONTAINER, INJECT, INJECTED_LABEL, SIDECAR, SKIP_ANNOTATIONS, SKIPPED_ANNOTATION,
};

/// How long a sidecar may take to become ready.
const STARTING: SignedDuration = SignedDuration::from_secs(120);

/// Namespace and name of a pod.
pub type PodName = (String, String);

/// The verdict on a pod, worst last.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// Excluded by the nature of the pod or by an annotation; with the reason.
    LeftOut(String),
    /// Some of its traffic bypasses the mesh.
    Skips(String),
    Starting,
    /// Its sidecar runs another image.
    Old(String),
    /// It was created before its namespace was labelled.
    Without,
    NotReady(String),
}

/// Pod names as messages show them.
pub fn full_names(pods: &[PodName]) -> Vec<String> {
    let name = |(namespace, pod): &PodName| format!("{namespace}/{pod}");
    pods.iter().map(name).collect()
}

pub async fn check(client: &Client, installed: &Installation) -> Group {
    let mut group = Group::new("pods");
    group.check("sidecars", sidecars(client, installed)).await;
    group
}

async fn sidecars(client: &Client, installed: &Installation) -> Result<Vec<Found>, Error> {
    let namespaces: BTreeSet<String> = labelled(client)
        .await?
        .into_iter()
        .filter_map(|namespace| namespace.metadata.name)
        .collect();
    let mut pods = Vec::new();
    for namespace in &namespaces {
        let api = Api::<Pod>::namespaced(client.clone(), namespace);
        pods.extend(all(&api, ListParams::default()).await?);
    }
    // Pods of unlabelled namespaces that requested a sidecar themselves.
    let injected = ListParams::default().labels(&format!("{INJECTED_LABEL}=true"));
    let elsewhere = all(&Api::<Pod>::all(client.clone()), injected).await?;
    pods.extend(elsewhere.into_iter().filter(|pod| {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        has_sidecar(pod) && !namespaces.contains(namespace)
    }));
    Ok(judge(
        &pods,
        installed.flag("proxy-image"),
        Timestamp::now(),
    ))
}

fn judge(pods: &[Pod], image: Option<&str>, now: Timestamp) -> Vec<Found> {
    let mut good = 0;
    let mut told: BTreeMap<(Kind, String), Vec<String>> = BTreeMap::new();
    for pod in pods {
        if is_over(pod) {
            continue;
        }
        let name = pod.metadata.name.clone().unwrap_or_default();
        match kind(pod, image, now) {
            None => good += 1,
            Some(kind) => told.entry((kind, owner(pod))).or_default().push(name),
        }
    }
    let mut found: Vec<Found> = told
        .into_iter()
        .map(|((kind, owner), names)| finding_of(&kind, &owner, &names))
        .collect();
    if found.iter().all(|found| found.level() < Level::Warning) {
        found.insert(0, ok(format!("{good} pods have a sidecar that is ready")));
    }
    found
}

/// The pod has terminated or is being deleted.
pub fn is_over(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref());
    pod.metadata.deletion_timestamp.is_some() || matches!(phase, Some("Succeeded" | "Failed"))
}

fn finding_of(kind: &Kind, owner: &str, names: &[String]) -> Found {
    let names = some(names);
    let restart = match owner.split_once('/') {
        Some((namespace, workload)) if workload.contains('/') => {
            format!("kubectl -n {namespace} rollout restart {workload}")
        }
        _ => format!("create it again: {names}"),
    };
    match kind {
        Kind::LeftOut(reason) => info(format!("{owner}: no sidecar ({reason}): {names}")),
        Kind::Skips(annotations) => info(format!(
            "{owner}: not all traffic is in the mesh ({annotations})"
        )),
        Kind::Starting => info(format!("{owner}: the sidecar is starting: {names}")),
        Kind::Old(image) => warning(
            format!("{owner}: the sidecar is of {image}, and new ones are not: {names}"),
            restart,
        ),
        Kind::Without => warning(
            format!(
                "{owner}: no sidecar, as the namespace was labelled later or no controller was \
                 there: {names}"
            ),
            restart,
        ),
        Kind::NotReady(why) => failure(
            format!("{owner}: the sidecar is not ready ({why}): {names}"),
            format!(
                "kubectl -n {} describe pod and logs -c {SIDECAR} say why",
                owner.split('/').next().unwrap_or_default()
            ),
        ),
    }
}

/// `None`: there is nothing to report.
fn kind(pod: &Pod, image: Option<&str>, now: Timestamp) -> Option<Kind> {
    let annotations = pod.metadata.annotations.as_ref();
    if !has_sidecar(pod) {
        let host_network = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.host_network)
            .unwrap_or(false);
        return Some(
            if let Some(reason) = label(annotations, SKIPPED_ANNOTATION) {
                Kind::LeftOut(reason.to_owned())
            } else if label(annotations, INJECT) == Some("disabled") {
                Kind::LeftOut(format!("{INJECT}: disabled"))
            } else if host_network {
                Kind::LeftOut("the host's network".to_owned())
            } else {
                Kind::Without
            },
        );
    }
    if let Some(why) = not_ready(pod) {
        let created = pod.metadata.creation_timestamp.as_ref();
        let age = created.map(|created| now.duration_since(created.0));
        return Some(match age {
            Some(age) if age < STARTING => Kind::Starting,
            _ => Kind::NotReady(why),
        });
    }
    if let (Some(theirs), Some(image)) = (sidecar_image(pod), image)
        && theirs != image
    {
        return Some(Kind::Old(theirs.to_owned()));
    }
    let skips: Vec<&str> = annotations
        .into_iter()
        .flatten()
        .filter(|(name, value)| name.starts_with(SKIP_ANNOTATIONS) && !value.is_empty())
        .map(|(name, _)| name.as_str())
        .collect();
    (!skips.is_empty()).then(|| Kind::Skips(skips.join(", ")))
}

pub fn has_sidecar(pod: &Pod) -> bool {
    sidecar_image(pod).is_some()
}

fn sidecar_image(pod: &Pod) -> Option<&str> {
    let spec = pod.spec.as_ref()?;
    let mut containers = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers);
    let sidecar = containers.find(|container| container.name == SIDECAR)?;
    sidecar.image.as_deref().or(Some(""))
}

/// Why the sidecar is not ready.
pub fn not_ready(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let containers = || {
        let init = status.init_container_statuses.iter().flatten();
        init.chain(status.container_statuses.iter().flatten())
    };
    let sidecar = containers().find(|container| container.name == SIDECAR);
    if sidecar.is_some_and(|sidecar| sidecar.ready) {
        return None;
    }
    let init = containers().find(|container| container.name == INIT_CONTAINER);
    let why = init
        .and_then(trouble)
        .map(|why| format!("{INIT_CONTAINER}: {why}"));
    let why = why.or_else(|| sidecar.and_then(trouble));
    Some(why.unwrap_or_else(|| "it does not say why".to_owned()))
}

/// The workload that owns a pod, as NAMESPACE/KIND/NAME; for a pod without an owner, NAMESPACE.
pub fn owner(pod: &Pod) -> String {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    owner_of(&pod.metadata).unwrap_or_else(|| namespace.to_owned())
}

/// The workload that owns a pod. `None`: the pod has no owner.
pub fn owner_of(pod: &ObjectMeta) -> Option<String> {
    let namespace = pod.namespace.as_deref().unwrap_or_default();
    let mut owners = pod.owner_references.iter().flatten();
    let owner = owners.find(|owner| owner.controller == Some(true))?;
    Some(match &*owner.kind {
        // A ReplicaSet's name is the Deployment's name and a hash.
        "ReplicaSet" => {
            let name = owner
                .name
                .rsplit_once('-')
                .map_or(&*owner.name, |(name, _)| name);
            format!("{namespace}/deployment/{name}")
        }
        kind => format!("{namespace}/{}/{}", kind.to_lowercase(), owner.name),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NOW: &str = "2026-01-01T01:00:00Z";

    fn judged(pod: Value) -> Vec<(Level, String)> {
        let pod: Pod = serde_json::from_value(pod).expect("a pod");
        let now = NOW.parse().expect("a time");
        judge(&[pod], Some("naru/proxy:2"), now)
            .iter()
            .map(|found| (found.level(), found.text().to_owned()))
            .collect()
    }

    fn pod(image: &str, ready: bool) -> Value {
        json!({
            "metadata": {
                "name": "web-5d8f-x", "namespace": "shop",
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "ReplicaSet",
                        "name": "web-5d8f", "uid": "1", "controller": true }],
            },
            "spec": {
                "initContainers": [{ "name": "naru-init", "image": image },
                    { "name": "naru-proxy", "image": image }],
                "containers": [{ "name": "web" }],
            },
            "status": { "phase": "Running", "initContainerStatuses": [
                { "name": "naru-proxy", "ready": ready, "restartCount": 0, "image": image,
                    "imageID": "", "state": {
                    "waiting": { "reason": "CrashLoopBackOff" } } },
            ] },
        })
    }

    #[test]
    fn a_pod_whose_sidecar_is_ready_and_current_is_good() {
        assert_eq!(judged(pod("naru/proxy:2", true))[0].0, Level::Ok);
    }

    #[test]
    fn a_sidecar_of_another_image_should_be_restarted() {
        let found = &judged(pod("naru/proxy:1", true))[0];
        assert_eq!(found.0, Level::Warning);
        assert!(found.1.contains("shop/deployment/web"), "{}", found.1);
    }

    #[test]
    fn a_sidecar_that_stays_unready_is_a_failure_with_its_reason() {
        let found = &judged(pod("naru/proxy:2", false))[0];
        assert_eq!(found.0, Level::Failure);
        assert!(found.1.contains("CrashLoopBackOff"), "{}", found.1);
        let mut young = pod("naru/proxy:2", false);
        young["metadata"]["creationTimestamp"] = "2026-01-01T00:59:00Z".into();
        let found = judged(young);
        assert!(
            found.iter().all(|(level, _)| *level < Level::Warning),
            "{found:?}"
        );
    }

    #[test]
    fn a_pod_without_a_sidecar_is_reported_unless_that_is_intended() {
        let mut without = pod("naru/proxy:2", true);
        without["spec"]["initContainers"] = json!([]);
        assert_eq!(judged(without.clone())[0].0, Level::Warning);
        let mut disabled = without.clone();
        disabled["metadata"]["annotations"] = json!({ "naru.dev/inject": "disabled" });
        assert!(
            judged(disabled)
                .iter()
                .all(|(level, _)| *level < Level::Warning)
        );
        let mut host = without.clone();
        host["spec"]["hostNetwork"] = true.into();
        assert!(
            judged(host)
                .iter()
                .all(|(level, _)| *level < Level::Warning)
        );
        let mut ended = without;
        ended["status"]["phase"] = "Succeeded".into();
        assert_eq!(
            judged(ended),
            [(Level::Ok, "0 pods have a sidecar that is ready".to_owned())]
        );
    }

    #[test]
    fn traffic_that_bypasses_the_mesh_is_reported() {
        let mut skips = pod("naru/proxy:2", true);
        skips["metadata"]["annotations"] = json!({ "naru.dev/skip-outbound-ports": "25" });
        let found = judged(skips);
        assert!(
            found
                .iter()
                .any(|(_, text)| text.contains("skip-outbound-ports")),
            "{found:?}"
        );
    }
}
