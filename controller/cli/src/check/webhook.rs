//! Injection, from the webhook's configuration to a pod that gets a sidecar.

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{ListParams, PostParams};
use kube::{Api, Client, Error};
use serde_json::json;

use super::api::{Installation, all, labelled};
use super::finding::{Found, Group, failure, info, ok, warning};
use super::names::{CONTROLLER, INJECT, SIDECAR, WEBHOOK_CONFIGURATION};
use super::trust::{authority, certificates};

/// The namespace of the test pod if no namespace is labelled.
const DEFAULT_NAMESPACE: &str = "default";
/// Upper bound on the namespaces that are tested.
const MAX_TRIED: usize = 100;

pub async fn check(client: &Client, installed: &Installation) -> Group {
    let mut group = Group::new("injection");
    group
        .check("configuration", configuration(client, installed))
        .await;
    group.check("endpoints", endpoints(client, installed)).await;
    // Each namespace has a time limit of its own.
    match labelled(client).await {
        Ok(namespaces) if namespaces.is_empty() => {
            let found = async {
                let mut found = vec![info(format!(
                    "no namespace is labelled: kubectl label namespace NAME {INJECT}=enabled"
                ))];
                found.extend(dry_run(client, installed, DEFAULT_NAMESPACE, true).await?);
                Ok(found)
            };
            group.check("dry-run", found).await;
        }
        Ok(namespaces) => {
            for namespace in namespaces.iter().take(MAX_TRIED) {
                let name = namespace.metadata.name.as_deref().unwrap_or_default();
                let tried = dry_run(client, installed, name, false);
                group.check("dry-run", tried).await;
            }
        }
        Err(error) => {
            group.check("dry-run", async { Err(error) }).await;
        }
    }
    group
}

async fn configuration(client: &Client, installed: &Installation) -> Result<Vec<Found>, Error> {
    let namespace = &installed.namespace;
    let api = Api::<MutatingWebhookConfiguration>::all(client.clone());
    let Some(found) = api.get_opt(WEBHOOK_CONFIGURATION).await? else {
        return Ok(vec![failure(
            format!(
                "the MutatingWebhookConfiguration {WEBHOOK_CONFIGURATION} is not there: no pod \
                 gets a sidecar"
            ),
            format!("helm upgrade naru charts/naru -n {namespace}"),
        )]);
    };
    let bundles: Vec<Vec<u8>> = found
        .webhooks
        .iter()
        .flatten()
        .map(|webhook| webhook.client_config.ca_bundle.clone())
        .map(|bundle| bundle.map_or(Vec::new(), |bundle| bundle.0))
        .collect();
    if bundles.is_empty() || bundles.iter().any(Vec::is_empty) {
        return Ok(vec![failure(
            format!(
                "{WEBHOOK_CONFIGURATION} has no caBundle: the API server does not trust the \
                 controller"
            ),
            format!(
                "the controller writes it every 30 s: kubectl -n {namespace} logs \
                 deployment/{CONTROLLER}. With a certificate of yours (webhook.certificate), see \
                 who is to write it"
            ),
        )]);
    }
    if !installed.keeps_ca_bundle() {
        return Ok(vec![ok(
            "the webhook is configured, with a caBundle that is not the controller's",
        )]);
    }
    let Some(authority) = authority(client, installed).await? else {
        return Ok(vec![ok("the webhook is configured, and has a caBundle")]);
    };
    let current = bundles
        .iter()
        .map(|bundle| certificates(bundle))
        .all(|trusted| {
            authority
                .iter()
                .any(|certificate| trusted.contains(certificate))
        });
    Ok(vec![match current {
        true => ok("the webhook is configured, and its caBundle is the authority in force"),
        false => failure(
            format!("the caBundle of {WEBHOOK_CONFIGURATION} is not the authority in force"),
            format!(
                "the controller writes it every 30 s with the authority that it started with: \
                 kubectl -n {namespace} rollout restart deployment/{CONTROLLER}"
            ),
        ),
    }])
}

async fn endpoints(client: &Client, installed: &Installation) -> Result<Vec<Found>, Error> {
    let namespace = &installed.namespace;
    let api = Api::<EndpointSlice>::namespaced(client.clone(), namespace);
    let of_service =
        ListParams::default().labels(&format!("kubernetes.io/service-name={CONTROLLER}"));
    let slices = all(&api, of_service).await?;
    let endpoints = slices
        .iter()
        .flat_map(|slice| slice.endpoints.iter().flatten());
    let ready = endpoints
        .filter(|endpoint| {
            let conditions = endpoint.conditions.as_ref();
            conditions.and_then(|is| is.ready).unwrap_or(true)
        })
        .count();
    Ok(vec![match ready {
        0 => failure(
            format!("the Service {CONTROLLER} has no endpoint that is ready"),
            format!("see kubectl -n {namespace} get pods,endpointslices"),
        ),
        _ => ok(format!("the Service {CONTROLLER} has endpoints")),
    }])
}

