//! The resources that a changed object may affect. A superset is correct, because versions are
//! compared later. Its size is proportional to the change, so that one moved pod costs the same in
//! a cluster of any size.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use naru_contract::ResourceName;

use super::http_route;
use super::inbound::selects;
use crate::index::{self, Index};
use crate::source::{
    BackendTrafficPolicy, EndpointSlice, Name, Namespace, Object, Pod, ReferenceGrant, Route,
    RouteName, Service,
};

/// A resource that may have changed, or several.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Changed {
    Resource(ResourceName),
    /// The `service` of one port, for the clients of every namespace.
    Service {
        namespace: String,
        name: String,
        port: u16,
    },
    /// The `destination` of every port of an address.
    Address(IpAddr),
    /// The `inbound` of one pod.
    Inbound {
        namespace: String,
        pod: String,
    },
}

/// The resources that may have changed with an object that the index has already applied.
pub fn changed(index: &Index, before: Option<&Object>, after: Option<&Object>) -> Vec<Changed> {
    let mut changes = Changes {
        index,
        all: HashSet::new(),
    };
    macro_rules! dispatch {
        ($($kind:ident => $method:ident),* $(,)?) => {
            match before.or(after) {
                None => {}
                $(Some(Object::$kind(_)) => {
                    let of = |object: Option<&'_ Object>| match object {
                        Some(Object::$kind(object)) => Some(object.clone()),
                        _ => None,
                    };
                    changes.$method(of(before).as_ref(), of(after).as_ref());
                })*
            }
        };
    }
    dispatch! {
        Namespace => namespace,
        Service => service,
        Pod => pod,
        EndpointSlice => slice,
        Route => route,
        BackendTrafficPolicy => policy,
        ReferenceGrant => grant,
    }
    changes.all.into_iter().collect()
}

struct Changes<'a> {
    index: &'a Index,
    all: HashSet<Changed>,
}

