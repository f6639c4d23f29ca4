//! The real program on loopback, with clients that speak the contract.

mod support;

use naru_contract::resource::Body;
use naru_contract::{Hello, from_proxy};
use naru_controller::issuer::SpiffeId;
use serde_json::json;
use support::{Controller, Proxy, certify, endpoints, held, hello, pod, resource, service};
use tonic::Code;

const WEB: &str = "10.96.0.10:80";
const DB: &str = "10.96.0.20:80";
const WEB_SERVICE: &str = "service/shop/shop/web/80";
const WEB_ENDPOINTS: &str = "endpoints/shop/web/80";

fn names(push: &naru_contract::Push) -> Vec<&str> {
    push.updates.iter().map(|r| r.name.as_str()).collect()
}

#[tokio::test]
async fn a_proxy_gets_a_certificate_for_the_tokens_identity() {
    let controller = Controller::start();
    let token = controller.token("shop", "web", "web-1");
    let credentials = certify(&controller, &token).await.unwrap();
    let (id, _) = SpiffeId::of(&credentials.chain[0]).unwrap();
    assert_eq!(id.to_string(), "spiffe://cluster.local/ns/shop/sa/web");
    let issued = "naru_controller_certificates_issued_total";
    assert_eq!(controller.metric(issued), 1.0);
}

#[tokio::test]
async fn an_invalid_token_is_refused_with_the_reason() {
    let controller = Controller::start();
    let refused = certify(&controller, &controller.sign(&json!({"sub": "x"}))).await;
    let status = refused.err().unwrap();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(status.message().contains("claim"), "{status}");
    let refused = "naru_controller_certificates_refused_total{reason=\"token_malformed\"}";
    assert_eq!(controller.metric(refused), 1.0);
}

