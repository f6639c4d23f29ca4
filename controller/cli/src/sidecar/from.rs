//! Chooses the sidecar to query.

use std::net::SocketAddr;
use std::str::FromStr;

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::Pod as Object;
use kube::api::ListParams;
use kube::{Api, Client, Error};

use super::{Flags, Sidecar};
use crate::check::names::{SIDECAR, SKIP_ANNOTATIONS};
use crate::check::pods::{has_sidecar, is_over, not_ready, owner};
use crate::kubernetes::{all, problem};

/// The default admin port of a sidecar.
const ADMIN_PORT: u16 = 15020;
const ADMIN_PORT_NAME: &str = "naru-admin";

/// A pod with a ready sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub admin_port: u16,
    /// Annotations that exclude some of its traffic from the mesh.
    pub skips: Vec<String>,
}

/// The value of `--from`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum From {
    /// A sidecar's admin port.
    Address(SocketAddr),
    /// A pod of that name, or any pod of the namespace of that name.
    Name(String),
    /// `deployment/web`, in this namespace or in the default one.
    Workload {
        namespace: Option<String>,
        kind: String,
        name: String,
    },
}

impl FromStr for From {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(address) = text.strip_prefix("http://") {
            let address = address.trim_end_matches('/');
            return (address.parse().map(Self::Address))
                .map_err(|_| format!("{text:?} is not http://IP:PORT, as http://127.0.0.1:15020"));
        }
        let parts: Vec<&str> = text.split('/').collect();
        if parts.iter().any(|part| part.is_empty()) {
            return Err(format!("{text:?} names no pod"));
        }
        let workload = |namespace: Option<&str>, kind: &str, name: &str| Self::Workload {
            namespace: namespace.map(str::to_owned),
            kind: full_kind(kind),
            name: name.to_owned(),
        };
        match parts.as_slice() {
            [name] => Ok(Self::Name((*name).to_owned())),
            [kind, name] => Ok(workload(None, kind, name)),
            [namespace, kind, name] => Ok(workload(Some(namespace), kind, name)),
            _ => Err(format!(
                "{text:?} is not one of POD, KIND/NAME, NAMESPACE, NAMESPACE/KIND/NAME, \
                 http://IP:PORT"
            )),
        }
    }
}

/// Expands kubectl's abbreviations.
fn full_kind(kind: &str) -> String {
    let kind = kind.to_ascii_lowercase();
    match kind.as_str() {
        "po" | "pods" => "pod",
        "deploy" | "deployments" => "deployment",
        "sts" | "statefulsets" => "statefulset",
        "ds" | "daemonsets" => "daemonset",
        "jobs" => "job",
        "ns" | "namespaces" => "namespace",
        other => other,
    }
    .to_owned()
}

impl Sidecar {
    /// The sidecar that the flags select, with its pod in `namespace` if they name none; without
    /// `--from`, any sidecar of `namespace`.
    pub async fn find(
        client: Option<&Client>,
        flags: &Flags,
        namespace: &str,
    ) -> anyhow::Result<Self> {
        let client = match (client, &flags.from) {
            (_, Some(From::Address(address))) => return Ok(Self::Address(*address)),
            (Some(client), _) => client.clone(),
            (None, _) => bail!("cannot reach the API server"),
        };
        let pod = match &flags.from {
            Some(from) => find(&client, from, namespace).await?,
            None => some_pod(&client, namespace, None).await.with_context(|| {
                format!(
                    "--from says whose sidecar is asked; without it, one of namespace {namespace}"
                )
            })?,
        };
        Ok(Self::Pod { client, pod })
    }
}

async fn find(client: &Client, from: &From, namespace: &str) -> anyhow::Result<Pod> {
    match from {
        From::Address(address) => bail!("{address} is not the name of a pod"),
        From::Name(name) => match one_pod(client, namespace, name).await? {
            Some(pod) => Ok(pod),
            None => some_pod(client, name, None).await.with_context(|| {
                format!(
                    "--from {name}: namespace {namespace} has no pod of that name, so it is taken \
                    as a namespace's"
                )
            }),
        },
        From::Workload {
            namespace: own,
            kind,
            name,
        } => {
            let namespace = own.as_deref().unwrap_or(namespace);
            match kind.as_str() {
                "namespace" => some_pod(client, name, None).await,
                "pod" => match one_pod(client, namespace, name).await? {
                    Some(pod) => Ok(pod),
                    None => bail!("namespace {namespace} has no pod {name}"),
                },
                kind => {
                    let workload = format!("{namespace}/{kind}/{name}");
                    some_pod(client, namespace, Some(&workload)).await
                }
            }
        }
    }
}

/// The pod of that name, which must have a ready sidecar. `None`: there is no such pod.
async fn one_pod(client: &Client, namespace: &str, name: &str) -> anyhow::Result<Option<Pod>> {
    let api = Api::<Object>::namespaced(client.clone(), namespace);
    let Some(pod) = api.get_opt(name).await.map_err(|e| denied(&e))? else {
        return Ok(None);
    };
    if !has_sidecar(&pod) {
        bail!("pod {namespace}/{name} has no sidecar: it is not in the mesh");
    }
    if let Some(why) = not_ready(&pod) {
        bail!("the sidecar of pod {namespace}/{name} is not ready: {why}");
    }
    Ok(Some(Pod::new(&pod)))
}

/// The first pod by name with a ready sidecar, of a workload (`NAMESPACE/KIND/NAME`) or of all.
async fn some_pod(client: &Client, namespace: &str, workload: Option<&str>) -> anyhow::Result<Pod> {
    let api = Api::<Object>::namespaced(client.clone(), namespace);
    let mut pods = all(&api, ListParams::default())
        .await
        .map_err(|e| denied(&e))?;
    pods.retain(|pod| !is_over(pod) && workload.is_none_or(|workload| owner(pod) == workload));
    pods.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    let ready = |pod: &&Object| has_sidecar(pod) && not_ready(pod).is_none();
    if let Some(pod) = pods.iter().find(ready) {
        return Ok(Pod::new(pod));
    }
    let whose = workload.unwrap_or(namespace);
    match (pods.len(), pods.iter().find(|pod| has_sidecar(pod))) {
        (0, _) => bail!("{whose} has no pod that runs"),
        (_, None) => bail!("no pod of {whose} has a sidecar: it is not in the mesh"),
        (_, Some(pod)) => bail!(
            "no sidecar of {whose} is ready: {}",
            not_ready(pod).unwrap_or_default()
        ),
    }
}

fn denied(error: &Error) -> anyhow::Error {
    anyhow::anyhow!("{}", problem(error))
}

impl Pod {
    fn new(pod: &Object) -> Self {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let spec = pod.spec.iter();
        let containers = spec.flat_map(|spec| {
            let init = spec.init_containers.iter().flatten();
            init.chain(&spec.containers)
        });
        let ports = containers
            .filter(|container| container.name == SIDECAR)
            .flat_map(|container| container.ports.iter().flatten());
        let admin = ports
            .filter(|port| port.name.as_deref() == Some(ADMIN_PORT_NAME))
            .find_map(|port| u16::try_from(port.container_port).ok());
        let annotations = pod.metadata.annotations.iter().flatten();
        let skips = annotations
            .filter(|(name, value)| name.starts_with(SKIP_ANNOTATIONS) && !value.is_empty())
            .map(|(name, value)| format!("{name}: {value}"));
        Self {
            namespace: text(&pod.metadata.namespace),
            name: text(&pod.metadata.name),
            admin_port: admin.unwrap_or(ADMIN_PORT),
            skips: skips.collect(),
        }
    }
}
