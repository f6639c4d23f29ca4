//! `service/…`: one port of a Service, as the clients of one namespace see it.

use naru_contract as contract;
use naru_contract::resource::Body;
use naru_contract::{Protocol, ResourceName, RetryBudget};

use super::{Catalog, Compiled, http_route};
use crate::source::{HttpRoute, Name, ParentRef, RouteKind, ServicePort};

impl Catalog {
    pub(super) fn service(
        &self,
        client_namespace: &str,
        name: &Name,
        port: u16,
    ) -> Option<Compiled> {
        let (service, port) = self.service_port(name, port)?;
        let protocol = (self.declared_of_service(service, port)).unwrap_or(Protocol::Detect);
        let endpoints = ResourceName::Endpoints {
            namespace: name.namespace.clone(),
            service: name.name.clone(),
            port: port.port,
        };
        let mut needs = vec![endpoints.clone()];
        if protocol != Protocol::Tcp {
            needs.extend(
                self.attached(client_namespace, name, port)
                    .into_iter()
                    .map(|route| http_route::resource(&route.id())),
            );
        }
        let body = Body::Service(contract::Service {
            namespace: name.namespace.clone(),
            name: name.name.clone(),
            port: u32::from(port.port),
            protocol: protocol as i32,
            http_routes: needs[1..].iter().map(ResourceName::to_string).collect(),
            endpoints: endpoints.to_string(),
            retry_budget: self.retry_budget(name),
        });
        Some(Compiled::new(body, needs))
    }

    /// The routes in force for the clients of a namespace, the one that wins first. Routes that its own namespace (the
    /// consumer) has made replace those of the Service's namespace (the producer); those of others mean nothing (GEP-1294).
    fn attached(&self, client: &str, service: &Name, port: &ServicePort) -> Vec<&HttpRoute> {
        let routes = (self.index.routes_by_parent.get(service))
            .filter_map(|name| self.index.routes.get(name))
            .filter(|route| route.refused.is_none())
            .filter(|route| route.parents.iter().any(|p| is_parent(p, service, port)));
        let (producer, consumer): (Vec<_>, Vec<_>) = routes
            .filter(|route| {
                let namespace = &route.name.namespace;
                *namespace == service.namespace || namespace == client
            })
            .partition(|route| route.name.namespace == service.namespace);
        let mut attached = if consumer.is_empty() {
            producer
        } else {
            consumer
        };
        // The more specific kind wins.
        if attached.iter().any(|route| route.kind == RouteKind::Grpc) {
            attached.retain(|route| route.kind == RouteKind::Grpc);
        }
        attached.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
        attached
    }

    /// Of the oldest policy that has one for the Service.
    fn retry_budget(&self, service: &Name) -> Option<RetryBudget> {
        (self.index.policies_by_target.get(service))
            .filter_map(|name| self.index.policies.get(name))
            .filter(|policy| policy.retry_budget.is_some())
            .min_by_key(|policy| (policy.created, &policy.name))
            .and_then(|policy| policy.retry_budget.clone())
    }
}

pub(super) fn is_parent(parent: &ParentRef, service: &Name, port: &ServicePort) -> bool {
    parent.service == *service
        && parent.port.is_none_or(|number| number == port.port)
        && (parent.port_name.as_ref()).is_none_or(|name| *name == port.name)
}