#[tokio::test]
async fn a_stream_requires_a_certificate_and_a_matching_hello() {
    let controller = Controller::start();
    let anonymous = Proxy::open(&controller, None, hello("web-1", &[])).await;
    assert_eq!(anonymous.err().unwrap().code(), Code::Unauthenticated);

    let token = controller.token("shop", "web", "web-1");
    let credentials = certify(&controller, &token).await.unwrap();
    let good = hello("web-1", &[]);
    for (said, code) in [
        (
            Hello {
                namespace: "other".to_owned(),
                ..good.clone()
            },
            Code::PermissionDenied,
        ),
        (
            Hello {
                contract_version: 100,
                ..good.clone()
            },
            Code::FailedPrecondition,
        ),
        (hello("client-1", &[]), Code::PermissionDenied),
        (hello("", &[]), Code::InvalidArgument),
        (hello("web-1", &["web:80"]), Code::InvalidArgument),
    ] {
        let stream = Proxy::open(&controller, Some(&credentials), said.clone()).await;
        assert_eq!(stream.unwrap().end().await.code(), code, "{said:?}");
    }
    let mut stream = Proxy::open(&controller, Some(&credentials), good.clone())
        .await
        .unwrap();
    stream.accepted_push().await;
    stream.send(from_proxy::Message::Hello(good)).await;
    assert_eq!(stream.end().await.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_subscription_brings_all_of_its_resources_and_unsubscribing_removes_them() {
    let controller = Controller::start();
    let mut proxy = Proxy::connect(&controller, hello("client-1", &[])).await;
    let first = proxy.accepted_push().await;
    assert_eq!(names(&first), ["trust-anchors", "inbound"]);
    proxy.subscribe(WEB).await;
    let push = proxy.accepted_push().await;
    let destination = format!("destination/{WEB}");
    assert_eq!(names(&push), [WEB_ENDPOINTS, WEB_SERVICE, &destination]);
    assert_eq!(push.sequence, 2);
    match &resource(&push, WEB_ENDPOINTS).body {
        Some(Body::Endpoints(endpoints)) => assert_eq!(endpoints.endpoints.len(), 8),
        other => panic!("{other:?}"),
    }
    // An address outside the mesh gets a destination without a target.
    proxy.subscribe("192.0.2.1:443").await;
    let push = proxy.accepted_push().await;
    assert_eq!(names(&push), ["destination/192.0.2.1:443"]);
    proxy.unsubscribe(WEB).await;
    let push = proxy.accepted_push().await;
    assert_eq!(names(&push), [""; 0]);
    let mut removed = push.removed.clone();
    removed.sort();
    assert_eq!(removed, [&destination, WEB_ENDPOINTS, WEB_SERVICE]);
    assert_eq!(controller.metric("naru_controller_connected_proxies"), 1.0);
}

#[tokio::test]
async fn changed_endpoints_come_as_a_delta_and_whole_after_a_rejected_delta() {
    let controller = Controller::start();
    let mut proxy = Proxy::connect(&controller, hello("client-1", &[WEB])).await;
    let first = proxy.accepted_push().await;
    controller.write("web-endpoints.json", &endpoints("web", 2..=9));
    let push = proxy.accepted_push().await;
    assert_eq!(names(&push), [WEB_ENDPOINTS]);
    match &resource(&push, WEB_ENDPOINTS).body {
        Some(Body::EndpointsDelta(delta)) => {
            assert_eq!(delta.base_version, resource(&first, WEB_ENDPOINTS).version);
            assert_eq!((delta.upserted.len(), delta.removed.len()), (1, 1));
            assert_eq!(*delta.upserted[0].ip, [10, 244, 0, 9]);
            assert_eq!(*delta.removed[0].ip, [10, 244, 0, 1]);
        }
        other => panic!("{other:?}"),
    }
    controller.write("web-endpoints.json", &endpoints("web", 3..=9));
    let delta = proxy.push().await;
    proxy.answer(delta.sequence, &[WEB_ENDPOINTS]).await;
    let whole = proxy.accepted_push().await;
    assert_eq!(
        resource(&whole, WEB_ENDPOINTS).version,
        resource(&delta, WEB_ENDPOINTS).version
    );
    match &resource(&whole, WEB_ENDPOINTS).body {
        Some(Body::Endpoints(endpoints)) => assert_eq!(endpoints.endpoints.len(), 7),
        other => panic!("{other:?}"),
    }
    proxy.expect_quiet().await;
    let latencies = controller.metric("naru_controller_push_latency_seconds_count");
    assert_eq!(latencies, 2.0);
    let deltas = "naru_controller_pushed_resources_total{form=\"delta\",kind=\"endpoints\"}";
    assert_eq!(controller.metric(deltas), 2.0);
}

#[tokio::test]
async fn a_rejected_resource_is_not_sent_again_until_it_changes() {
    let controller = Controller::start();
    let mut proxy = Proxy::connect(&controller, hello("client-1", &[DB])).await;
    let push = proxy.push().await;
    let db = "service/shop/shop/db/80";
    proxy.answer(push.sequence, &[db]).await;
    proxy.expect_quiet().await;
    assert_eq!(controller.metric("naru_controller_rejects_total"), 1.0);
    controller.write("db.json", &service("db", "10.96.0.20", "http"));
    let push = proxy.push().await;
    assert!(names(&push).contains(&db), "{push:?}");
}

#[tokio::test]
async fn after_a_restart_only_what_changed_is_sent() {
    let mut controller = Controller::start();
    let mut proxy = Proxy::connect(&controller, hello("client-1", &[WEB, DB])).await;
    let mut again = hello("client-1", &[WEB, DB]);
    again.held = held(&proxy.accepted_push().await);
    controller.kill();
    controller.start_again();
    let mut proxy = Proxy::connect(&controller, again.clone()).await;
    proxy.expect_quiet().await;
    assert_eq!(controller.metric("naru_controller_pushes_total"), 0.0);
    drop(proxy);

    controller.kill();
    controller.write("web-endpoints.json", &endpoints("web", 1..=9));
    controller.start_again();
    let mut proxy = Proxy::connect(&controller, again).await;
    let push = proxy.accepted_push().await;
    assert_eq!(names(&push), [WEB_ENDPOINTS]);
    // From content that this stream has sent, deltas work again.
    controller.write("web-endpoints.json", &endpoints("web", 1..=10));
    let push = proxy.accepted_push().await;
    let body = &resource(&push, WEB_ENDPOINTS).body;
    assert!(matches!(body, Some(Body::EndpointsDelta(_))), "{body:?}");
}

#[tokio::test]
async fn a_proxy_is_woken_only_when_one_of_its_resources_changed() {
    let controller = Controller::start();
    let mut one = Proxy::connect(&controller, hello("client-1", &[WEB])).await;
    let mut other = Proxy::connect(&controller, hello("client-2", &[DB])).await;
    one.accepted_push().await;
    other.accepted_push().await;
    controller.write("web-endpoints.json", &endpoints("web", 1..=9));
    assert_eq!(names(&one.accepted_push().await), [WEB_ENDPOINTS]);
    other.expect_quiet().await;
    assert_eq!(controller.metric("naru_controller_pushes_total"), 3.0);
}

#[tokio::test]
async fn changes_during_a_pending_push_are_coalesced() {
    let controller = Controller::start();
    let mut proxy = Proxy::connect(&controller, hello("client-1", &[WEB])).await;
    let first = proxy.push().await;
    for last in 9..=12 {
        controller.write("web-endpoints.json", &endpoints("web", 1..=last));
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    proxy.expect_quiet().await;
    proxy.accept(&first).await;
    let push = proxy.accepted_push().await;
    match &resource(&push, WEB_ENDPOINTS).body {
        Some(Body::EndpointsDelta(delta)) => assert_eq!(delta.upserted.len(), 4),
        other => panic!("{other:?}"),
    }
    proxy.expect_quiet().await;
}

#[tokio::test]
async fn a_pod_gets_its_inbound_once_it_is_known_and_only_with_its_own_account() {
    let controller = Controller::start();
    let mut proxy = Proxy::connect(&controller, hello("late-1", &[])).await;
    let mut rogue = Proxy::connect(&controller, hello("rogue-1", &[])).await;
    assert_eq!(names(&proxy.accepted_push().await), ["trust-anchors"]);
    rogue.accepted_push().await;
    controller.write("pod-late-1.json", &pod("late-1", "late"));
    assert_eq!(names(&proxy.accepted_push().await), ["inbound"]);
    controller.write("pod-rogue-1.json", &pod("rogue-1", "another"));
    assert_eq!(rogue.end().await.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn an_idle_stream_has_heartbeats_and_ends_with_a_status_on_shutdown() {
    let mut controller = Controller::start();
    let mut proxy = Proxy::connect(&controller, hello("client-1", &[])).await;
    proxy.accepted_push().await;
    for _ in 0..2 {
        proxy.expect_heartbeat().await;
    }
    controller.terminate();
    assert_eq!(proxy.end().await.code(), Code::Unavailable);
    assert!(controller.exit_status().success());
}

#[tokio::test]
async fn an_unexpected_answer_ends_only_its_stream() {
    let controller = Controller::start();
    let mut one = Proxy::connect(&controller, hello("client-1", &[])).await;
    let mut other = Proxy::connect(&controller, hello("client-2", &[])).await;
    one.accepted_push().await;
    other.accepted_push().await;
    one.answer(7, &[]).await;
    assert_eq!(one.end().await.code(), Code::InvalidArgument);
    other.subscribe(WEB).await;
    other.accepted_push().await;
}

#[tokio::test]
async fn a_client_that_calls_a_pod_by_its_address_gets_it_once_the_pod_is_known() {
    let controller = Controller::start();
    let here = ["10.244.9.9:7000", "10.244.9.9:7001"];
    let mut proxy = Proxy::connect(&controller, hello("client-1", &here)).await;
    proxy.accepted_push().await;
    proxy.unsubscribe(here[0]).await;
    proxy.accepted_push().await;
    // A port without a Service: the destination comes from the pod's own address.
    let mut late = pod("late-1", "late");
    late["status"]["podIP"] = json!("10.244.9.9");
    late["status"]["podIPs"] = json!([{ "ip": "10.244.9.9" }]);
    controller.write("pod-late-1.json", &late);
    let push = proxy.accepted_push().await;
    assert_eq!(names(&push), [format!("destination/{}", here[1])]);
}
