//! Objects by name, and their dependencies. In: objects. Out: look-ups for the compiler, and the
//! objects that a change affects. Pure and synchronous.
//!
//! ```text
//! address ─▶ Service ◀─ EndpointSlice ─▶ Pod ◀─ address
//!               ▲ ▲
//!        parent │ │ backend
//!              HTTPRoute          BackendTrafficPolicy ─▶ Service
//! ```
//!
//! # Floors
//!
//! ```text
//! node_ips relation zones  relations between objects
//! ```

mod node_ips;
mod relation;
mod zones;

use std::collections::HashMap;
use std::net::IpAddr;

use crate::source::{
    BackendTrafficPolicy, EndpointSlice, Kind, Name, Namespace, Object, ObjectKey, Pod,
    ReferenceGrant, Route, RouteKind, RouteName, Service,
};
use node_ips::NodeIps;
use relation::Relation;
use zones::NodeZones;

/// Every object, and the relations between them.
#[derive(Default)]
pub struct Index {
    pub namespaces: HashMap<String, Namespace>,
    pub services: HashMap<Name, Service>,
    pub pods: HashMap<Name, Pod>,
    pub slices: HashMap<Name, EndpointSlice>,
    pub routes: HashMap<RouteName, Route>,
    pub policies: HashMap<Name, BackendTrafficPolicy>,
    pub grants: HashMap<Name, ReferenceGrant>,

    pub services_by_namespace: Relation<String, Name>,
    pub pods_by_namespace: Relation<String, Name>,
    pub grants_by_namespace: Relation<String, Name>,
    pub services_by_ip: Relation<IpAddr, Name>,
    pub services_by_external_ip: Relation<IpAddr, Name>,
    pub services_by_node_port: Relation<u16, Name>,
    pub node_ips: NodeIps,
    pub pods_by_ip: Relation<IpAddr, Name>,
    /// Only pods whose labels do not contain their zone.
    pub pods_by_node: Relation<String, Name>,
    pub node_zones: NodeZones,
    pub slices_by_service: Relation<Name, Name>,
    /// By the targetRef of an endpoint.
    pub slices_by_pod: Relation<Name, Name>,
    /// Only endpoints without a targetRef.
    pub slices_by_ip: Relation<IpAddr, Name>,
    pub routes_by_parent: Relation<Name, RouteName>,
    pub routes_by_backend: Relation<Name, RouteName>,
    pub routes_by_backend_namespace: Relation<String, RouteName>,
    pub policies_by_target: Relation<Name, Name>,
}

impl Index {
    /// Adds an object, and returns the one with the same name that it replaces.
    pub fn apply(&mut self, object: Object) -> Option<Object> {
        let before = self.delete(&object.key());
        self.relate(&object, true);
        match object {
            Object::Namespace(o) => {
                self.namespaces.insert(o.name.clone(), o);
            }
            Object::Service(o) => {
                self.services.insert(o.name.clone(), o);
            }
            Object::Pod(o) => {
                self.pods.insert(o.name.clone(), o);
            }
            Object::EndpointSlice(o) => {
                self.slices.insert(o.name.clone(), o);
            }
            Object::Route(o) => {
                self.routes.insert(o.id(), o);
            }
            Object::BackendTrafficPolicy(o) => {
                self.policies.insert(o.name.clone(), o);
            }
            Object::ReferenceGrant(o) => {
                self.grants.insert(o.name.clone(), o);
            }
        }
        before
    }

    /// Removes an object.
    pub fn delete(&mut self, key: &ObjectKey) -> Option<Object> {
        let name = &key.name;
        let before = match key.kind {
            Kind::Namespace => self.namespaces.remove(&name.name).map(Object::Namespace),
            Kind::Service => self.services.remove(name).map(Object::Service),
            Kind::Pod => self.pods.remove(name).map(Object::Pod),
            Kind::EndpointSlice => self.slices.remove(name).map(Object::EndpointSlice),
            Kind::HttpRoute => self.delete_route(RouteKind::Http, name),
            Kind::GrpcRoute => self.delete_route(RouteKind::Grpc, name),
            Kind::TlsRoute => self.delete_route(RouteKind::Tls, name),
            Kind::TcpRoute => self.delete_route(RouteKind::Tcp, name),
            Kind::BackendTrafficPolicy => {
                (self.policies.remove(name)).map(Object::BackendTrafficPolicy)
            }
            Kind::ReferenceGrant => self.grants.remove(name).map(Object::ReferenceGrant),
        }?;
        self.relate(&before, false);
        Some(before)
    }

