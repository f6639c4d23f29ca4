//! From a host name to an address, as a pod's resolver would resolve names of Services.

use std::fmt;
use std::net::IpAddr;

use anyhow::bail;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::ListParams;
use kube::{Api, Client};

use crate::kubernetes::{all, label, problem};

/// An ExternalName Service may refer to another ExternalName Service.
const MAX_ALIASES: usize = 8;
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// `NAME.NAMESPACE` of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceName {
    pub namespace: String,
    pub name: String,
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl ServiceName {
    /// The Service that a host name refers to, for a pod in `namespace`: `catalog`, `catalog.shop`,
    /// `catalog.shop.svc` or `catalog.shop.svc.DOMAIN`. `None`: not a name of a Service.
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

    /// In the form that a sidecar accepts. The sidecar adds its own namespace where the name has
    /// none.
    pub fn with_port(&self, port: u16) -> String {
        match self.namespace.is_empty() {
            true => format!("{}:{port}", self.name),
            false => format!("{}.{}:{port}", self.name, self.namespace),
        }
    }

    /// The name of a Service object.
    pub fn of_object(service: &Service) -> Self {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        Self {
            namespace: text(&service.metadata.namespace),
            name: text(&service.metadata.name),
        }
    }

    /// The object. `Err`: it does not exist, or can't be read.
    async fn get(&self, client: &Client) -> anyhow::Result<Service> {
        let Self { namespace, name } = self;
        let api = Api::<Service>::namespaced(client.clone(), namespace);
        match api.get_opt(name).await {
            Ok(Some(service)) => Ok(service),
            Ok(None) => bail!("namespace {namespace} has no Service {name}"),
            Err(error) => bail!("Service {self}: {}", problem(&error)),
        }
    }
}

/// The address that a Service's name resolves to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leads {
    /// To its ClusterIP.
    ClusterIp(IpAddr),
    /// The Service is headless: the address of a pod, to which no route applies.
    Pod(IpAddr),
}

/// Follows ExternalNames to the final Service, and returns the address that a pod would connect to.
pub async fn resolve(client: &Client, name: &ServiceName) -> anyhow::Result<(Service, Leads)> {
    let mut name = name.clone();
    for _ in 0..MAX_ALIASES {
        let service = name.get(client).await?;
        let spec = service.spec.clone().unwrap_or_default();
        let Some(elsewhere) = spec.external_name.filter(|other| !other.is_empty()) else {
            let leads = lead(client, &name, spec.cluster_ip.as_deref()).await?;
            return Ok((service, leads));
        };
        // The target is an absolute name in any namespace.
        let absolute = ServiceName::of(&elsewhere, "");
        match absolute.filter(|_| elsewhere.split('.').nth(2) == Some("svc")) {
            Some(other) => name = other,
            None => bail!(
                "Service {name} is another name for {elsewhere}, which is not in the mesh: \
                 connections go there as they are"
            ),
        }
    }
    bail!("Service {name} is another name for itself")
}

async fn lead(client: &Client, name: &ServiceName, ip: Option<&str>) -> anyhow::Result<Leads> {
    if ip == Some("None") {
        return match first_endpoint(client, name).await? {
            Some(ip) => Ok(Leads::Pod(ip)),
            None => bail!("Service {name} is headless, and has no pod that is ready"),
        };
    }
    match ip.and_then(|ip| ip.parse().ok()) {
        Some(ip) => Ok(Leads::ClusterIp(ip)),
        None => bail!("Service {name} has no ClusterIP"),
    }
}

async fn first_endpoint(client: &Client, service: &ServiceName) -> anyhow::Result<Option<IpAddr>> {
    let api = Api::<EndpointSlice>::namespaced(client.clone(), &service.namespace);
    let of_service = ListParams::default().labels(&format!("{SERVICE_LABEL}={}", service.name));
    let slices = match all(&api, of_service).await {
        Ok(slices) => slices,
        Err(error) => bail!("the endpoints of {service}: {}", problem(&error)),
    };
    let is_of_service = |slice: &&EndpointSlice| {
        label(slice.metadata.labels.as_ref(), SERVICE_LABEL) == Some(&service.name)
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
    fn a_name_is_resolved_as_by_a_pod_s_resolver() {
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
