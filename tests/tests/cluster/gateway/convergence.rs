//! How soon a changed route applies in 20 pods.

use std::collections::BTreeMap;

use naru_tests::repository;
use serde_json::json;

use super::echo::start;
use crate::kubernetes::{Namespace, control, full, name, run};
use crate::turns;

const PODS: u32 = 20;
/// Each round creates, changes and deletes a route, one after the other on one Service.
const ROUNDS: usize = 5;
const ROUNDS_IN_FULL: usize = 50;

/// The host's process ids of these pods' sidecars.
fn sidecars(pods: &[String]) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").expect("/proc");
    let ids = processes.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    ids.filter(|id| {
        let file = |name: &str| std::fs::read(format!("/proc/{id}/{name}")).unwrap_or_default();
        let variables = file("environ");
        let of_pod = variables.split(|byte| *byte == 0).any(|variable| {
            let pod = variable.strip_prefix(b"HOSTNAME=");
            pod.is_some_and(|pod| pods.iter().any(|name| name.as_bytes() == pod))
        });
        of_pod && file("comm").starts_with(b"naru-proxy")
    })
    .collect()
}

#[test]
fn a_changed_route_is_obeyed_soon_by_all_pods() {
    let _turn = turns::alone();
    let namespace = Namespace::meshed("convergence");
    start(&namespace, &["v1", "clients"]);
    namespace.kubectl(&["scale", "deployment/clients", &format!("--replicas={PODS}")]);
    namespace.rolled_out("deployment/clients");
    // Only the pods of `v1` are endpoints, so that no client calls itself.
    let selector = json!({ "spec": { "selector": { "app": "v1" } } }).to_string();
    namespace.kubectl(&["patch", "service", "echo", "--type=merge", "-p", &selector]);
    let pods = namespace.pod_names("app=clients");
    let processes = sidecars(&pods);
    assert_eq!(processes.len(), PODS as usize, "{pods:?}");
    let service = namespace.get(&["service", "echo"]);
    let url = format!(
        "http://{}",
        service["spec"]["clusterIP"].as_str().expect("an address")
    );

    let rounds = if full() { ROUNDS_IN_FULL } else { ROUNDS };
    let pki = format!("/tmp/naru-cluster-{}/pki", name());
    let mut measure = control("timeout");
    measure
        .args(["--kill-after=5", "900", "python3"])
        .arg(repository().join("tests/programs/convergence.py"))
        .args([
            "10.200.0.254:6443",
            &pki,
            &namespace.0,
            &url,
            &rounds.to_string(),
        ])
        .args(&processes);
    let printed = run(&mut measure).unwrap_or_else(|error| panic!("{error}"));
    let seconds: BTreeMap<String, Vec<f64>> = serde_json::from_str(&printed).expect("JSON");
    let mut all = Vec::new();
    for (what, found) in &seconds {
        assert_eq!(found.len(), rounds * PODS as usize, "{what}");
        println!("convergence: {what}: {}", quantiles(found));
        all.extend(found);
    }
    println!("convergence: all: {}", quantiles(&all));
}

fn quantiles(seconds: &[f64]) -> String {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |share: f64| sorted[((sorted.len() - 1) as f64 * share).round() as usize] * 1000.0;
    format!(
        "p50 {:.0} ms, p99 {:.0} ms, longest {:.0} ms, of {}",
        at(0.5),
        at(0.99),
        at(1.0),
        sorted.len()
    )
}