/// Creates a pod as a dry run: the API server does everything except store it.
async fn dry_run(
    client: &Client,
    installed: &Installation,
    namespace: &str,
    asks: bool,
) -> Result<Vec<Found>, Error> {
    let params = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let api = Api::<Pod>::namespaced(client.clone(), namespace);
    let Ok(pod) = serde_json::from_value::<Pod>(pod(asks)) else {
        return Ok(Vec::new());
    };
    Ok(vec![match api.create(&params, &pod).await {
        Ok(pod) if has_sidecar(&pod) => ok(format!("a new pod in {namespace} would get a sidecar")),
        Ok(_) => failure(
            format!("a new pod in {namespace} would get no sidecar"),
            format!(
                "see kubectl get mutatingwebhookconfiguration {WEBHOOK_CONFIGURATION} -o yaml: \
                 with failurePolicy Ignore, a webhook that cannot be called is passed over \
                 (kubectl -n {} logs deployment/{CONTROLLER}); and whether the API server runs the \
                 admission plugin MutatingAdmissionWebhook",
                installed.namespace
            ),
        ),
        Err(Error::Api(status)) => refused(namespace, &status.message),
        Err(error) => return Err(error),
    }])
}

/// Explains an error of the API server.
fn refused(namespace: &str, message: &str) -> Found {
    let text = format!("a new pod in {namespace} would be refused: {message}");
    if message.contains("violates PodSecurity") {
        return failure(
            text,
            format!(
                "its PodSecurity does not allow the init container's NET_ADMIN: kubectl label \
                 namespace {namespace} pod-security.kubernetes.io/enforce=privileged --overwrite"
            ),
        );
    }
    if message.contains("inject.naru.dev") && message.contains("failed calling webhook") {
        return failure(
            text,
            match message.contains("x509") || message.contains("certificate") {
                true => {
                    "the API server does not trust the webhook's certificate: see what is said of \
                     the caBundle"
                }
                false => {
                    "the API server must reach port 15011 of the controller's pods: see firewalls \
                     between control plane and nodes, and NetworkPolicies in naru-system"
                }
            },
        );
    }
    if message.contains("cannot create resource \"pods\"") {
        return warning(
            format!(
                "whether a new pod in {namespace} would get a sidecar can't be checked: {message}"
            ),
            "run naru check as a user who may create pods there (nothing is created)",
        );
    }
    warning(
        text,
        "this may be a policy of yours that refuses the pod of this check; see whether your own \
         pods are admitted",
    )
}

/// A pod that even a namespace with the restricted level admits.
fn pod(asks: bool) -> serde_json::Value {
    let mut pod = json!({
        "metadata": { "name": "naru-check" },
        "spec": {
            "automountServiceAccountToken": false,
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 65532,
                "seccompProfile": { "type": "RuntimeDefault" },
            },
            "containers": [{
                "name": "check",
                "image": "naru-check",
                "securityContext": {
                    "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] },
                    "readOnlyRootFilesystem": true,
                },
                "resources": {
                    "requests": { "cpu": "1m", "memory": "1Mi" },
                    "limits": { "cpu": "10m", "memory": "8Mi" },
                },
            }],
        },
    });
    if asks {
        pod["metadata"]["annotations"] = json!({ INJECT: "enabled" });
    }
    pod
}

fn has_sidecar(pod: &Pod) -> bool {
    let spec = pod.spec.as_ref();
    let containers = spec.into_iter().flat_map(|spec| {
        spec.init_containers
            .iter()
            .flatten()
            .chain(&spec.containers)
    });
    containers
        .into_iter()
        .any(|container| container.name == SIDECAR)
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    #[test]
    fn refusals_are_reported_by_their_cause() {
        let violates = "pods \"naru-check\" is forbidden: violates PodSecurity \
             \"restricted:latest\": unrestricted capabilities";
        assert_eq!(refused("shop", violates).level(), Level::Failure);
        let dead = "Internal error occurred: failed calling webhook \"namespace.inject.naru.dev\": \
             failed to call webhook: connection refused";
        assert_eq!(refused("shop", dead).level(), Level::Failure);
        let foreign = r#"admission webhook "policy.example.com" denied the request: unknown image"#;
        assert_eq!(refused("shop", foreign).level(), Level::Warning);
        let unable = "pods is forbidden: User \"jane\" cannot create resource \"pods\" in API \
             group \"\" in the namespace \"shop\"";
        assert!(refused("shop", unable).text().contains("can't be checked"));
    }
}
