//! Whether sidecars have a stream from a controller and use the same authority, and what else their
//! metrics report.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client, Error};
use tokio::task::JoinSet;

use super::api::{Installation, all};
use super::client_addresses;
use super::cluster::some;
use super::finding::{Found, Level, failure, ok, unchecked, warning};
use super::metrics::{Metrics, SIDECAR_PORT, of_controllers};
use super::names::{CONTROLLER, INJECTED_LABEL, SIDECAR};
use super::pods::{PodName, full_names, has_sidecar, is_over, not_ready};

/// Upper bound on the sidecars that are queried. The sample has at least one of each node and
/// runtime, as far as this bound allows. The report counts all of them.
const MAX_ASKED: usize = 50;
/// Sidecars that are queried at the same time.
const AT_ONCE: usize = 10;
/// How long a sidecar without a stream gets to open one before it is queried again.
const AGAIN_AFTER: Duration = Duration::from_secs(3);

const CONNECTED: &str = "naru_controller_connected";
const CERTIFICATE: &str = "naru_certificate_info";

pub async fn connected(client: &Client, installed: &Installation) -> Result<Vec<Found>, Error> {
    let controllers = of_controllers(client, installed).await?;
    if controllers.is_empty() {
        return Ok(vec![failure(
            "no controller is ready: no sidecar has a stream",
            "see what is said of the controller",
        )]);
    }
    let mut found = authorities(&controllers, &installed.namespace);
    let sidecars = ready_sidecars(client).await?;
    let streams = controllers
        .iter()
        .filter_map(|metrics| metrics.value("naru_controller_connected_proxies"));
    let streams = streams.sum::<f64>() as usize;
    let asked: Vec<PodName> = sidecars.iter().take(MAX_ASKED).cloned().collect();
    found.extend(ask(client, &controllers, asked).await);
    if streams < sidecars.len() && sidecars.len() > MAX_ASKED {
        found.push(failure(
            format!(
                "{} sidecars are ready, and {streams} have a stream from a controller",
                sidecars.len()
            ),
            format!("see the log of those without: kubectl -n NAMESPACE logs POD -c {SIDECAR}"),
        ));
    }
    if found.iter().all(|found| found.level() < Level::Warning) {
        let authority = issuer(&controllers[0]).unwrap_or("unknown");
        let all = format!(
            "all {} sidecars that are ready have a stream from a controller; the authority is \
             {authority}",
            sidecars.len()
        );
        found.insert(0, ok(all));
    }
    Ok(found)
}

fn issuer(controller: &Metrics) -> Option<&str> {
    controller.label("naru_controller_authority_info", "issuer")
}

/// Checks the authority that the controllers issue with.
fn authorities(controllers: &[Metrics], namespace: &str) -> Vec<Found> {
    let mut found = Vec::new();
    let issuers: BTreeSet<&str> = controllers.iter().filter_map(issuer).collect();
    if issuers.len() > 1 {
        let each: Vec<String> = controllers
            .iter()
            .map(|metrics| format!("{} ({})", issuer(metrics).unwrap_or("none"), metrics.pod))
            .collect();
        found.push(failure(
            format!(
                "the controllers issue with different authorities: {}",
                each.join(", ")
            ),
            format!(
                "unless a rotation is under way: kubectl -n {namespace} rollout restart \
                 deployment/{CONTROLLER}"
            ),
        ));
    }
    for metrics in controllers {
        let state = metrics.label("naru_controller_authority_state", "state");
        if let Some(state @ ("invalid" | "missing")) = state {
            found.push(failure(
                format!(
                    "the authority in its Secret is {state}; {} goes on with the last good one, \
                     and a controller that starts cannot",
                    metrics.pod
                ),
                format!(
                    "its log says why: kubectl -n {namespace} logs {}",
                    metrics.pod
                ),
            ));
        }
    }
    found
}

