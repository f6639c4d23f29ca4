//! What is thought of a route, for its status: whether each Service that it names as a parent takes it, and whether its
//! backends are there. It is what `http_route` and `service` act upon, put into Gateway API's words.

use super::Catalog;
use super::http_route::Unresolved;
use super::service::is_parent;
use crate::source::{HttpRoute, Name, ParentRef, RouteName, ServicePort};

/// A route, and what is thought of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteStatus {
    pub route: RouteName,
    /// Of the route that this is thought of.
    pub generation: i64,
    /// One for each parent that is a Service.
    pub parents: Vec<ParentStatus>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentStatus {
    pub parent: ParentRef,
    pub accepted: Verdict,
    pub resolved_refs: Verdict,
}

/// A condition without its type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub holds: bool,
    /// One of Gateway API's.
    pub reason: &'static str,
    pub message: String,
}

impl Catalog {
    /// Of every route, in order of name.
    pub fn route_statuses(&self) -> Vec<RouteStatus> {
        let mut statuses: Vec<RouteStatus> = (self.index.routes.values())
            .map(|route| self.route_status(route))
            .collect();
        statuses.sort_by(|a, b| a.route.cmp(&b.route));
        statuses
    }

    fn route_status(&self, route: &HttpRoute) -> RouteStatus {
        let resolved_refs = self.resolved_refs(route);
        let parents = (route.parents.iter()).map(|parent| ParentStatus {
            parent: parent.clone(),
            accepted: self.accepted(route, parent),
            resolved_refs: resolved_refs.clone(),
        });
        RouteStatus {
            route: route.id(),
            generation: route.generation,
            parents: parents.collect(),
        }
    }

    fn accepted(&self, route: &HttpRoute, parent: &ParentRef) -> Verdict {
        let name = &parent.service;
        if let Some(reason) = &route.refused {
            return Verdict::no("UnsupportedValue", reason.clone());
        }
        let Some(service) = self.index.services.get(name) else {
            let message = format!("there is no Service {name}");
            return Verdict::no("NoMatchingParent", message);
        };
        let mut ports = (service.ports.iter())
            .filter(|port| is_parent(parent, name, port))
            .peekable();
        if ports.peek().is_none() {
            let which = match (&parent.port_name, parent.port) {
                (Some(section), _) => format!("TCP port named {section}"),
                (None, Some(port)) => format!("TCP port {port}"),
                (None, None) => "TCP port".to_owned(),
            };
            let message = format!("Service {name} has no {which}");
            return Verdict::no("NoMatchingParent", message);
        }
        if ports.all(|port| self.is_outranked(route, name, port)) {
            let message = format!("a GRPCRoute is in force for Service {name}, and it takes all");
            return Verdict::no("Conflicted", message);
        }
        let message = format!("in force for Service {name}");
        Verdict::yes("Accepted", message)
    }

    /// Whether a route of a more specific kind takes the port's requests from the same clients.
    fn is_outranked(&self, route: &HttpRoute, service: &Name, port: &ServicePort) -> bool {
        let others = (self.index.routes_by_parent.get(service))
            .filter(|other| other.kind > route.kind && other.name.namespace == route.name.namespace)
            .filter_map(|other| self.index.routes.get(other));
        (others.filter(|other| other.refused.is_none()))
            .any(|other| other.parents.iter().any(|p| is_parent(p, service, port)))
    }

    /// What the first backend that can't be used lacks.
    fn resolved_refs(&self, route: &HttpRoute) -> Verdict {
        let mut backends = route.rules.iter().flat_map(|rule| &rule.backends);
        let unresolved = backends.find_map(|backend| self.resolve(route, backend).err());
        match unresolved {
            Some(Unresolved { reason, message }) => Verdict::no(reason, message),
            None => Verdict::yes("ResolvedRefs", "every backend is known".to_owned()),
        }
    }
}

impl Verdict {
    pub fn yes(reason: &'static str, message: String) -> Self {
        Self {
            holds: true,
            reason,
            message,
        }
    }

    fn no(reason: &'static str, message: String) -> Self {
        Self {
            holds: false,
            reason,
            message,
        }
    }
}
