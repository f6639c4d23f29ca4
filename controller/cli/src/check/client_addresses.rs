//! Whether apps see their clients' addresses, as determined by each sidecar at start.

use std::collections::BTreeMap;

use super::cluster::some;
use super::finding::{Found, info, warning};
use super::metrics::{Metrics, value_of};
use super::names::INIT_CONTAINER;
use super::pods::{PodName, full_names};

const AT_WORST: &str = "naru_app_client_addresses";

/// Reports the socket options that the kernel or container runtime refuses to sidecars. Older
/// sidecars do not expose this metric.
pub fn judge(sidecars: &[(PodName, Metrics)]) -> Vec<Found> {
    let mut refused: BTreeMap<&str, Vec<PodName>> = BTreeMap::new();
    for (pod, metrics) in sidecars {
        let series = metrics.series(AT_WORST);
        let mut shown: Vec<&str> = series
            .filter_map(|(labels, _)| value_of(labels, "client_address"))
            .collect();
        // One entry per address family of the pod.
        shown.sort_unstable();
        shown.dedup();
        for shown in shown {
            refused.entry(shown).or_default().push(pod.clone());
        }
    }
    let mut found = Vec::new();
    if let Some(pods) = refused.get("own")
        && let Some((namespace, pod)) = pods.first()
    {
        found.push(warning(
            format!(
                "to the apps of {} pods every client seems to be the pod itself, as its kernel or \
                 runtime refuses the addresses that stand for clients: what an app grants to local \
                 clients (Require local, samehost) it grants to all: {}",
                pods.len(),
                some(&full_names(pods))
            ),
            format!(
                "create pods again whose {INIT_CONTAINER} is of an older version; of others its \
                 log says what was refused: kubectl -n {namespace} logs {pod} -c {INIT_CONTAINER}, \
                 or the log of the node's naru-cni"
            ),
        ));
    }
    if let Some(pods) = refused.get("hidden") {
        found.push(info(format!(
            "the apps of {} pods see some clients as a stand-in (169.254.6.6): the kernel maps no \
             prefixes, class E is in use, or the pod has no default route: {}",
            pods.len(),
            some(&full_names(pods))
        )));
    }
    found
}
