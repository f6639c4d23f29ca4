//! Objects in the cluster that may conflict with Naru: another installation, other meshes, and
//! namespaces with a restrictive Pod Security level.

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::api::ListParams;
use kube::{Api, Client, Error};

use super::api::{all, label};
use super::cluster::some;
use super::finding::{Found, Group, failure, info, ok, warning};
use super::names::{ANCHORS_CONFIG_MAP, CONTROLLER, INJECT, INJECTED_LABEL, WEBHOOK_CONFIGURATION};
use super::pods::{has_sidecar, is_over};

/// The Helm release that installed an object.
const RELEASE: &str = "meta.helm.sh/release-name";
const RELEASE_NAMESPACE: &str = "meta.helm.sh/release-namespace";
const POD_SECURITY: &str = "pod-security.kubernetes.io/enforce";

/// Another mesh that injects sidecars, or redirects traffic from the node.
struct Mesh {
    name: &'static str,
    /// Prefix of its webhooks' names.
    webhook: &'static str,
    /// The label or annotation of a member namespace, and the values that enable it.
    mark: &'static str,
    values: &'static [&'static str],
}

const MESHES: [Mesh; 6] = [
    Mesh {
        name: "Istio",
        webhook: "istio-",
        mark: "istio-injection",
        values: &["enabled"],
    },
    // Any revision.
    Mesh {
        name: "Istio",
        webhook: "istio-",
        mark: "istio.io/rev",
        values: &[],
    },
    Mesh {
        name: "Istio in ambient mode",
        webhook: "istio-",
        mark: "istio.io/dataplane-mode",
        values: &["ambient"],
    },
    Mesh {
        name: "Linkerd",
        webhook: "linkerd-proxy-injector",
        mark: "linkerd.io/inject",
        values: &["enabled", "ingress"],
    },
    Mesh {
        name: "Kuma",
        webhook: "kuma-",
        mark: "kuma.io/sidecar-injection",
        values: &["enabled", "true"],
    },
    Mesh {
        name: "Consul",
        webhook: "consul-connect-injector",
        mark: "consul.hashicorp.com/connect-inject",
        values: &["true"],
    },
];

pub async fn check(client: &Client, namespace: &str) -> Group {
    let mut group = Group::new("what is there already");
    group.check("leftovers", leftovers(client, namespace)).await;
    group.check("other-meshes", meshes(client)).await;
    group.check("pod-security", pod_security(client)).await;
    group
}

/// Objects of an installation: `helm install` adopts them only if they belong to its own release.
async fn leftovers(client: &Client, namespace: &str) -> Result<Vec<Found>, Error> {
    let mut found = Vec::new();
    let webhooks = Api::<MutatingWebhookConfiguration>::all(client.clone());
    if let Some(webhook) = webhooks.get_opt(WEBHOOK_CONFIGURATION).await? {
        let api = Api::<Deployment>::namespaced(client.clone(), namespace);
        found.push(match api.get_opt(CONTROLLER).await? {
            Some(_) => info(format!(
                "Naru is installed here ({})",
                release(webhook.metadata.annotations.as_ref())
            )),
            None => failure(
                format!(
                    "the MutatingWebhookConfiguration {WEBHOOK_CONFIGURATION} is there without a \
                     controller in {namespace} ({}): new pods of labelled namespaces are refused",
                    release(webhook.metadata.annotations.as_ref())
                ),
                format!(
                    "remove that installation with helm uninstall, or what is left of it: kubectl \
                     delete mutatingwebhookconfiguration {WEBHOOK_CONFIGURATION}"
                ),
            ),
        });
    } else {
        let mut left = Vec::new();
        let roles = Api::<ClusterRole>::all(client.clone());
        if roles.get_opt(CONTROLLER).await?.is_some() {
            left.push(format!("clusterrole/{CONTROLLER}"));
        }
        let bindings = Api::<ClusterRoleBinding>::all(client.clone());
        if bindings.get_opt(CONTROLLER).await?.is_some() {
            left.push(format!("clusterrolebinding/{CONTROLLER}"));
        }
        if !left.is_empty() {
            found.push(failure(
                format!("there is left of another installation: {}", left.join(", ")),
                format!("kubectl delete {}", left.join(" ")),
            ));
        }
    }
    let named = ListParams::default().fields(&format!("metadata.name={ANCHORS_CONFIG_MAP}"));
    let anchors = all(&Api::<ConfigMap>::all(client.clone()), named).await?;
    let left: Vec<String> = anchors
        .iter()
        .filter(|map| map.metadata.name.as_deref() == Some(ANCHORS_CONFIG_MAP))
        .filter_map(|map| map.metadata.namespace.clone())
        .collect();
    if !left.is_empty() {
        found.push(info(format!(
            "the ConfigMap {ANCHORS_CONFIG_MAP} of an installation is in {}, and will be brought \
             up to date when a pod there gets a sidecar",
            some(&left)
        )));
    }
    let secrets = Api::<Secret>::namespaced(client.clone(), namespace);
    let secret = secrets.get_opt("naru-ca").await;
    let api = Api::<Deployment>::namespaced(client.clone(), namespace);
    if api.get_opt(CONTROLLER).await?.is_none() {
        found.extend(orphans(client, namespace, !matches!(secret, Ok(None))).await?);
    }
    if let Ok(Some(_)) = secret {
        found.push(info(format!(
            "the Secret naru-ca in {namespace} will be the mesh's certificate authority"
        )));
    }
    if found.is_empty() {
        found.push(ok("nothing is left of another installation"));
    }
    Ok(found)
}

