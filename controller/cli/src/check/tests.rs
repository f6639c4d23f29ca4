//! The whole of a check, against an API server in memory: what a good cluster gets, and what each
//! thing that is wrong gets.

use std::collections::BTreeSet;

use rcgen::{CertificateParams, KeyPair, SanType};
use serde_json::{Value, json};

use super::finding::{Finding, Level};
use super::report::Report;
use super::rights::{RIGHTS, Where};
use super::{Stage, check};
use crate::fake_api::FakeApi;
use crate::report::Output;

const PODS: &str = "/api/v1/pods";
pub(super) const SECRETS: &str = "/api/v1/secrets";
const CONFIG_MAPS: &str = "/api/v1/configmaps";
pub(super) const NAMESPACES: &str = "/api/v1/namespaces";
pub(super) const DEPLOYMENTS: &str = "/apis/apps/v1/deployments";
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
pub(super) const WEBHOOKS: &str =
    "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const ROUTES: &str = "/apis/gateway.networking.k8s.io/v1/httproutes";
const MY_RIGHTS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
const RIGHTS_OF: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
const NEW_POD: &str = "/api/v1/namespaces/shop/pods";

/// A cluster that is as it should be, with nothing of Naru.
fn empty() -> FakeApi {
    let api = FakeApi::new(&[
        PODS,
        SECRETS,
        CONFIG_MAPS,
        NAMESPACES,
        DEPLOYMENTS,
        SLICES,
        WEBHOOKS,
        CRDS,
        ROUTES,
        "/api/v1/nodes",
        "/apis/rbac.authorization.k8s.io/v1/clusterroles",
        "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    ]);
    api.document("/version", version("1", "37"));
    api.document(
        "/apis/admissionregistration.k8s.io/v1",
        json!({ "groupVersion": "admissionregistration.k8s.io/v1", "resources": [{
            "name": "mutatingwebhookconfigurations", "singularName": "", "namespaced": false,
            "kind": "MutatingWebhookConfiguration", "verbs": ["get"],
        }] }),
    );
    for name in ["httproutes", "grpcroutes", "tlsroutes", "tcproutes"] {
        api.apply(CRDS, definition(name, "v1.7.0"));
    }
    api.apply("/api/v1/nodes", node("n1", "v1.37.2"));
    for reviews in [MY_RIGHTS, RIGHTS_OF] {
        api.answer(reviews, 201, allowed(true));
    }
    api
}

fn version(major: &str, minor: &str) -> Value {
    json!({
        "major": major, "minor": minor, "gitVersion": format!("v{major}.{minor}.0"),
        "gitCommit": "", "gitTreeState": "",
        "buildDate": "", "goVersion": "", "compiler": "", "platform": "",
    })
}

fn definition(plural: &str, bundle: &str) -> Value {
    json!({
        "metadata": { "name": format!("{plural}.gateway.networking.k8s.io"), "annotations": {
            "gateway.networking.k8s.io/bundle-version": bundle,
            "gateway.networking.k8s.io/channel": "standard",
        } },
        "spec": {
            "group": "gateway.networking.k8s.io", "scope": "Namespaced",
            "names": { "kind": "X", "plural": plural },
            "versions": [{ "name": "v1", "served": true, "storage": true }],
        },
    })
}

fn node(name: &str, kubelet: &str) -> Value {
    json!({ "metadata": { "name": name }, "status": { "nodeInfo": {
        "architecture": "amd64", "bootID": "", "containerRuntimeVersion": "", "kernelVersion": "",
        "kubeProxyVersion": "",
        "kubeletVersion": kubelet, "machineID": "", "operatingSystem": "linux", "osImage": "",
        "systemUUID": "",
    } } })
}

fn allowed(allowed: bool) -> Value {
    json!({ "spec": {}, "status": { "allowed": allowed } })
}

/// The same with Naru, one labelled namespace, and a pod in it with its sidecar.
pub(super) fn installed() -> FakeApi {
    let api = empty();
    let mut params = CertificateParams::default();
    let name = "spiffe://cluster.local".try_into().expect("a URI");
    params.subject_alt_names = vec![SanType::URI(name)];
    let key = KeyPair::generate().expect("a key");
    let pem = params.self_signed(&key).expect("a certificate").pem();
    let base64 = |text: &str| json!(k8s_openapi::ByteString(text.as_bytes().to_vec()));
    api.apply(
        SECRETS,
        json!({
            "metadata": { "name": "naru-ca", "namespace": "naru-system" },
            "data": { "tls.crt": base64(&pem), "tls.key": base64(&key.serialize_pem()) },
        }),
    );
    api.apply(DEPLOYMENTS, deployment());
    let webhook = |name: &str| {
        json!({
            "name": name, "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "clientConfig": { "caBundle": base64(&pem) },
        })
    };
    api.apply(
        WEBHOOKS,
        json!({
            "metadata": { "name": "naru-injector" },
            "webhooks": [webhook("namespace.inject.naru.dev"), webhook("pod.inject.naru.dev")],
        }),
    );
    api.apply(SLICES, slice(true));
    api.apply(
        NAMESPACES,
        json!({ "metadata": { "name": "shop", "labels": { "naru.dev/inject": "enabled" } } }),
    );
    api.apply(
        CONFIG_MAPS,
        json!({
            "metadata": { "name": "naru-trust-anchors", "namespace": "shop" },
            "data": { "trust-anchors.pem": pem },
        }),
    );
    let sidecar = json!([{ "name": "naru-proxy", "image": "naru/proxy:1" }]);
    api.apply(
        PODS,
        json!({
            "metadata": { "name": "web-1", "namespace": "shop",
                "labels": { "naru.dev/injected": "true" } },
            "spec": { "initContainers": sidecar, "containers": [{ "name": "web" }] },
            "status": { "phase": "Running", "initContainerStatuses": [
                { "name": "naru-proxy", "ready": true, "restartCount": 0, "image": "",
                    "imageID": "" },
            ] },
        }),
    );
    api.answer(
        NEW_POD,
        201,
        json!({
            "metadata": { "name": "naru-check" },
            "spec": { "initContainers": sidecar, "containers": [] },
        }),
    );
    api.apply(ROUTES, route("True"));
    for name in ["naru-controller-1", "naru-controller-2"] {
        api.apply(
            PODS,
            json!({
                "metadata": { "name": name, "namespace": "naru-system" },
                "status": { "conditions": [{ "type": "Ready", "status": "True" }] },
            }),
        );
        controller_says(&api, name, "a1", "steady", 1);
    }
    sidecar_says(&api, 1, "a1");
    api
}

pub(super) fn controller_says(api: &FakeApi, pod: &str, issuer: &str, state: &str, streams: u32) {
    let other = if state == "steady" {
        "missing"
    } else {
        "steady"
    };
    let text = format!(
        "naru_controller_connected_proxies {streams}\n\
         naru_controller_authority_info{{issuer=\"{issuer}\"}} 1\n\
         naru_controller_authority_state{{state=\"{other}\"}} 0\n\
         naru_controller_authority_state{{state=\"{state}\"}} 1\n\
         naru_controller_invalid_objects{{kind=\"HTTPRoute\"}} 0\n"
    );
    let path = format!("/api/v1/namespaces/naru-system/pods/{pod}:15014/proxy/metrics");
    api.document(&path, text.into());
}

pub(super) fn sidecar_says(api: &FakeApi, connected: u32, issuer: &str) {
    let text = format!(
        "naru_controller_connected {connected}\nnaru_certificate_info{{issuer=\"{issuer}\"}} 1\n"
    );
    let path = "/api/v1/namespaces/shop/pods/web-1:15020/proxy/metrics";
    api.document(path, text.into());
}

fn deployment() -> Value {
    json!({
        "metadata": {
            "name": "naru-controller", "namespace": "naru-system",
            "labels": { "app.kubernetes.io/version": env!("CARGO_PKG_VERSION") },
        },
        "spec": {
            "replicas": 2, "selector": {},
            "template": { "spec": { "containers": [{ "name": "naru-controller", "args": [
                "run", "--ca-secret=naru-ca", "--trust-domain=cluster.local",
                "--webhook-configuration=naru-injector",
                "--proxy-image=naru/proxy:1",
            ] }] } },
        },
        "status": { "readyReplicas": 2, "updatedReplicas": 2 },
    })
}

fn slice(ready: bool) -> Value {
    json!({
        "metadata": { "name": "naru-controller-x", "namespace": "naru-system" },
        "addressType": "IPv4",
        "endpoints": [{ "addresses": ["10.0.0.1"], "conditions": { "ready": ready } }],
    })
}

fn route(accepted: &str) -> Value {
    json!({
        "metadata": { "name": "web", "namespace": "shop", "generation": 2 },
        "spec": { "parentRefs": [{ "group": "", "kind": "Service", "name": "web" }] },
        "status": { "parents": [{
            "controllerName": "naru.dev/controller",
            "parentRef": { "kind": "Service", "name": "web" },
            "conditions": [{
                "type": "Accepted", "status": accepted, "reason": "UnsupportedValue",
                "message": "no such filter",
                "observedGeneration": 2,
            }],
        }] },
    })
}

pub(super) async fn report(api: &FakeApi) -> Report {
    check(&api.client(), "https://api", "naru-system", false).await
}

/// What is above `level`, by check.
pub(super) fn above(report: &Report, level: Level) -> Vec<&Finding> {
    let findings = report.groups.iter().flat_map(|group| &group.findings);
    findings.filter(|finding| finding.level > level).collect()
}

/// The one thing that is wrong.
pub(super) async fn wrong(api: &FakeApi) -> Finding {
    let report = report(api).await;
    let wrong = above(&report, Level::Info);
    assert_eq!(wrong.len(), 1, "{wrong:#?}");
    assert!(wrong[0].fix.is_some(), "{wrong:#?}");
    assert_eq!(report.ok, wrong[0].level < Level::Failure);
    wrong[0].clone()
}

pub(super) fn at(finding: &Finding) -> (&'static str, Level) {
    (finding.check, finding.level)
}

#[tokio::test]
async fn a_cluster_without_naru_is_checked_for_what_an_installation_needs() {
    let api = empty();
    let report = report(&api).await;
    assert_eq!(report.stage, Stage::Before);
    assert!(
        above(&report, Level::Info).is_empty(),
        "{:#?}",
        above(&report, Level::Info)
    );
    let mut text = Vec::new();
    report.write(Output::Text, &mut text).expect("memory");
    let text = String::from_utf8(text).expect("text");
    assert!(text.contains("Naru can be installed"), "{text}");
}

#[tokio::test]
async fn a_good_installation_has_no_warning_and_is_not_written_to() {
    let api = installed();
    let report = report(&api).await;
    assert_eq!(report.stage, Stage::After);
    assert!(
        above(&report, Level::Info).is_empty(),
        "{:#?}",
        above(&report, Level::Info)
    );
    for (method, target, _) in api.take_written() {
        let is_review = target.starts_with(RIGHTS_OF);
        assert!(
            is_review || target.contains("dryRun=All"),
            "{method} {target}"
        );
    }
    let mut json = Vec::new();
    report.write(Output::Json, &mut json).expect("memory");
    let json: Value = serde_json::from_slice(&json).expect("JSON");
    assert_eq!(json["ok"], true);
    assert_eq!(json["stage"], "after");
    assert!(
        json["groups"]
            .as_array()
            .is_some_and(|groups| groups.len() == 7)
    );
}

#[tokio::test]
async fn an_api_server_that_is_away_is_one_line() {
    let api = installed();
    api.down(true);
    let wrong = wrong(&api).await;
    assert_eq!(at(&wrong), ("api-server", Level::Failure));
    assert!(wrong.text.contains("https://api"), "{}", wrong.text);
}

#[tokio::test]
async fn a_user_without_rights_in_the_controllers_namespace_is_told_so() {
    let api = installed();
    let forbidden = crate::fake_api::status(403, "deployments.apps is forbidden: User eve");
    api.document(
        "/apis/apps/v1/namespaces/naru-system/deployments/naru-controller",
        forbidden,
    );
    let found = wrong(&api).await;
    assert_eq!(at(&found), ("ready", Level::Failure));
    assert!(found.text.contains("User eve"), "{}", found.text);
    let fix = found.fix.unwrap_or_default();
    assert!(
        fix.contains("naru-system") && fix.contains("somebody who may"),
        "{fix}"
    );
    // What has to do with other namespaces is checked.
    api.apply(ROUTES, route("False"));
    let report = report(&api).await;
    assert_eq!(report.stage, Stage::After);
    let checks: Vec<_> = above(&report, Level::Info)
        .iter()
        .map(|f| f.check)
        .collect();
    assert_eq!(checks, ["ready", "accepted"]);
    let mut text = Vec::new();
    report.write(Output::Text, &mut text).expect("memory");
    let text = String::from_utf8(text).expect("text");
    assert!(text.contains("; 1 checks could not be made"), "{text}");
    assert!(!text.contains("; Naru works"), "{text}");
}

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
async fn route_kinds_that_are_missing_or_unknown_are_told() {
    let api = empty();
    api.apply(CRDS, definition("grpcroutes", "v2.0.0"));
    assert_eq!(at(&wrong(&api).await), ("gateway-api", Level::Warning));
    api.delete(CRDS, "", "grpcroutes.gateway.networking.k8s.io");
    let wrong = wrong(&api).await;
    assert!(wrong.text.contains("not installed"), "{}", wrong.text);
}

#[tokio::test]
async fn rights_that_are_missing_to_install_are_named() {
    let api = empty();
    api.answer(MY_RIGHTS, 201, allowed(false));
    let wrong = wrong(&api).await;
    assert_eq!(at(&wrong), ("rights", Level::Failure));
    assert!(wrong.text.contains("create namespaces"), "{}", wrong.text);
}

#[tokio::test]
async fn what_is_left_of_an_installation_is_a_failure() {
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
async fn a_namespace_whose_pod_security_refuses_sidecars_is_told_before() {
    let api = empty();
    let labels =
        json!({ "naru.dev/inject": "enabled", "pod-security.kubernetes.io/enforce": "restricted" });
    api.apply(
        NAMESPACES,
        json!({ "metadata": { "name": "shop", "labels": labels } }),
    );
    assert_eq!(at(&wrong(&api).await), ("pod-security", Level::Warning));
}

#[tokio::test]
async fn a_controller_that_is_not_ready_says_why() {
    let ended = json!({
        "terminated": { "exitCode": 1, "message": "first\nnaru-controller: --ca-secret: no" },
    });
    let waits = json!({ "waiting": { "reason": "CrashLoopBackOff", "message": "back-off" } });
    let runs = json!({ "running": { "startedAt": "2026-01-01T00:00:00Z" } });
    // It waits to be started again, has just been started again, and has just ended again.
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
async fn rights_that_the_controller_lacks_are_named() {
    let api = installed();
    api.answer(RIGHTS_OF, 201, allowed(false));
    let wrong = wrong(&api).await;
    assert_eq!(at(&wrong), ("rights", Level::Failure));
}

#[tokio::test]
async fn who_may_not_read_something_is_told_so_and_the_rest_is_checked() {
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
async fn an_authority_that_is_gone_is_a_failure() {
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
    // A pod that is about to end needs none: with its namespace they are gone before it.
    let mut pod = api.get(PODS, "shop", "web-1").expect("a pod");
    pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    api.apply(PODS, pod);
    assert!(above(&report(&api).await, Level::Warning).is_empty());
}

#[tokio::test]
async fn routes_that_are_not_accepted_are_told_with_the_reason() {
    let api = installed();
    api.apply(ROUTES, route("False"));
    let wrong = wrong(&api).await;
    assert_eq!(at(&wrong), ("accepted", Level::Warning));
    assert!(wrong.text.contains("no such filter"), "{}", wrong.text);
}

#[tokio::test]
async fn a_route_whose_change_has_no_status_yet_is_told() {
    let api = installed();
    let mut route = route("True");
    route["metadata"]["generation"] = 3.into();
    api.apply(ROUTES, route);
    assert_eq!(at(&wrong(&api).await), ("accepted", Level::Warning));
}

/// One verb on one kind of object.
type Verb = (Where, String, String, String, String);

#[test]
fn the_controllers_rights_are_those_of_the_chart() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../charts/naru/templates/rbac.yaml"
    );
    let template = std::fs::read_to_string(path).expect(path);
    // Without what only Helm understands: conditions, labels, and values of which one is a name.
    let lines = template
        .lines()
        .filter(|line| !line.trim_start().starts_with("{{-"));
    let text: String = lines
        .map(|line| match line.split_once("{{") {
            Some((before, after)) => {
                let after = after.rsplit_once("}}").map_or("", |(_, after)| after);
                format!("{before}value{after}\n")
            }
            None => format!("{line}\n"),
        })
        .collect();
    let mut given = BTreeSet::new();
    for document in text.split("\n---\n") {
        let object: Value = serde_saphyr::from_str(document).expect("YAML");
        let place = match object["kind"].as_str() {
            Some("ClusterRole") => Where::Everywhere,
            Some("Role") => Where::OwnNamespace,
            _ => continue,
        };
        let list = |value: &Value| -> Vec<String> {
            let items = value.as_array().into_iter().flatten();
            items
                .filter_map(|item| item.as_str().map(str::to_owned))
                .collect()
        };
        for rule in object["rules"].as_array().into_iter().flatten() {
            let mut names = list(&rule["resourceNames"]);
            if names.is_empty() {
                names.push(String::new());
            }
            for group in list(&rule["apiGroups"]) {
                for resource in list(&rule["resources"]) {
                    for name in &names {
                        for verb in list(&rule["verbs"]) {
                            given.insert((
                                place,
                                group.clone(),
                                resource.clone(),
                                name.clone(),
                                verb,
                            ));
                        }
                    }
                }
            }
        }
    }
    // The authority's Secret is named by a value, and made only if the values say so.
    given.retain(|(_, _, resource, ..)| resource != "secrets");
    let known: BTreeSet<Verb> = RIGHTS
        .iter()
        .flat_map(|(place, group, resource, name, verbs)| {
            let text = |text: &str| text.to_owned();
            verbs
                .iter()
                .map(move |verb| (*place, text(group), text(resource), text(name), text(verb)))
        })
        .collect();
    assert_eq!(given, known);
}
