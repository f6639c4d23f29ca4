//! Findings about running sidecars, and about routes, labels and annotations.

use serde_json::json;

use super::fixture::*;
use crate::check::finding::Level;

#[tokio::test]
async fn sidecars_without_a_controller_are_found_and_so_are_leftovers_of_their_trust() {
    let api = installed();
    api.delete(DEPLOYMENTS, "naru-system", "naru-controller");
    api.delete(WEBHOOKS, "", "naru-injector");
    let orphans = wrong(&api).await;
    assert_eq!(at(&orphans), ("leftovers", Level::Failure));
    assert!(orphans.text.contains("shop/web-1"), "{}", orphans.text);
    let fix = orphans.fix.unwrap_or_default();
    assert!(fix.contains("install Naru again"), "{fix}");
    api.delete(SECRETS, "naru-system", "naru-ca");
    let fix = wrong(&api).await.fix.unwrap_or_default();
    assert!(fix.contains("from a backup"), "{fix}");
}

#[tokio::test]
async fn a_sidecar_without_a_stream_is_a_failure_even_if_all_else_is_well() {
    let api = installed();
    set_sidecar_metrics(&api, 0, "a1");
    let wrong = wrong(&api).await;
    assert_eq!(at(&wrong), ("connected", Level::Failure));
    assert!(wrong.text.contains("shop/web-1"), "{}", wrong.text);
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_reported_except_during_a_rotation() {
    let api = installed();
    set_sidecar_metrics(&api, 1, "b2");
    assert_eq!(at(&wrong(&api).await), ("connected", Level::Warning));
    for name in ["naru-controller-1", "naru-controller-2"] {
        set_controller_status(&api, name, "a1", "retiring", 1);
    }
    assert!(above(&report(&api).await, Level::Info).is_empty());
}

#[tokio::test]
async fn pods_whose_kernel_hides_client_addresses_are_named() {
    let api = installed();
    let says = |shown: &str| {
        let text = format!(
            "naru_controller_connected 1\nnaru_certificate_info{{issuer=\"a1\"}} 1\n\
             naru_app_client_addresses{{family=\"ipv4\",client_address=\"{shown}\"}} 1\n\
             naru_app_client_addresses{{family=\"ipv6\",client_address=\"{shown}\"}} 1\n"
        );
        let path = "/api/v1/namespaces/shop/pods/web-1:15020/proxy/metrics";
        api.document(path, text.into());
    };
    says("own");
    let wrong = wrong(&api).await;
    assert_eq!(at(&wrong), ("connected", Level::Warning));
    assert!(wrong.text.contains("shop/web-1"), "{}", wrong.text);
    says("hidden");
    let hidden = report(&api).await;
    assert!(above(&hidden, Level::Info).is_empty());
    let told = above(&hidden, Level::Ok);
    let told = told.iter().find(|found| found.text.contains("a stand-in"));
    assert!(told.is_some_and(|found| found.text.contains("shop/web-1")));
    says("client");
    let client = report(&api).await;
    let told = above(&client, Level::Ok);
    assert!(
        told.iter().all(|found| !found.text.contains("client")),
        "{told:#?}"
    );
}

#[tokio::test]
async fn controllers_that_use_different_authorities_are_a_failure() {
    let api = installed();
    set_controller_status(&api, "naru-controller-2", "b2", "steady", 1);
    assert_eq!(at(&wrong(&api).await), ("connected", Level::Failure));
    set_controller_status(&api, "naru-controller-2", "a1", "missing", 1);
    let missing = wrong(&api).await;
    assert!(missing.text.contains("is missing"), "{}", missing.text);
}

#[tokio::test]
async fn unknown_labels_and_annotations_are_listed_with_their_objects() {
    let api = installed();
    let labels = json!({ "naru.dev/inject": "enabled", "naru.dev/mtls": "strict" });
    api.apply(
        NAMESPACES,
        json!({ "metadata": { "name": "shop", "labels": labels } }),
    );
    let wrong = wrong(&api).await;
    assert_eq!(at(&wrong), ("understood", Level::Warning));
    for said in ["Namespace shop", "naru.dev/mtls", "an annotation"] {
        assert!(wrong.text.contains(said), "{said} in {}", wrong.text);
    }
}

#[tokio::test]
async fn objects_that_the_controllers_cannot_use_are_counted() {
    let api = installed();
    let path = "/api/v1/namespaces/naru-system/pods/naru-controller-1:15014/proxy/metrics";
    let text = "naru_controller_connected_proxies 1\n\
        naru_controller_authority_info{issuer=\"a1\"} 1\n\
        naru_controller_authority_state{state=\"steady\"} 1\n\
        naru_controller_invalid_objects{kind=\"HTTPRoute\"} 2\n";
    api.document(path, text.into());
    let wrong = wrong(&api).await;
    assert_eq!(at(&wrong), ("usable", Level::Warning));
    assert!(wrong.text.contains("2 HTTPRoute"), "{}", wrong.text);
}
