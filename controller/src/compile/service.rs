//! `service/…`: one port of a Service, as the clients of one namespace see it.

use naru_contract as contract;
use naru_contract::resource::Body;
use naru_contract::{Protocol, ResourceName, RetryBudget};

use super::{Catalog, Compiled, http_route};
use crate::source::{Name, ParentRef, Route, RouteKind, Service, ServicePort};

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
        let (mut http_routes, mut opaque_routes) = (Vec::new(), Vec::new());
        for route in self.attached(client_namespace, service, port) {
            let resource = http_route::resource(&route.id());
            match route.kind.is_http() {
                true => http_routes.push(resource.to_string()),
                false => opaque_routes.push(resource.to_string()),
            }
            needs.push(resource);
        }
        let body = Body::Service(contract::Service {
            namespace: name.namespace.clone(),
            name: name.name.clone(),
            port: u32::from(port.port),
            protocol: protocol as i32,
            http_routes,
            endpoints: endpoints.to_string(),
            retry_budget: self.retry_budget(name),
            opaque_routes,
        });
        Some(Compiled::new(body, needs))
    }

    /// The routes in force for the clients of a namespace, in order of precedence. Routes of their
    /// own namespace (the consumer) replace those of the Service's namespace (the producer); those
    /// of other namespaces do not apply (GEP-1294).
    fn attached(&self, client: &str, service: &Service, port: &ServicePort) -> Vec<&Route> {
        let own = &service.name.namespace;
        let (producer, consumer): (Vec<_>, Vec<_>) = (self.routes_on(service, port))
            .filter(|route| route.name.namespace == *own || route.name.namespace == client)
            .partition(|route| route.name.namespace == *own);
        let mut attached = if consumer.is_empty() {
            producer
        } else {
            consumer
        };
        // The most specific kind wins.
        let kind = attached.iter().map(|route| route.kind).max();
        attached.retain(|route| Some(route.kind) == kind);
        attached.sort_by(|a, b| a.age().cmp(&b.age()));
        if kind == Some(RouteKind::Tcp) {
            // A TCPRoute matches every connection, so the others never match.
            attached.truncate(1);
        }
        attached
    }

    /// Routes that may be in force on a port for some client.
    pub(super) fn routes_on<'a, 'b>(
        &'a self,
        service: &'b Service,
        port: &'b ServicePort,
    ) -> impl Iterator<Item = &'a Route> + use<'a, 'b> {
        let opaque = self.is_opaque(service, port);
        (self.index.routes_by_parent.get(&service.name))
            .filter(move |route| !(opaque && route.kind.is_http()))
            .filter_map(|route| self.index.routes.get(route))
            .filter(|route| route.refused.is_none())
            .filter(|route| (route.parents.iter()).any(|p| is_parent(p, &service.name, port)))
    }

    /// Whether the port is declared not to carry HTTP.
    pub(super) fn is_opaque(&self, service: &Service, port: &ServicePort) -> bool {
        self.declared_of_service(service, port) == Some(Protocol::Tcp)
    }

    /// From the oldest policy with a retry budget for the Service.
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
