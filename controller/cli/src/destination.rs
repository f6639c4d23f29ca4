//! From a host name to an address, as the resolver of a pod goes about it, for names of Services.

use std::net::IpAddr;

use anyhow::bail;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::ListParams;
use kube::{Api, Client};

use crate::kubernetes::{all, problem};

/// `NAME.NAMESPACE` of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceName {
    pub namespace: String,
    pub name: String,
}

impl ServiceName {
    /// The Service that a host name is of, for a pod in `namespace`: `catalog`, `catalog.shop`, `catalog.shop.svc` or
    /// `catalog.shop.svc.DOMAIN`. `None`: it can't be a Service's.
    pub fn of(host: &str, namespace: &str) -> Option<Self> {
        let labels: Vec<&str> = host.trim_end_matches('.').split('.').collect();
        let fits = |label: &&str| {
            let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
            !label.is_empty() && label.bytes().all(fits)
        };
        if !labels.iter().all(fits) {
            return None;
        }
        let (name, namespace) = match labels.as_slice() {
            [name] => (*name, namespace),
            [name, namespace] | [name, namespace, "svc", ..] => (*name, *namespace),
            _ => return None,
        };
        Some(Self {
            namespace: namespace.to_ascii_lowercase(),
            name: name.to_ascii_lowercase(),
        })
    }

    /// The object. `Err`: there is none, or it can't be read.
    pub async fn get(&self, client: &Client) -> anyhow::Result<Service> {
        let Self { namespace, name } = self;
        let api = Api::<Service>::namespaced(client.clone(), namespace);
        match api.get_opt(name).await {
            Ok(Some(service)) => Ok(service),
            Ok(None) => bail!("namespace {namespace} has no Service {name}"),
            Err(error) => bail!("the Service {namespace}/{name}: {}", problem(&error)),
        }
    }
}

/// Where the name of a Service leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leads {
    /// To its ClusterIP.
    ClusterIp(IpAddr),
    /// It is headless: to a pod's own address, and there no route has a part.
    Pod(IpAddr),
}

/// Where the Service's name leads a pod.
pub async fn lead(client: &Client, service: &Service) -> anyhow::Result<Leads> {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let (namespace, name) = (
        text(&service.metadata.namespace),
        text(&service.metadata.name),
    );
    let spec = service.spec.clone().unwrap_or_default();
    if let Some(elsewhere) = spec.external_name.filter(|name| !name.is_empty()) {
        bail!(
            "Service {namespace}/{name} is another name for {elsewhere}, which is none of the mesh's: connections go there as they are"
        );
    }
    match spec.cluster_ip.as_deref() {
        Some("None") => match first_endpoint(client, &namespace, &name).await? {
            Some(ip) => Ok(Leads::Pod(ip)),
            None => bail!("Service {namespace}/{name} is headless, and has no pod that is ready"),
        },
        Some(ip) => match ip.parse() {
            Ok(ip) => Ok(Leads::ClusterIp(ip)),
            Err(_) => bail!("Service {namespace}/{name} has no ClusterIP"),
        },
        None => bail!("Service {namespace}/{name} has no ClusterIP"),
    }
}

async fn first_endpoint(
    client: &Client,
    namespace: &str,
    service: &str,
) -> anyhow::Result<Option<IpAddr>> {
    let api = Api::<EndpointSlice>::namespaced(client.clone(), namespace);
    let of_service = ListParams::default().labels(&format!("kubernetes.io/service-name={service}"));
    let slices = match all(&api, of_service).await {
        Ok(slices) => slices,
        Err(error) => bail!(
            "the endpoints of {namespace}/{service}: {}",
            problem(&error)
        ),
    };
    let is_of_service = |slice: &&EndpointSlice| {
        let label =
            crate::kubernetes::label(slice.metadata.labels.as_ref(), "kubernetes.io/service-name");
        label == Some(service)
    };
    let endpoints = slices.iter().filter(is_of_service);
    let mut endpoints = endpoints.flat_map(|slice| slice.endpoints.iter().flatten());
    let ready = endpoints.find(|endpoint| {
        let conditions = endpoint.conditions.as_ref();
        conditions.and_then(|c| c.ready).unwrap_or(true)
    });
    Ok(ready.and_then(|endpoint| endpoint.addresses.first()?.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_that_of_a_service_as_a_pod_s_resolver_takes_it() {
        for (host, expected) in [
            ("catalog", Some("shop/catalog")),
            ("Catalog.", Some("shop/catalog")),
            ("catalog.blue", Some("blue/catalog")),
            ("catalog.blue.svc", Some("blue/catalog")),
            ("catalog.blue.svc.cluster.local", Some("blue/catalog")),
            ("catalog.blue.svc.mesh.example", Some("blue/catalog")),
            ("www.example.com", None),
            ("", None),
            ("a..svc", None),
            ("a_b", None),
        ] {
            let found = ServiceName::of(host, "shop");
            let found = found.map(|found| format!("{}/{}", found.namespace, found.name));
            assert_eq!(found.as_deref(), expected, "{host}");
        }
    }
}
