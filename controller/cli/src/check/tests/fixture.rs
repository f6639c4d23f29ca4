//! A cluster in memory: without Naru, and with a healthy installation.

use rcgen::{CertificateParams, KeyPair, SanType};
use serde_json::{Value, json};

use crate::check::check;
use crate::check::finding::{Finding, Level};
use crate::check::report::Report;
use crate::fake_api::FakeApi;

pub const PODS: &str = "/api/v1/pods";
pub const SECRETS: &str = "/api/v1/secrets";
pub const CONFIG_MAPS: &str = "/api/v1/configmaps";
pub const NAMESPACES: &str = "/api/v1/namespaces";
pub const DEPLOYMENTS: &str = "/apis/apps/v1/deployments";
pub const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
pub const WEBHOOKS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
pub const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
pub const ROUTES: &str = "/apis/gateway.networking.k8s.io/v1/httproutes";
pub const MY_RIGHTS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
pub const RIGHTS_OF: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
pub const NEW_POD: &str = "/api/v1/namespaces/shop/pods";

/// A healthy cluster without Naru.
pub fn empty() -> FakeApi {
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

pub fn version(major: &str, minor: &str) -> Value {
    json!({
        "major": major, "minor": minor, "gitVersion": format!("v{major}.{minor}.0"),
        "gitCommit": "", "gitTreeState": "",
        "buildDate": "", "goVersion": "", "compiler": "", "platform": "",
    })
}

pub fn definition(plural: &str, bundle: &str) -> Value {
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

pub fn node(name: &str, kubelet: &str) -> Value {
    json!({ "metadata": { "name": name }, "status": { "nodeInfo": {
        "architecture": "amd64", "bootID": "", "containerRuntimeVersion": "", "kernelVersion": "",
        "kubeProxyVersion": "",
        "kubeletVersion": kubelet, "machineID": "", "operatingSystem": "linux", "osImage": "",
        "systemUUID": "",
    } } })
}

pub fn allowed(allowed: bool) -> Value {
    json!({ "spec": {}, "status": { "allowed": allowed } })
}

/// The same cluster with Naru, one labelled namespace and an injected pod.
pub fn installed() -> FakeApi {
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
        set_controller_status(&api, name, "a1", "steady", 1);
    }
    set_sidecar_metrics(&api, 1, "a1");
    api
}

pub fn set_controller_status(api: &FakeApi, pod: &str, issuer: &str, state: &str, streams: u32) {
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

pub fn set_sidecar_metrics(api: &FakeApi, connected: u32, issuer: &str) {
    let text = format!(
        "naru_controller_connected {connected}\nnaru_certificate_info{{issuer=\"{issuer}\"}} 1\n"
    );
    let path = "/api/v1/namespaces/shop/pods/web-1:15020/proxy/metrics";
    api.document(path, text.into());
}

pub fn deployment() -> Value {
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

pub fn slice(ready: bool) -> Value {
    json!({
        "metadata": { "name": "naru-controller-x", "namespace": "naru-system" },
        "addressType": "IPv4",
        "endpoints": [{ "addresses": ["10.0.0.1"], "conditions": { "ready": ready } }],
    })
}

pub fn route(accepted: &str) -> Value {
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

pub async fn report(api: &FakeApi) -> Report {
    check(&api.client(), "https://api", "naru-system", false).await
}

/// The findings above `level`.
pub fn above(report: &Report, level: Level) -> Vec<&Finding> {
    let findings = report.groups.iter().flat_map(|group| &group.findings);
    findings.filter(|finding| finding.level > level).collect()
}

/// The only problem of a report.
pub async fn wrong(api: &FakeApi) -> Finding {
    let report = report(api).await;
    let wrong = above(&report, Level::Info);
    assert_eq!(wrong.len(), 1, "{wrong:#?}");
    assert!(wrong[0].fix.is_some(), "{wrong:#?}");
    assert_eq!(report.ok, wrong[0].level < Level::Failure);
    wrong[0].clone()
}

pub fn at(finding: &Finding) -> (&'static str, Level) {
    (finding.check, finding.level)
}
