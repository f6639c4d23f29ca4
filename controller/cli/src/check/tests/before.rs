//! Problems that prevent an installation.

use serde_json::json;

use super::fixture::*;
use crate::check::finding::Level;

#[tokio::test]
async fn a_version_that_is_not_tested_is_a_warning_and_an_ancient_one_a_failure() {
    let api = empty();
    api.document("/version", version("1", "40"));
    assert_eq!(at(&wrong(&api).await), ("version", Level::Warning));
    api.document("/version", version("1", "27+"));
    assert_eq!(at(&wrong(&api).await), ("version", Level::Failure));
}

#[tokio::test]
async fn nodes_without_native_sidecars_are_named() {
    let api = empty();
    api.apply("/api/v1/nodes", node("old", "v1.28.3"));
    let wrong = wrong(&api).await;
    assert_eq!(at(&wrong), ("nodes", Level::Warning));
    assert!(wrong.text.contains("old (v1.28.3)"), "{}", wrong.text);
}

#[tokio::test]
async fn route_kinds_that_are_missing_or_unknown_are_reported() {
    let api = empty();
    api.apply(CRDS, definition("grpcroutes", "v2.0.0"));
    assert_eq!(at(&wrong(&api).await), ("gateway-api", Level::Warning));
    api.delete(CRDS, "", "grpcroutes.gateway.networking.k8s.io");
    let wrong = wrong(&api).await;
    assert!(wrong.text.contains("not installed"), "{}", wrong.text);
}

#[tokio::test]
async fn permissions_that_are_missing_to_install_are_named() {
    let api = empty();
    api.answer(MY_RIGHTS, 201, allowed(false));
    let wrong = wrong(&api).await;
    assert_eq!(at(&wrong), ("rights", Level::Failure));
    assert!(wrong.text.contains("create namespaces"), "{}", wrong.text);
}

#[tokio::test]
async fn leftovers_of_an_installation_are_a_failure() {
    let api = installed();
    api.delete(DEPLOYMENTS, "naru-system", "naru-controller");
    api.delete(PODS, "shop", "web-1");
    let wrong = wrong(&api).await;
    assert_eq!(at(&wrong), ("leftovers", Level::Failure));
}

#[tokio::test]
async fn a_namespace_in_two_meshes_is_a_failure() {
    let api = empty();
    let labels = json!({ "naru.dev/inject": "enabled", "istio-injection": "enabled" });
    api.apply(
        NAMESPACES,
        json!({ "metadata": { "name": "shop", "labels": labels } }),
    );
    let wrong = wrong(&api).await;
    assert_eq!(at(&wrong), ("other-meshes", Level::Failure));
    assert!(wrong.text.contains("Istio"), "{}", wrong.text);
}

#[tokio::test]
async fn a_namespace_whose_pod_security_refuses_sidecars_is_reported() {
    let api = empty();
    let labels =
        json!({ "naru.dev/inject": "enabled", "pod-security.kubernetes.io/enforce": "restricted" });
    api.apply(
        NAMESPACES,
        json!({ "metadata": { "name": "shop", "labels": labels } }),
    );
    assert_eq!(at(&wrong(&api).await), ("pod-security", Level::Warning));
}