/// Pods with sidecars but without a controller. `authority`: the authority that they trust still
/// exists.
async fn orphans(client: &Client, namespace: &str, authority: bool) -> Result<Vec<Found>, Error> {
    let injected = ListParams::default().labels(&format!("{INJECTED_LABEL}=true"));
    let pods = all(&Api::<Pod>::all(client.clone()), injected).await?;
    let names: Vec<String> = pods
        .iter()
        .filter(|pod| label(pod.metadata.labels.as_ref(), INJECTED_LABEL).is_some())
        .filter(|pod| has_sidecar(pod) && !is_over(pod))
        .map(|pod| {
            let (namespace, name) = (&pod.metadata.namespace, &pod.metadata.name);
            format!(
                "{}/{}",
                namespace.as_deref().unwrap_or_default(),
                name.as_deref().unwrap_or_default()
            )
        })
        .collect();
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let way_out = match authority {
        true => format!(
            "install Naru again in {namespace}, where their authority is still there; or take them \
             out of the mesh: remove the label {INJECT} from their namespaces, and restart their \
             workloads"
        ),
        false => format!(
            "take them out of the mesh: remove the label {INJECT} from their namespaces, and \
             restart their workloads. The authority that they trust is gone: put its Secret back \
             into {namespace} from a backup before Naru is installed again, or no controller \
             starts while they are there"
        ),
    };
    Ok(vec![failure(
        format!(
            "{} pods have sidecars and no controller: certificates end within a day, and endpoints \
             are those of long ago: {}",
            names.len(),
            some(&names)
        ),
        way_out,
    )])
}

fn release(annotations: Option<&std::collections::BTreeMap<String, String>>) -> String {
    match (
        label(annotations, RELEASE),
        label(annotations, RELEASE_NAMESPACE),
    ) {
        (Some(name), Some(namespace)) => format!("Helm release {name} in {namespace}"),
        _ => "not by Helm".to_owned(),
    }
}

async fn meshes(client: &Client) -> Result<Vec<Found>, Error> {
    let webhooks = Api::<MutatingWebhookConfiguration>::all(client.clone());
    let webhooks = all(&webhooks, ListParams::default()).await?;
    let webhooks: Vec<String> = webhooks
        .into_iter()
        .filter_map(|webhook| webhook.metadata.name)
        .collect();
    let namespaces = Api::<Namespace>::all(client.clone());
    let mut found = clashes(&all(&namespaces, ListParams::default()).await?);
    let mut names: Vec<&str> = MESHES
        .iter()
        .filter(|mesh| webhooks.iter().any(|name| name.starts_with(mesh.webhook)))
        .map(|mesh| mesh.name.split(' ').next().unwrap_or(mesh.name))
        .collect();
    names.dedup();
    for name in names {
        found.push(info(format!(
            "{name} is installed as well: no namespace can be in both"
        )));
    }
    if found.is_empty() {
        found.push(ok("there is no other mesh"));
    }
    Ok(found)
}

/// Namespaces that are in this mesh and in another: each sidecar would redirect the traffic of the
/// other.
pub fn clashes(namespaces: &[Namespace]) -> Vec<Found> {
    let mut found = Vec::new();
    for namespace in namespaces {
        let labels = namespace.metadata.labels.as_ref();
        let annotations = namespace.metadata.annotations.as_ref();
        if label(labels, INJECT) != Some("enabled") {
            continue;
        }
        for mesh in &MESHES {
            let given = label(labels, mesh.mark).or_else(|| label(annotations, mesh.mark));
            let is_in = given.is_some_and(|given| {
                mesh.values.is_empty() && !given.is_empty() || mesh.values.contains(&given)
            });
            if is_in {
                let name = namespace.metadata.name.as_deref().unwrap_or_default();
                found.push(failure(
                    format!(
                        "the namespace {name} is in two meshes: {INJECT} and {} ({})",
                        mesh.mark, mesh.name
                    ),
                    format!(
                        "take it out of one: kubectl label namespace {name} {INJECT}-, or remove \
                         {}",
                        mesh.mark
                    ),
                ));
            }
        }
    }
    found
}

async fn pod_security(client: &Client) -> Result<Vec<Found>, Error> {
    let api = Api::<Namespace>::all(client.clone());
    let namespaces = all(&api, ListParams::default()).await?;
    let (mut labelled, mut others) = (Vec::new(), Vec::new());
    for namespace in &namespaces {
        let labels = namespace.metadata.labels.as_ref();
        let Some(level @ ("baseline" | "restricted")) = label(labels, POD_SECURITY) else {
            continue;
        };
        let name = namespace.metadata.name.as_deref().unwrap_or_default();
        match label(labels, INJECT) {
            Some("enabled") => labelled.push(format!("{name} ({level})")),
            _ => others.push(format!("{name} ({level})")),
        }
    }
    let mut found = Vec::new();
    if !labelled.is_empty() {
        found.push(warning(
            format!(
                "these namespaces are to get sidecars, and their PodSecurity refuses the init \
                 container's NET_ADMIN: {}",
                some(&labelled)
            ),
            format!("kubectl label namespace NAME {POD_SECURITY}=privileged --overwrite"),
        ));
    }
    if !others.is_empty() {
        found.push(info(format!(
            "PodSecurity would refuse pods with sidecars in {}",
            some(&others)
        )));
    }
    if found.is_empty() {
        found.push(ok(
            "no namespace enforces PodSecurity against the sidecar's init container",
        ));
    }
    Ok(found)
}