impl Changes<'_> {
    fn namespace(&mut self, before: Option<&Namespace>, after: Option<&Namespace>) {
        let annotations = |n: Option<&Namespace>| n.map(|n| n.annotations.clone());
        let (was, is) = (
            annotations(before).unwrap_or_default(),
            annotations(after).unwrap_or_default(),
        );
        let Some(namespace) = after.or(before) else {
            return;
        };
        let index = self.index;
        let opaque = was.opaque_ports != is.opaque_ports;
        if opaque || was.mtls != is.mtls {
            for name in index.pods_by_namespace.get(&namespace.name) {
                self.inbound(name);
                if let Some(pod) = index.pods.get(name).filter(|_| opaque) {
                    self.destinations(&pod.ips);
                }
            }
        }
        if opaque {
            for name in index.services_by_namespace.get(&namespace.name) {
                self.whole_service(name);
                for slice in index.slices_of(name) {
                    self.slice_destinations(slice);
                }
            }
        }
    }

    fn service(&mut self, before: Option<&Service>, after: Option<&Service>) {
        let index = self.index;
        let both = || before.into_iter().chain(after);
        for service in both() {
            self.service_ports(service);
            self.destinations(&service.cluster_ips);
            self.destinations(&service.external_ips);
        }
        self.node_ports(before, after);
        let same = |f: fn(&Service, &Service) -> bool| match (before, after) {
            (Some(before), Some(after)) => f(before, after),
            _ => false,
        };
        let Some(name) = after.or(before).map(|service| &service.name) else {
            return;
        };
        if !same(|a, b| a.ports == b.ports && a.external_name == b.external_name) {
            for route in index.routes_by_backend.get(name) {
                self.http_route(route);
            }
        }
        if !same(|a, b| a.ports == b.ports && a.annotations == b.annotations) {
            for slice in index.slices_of(name) {
                self.slice_destinations(slice);
            }
        }
        if !same(|a, b| {
            a.ports == b.ports && a.annotations == b.annotations && a.selector == b.selector
        }) {
            for name in index.pods_by_namespace.get(&name.namespace) {
                let pod = index.pods.get(name);
                if pod.is_some_and(|pod| both().any(|service| selects(service, pod))) {
                    self.inbound(name);
                }
            }
        }
    }

    /// Node ports whose target port has changed.
    fn node_ports(&mut self, before: Option<&Service>, after: Option<&Service>) {
        let said = |service: Option<&Service>| -> HashSet<(u16, u16, bool)> {
            let mut said = HashSet::new();
            if let Some(service) = service {
                let is_proxied = !service.cluster_ips.is_empty() && !service.external_name;
                let ports = service.ports.iter();
                said.extend(ports.filter_map(|p| Some((p.node_port?, p.port, is_proxied))));
            }
            said
        };
        let index = self.index;
        for (node_port, _, _) in said(before).symmetric_difference(&said(after)) {
            for ip in index.node_ips.all() {
                let address = SocketAddr::new(ip, *node_port);
                self.resource(ResourceName::Destination(address));
            }
        }
    }

    fn pod(&mut self, before: Option<&Pod>, after: Option<&Pod>) {
        let index = self.index;
        let Some(name) = after.or(before).map(|pod| &pod.name) else {
            return;
        };
        self.inbound(name);
        // The first pod on a node adds the node's address, and the last one removes it.
        let is_on = |pod: Option<&Pod>, ip: &IpAddr| pod.is_some_and(|p| p.host_ips.contains(ip));
        for ip in (before.into_iter().chain(after)).flat_map(|pod| &pod.host_ips) {
            let is_there = is_on(after, ip);
            let alone = index.node_ips.count(*ip) == usize::from(is_there);
            if alone && is_on(before, ip) != is_there {
                self.destination(*ip);
            }
        }
        let as_endpoint = |pod: &Pod| Pod {
            labels: Default::default(),
            named_ports: Vec::new(),
            ..pod.clone()
        };
        if before.map(as_endpoint) == after.map(as_endpoint) {
            return;
        }
        for slice in index.slices_by_pod.get(name) {
            self.slice_endpoints(slice);
        }
        for ip in before.into_iter().chain(after).flat_map(|pod| &pod.ips) {
            self.destination(*ip);
            for slice in index.slices_by_ip.get(ip) {
                self.slice_endpoints(slice);
            }
        }
    }

    fn slice(&mut self, before: Option<&EndpointSlice>, after: Option<&EndpointSlice>) {
        for slice in before.into_iter().chain(after) {
            self.endpoints(slice);
        }
        self.node_zones(before, after);
        match (before, after) {
            (Some(before), Some(after))
                if before.ports == after.ports && before.service == after.service =>
            {
                // The destination of a pod's own address does not depend on its readiness.
                let places = |slice: &EndpointSlice| -> HashSet<_> {
                    let places = slice.endpoints.iter();
                    places
                        .map(|e| (e.ip, e.pod.clone(), e.zone.clone()))
                        .collect()
                };
                for (ip, _, _) in places(before).symmetric_difference(&places(after)) {
                    self.destination(*ip);
                }
            }
            _ => {
                for slice in before.into_iter().chain(after) {
                    self.slice_destinations(slice);
                }
            }
        }
    }

    /// Pods on nodes whose zone has become known, or unknown.
    fn node_zones(&mut self, before: Option<&EndpointSlice>, after: Option<&EndpointSlice>) {
        let said = |slice: Option<&EndpointSlice>| {
            let mut said: HashMap<(String, String), usize> = HashMap::new();
            for endpoint in slice.iter().flat_map(|slice| &slice.endpoints) {
                if let Some(place) = endpoint.node.clone().zip(endpoint.zone.clone()) {
                    *said.entry(place).or_default() += 1;
                }
            }
            said
        };
        let (was, is) = (said(before), said(after));
        let index = self.index;
        for place in was.keys().chain(is.keys()) {
            let (node, zone) = place;
            // This slice is the only source of the zone, before or after.
            let own = is.get(place).copied().unwrap_or(0);
            let alone = index.node_zones.count(node, zone) == own;
            if alone && was.contains_key(place) != is.contains_key(place) {
                for pod in index.pods_by_node.get(node) {
                    self.inbound(pod);
                }
            }
        }
    }

    fn route(&mut self, before: Option<&Route>, after: Option<&Route>) {
        let index = self.index;
        let Some(id) = after.or(before).map(Route::id) else {
            return;
        };
        let name = &id.name;
        self.http_route(&id);
        let attachment = |route: &Route| {
            (
                route.parents.clone(),
                route.created,
                route.refused.is_none(),
            )
        };
        if before.map(attachment) == after.map(attachment) {
            return;
        }
        for parent in (before.into_iter().chain(after)).flat_map(|route| &route.parents) {
            let Some(service) = index.services.get(&parent.service) else {
                continue;
            };
            match parent.service.namespace == name.namespace {
                true => self.service_ports(service),
                false => self.service_ports_for(service, &name.namespace),
            }
        }
    }

    fn policy(
        &mut self,
        before: Option<&BackendTrafficPolicy>,
        after: Option<&BackendTrafficPolicy>,
    ) {
        let index = self.index;
        for policy in before.into_iter().chain(after) {
            for target in &policy.targets {
                let name = Name::new(&policy.name.namespace, target);
                if let Some(service) = index.services.get(&name) {
                    self.service_ports(service);
                }
            }
        }
    }

    fn grant(&mut self, before: Option<&ReferenceGrant>, after: Option<&ReferenceGrant>) {
        let index = self.index;
        for grant in before.into_iter().chain(after) {
            let routes = (index.routes_by_backend_namespace).get(&grant.name.namespace);
            let may = |route: &&RouteName| {
                let from = (route.kind, route.name.namespace.clone());
                grant.from.contains(&from)
            };
            for route in routes.filter(may) {
                self.http_route(route);
            }
        }
    }

    fn whole_service(&mut self, name: &Name) {
        let index = self.index;
        if let Some(service) = index.services.get(name) {
            self.service_ports(service);
        }
    }

    /// For the clients of every namespace, with the endpoints.
    fn service_ports(&mut self, service: &Service) {
        for port in &service.ports {
            self.all.insert(Changed::Service {
                namespace: service.name.namespace.clone(),
                name: service.name.name.clone(),
                port: port.port,
            });
            self.endpoints_of(service, port.port);
        }
    }

    /// For the clients of one namespace.
    fn service_ports_for(&mut self, service: &Service, client_namespace: &str) {
        for port in &service.ports {
            self.resource(ResourceName::Service {
                client_namespace: client_namespace.to_owned(),
                namespace: service.name.namespace.clone(),
                name: service.name.name.clone(),
                port: port.port,
            });
        }
    }

    /// Those of the Service that a slice belongs to.
    fn endpoints(&mut self, slice: &EndpointSlice) {
        let index = self.index;
        let service = index::service_of(slice);
        if let Some(service) = service.and_then(|name| index.services.get(&name)) {
            for port in &service.ports {
                self.endpoints_of(service, port.port);
            }
        }
    }

    fn endpoints_of(&mut self, service: &Service, port: u16) {
        self.resource(ResourceName::Endpoints {
            namespace: service.name.namespace.clone(),
            service: service.name.name.clone(),
            port,
        });
    }

    fn slice_endpoints(&mut self, slice: &Name) {
        let index = self.index;
        if let Some(slice) = index.slices.get(slice) {
            self.endpoints(slice);
        }
    }

    fn slice_destinations(&mut self, slice: &EndpointSlice) {
        for endpoint in &slice.endpoints {
            self.destination(endpoint.ip);
        }
    }

    fn destinations(&mut self, ips: &[IpAddr]) {
        for ip in ips {
            self.destination(*ip);
        }
    }

    fn destination(&mut self, ip: IpAddr) {
        self.all.insert(Changed::Address(ip));
    }

    fn http_route(&mut self, route: &RouteName) {
        self.resource(http_route::resource(route));
    }

    fn resource(&mut self, name: ResourceName) {
        self.all.insert(Changed::Resource(name));
    }

    fn inbound(&mut self, pod: &Name) {
        self.all.insert(Changed::Inbound {
            namespace: pod.namespace.clone(),
            pod: pod.name.clone(),
        });
    }
}
