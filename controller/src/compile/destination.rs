//! `destination/…`: the target of an address that an app connects to.

use std::net::{IpAddr, SocketAddr};

use naru_contract as contract;
use naru_contract::destination::Target;
use naru_contract::resource::Body;
use naru_contract::{Protocol, ResourceName};

use super::{Catalog, Compiled, Viewer};
use crate::index;
use crate::source::{EndpointSlice, Name, Pod, SliceEndpoint};

impl Catalog {
    pub(super) fn destination(&self, viewer: &Viewer, address: SocketAddr) -> Compiled {
        let (ip, port) = (address.ip().to_canonical(), address.port());
        let mut needs = Vec::new();
        let mut target = None;
        if let Some(name) = self.service_at(viewer, ip, port) {
            target = Some(Target::Service(name.to_string()));
            needs.push(name);
        } else if let Some(pod) = self.index.pod_at(ip) {
            let pod = self.pod_destination(pod, ip, port);
            target = Some(Target::Pod(Box::new(pod)));
        } else if let Some(name) = self.service_outside(viewer, ip, port) {
            target = Some(Target::Service(name.to_string()));
            needs.push(name);
        }
        Compiled::new(Body::Destination(contract::Destination { target }), needs)
    }

    fn service_at(&self, viewer: &Viewer, ip: IpAddr, port: u16) -> Option<ResourceName> {
        let name = (self.index.services_by_ip.get(&ip))
            .find(|name| self.service_port(name, port).is_some())?;
        Some(of_service(viewer, name, port))
    }

    /// A Service at an address outside the cluster network: an external IP, a load balancer's
    /// address, or a node port. Own addresses of Services and pods take precedence over another
    /// Service's `externalIPs`.
    fn service_outside(&self, viewer: &Viewer, ip: IpAddr, port: u16) -> Option<ResourceName> {
        // As in kube-proxy, only Services with a ClusterIP are reachable this way.
        let is_proxied = |name: &&Name| {
            let service = self.index.services.get(*name);
            service.is_some_and(|s| !s.external_name && !s.cluster_ips.is_empty())
        };
        let mut at_ip = self
            .index
            .services_by_external_ip
            .get(&ip)
            .filter(is_proxied);
        if let Some(name) = at_ip.find(|name| self.service_port(name, port).is_some()) {
            return Some(of_service(viewer, name, port));
        }
        if self.index.node_ips.count(ip) == 0 {
            return None;
        }
        let name = (self.index.services_by_node_port.get(&port)).find(is_proxied)?;
        let mut ports = self.index.services.get(name)?.ports.iter();
        let reached = ports.find(|given| given.node_port == Some(port))?;
        Some(of_service(viewer, name, reached.port))
    }

    fn pod_destination(&self, pod: &Pod, ip: IpAddr, port: u16) -> contract::PodDestination {
        // Of several Services with that port of the pod: one with a declared protocol, else the
        // first by name.
        let (mut service, mut declared, mut zone) = (None, None, None);
        for (slice, endpoint) in self.slices_with(pod, ip) {
            zone = endpoint.zone.as_deref();
            let Some((name, protocol)) = self.service_behind(slice, port) else {
                continue;
            };
            if service.is_none() || (declared.is_none() && protocol.is_some()) {
                (service, declared) = (Some(name), protocol);
            }
        }
        let protocol = declared
            .or_else(|| self.declared_of_pod(pod, port))
            .unwrap_or(Protocol::Detect);
        contract::PodDestination {
            endpoint: Some(self.pod_endpoint(pod, ip, port, zone)),
            protocol: protocol as i32,
            namespace: pod.name.namespace.clone(),
            service: service.unwrap_or_default(),
        }
    }

    /// The slices with the pod at that address.
    fn slices_with<'a>(
        &'a self,
        pod: &'a Pod,
        ip: IpAddr,
    ) -> impl Iterator<Item = (&'a EndpointSlice, &'a SliceEndpoint)> {
        (self.index.slices_by_pod.get(&pod.name))
            .filter_map(|name| self.index.slices.get(name))
            .filter_map(move |slice| {
                let is_pod = |e: &&SliceEndpoint| e.ip == ip && e.pod.as_ref() == Some(&pod.name);
                Some((slice, slice.endpoints.iter().find(is_pod)?))
            })
    }

    /// The Service whose slice has that port, and the protocol that the Service declares for it.
    fn service_behind(
        &self,
        slice: &EndpointSlice,
        port: u16,
    ) -> Option<(String, Option<Protocol>)> {
        let service = self.index.services.get(&index::service_of(slice)?)?;
        let of_slice = slice.ports.iter().filter(|p| p.port == port);
        let mut ports = of_slice
            .filter_map(|of_slice| service.ports.iter().find(|p| p.name == of_slice.name))
            .peekable();
        ports.peek()?;
        let declared = ports.find_map(|port| self.declared_of_service(service, port));
        Some((service.name.name.clone(), declared))
    }
}

fn of_service(viewer: &Viewer, name: &Name, port: u16) -> ResourceName {
    ResourceName::Service {
        client_namespace: viewer.namespace.clone(),
        namespace: name.namespace.clone(),
        name: name.name.clone(),
        port,
    }
}
