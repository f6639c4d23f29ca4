//! From a change at the API server to the sidecars that apply it.

use std::time::Duration;

use crate::controllers;
use crate::kubernetes::{Namespace, READY, eventually, sum};
use crate::load::Load;
use crate::turns;

const LATENCY: &str = "naru_controller_push_latency_seconds";

/// The histogram's buckets, summed over all controllers: upper bounds and cumulative counts.
fn buckets() -> Vec<(f64, f64)> {
    let all = controllers::metrics().concat();
    let mut bounds: Vec<String> = all
        .lines()
        .filter(|line| line.starts_with(&format!("{LATENCY}_bucket")))
        .filter_map(|line| Some(line.split("le=\"").nth(1)?.split('"').next()?.to_owned()))
        .collect();
    bounds.sort();
    bounds.dedup();
    let mut buckets: Vec<(f64, f64)> = bounds
        .iter()
        .map(|bound| {
            let bound_value = bound
                .trim_start_matches('+')
                .parse()
                .unwrap_or(f64::INFINITY);
            (
                bound_value,
                sum(
                    &all,
                    &format!("{LATENCY}_bucket"),
                    &[&format!("le=\"{bound}\"")],
                ),
            )
        })
        .collect();
    buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
    buckets
}

#[test]
fn every_sidecar_that_uses_a_service_accepts_its_new_endpoints() {
    let _turn = turns::alone();
    let namespace = Namespace::meshed("push");
    namespace.serve_web(2);
    let clients: Vec<Load<'_>> = (0..4)
        .map(|number| Load::start(&namespace, &format!("load-{number}"), "http://web", 10))
        .collect();
    let before = buckets();
    for replicas in ["3", "2"].into_iter().cycle().take(10) {
        namespace.kubectl(&["scale", "deployment/web", "--replicas", replicas]);
        let wanted: usize = replicas.parse().expect("a number");
        eventually("the endpoints have changed", READY, || {
            let slices = namespace.get(&["endpointslices", "-l", "kubernetes.io/service-name=web"]);
            let endpoints = slices["items"].as_array().into_iter().flatten();
            let endpoints = endpoints
                .filter_map(|slice| slice["endpoints"].as_array())
                .flatten();
            let ready = endpoints
                .filter(|endpoint| endpoint["conditions"]["ready"] == true)
                .count();
            match ready == wanted {
                true => Ok(()),
                false => Err(format!("{ready} are ready")),
            }
        });
    }
    std::thread::sleep(Duration::from_secs(2));
    let after = buckets();
    let risen: Vec<(f64, f64)> = after
        .iter()
        .map(|(bound, count)| {
            let old = before.iter().find(|(other, _)| other == bound);
            (*bound, count - old.map_or(0.0, |(_, old)| *old))
        })
        .collect();
    let all = risen.last().expect("buckets").1;
    let within = |share: f64| {
        risen
            .iter()
            .find(|(_, count)| *count >= all * share)
            .expect("a bucket")
            .0
    };
    println!(
        "from the change at the API server to the acceptance: {all} acceptances; half \
         within {} s, 99 of 100 within {} s",
        within(0.5),
        within(0.99)
    );
    // Each client, ten times; on a busy machine two changes may be coalesced.
    assert!(all >= 20.0, "{risen:?}");
    for client in &clients {
        let totals = client.totals();
        assert_eq!(totals.failed, 0, "{totals:?}");
    }
}
