//! The statuses of all routes, kept up to date. In: what happened to the objects that they depend
//! on. Out: what is thought of the routes that a change concerns.
//!
//! It has objects of its own and shares nothing with what serves proxies, so that no push waits for
//! it. Who wins on a Service's ports is worked out once for all its routes, and only when a route
//! or the Service changes.

use std::collections::{HashMap, HashSet};

use naru_contract::MtlsMode;

use super::route_status::{RouteStatus, ServiceWinners};
use super::{Catalog, CatalogOptions};
use crate::source::{
    Event, Kind, Name, Namespace, Object, ReferenceGrant, Route, RouteName, Service,
};

/// See the module.
pub struct RouteStatuses {
    /// Of nothing but the objects that statuses depend on.
    catalog: Catalog,
    winners: HashMap<Name, ServiceWinners>,
    /// Services on which other routes may win than `winners` says.
    stale: HashSet<Name>,
    /// Routes of which something else may be thought than when they were last taken.
    concerned: HashSet<RouteName>,
    /// Routes that were deleted, whether or not they were made again under their names.
    deleted: HashSet<RouteName>,
}

/// Whether the status of a route may depend on objects of a kind.
pub fn concerns_routes(kind: Kind) -> bool {
    match kind {
        Kind::Service
        | Kind::HttpRoute
        | Kind::GrpcRoute
        | Kind::TlsRoute
        | Kind::TcpRoute
        | Kind::ReferenceGrant
        // Ports that it declares to be opaque have no HTTP to route.
        | Kind::Namespace => true,
        Kind::Pod | Kind::EndpointSlice | Kind::BackendTrafficPolicy => false,
    }
}

impl Default for RouteStatuses {
    fn default() -> Self {
        // No status depends on these.
        let options = CatalogOptions {
            trust_domain: String::new(),
            mtls: MtlsMode::Permissive,
        };
        Self {
            catalog: Catalog::new(options),
            winners: HashMap::new(),
            stale: HashSet::new(),
            concerned: HashSet::new(),
            deleted: HashSet::new(),
        }
    }
}

impl RouteStatuses {
    /// Takes in a change. One of a kind that no status depends on means nothing.
    pub fn apply(&mut self, event: Event) {
        let index = &mut self.catalog.index;
        let (before, after) = match event {
            Event::Apply(object) if concerns_routes(object.key().kind) => {
                (index.apply(object.clone()), Some(object))
            }
            Event::Delete(key) => (index.delete(&key), None),
            Event::Apply(_) | Event::Synced => return,
        };
        if before == after {
            return;
        }
        match (before, after) {
            (None, Some(Object::Service(o))) | (Some(Object::Service(o)), None) => {
                self.service(&o.name);
            }
            (Some(Object::Service(before)), Some(Object::Service(after))) => {
                let same = |of: fn(&Service) -> bool| of(&before) == of(&after);
                if before.ports != after.ports
                    || before.annotations.opaque_ports != after.annotations.opaque_ports
                    || !same(|service| service.external_name)
                {
                    self.service(&after.name);
                }
            }
            (Some(Object::Route(before)), after) => {
                let after = match after {
                    Some(Object::Route(after)) => Some(after),
                    _ => None,
                };
                self.route(Some(&before), after.as_ref());
            }
            (None, Some(Object::Route(after))) => self.route(None, Some(&after)),
            (before, after) => {
                for object in [before, after].into_iter().flatten() {
                    match object {
                        Object::Namespace(namespace) => self.namespace(&namespace),
                        Object::ReferenceGrant(grant) => self.grant(&grant),
                        _ => {}
                    }
                }
            }
        }
    }

    fn service(&mut self, name: &Name) {
        let index = &self.catalog.index;
        self.stale.insert(name.clone());
        let routes = index.routes_by_parent.get(name);
        let routes = routes.chain(index.routes_by_backend.get(name));
        self.concerned.extend(routes.cloned());
    }

    fn route(&mut self, before: Option<&Route>, after: Option<&Route>) {
        let both = || before.into_iter().chain(after);
        self.concerned.extend(both().map(Route::id));
        if after.is_none() {
            self.deleted.extend(before.map(Route::id));
        }
        // What decides which of several routes wins.
        let attachment = |route: &Route| {
            let refused = route.refused.is_some();
            (route.parents.clone(), route.created, refused)
        };
        if before.map(attachment) != after.map(attachment) {
            let parents = both().flat_map(|route| &route.parents);
            self.stale
                .extend(parents.map(|parent| parent.service.clone()));
        }
    }

    fn namespace(&mut self, namespace: &Namespace) {
        let services = (self.catalog.index.services_by_namespace).get(&namespace.name);
        self.stale.extend(services.cloned());
    }

    fn grant(&mut self, grant: &ReferenceGrant) {
        let index = &self.catalog.index;
        let routes = (index.routes_by_backend_namespace).get(&grant.name.namespace);
        self.concerned.extend(routes.cloned());
    }

    /// What is thought of every route that a change since the last call concerns, in order of name.
    /// `None`: it is gone, or was before what follows.
    pub fn take(&mut self) -> Vec<(RouteName, Option<RouteStatus>)> {
        for name in std::mem::take(&mut self.stale) {
            let index = &self.catalog.index;
            let mut routes = index.routes_by_parent.get(&name).peekable();
            let service = index.services.get(&name);
            let winners = (service.filter(|_| routes.peek().is_some()))
                .map(|service| self.catalog.winners(service));
            if self.winners.get(&name) != winners.as_ref() {
                self.concerned.extend(routes.cloned());
            }
            match winners {
                Some(winners) => self.winners.insert(name, winners),
                None => self.winners.remove(&name),
            };
        }
        let mut taken: Vec<_> = (std::mem::take(&mut self.deleted).into_iter())
            .map(|name| (name, None))
            .collect();
        for name in std::mem::take(&mut self.concerned) {
            if let Some(route) = self.catalog.index.routes.get(&name) {
                let status = self.catalog.route_status(route, &self.winners);
                taken.push((name, Some(status)));
            }
        }
        taken.sort_by(|(a, _), (b, _)| a.cmp(b));
        taken
    }

    /// Every route is taken by the next [`take`](Self::take).
    pub fn concern_all(&mut self) {
        (self.concerned).extend(self.catalog.index.routes.keys().cloned());
    }
}
