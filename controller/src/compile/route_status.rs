//! The verdict on a route, for its status: whether each parent Service accepts it, and whether its
//! backends resolve. It matches the decisions of `http_route` and `service`, in the terms of
//! Gateway API.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use super::Catalog;
use super::http_route::Unresolved;
use super::service::is_parent;
use crate::source::{Name, ParentRef, Route, RouteKind, RouteName, Service, ServicePort};

/// A route, and the verdict on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteStatus {
    pub route: RouteName,
    /// The route's generation that the verdict is about.
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
    /// A condition reason of Gateway API.
    pub reason: &'static str,
    pub message: String,
}

/// Why a route is not in force on a port, in order of precedence.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Loss {
    /// A route of a more specific kind is attached to the port.
    ToKind(RouteKind),
    /// Another TCPRoute takes every connection.
    ToOlder(Name),
    /// The port does not carry HTTP.
    Opaque,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ToKind(kind) => write!(f, "{}s take all of it", kind.as_str()),
            Self::ToOlder(name) => write!(f, "the older TCPRoute {name} takes all of it"),
            Self::Opaque => f.write_str("it is declared to be opaque, so no HTTP is seen there"),
        }
    }
}

/// The winning routes by port number of a Service.
pub(super) type ServiceWinners = HashMap<u16, PortWinners>;

/// The winning routes of a port. Routes of different namespaces do not compete: they apply to
/// different clients, or one replaces the other.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PortWinners {
    /// The port does not carry HTTP.
    opaque: bool,
    by_namespace: HashMap<String, Winner>,
}

/// The first of one namespace's routes.
#[derive(Debug, PartialEq, Eq)]
struct Winner {
    kind: RouteKind,
    /// The oldest TCPRoute, where the kind is TCPRoute: it takes every connection.
    oldest: Option<Name>,
}

impl Catalog {
    /// The statuses of all routes, sorted by name.
    #[cfg(test)]
    pub fn route_statuses(&self) -> Vec<RouteStatus> {
        let mut statuses: Vec<RouteStatus> = (self.index.routes.values())
            .map(|route| {
                let parents = route.parents.iter().map(|parent| &parent.service);
                let winners = parents.filter_map(|name| {
                    let service = self.index.services.get(name)?;
                    Some((name.clone(), self.winners(service)))
                });
                self.route_status(route, &winners.collect())
            })
            .collect();
        statuses.sort_by(|a, b| a.route.cmp(&b.route));
        statuses
    }

    /// `winners`: for every Service that is a parent of the route.
    pub(super) fn route_status(
        &self,
        route: &Route,
        winners: &HashMap<Name, ServiceWinners>,
    ) -> RouteStatus {
        let resolved_refs = self.resolved_refs(route);
        let parents = (route.parents.iter()).map(|parent| ParentStatus {
            parent: parent.clone(),
            accepted: self.accepted(route, parent, winners.get(&parent.service)),
            resolved_refs: resolved_refs.clone(),
        });
        RouteStatus {
            route: route.id(),
            generation: route.generation,
            parents: parents.collect(),
        }
    }

    /// The winning routes on each port of a Service: one pass over its routes for each port.
    pub(super) fn winners(&self, service: &Service) -> ServiceWinners {
        let of_port = |port: &ServicePort| {
            let mut by_namespace: HashMap<String, Winner> = HashMap::new();
            let mut oldest: HashMap<&str, &Route> = HashMap::new();
            for route in self.routes_on(service, port) {
                let namespace = &route.name.namespace;
                if route.kind == RouteKind::Tcp {
                    let first = oldest.entry(namespace).or_insert(route);
                    if route.age() < first.age() {
                        *first = route;
                    }
                }
                match by_namespace.get_mut(namespace) {
                    Some(winner) => winner.kind = winner.kind.max(route.kind),
                    None => {
                        let kind = route.kind;
                        by_namespace.insert(namespace.clone(), Winner { kind, oldest: None });
                    }
                }
            }
            for (namespace, winner) in &mut by_namespace {
                if winner.kind == RouteKind::Tcp {
                    let oldest = oldest.get(namespace.as_str());
                    winner.oldest = oldest.map(|route| route.name.clone());
                }
            }
            PortWinners {
                opaque: self.is_opaque(service, port),
                by_namespace,
            }
        };
        let ports = service.ports.iter().map(|port| (port.port, of_port(port)));
        ports.collect()
    }

    fn accepted(
        &self,
        route: &Route,
        parent: &ParentRef,
        winners: Option<&ServiceWinners>,
    ) -> Verdict {
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
        let (mut has_some, mut losses) = (false, BTreeMap::<Loss, Vec<String>>::new());
        for port in ports {
            let winners = winners.and_then(|ports| ports.get(&port.port));
            match winners.and_then(|winners| winners.loss(route)) {
                None => has_some = true,
                Some(loss) => losses.entry(loss).or_default().push(port.port.to_string()),
            }
        }
        let lost =
            (losses.iter()).map(|(loss, ports)| format!("port {}: {loss}", ports.join(", ")));
        let lost = lost.collect::<Vec<_>>().join("; ");
        match losses.first_key_value() {
            None => Verdict::yes("Accepted", format!("in force for Service {name}")),
            Some(_) if has_some => {
                let message = format!("in force for Service {name}, but not everywhere: {lost}");
                Verdict::yes("Accepted", message)
            }
            Some((worst, _)) => {
                let message = format!("in force nowhere on Service {name}: {lost}");
                match worst {
                    Loss::ToKind(_) => Verdict::no("Conflicted", message),
                    Loss::Opaque => Verdict::no("NoMatchingParent", message),
                    // Not an error of the route, according to the conformance suite: it waits until
                    // the other is deleted.
                    Loss::ToOlder(_) => Verdict::yes("Accepted", message),
                }
            }
        }
    }

    /// The problem of the first backend or mirror that can't be used.
    fn resolved_refs(&self, route: &Route) -> Verdict {
        let mut referents = route.referents();
        let unresolved = referents.find_map(|referent| self.resolve(route, referent).err());
        match unresolved {
            Some(Unresolved { reason, message }) => Verdict::no(reason, message),
            None => Verdict::yes("ResolvedRefs", "every backend is known".to_owned()),
        }
    }
}

impl PortWinners {
    /// Why a route is not in force on one of its ports, if so.
    fn loss(&self, route: &Route) -> Option<Loss> {
        if route.kind.is_http() && self.opaque {
            return Some(Loss::Opaque);
        }
        let winner = self.by_namespace.get(&route.name.namespace)?;
        if winner.kind > route.kind {
            return Some(Loss::ToKind(winner.kind));
        }
        let oldest = winner.oldest.as_ref()?;
        (route.kind == RouteKind::Tcp && *oldest != route.name)
            .then(|| Loss::ToOlder(oldest.clone()))
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