/// Pods whose sidecar is ready, so it has received its tables and a certificate. The first pod of
/// each node and runtime comes first: what one kernel refuses it refuses to all of its sidecars.
async fn ready_sidecars(client: &Client) -> Result<Vec<PodName>, Error> {
    let injected = ListParams::default().labels(&format!("{INJECTED_LABEL}=true"));
    let pods = all(&Api::<Pod>::all(client.clone()), injected).await?;
    let ready = pods.into_iter().filter(|pod| {
        let labels = pod.metadata.labels.as_ref();
        let is_labelled = labels.is_some_and(|labels| labels.contains_key(INJECTED_LABEL));
        is_labelled && has_sidecar(pod) && !is_over(pod) && not_ready(pod).is_none()
    });
    let mut seen = BTreeSet::new();
    let mut sidecars: Vec<(bool, PodName)> = ready
        .filter_map(|pod| {
            let place = pod
                .spec
                .map(|spec| (spec.node_name, spec.runtime_class_name));
            let name = (pod.metadata.namespace?, pod.metadata.name?);
            Some((!seen.insert(place), name))
        })
        .collect();
    sidecars.sort_by_key(|(again, _)| *again);
    Ok(sidecars.into_iter().map(|(_, name)| name).collect())
}

/// Checks the streams and certificates that sidecars report.
async fn ask(client: &Client, controllers: &[Metrics], pods: Vec<PodName>) -> Vec<Found> {
    let count = pods.len();
    let (answers, silent) = metrics_of(client, pods).await;
    let (with, without) = answers
        .into_iter()
        .partition::<Vec<_>, _>(|(_, metrics)| metrics.value(CONNECTED) == Some(1.0));
    let mut answers = with;
    let mut without: Vec<PodName> = without.into_iter().map(|(pod, _)| pod).collect();
    if !without.is_empty() {
        // A sidecar reopens its stream with each new certificate and when a controller ends.
        tokio::time::sleep(AGAIN_AFTER).await;
        let (again, _) = metrics_of(client, without.clone()).await;
        for (pod, metrics) in again {
            if metrics.value(CONNECTED) == Some(1.0) {
                without.retain(|other| *other != pod);
                answers.push((pod, metrics));
            }
        }
    }
    let mut found = Vec::new();
    if let Some((namespace, pod)) = without.first() {
        found.push(failure(
            format!(
                "{} of {count} sidecars that were asked have no stream from a controller, so that \
                 their endpoints and certificates grow old: {}",
                without.len(),
                some(&full_names(&without))
            ),
            format!(
                "the log says why: kubectl -n {namespace} logs {pod} -c {SIDECAR}. After another \
                 authority was made, sidecars come back by themselves within minutes; others once \
                 their pods are restarted"
            ),
        ));
    }
    let issuers: BTreeSet<&str> = controllers.iter().filter_map(issuer).collect();
    let steady = controllers.iter().all(|controller| {
        controller.label("naru_controller_authority_state", "state") == Some("steady")
    });
    let others: Vec<PodName> = answers
        .iter()
        .filter(|(_, metrics)| {
            let of = metrics.label(CERTIFICATE, "issuer");
            of.is_some_and(|of| !issuers.contains(of))
        })
        .map(|(pod, _)| pod.clone())
        .collect();
    if steady && !others.is_empty() {
        found.push(warning(
            format!(
                "{} sidecars have certificates of another authority than the controllers': {}",
                others.len(),
                some(&full_names(&others))
            ),
            "they renew them within minutes; if not, their logs say why",
        ));
    }
    found.extend(client_addresses::judge(&answers));
    if let Some((_, why)) = silent.first() {
        let pods: Vec<PodName> = silent.iter().map(|(pod, _)| pod.clone()).collect();
        found.push(unchecked(
            format!(
                "{} sidecars could not be asked ({why}): {}",
                pods.len(),
                some(&full_names(&pods))
            ),
            "run naru check as a user who may get pods/proxy; see whether the pods are well",
        ));
    }
    found
}

/// The metrics of the pods that respond, and the reason for each pod that does not.
async fn metrics_of(
    client: &Client,
    pods: Vec<PodName>,
) -> (Vec<(PodName, Metrics)>, Vec<(PodName, String)>) {
    let (mut answers, mut silent) = (Vec::new(), Vec::new());
    let mut waiting = pods.into_iter();
    let mut asked = JoinSet::new();
    loop {
        while asked.len() < AT_ONCE
            && let Some(pod) = waiting.next()
        {
            let client = client.clone();
            asked.spawn(async move {
                let metrics = Metrics::of(&client, &pod.0, &pod.1, SIDECAR_PORT).await;
                (pod, metrics)
            });
        }
        match asked.join_next().await {
            Some(Ok((pod, Ok(metrics)))) => answers.push((pod, metrics)),
            Some(Ok((pod, Err(error)))) => silent.push((pod, super::finding::problem(&error))),
            Some(Err(_)) => {}
            None => break,
        }
    }
    answers.sort_by(|(a, _), (b, _)| a.cmp(b));
    silent.sort();
    (answers, silent)
}
