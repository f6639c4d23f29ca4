//! How soon a changed manifest is in force on many proxies, by the controller's metrics.

use std::time::Duration;

use serde_json::json;

use crate::http::nginx;
use crate::mesh::{Mesh, NAMESPACE, Workload, full, need};

/// The controller's admin port, as seen by pods of the sandbox.
const CONTROLLER: &str = "http://10.244.0.1:15014/metrics";
const CHANGES: usize = 20;

#[test]
fn every_change_of_a_weight_is_accepted_by_every_proxy() {
    need("curl", "curl");
    let proxies = if full() { 50 } else { 10 };
    let mesh = Mesh::new().timeout(Duration::from_secs(240));
    for version in ["v1", "v2"] {
        mesh.add(&nginx(&mesh, version, ""));
    }
    mesh.put(
        &Workload::new("both", "")
            .port(80, 8080, Some("http"))
            .service(),
    );
    // Each proxy calls the Service once, and is subscribed from then on.
    mesh.add(
        &Workload::new(
            "caller",
            "until curl -sS -m 10 -o /dev/null http://both/; do sleep 0.2; done; exec sleep \
             infinity",
        )
        .replicas(proxies),
    );
    let route = |weight: usize| {
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": { "name": "split", "namespace": NAMESPACE },
            "spec": {
                "parentRefs": [{ "group": "", "kind": "Service", "name": "both" }],
                "rules": [{ "backendRefs": [
                    { "name": "v1", "port": 80, "weight": weight },
                    { "name": "v2", "port": 80, "weight": 1 },
                ] }],
            },
        })
    };
    mesh.put(&route(0));
    let running = mesh.start_in(
        "client",
        &format!(
            "asked() {{ curl -sS -m 10 {CONTROLLER} > metrics.new; mv metrics.new metrics; }}\n\
             until [[ -e done ]]; do asked; sleep 0.1; done; asked"
        ),
    );
    // Without further pushes, all proxies have their resources.
    let pushes = || {
        let metrics = mesh.read("metrics");
        (
            sample(&metrics, "naru_controller_connected_proxies"),
            sample(&metrics, "naru_controller_push_latency_seconds_count"),
            metrics,
        )
    };
    let mut before = pushes();
    for _ in 0..600 {
        std::thread::sleep(Duration::from_millis(500));
        let now = pushes();
        if now.0 >= f64::from(proxies) && now.1 == before.1 {
            break;
        }
        before = now;
    }
    for weight in 1..=CHANGES {
        mesh.put(&route(weight));
        std::thread::sleep(Duration::from_millis(300));
    }
    let expected = before.1 + CHANGES as f64 * f64::from(proxies);
    let mut after = pushes();
    for _ in 0..100 {
        if after.1 >= expected {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
        after = pushes();
    }
    mesh.file("done", "");
    running.succeed();
    assert!(
        after.1 >= expected,
        "{} of {expected} pushes were accepted\n{}",
        after.1,
        after.2
    );
    assert_eq!(sample(&after.2, "naru_controller_rejects_total"), 0.0);
    println!(
        "{} proxies, {CHANGES} changes: 99 of 100 accepted within {} s of the change",
        after.0,
        quantile(&before.2, &after.2, 0.99)
    );
}

fn sample(metrics: &str, name: &str) -> f64 {
    metrics
        .lines()
        .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
        .unwrap_or(0.0)
}

/// The upper bound of the histogram's bucket with the quantile of the samples between two scrapes.
fn quantile(before: &str, after: &str, quantile: f64) -> String {
    let buckets = |metrics: &str| -> Vec<(String, f64)> {
        let lines = metrics.lines().filter_map(|line| {
            let rest = line.strip_prefix("naru_controller_push_latency_seconds_bucket{le=\"")?;
            let (bound, count) = rest.split_once("\"} ")?;
            Some((bound.to_owned(), count.parse().ok()?))
        });
        lines.collect()
    };
    let before = buckets(before);
    let counts: Vec<_> = (buckets(after).into_iter())
        .map(|(bound, count)| {
            let was = before.iter().find(|(other, _)| *other == bound);
            (bound, count - was.map_or(0.0, |(_, count)| *count))
        })
        .collect();
    let total = counts.last().map_or(0.0, |(_, count)| *count);
    (counts.into_iter())
        .find(|(_, count)| *count >= total * quantile)
        .map_or_else(String::new, |(bound, _)| bound)
}