    fn delete_route(&mut self, kind: RouteKind, name: &Name) -> Option<Object> {
        let name = name.clone();
        (self.routes.remove(&RouteName { kind, name })).map(Object::Route)
    }

    /// Adds or removes the relations of an object.
    fn relate(&mut self, object: &Object, there: bool) {
        match object {
            Object::Namespace(_) => {}
            Object::Service(o) => {
                let namespace = o.name.namespace.clone();
                (self.services_by_namespace).set(namespace, &o.name, there);
                for ip in &o.cluster_ips {
                    self.services_by_ip.set(*ip, &o.name, there);
                }
                for ip in &o.external_ips {
                    (self.services_by_external_ip).set(*ip, &o.name, there);
                }
                for port in o.ports.iter().filter_map(|port| port.node_port) {
                    self.services_by_node_port.set(port, &o.name, there);
                }
            }
            Object::Pod(o) => {
                let namespace = o.name.namespace.clone();
                self.pods_by_namespace.set(namespace, &o.name, there);
                for ip in &o.ips {
                    self.pods_by_ip.set(*ip, &o.name, there);
                }
                self.node_ips.set(&o.host_ips, there);
                if let (Some(node), None) = (&o.node, o.labelled_zone()) {
                    self.pods_by_node.set(node.clone(), &o.name, there);
                }
            }
            Object::EndpointSlice(o) => {
                if let Some(service) = service_of(o) {
                    self.slices_by_service.set(service, &o.name, there);
                }
                for endpoint in &o.endpoints {
                    if let (Some(node), Some(zone)) = (&endpoint.node, &endpoint.zone) {
                        self.node_zones.set(node, zone, there);
                    }
                    match &endpoint.pod {
                        Some(pod) => self.slices_by_pod.set(pod.clone(), &o.name, there),
                        None => self.slices_by_ip.set(endpoint.ip, &o.name, there),
                    }
                }
            }
            Object::Route(o) => {
                let id = o.id();
                for parent in &o.parents {
                    (self.routes_by_parent).set(parent.service.clone(), &id, there);
                }
                for referent in o.referents() {
                    let service = &referent.name;
                    self.routes_by_backend.set(service.clone(), &id, there);
                    (self.routes_by_backend_namespace).set(service.namespace.clone(), &id, there);
                }
            }
            Object::BackendTrafficPolicy(o) => {
                for target in &o.targets {
                    let service = Name::new(o.name.namespace.clone(), target.clone());
                    self.policies_by_target.set(service, &o.name, there);
                }
            }
            Object::ReferenceGrant(o) => {
                let namespace = o.name.namespace.clone();
                self.grants_by_namespace.set(namespace, &o.name, there);
            }
        }
    }

    /// The pod with that address as its own. A pod that has ended no longer has addresses.
    pub fn pod_at(&self, ip: IpAddr) -> Option<&Pod> {
        (self.pods_by_ip.get(&ip))
            .filter_map(|name| self.pods.get(name))
            .find(|pod| !pod.ended)
    }

    /// The zone of a pod, if it is known.
    pub fn zone_of<'a>(&'a self, pod: &'a Pod) -> Option<&'a str> {
        (pod.labelled_zone()).or_else(|| self.node_zones.of(pod.node.as_deref()?))
    }

    /// The Service's slices, sorted by name.
    pub fn slices_of(&self, service: &Name) -> impl Iterator<Item = &EndpointSlice> {
        (self.slices_by_service.get(service)).filter_map(|name| self.slices.get(name))
    }

    /// Whether routes of a kind and a namespace may refer to a Service of another.
    pub fn is_granted(&self, kind: RouteKind, from: &str, service: &Name) -> bool {
        (self.grants_by_namespace.get(&service.namespace))
            .filter_map(|name| self.grants.get(name))
            .any(|grant| {
                let to = |to: &Option<String>| to.as_ref().is_none_or(|to| *to == service.name);
                let from = |(of, namespace): &(_, String)| *of == kind && namespace == from;
                grant.from.iter().any(from) && grant.to.iter().any(to)
            })
    }
}

/// The Service that a slice belongs to, if it does.
pub fn service_of(slice: &EndpointSlice) -> Option<Name> {
    let service = slice.service.as_ref()?;
    Some(Name::new(slice.name.namespace.clone(), service.clone()))
}
