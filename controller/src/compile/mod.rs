//! Compiles routing tables from the index. In: events of the cluster's objects. Out: the names of
//! resources that may have changed, and any resource by name, with a version that is a hash of its
//! content. Pure and synchronous.
//!
//! # Floors
//!
//! ```text
//! route_statuses                                         statuses of all routes, as they change
//! route_status                                           the status of one route
//! changed                                                which resources an event concerns
//! service                                                a port of a Service, with its routes
//! http_route opaque_route endpoints destination inbound  the other resources
//! declared version                                       protocols of ports; hashes of contents
//! ```

mod changed;
mod declared;
mod destination;
mod endpoints;
mod http_route;
mod inbound;
mod opaque_route;
mod route_status;
mod route_statuses;
mod service;
mod version;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use naru_contract::resource::Body;
use naru_contract::{MtlsMode, ResourceName};

use crate::index::Index;
use crate::source::{Event, Name, Object, Route, RouteKind};

pub use changed::Changed;
pub use route_status::{ParentStatus, RouteStatus, Verdict};
pub use route_statuses::{RouteStatuses, concerns_routes};

/// The mesh's own settings.
#[derive(Clone, Debug)]
pub struct CatalogOptions {
    pub trust_domain: String,
    /// The default, which namespaces and pods override.
    pub mtls: MtlsMode,
}

/// The client that a resource is compiled for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Viewer {
    pub namespace: String,
    pub pod: String,
}

/// The current state of a resource.
#[derive(Clone, Debug, PartialEq)]
pub struct Compiled {
    /// Hash of the content; never 0.
    pub version: u64,
    pub body: Body,
    /// Resources that this one refers to.
    pub needs: Vec<ResourceName>,
}

/// The index and the compiler.
pub struct Catalog {
    index: Index,
    options: CatalogOptions,
    synced: bool,
}

impl Catalog {
    pub fn new(options: CatalogOptions) -> Self {
        Self {
            index: Index::default(),
            options,
            synced: false,
        }
    }

    /// Applies a change. Returns the resources that may have changed: a superset, but proportional
    /// to the change.
    pub fn apply(&mut self, event: Event) -> Vec<Changed> {
        match event {
            Event::Synced => {
                self.synced = true;
                Vec::new()
            }
            Event::Delete(key) => match self.index.delete(&key) {
                Some(before) => changed::changed(&self.index, Some(&before), None),
                None => Vec::new(),
            },
            Event::Apply(object) => {
                let before = self.index.apply(object.clone());
                if before.as_ref() == Some(&object) {
                    return Vec::new();
                }
                log_refusal(before.as_ref(), &object);
                changed::changed(&self.index, before.as_ref(), Some(&object))
            }
        }
    }

    /// The current resource of that name. `None`: it does not exist. A destination always exists:
    /// it has no target if the address is outside the mesh. Trust anchors are not part of the
    /// catalog.
    pub fn compile(&self, viewer: &Viewer, name: &ResourceName) -> Option<Compiled> {
        match name {
            ResourceName::TrustAnchors => None,
            ResourceName::Inbound => self.inbound(&Name::new(&viewer.namespace, &viewer.pod)),
            ResourceName::Destination(address) => Some(self.destination(viewer, *address)),
            ResourceName::Service {
                client_namespace,
                namespace,
                name,
                port,
            } => self.service(client_namespace, &Name::new(namespace, name), *port),
            ResourceName::HttpRoute { namespace, name } => {
                self.http_route(RouteKind::Http, Name::new(namespace, name))
            }
            ResourceName::GrpcRoute { namespace, name } => {
                self.http_route(RouteKind::Grpc, Name::new(namespace, name))
            }
            ResourceName::TlsRoute { namespace, name } => {
                self.opaque_route(RouteKind::Tls, Name::new(namespace, name))
            }
            ResourceName::TcpRoute { namespace, name } => {
                self.opaque_route(RouteKind::Tcp, Name::new(namespace, name))
            }
            ResourceName::Endpoints {
                namespace,
                service,
                port,
            } => self.endpoints(&Name::new(namespace, service), *port),
        }
    }

    /// The service account of a pod that has not ended.
    pub fn service_account(&self, namespace: &str, pod: &str) -> Option<&str> {
        let pod = self.index.pods.get(&Name::new(namespace, pod))?;
        (!pod.ended).then_some(pod.service_account.as_str())
    }

    /// Whether all initial objects have been listed.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// The namespaces that have pods with sidecars.
    pub fn meshed_namespaces(&self) -> BTreeSet<String> {
        let pods = self.index.pods.values();
        let meshed = pods.filter(|pod| pod.meshed && !pod.ended);
        meshed.map(|pod| pod.name.namespace.clone()).collect()
    }

    /// The objects that the status of routes depends on.
    pub fn route_objects(&self) -> impl Iterator<Item = Object> {
        let Index {
            namespaces,
            services,
            routes,
            grants,
            ..
        } = &self.index;
        (namespaces.values().cloned().map(Object::Namespace))
            .chain(services.values().cloned().map(Object::Service))
            .chain(routes.values().cloned().map(Object::Route))
            .chain(grants.values().cloned().map(Object::ReferenceGrant))
    }

    /// How many objects there are of each kind.
    pub fn object_counts(&self) -> Vec<(&'static str, usize)> {
        let routes = |kind| {
            let routes = self.index.routes.keys();
            routes.filter(|route| route.kind == kind).count()
        };
        vec![
            ("Namespace", self.index.namespaces.len()),
            ("Service", self.index.services.len()),
            ("Pod", self.index.pods.len()),
            ("EndpointSlice", self.index.slices.len()),
            ("HTTPRoute", routes(RouteKind::Http)),
            ("GRPCRoute", routes(RouteKind::Grpc)),
            ("TLSRoute", routes(RouteKind::Tls)),
            ("TCPRoute", routes(RouteKind::Tcp)),
            ("XBackendTrafficPolicy", self.index.policies.len()),
            ("ReferenceGrant", self.index.grants.len()),
        ]
    }
}

impl Compiled {
    fn new(body: Body, needs: Vec<ResourceName>) -> Self {
        Self {
            version: version::of(&body),
            body,
            needs,
        }
    }
}

fn log_refusal(before: Option<&Object>, after: &Object) {
    let refused = |object: &Object| match object {
        Object::Route(Route { refused, .. }) => refused.clone(),
        _ => None,
    };
    let reason = refused(after);
    if let Some(reason) = &reason
        && before.and_then(refused).as_ref() != Some(reason)
    {
        tracing::warn!(
            object = %after.key(), reason,
            "route is not accepted: traffic is routed as if it did not exist"
        );
    }
}
