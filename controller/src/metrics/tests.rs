use super::*;

#[test]
fn counts_are_exposed() {
    let metrics = Metrics::new();
    metrics.count_objects(|| vec![("Service", 3)]);
    metrics.refused("token_time");
    metrics.push_accepted(Duration::from_millis(3));
    let stream = metrics.stream(1);
    assert!(stream.is_some());
    assert!(metrics.stream(1).is_none());
    let text = String::from_utf8(metrics.render().unwrap()).unwrap();
    for line in [
        "naru_controller_objects{kind=\"Service\"} 3",
        "naru_controller_certificates_refused_total{reason=\"token_time\"} 1",
        "naru_controller_push_latency_seconds_bucket{le=\"0.005\"} 1",
        "naru_controller_connected_proxies 1",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    drop(stream);
    assert!(metrics.stream(1).is_some());
}
