//! Problems of an installation.

use serde_json::json;

use super::fixture::*;
use crate::check::finding::Level;

#[tokio::test]
async fn a_controller_that_is_not_ready_is_reported_with_the_reason() {
    let ended = json!({
        "terminated": { "exitCode": 1, "message": "first\nnaru-controller: --ca-secret: no" },
    });
    let waits = json!({ "waiting": { "reason": "CrashLoopBackOff", "message": "back-off" } });
    let runs = json!({ "running": { "startedAt": "2026-01-01T00:00:00Z" } });
    // Waiting for a restart, just restarted, and just terminated again.
    for state in [waits, runs, ended.clone()] {
        let api = installed();
        let mut deployment = deployment();
        deployment["status"] = json!({});
        api.apply(DEPLOYMENTS, deployment);
        api.apply(
            PODS,
            json!({
                "metadata": { "name": "naru-controller-x", "namespace": "naru-system" },
                "status": { "containerStatuses": [{
                    "name": "naru-controller", "ready": false, "restartCount": 3, "image": "",
                    "imageID": "",
                    "state": state.clone(),
                    "lastState": ended,
                }] },
            }),
        );
        let wrong = wrong(&api).await;
        assert_eq!(at(&wrong), ("ready", Level::Failure));
        assert!(
            wrong.text.contains("naru-controller: --ca-secret: no"),
            "{state}: {}",
            wrong.text
        );
    }
}

#[tokio::test]
async fn another_version_of_the_controller_is_a_warning() {
    let api = installed();
    let mut deployment = deployment();
    deployment["metadata"]["labels"]["app.kubernetes.io/version"] = "9.9.9".into();
    api.apply(DEPLOYMENTS, deployment);
    assert_eq!(at(&wrong(&api).await), ("version", Level::Warning));
}

#[tokio::test]
async fn permissions_that_the_controller_lacks_are_named() {
    let api = installed();
    api.answer(RIGHTS_OF, 201, allowed(false));
    let wrong = wrong(&api).await;
    assert_eq!(at(&wrong), ("rights", Level::Failure));
}

#[tokio::test]
async fn an_unreadable_object_is_reported_and_the_rest_is_checked() {
    let api = installed();
    api.answer(
        RIGHTS_OF,
        403,
        json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403,
            "reason": "Forbidden", "message": "jane may not",
        }),
    );
    let wrong = wrong(&api).await;
    assert_eq!(at(&wrong), ("rights", Level::Warning));
    assert!(wrong.text.contains("jane may not"), "{}", wrong.text);
}

#[tokio::test]
async fn a_ca_bundle_of_another_authority_is_a_failure() {
    let api = installed();
    let other = installed().get(WEBHOOKS, "", "naru-injector");
    api.apply(WEBHOOKS, other.expect("a webhook"));
    assert_eq!(at(&wrong(&api).await), ("configuration", Level::Failure));
}

#[tokio::test]
async fn a_service_without_endpoints_is_a_failure() {
    let api = installed();
    api.apply(SLICES, slice(false));
    assert_eq!(at(&wrong(&api).await), ("endpoints", Level::Failure));
}

#[tokio::test]
async fn a_new_pod_that_gets_no_sidecar_is_a_failure() {
    let api = installed();
    api.answer(
        NEW_POD,
        201,
        json!({ "metadata": {}, "spec": { "containers": [] } }),
    );
    assert_eq!(at(&wrong(&api).await), ("dry-run", Level::Failure));
}

#[tokio::test]
async fn a_missing_authority_is_a_failure() {
    let api = installed();
    api.delete(SECRETS, "naru-system", "naru-ca");
    assert_eq!(at(&wrong(&api).await), ("authority", Level::Failure));
}

#[tokio::test]
async fn anchors_that_are_missing_or_old_are_failures() {
    let api = installed();
    let other = installed().get(CONFIG_MAPS, "shop", "naru-trust-anchors");
    api.apply(CONFIG_MAPS, other.expect("a ConfigMap"));
    assert_eq!(at(&wrong(&api).await), ("anchors", Level::Failure));
    api.delete(CONFIG_MAPS, "shop", "naru-trust-anchors");
    let wrong = wrong(&api).await;
    assert!(wrong.text.contains("missing"), "{}", wrong.text);
    // A terminating pod does not need the anchors: in a namespace that is being deleted they are
    // gone before it.
    let mut pod = api.get(PODS, "shop", "web-1").expect("a pod");
    pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    api.apply(PODS, pod);
    assert!(above(&report(&api).await, Level::Warning).is_empty());
}

#[tokio::test]
async fn routes_that_are_not_accepted_are_reported_with_the_reason() {
    let api = installed();
    api.apply(ROUTES, route("False"));
    let wrong = wrong(&api).await;
    assert_eq!(at(&wrong), ("accepted", Level::Warning));
    assert!(wrong.text.contains("no such filter"), "{}", wrong.text);
}

#[tokio::test]
async fn a_route_whose_change_has_no_status_yet_is_reported() {
    let api = installed();
    let mut route = route("True");
    route["metadata"]["generation"] = 3.into();
    api.apply(ROUTES, route);
    assert_eq!(at(&wrong(&api).await), ("accepted", Level::Warning));
}
