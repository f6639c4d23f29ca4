use super::*;
use std::sync::Arc;
use std::time::Duration;

fn labels(service: &str) -> RequestLabels {
    RequestLabels {
        direction: Direction::Outbound,
        client: "".into(),
        namespace: "shop".into(),
        service: service.into(),
        port: Some(80),
        route: "shop/web".into(),
        rule: "0".into(),
        backend: "shop/web:80".into(),
    }
}

fn text(metrics: &Metrics) -> String {
    String::from_utf8(metrics.render().unwrap()).unwrap()
}

#[test]
fn a_request_is_read_back_with_its_labels() {
    let metrics = Metrics::new("shop", "web-1");
    let handle = metrics.request(labels("web\"\n\\"));
    handle.begin(HttpVersion::Http2);
    handle.end(
        Some(503),
        Some(Reason::NoEndpoint),
        Duration::from_millis(3),
    );
    handle.retry(RetryOutcome::BudgetExhausted);
    metrics.upstream_connect(None);
    metrics.handshake(Direction::Inbound, Some(Reason::TlsFailed));
    let text = text(&metrics);
    let series = concat!(
        r#"direction="outbound",client="",namespace="shop",service="web\"\n\\",port="80","#,
        r#"route="shop/web",rule="0",backend="shop/web:80""#
    );
    for line in [
        format!("naru_requests_total{{{series},protocol=\"http/2\"}} 1"),
        format!(
            "naru_responses_total{{{series},status=\"503\",class=\"5xx\",\
             reason=\"no-endpoint\"}} 1"
        ),
        format!("naru_response_duration_seconds_bucket{{{series},le=\"0.0025\"}} 0"),
        format!("naru_response_duration_seconds_bucket{{{series},le=\"0.005\"}} 1"),
        format!("naru_response_duration_seconds_bucket{{{series},le=\"+Inf\"}} 1"),
        "naru_retries_total{namespace=\"shop\",service=\"web\\\"\\n\\\\\",port=\"80\",\
         route=\"shop/web\",outcome=\"budget\"} 1"
            .to_owned(),
        "naru_upstream_connects_total{outcome=\"ok\"} 1".to_owned(),
        "naru_tls_handshakes_total{direction=\"inbound\",outcome=\"tls-failed\"} 1".to_owned(),
        format!(
            "naru_proxy_info{{namespace=\"shop\",pod=\"web-1\",version=\"{}\"}} 1",
            env!("CARGO_PKG_VERSION")
        ),
    ] {
        assert!(text.contains(&line), "{line}\nis not in\n{text}");
    }
    assert!(text.contains("process_resident_memory_bytes "));
    assert!(!text.contains("naru_certificate_expiry_timestamp_seconds"));
}

#[test]
fn a_handle_without_traffic_makes_no_series() {
    let metrics = Metrics::default();
    let handle: Arc<_> = metrics.request(labels("web"));
    assert!(!text(&metrics).contains("naru_requests_total"));
    handle.begin(HttpVersion::Http1);
    assert!(text(&metrics).contains("naru_requests_total"));
}

#[test]
fn too_many_series_end_up_under_overflow() {
    let metrics = Metrics::default();
    for index in 0..crate::observe::metrics::MAX_REQUEST_SERIES + 3 {
        let handle = metrics.request(labels(&index.to_string()));
        handle.begin(HttpVersion::Http1);
    }
    let text = text(&metrics);
    let overflow = concat!(
        r#"naru_requests_total{direction="outbound",client="overflow",namespace="overflow","#,
        r#"service="overflow",port="",route="overflow",rule="overflow",backend="overflow","#,
        r#"protocol="http/1.1"} 3"#
    );
    assert!(text.contains(overflow));
    let dropped = text
        .lines()
        .find(|line| line.starts_with("naru_metric_series_dropped_total"));
    assert!(dropped.is_some_and(|line| !line.ends_with(" 0")));
}
