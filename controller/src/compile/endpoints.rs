//! `endpoints/…`: the pods of one Service port that accept new connections.

use std::collections::HashSet;
use std::net::IpAddr;

use naru_contract as contract;
use naru_contract::resource::Body;
use naru_contract::{PROXY_ADMIN_PORT, Protocol};

use super::{Catalog, Compiled};
use crate::source::{EndpointSlice, Name, Pod, Service, ServicePort, SliceEndpoint};

impl Catalog {
    pub(super) fn endpoints(&self, name: &Name, port: u16) -> Option<Compiled> {
        let (service, port) = self.service_port(name, port)?;
        let mut endpoints = self.chosen(service, port);
        // Sorted, so that the order does not depend on slices.
        endpoints.sort_by(|a, b| (&a.ip, a.port).cmp(&(&b.ip, b.port)));
        endpoints.dedup_by(|a, b| (&a.ip, a.port) == (&b.ip, b.port));
        let protocol = (self.declared_of_service(service, port)).unwrap_or(Protocol::Detect);
        let body = Body::Endpoints(contract::Endpoints {
            namespace: name.namespace.clone(),
            service: name.name.clone(),
            port: u32::from(port.port),
            endpoints,
            protocol: protocol as i32,
            node_local: service.node_local,
        });
        Some(Compiled::new(body, Vec::new()))
    }

    /// A Service and one of its ports, if it can have endpoints.
    pub(super) fn service_port(&self, name: &Name, port: u16) -> Option<(&Service, &ServicePort)> {
        let service = self.index.services.get(name)?;
        let port = service.ports.iter().find(|p| p.port == port)?;
        (!service.external_name).then_some((service, port))
    }

    fn chosen(&self, service: &Service, port: &ServicePort) -> Vec<contract::Endpoint> {
        let all: Vec<_> = self.candidates(service, port).collect();
        let ready = |e: &SliceEndpoint| e.ready || service.publish_not_ready_addresses;
        // If no endpoint is ready, use those that are terminating but still serving (as kube-proxy
        // does). The scope is the whole cluster, or the node if clients are bound to theirs.
        let leaving = |e: &SliceEndpoint| e.serving && e.terminating;
        let served: HashSet<Option<&str>> = (all.iter())
            .filter(|(_, _, e)| ready(e))
            .map(|(_, _, e)| reach(service, e))
            .collect();
        let (mut v4, v6): (Vec<_>, Vec<_>) = (all.into_iter())
            .filter(|(_, _, e)| ready(e) || (leaving(e) && !served.contains(&reach(service, e))))
            .partition(|(slice, _, _)| !slice.ipv6);
        // A dual-stack pod is one endpoint, not two.
        let pods: HashSet<&Name> = v4.iter().filter_map(|(_, _, e)| e.pod.as_ref()).collect();
        let anonymous = v4.iter().any(|(_, _, e)| e.pod.is_none());
        let v6: Vec<_> = (v6.into_iter())
            .filter(|(_, _, e)| match &e.pod {
                Some(pod) => !pods.contains(pod),
                None => !anonymous,
            })
            .collect();
        v4.extend(v6);
        (v4.into_iter())
            .filter_map(|(_, port, endpoint)| {
                let mut chosen = self.endpoint(endpoint, port)?;
                if service.node_local {
                    chosen.node = endpoint.node.clone().unwrap_or_default();
                } else if ready(endpoint) {
                    // If terminating endpoints are in use, hints would exclude some of them.
                    chosen.for_zones.clone_from(&endpoint.for_zones);
                    chosen.for_nodes.clone_from(&endpoint.for_nodes);
                }
                Some(chosen)
            })
            .collect()
    }

    /// All endpoints of the Service's port, with their port number.
    fn candidates<'a>(
        &'a self,
        service: &'a Service,
        port: &'a ServicePort,
    ) -> impl Iterator<Item = (&'a EndpointSlice, u16, &'a SliceEndpoint)> {
        self.index.slices_of(&service.name).flat_map(|slice| {
            let ports = slice.ports.iter().filter(|p| p.name == port.name);
            ports.flat_map(move |p| slice.endpoints.iter().map(move |e| (slice, p.port, e)))
        })
    }

    /// `None`: its pod is unknown (not yet, or no longer, in the index), or has ended. Whether that
    /// pod has a sidecar is then unknown as well, and plaintext would be a guess.
    fn endpoint(&self, endpoint: &SliceEndpoint, port: u16) -> Option<contract::Endpoint> {
        let pod = match &endpoint.pod {
            Some(name) => Some(self.index.pods.get(name).filter(|pod| !pod.ended)?),
            None => self.index.pod_at(endpoint.ip),
        };
        let Some(pod) = pod else {
            return Some(contract::Endpoint {
                ip: octets(endpoint.ip),
                port: u32::from(port),
                zone: endpoint.zone.clone().unwrap_or_default(),
                ..contract::Endpoint::default()
            });
        };
        Some(self.pod_endpoint(pod, endpoint.ip, port, endpoint.zone.as_deref()))
    }

    pub(super) fn pod_endpoint(
        &self,
        pod: &Pod,
        ip: IpAddr,
        port: u16,
        zone: Option<&str>,
    ) -> contract::Endpoint {
        // A port that bypasses the sidecar cannot prove an identity.
        let sidecar = pod.meshed && port != PROXY_ADMIN_PORT && !pod.bare_ports.contains(&port);
        let identity = match sidecar {
            true => format!(
                "spiffe://{}/ns/{}/sa/{}",
                self.options.trust_domain, pod.name.namespace, pod.service_account
            ),
            false => String::new(),
        };
        contract::Endpoint {
            ip: octets(ip),
            port: u32::from(port),
            identity,
            pod: pod.name.name.clone(),
            workload: pod.workload.clone(),
            zone: zone.unwrap_or_default().to_owned(),
            ..contract::Endpoint::default()
        }
    }
}

/// The node, if only its clients reach the endpoint.
fn reach<'a>(service: &Service, endpoint: &'a SliceEndpoint) -> Option<&'a str> {
    match service.node_local {
        true => endpoint.node.as_deref(),
        false => None,
    }
}

fn octets(ip: IpAddr) -> bytes::Bytes {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec().into(),
        IpAddr::V6(ip) => ip.octets().to_vec().into(),
    }
}
