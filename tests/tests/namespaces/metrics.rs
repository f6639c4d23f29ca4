//! Prometheus scrapes a mesh, and promtool finds no problem in the metrics.

use crate::http::nginx;
use crate::mesh::{Mesh, need, pods_of};

#[test]
fn prometheus_scrapes_the_proxies_and_promtool_approves() {
    need("prometheus", "prometheus");
    need("promtool", "prometheus");
    let mesh = Mesh::new();
    mesh.add(&nginx(&mesh, "nginx", "").replicas(2));
    mesh.put(&pods_of("nginx"));
    let configuration = mesh.file(
        "prometheus.yml",
        "global: { scrape_interval: 1s, scrape_timeout: 1s }\n\
         scrape_configs:\n\
         - job_name: proxies\n\
         \x20 dns_sd_configs:\n\
         \x20 - { names: [nginx-pods.test.svc.cluster.local], type: A, port: 15020,\n\
         \x20     refresh_interval: 1s }\n\
         - job_name: client\n\
         \x20 static_configs: [{ targets: ['127.0.0.1:15020'] }]\n",
    );
    let data = mesh.path("prometheus");
    let written = mesh.run(&format!(
        r#"
        prometheus --config.file={configuration} --storage.tsdb.path={} \
          --web.listen-address=127.0.0.1:9090 2> {configuration}.log & prometheus=$!
        hey -n 500 -c 5 http://nginx/ > /dev/null
        curl -sS -m 10 http://127.0.0.1:15020/metrics | promtool check metrics
        ask() {{
          curl -sS -m 10 -G http://127.0.0.1:9090/api/v1/query --data-urlencode "query=$1"; echo
        }}
        for attempt in $(seq 100); do
          answer=$(ask 'sum(naru_responses_total{{direction="inbound",class="2xx"}})' || true)
          sent=$(ask 'sum(naru_requests_total{{direction="outbound",service="nginx"}})' || true)
          if [[ "$answer" == *'"500"]'* && "$sent" == *'"500"]'* ]]; then break; fi
          sleep 0.2
        done
        echo "answered: $answer"
        echo "up: $(ask 'sum(up)')"
        echo "sent: $sent"
        quantile='histogram_quantile(0.99, sum by (le) (naru_response_duration_seconds_bucket))'
        echo "fast: $(ask "$quantile")"
        kill $prometheus; wait $prometheus || true
        "#,
        data.display(),
    ));
    let line = |start: &str| {
        let line = written.lines().find(|line| line.starts_with(start));
        line.unwrap_or_else(|| panic!("{written}")).to_owned()
    };
    assert!(line("answered:").contains("\"500\"]"), "{written}");
    assert!(line("up:").contains("\"3\"]"), "{written}");
    assert!(line("sent:").contains("\"500\"]"), "{written}");
    assert!(!line("fast:").contains("NaN"), "{written}");
}
