//! Maintains the statuses of all routes. In: events of the objects that they depend on. Out: the
//! verdicts on the routes that a change affects.
//!
//! It has its own copy of the objects, separate from the catalog that serves proxies, so that no
//! push waits for it. The winners on a Service's ports are computed once for all its routes, and
//! only when a route or the Service changes.

use std::collections::{HashMap, HashSet};

use naru_contract::MtlsMode;

use super::route_status::{RouteStatus, ServiceWinners};
use super::{Catalog, CatalogOptions};
use crate::source::{
    Event, Kind, Name, Namespace, Object, ReferenceGrant, Route, RouteName, Service,
};

/// See the module.
pub struct RouteStatuses {
    /// Contains only objects that statuses depend on.
    catalog: Catalog,
    winners: HashMap<Name, ServiceWinners>,
    /// Services whose entry in `winners` may be outdated.
    stale: HashSet<Name>,
    /// Routes whose verdict may have changed since the last `take`.
    concerned: HashSet<RouteName>,
    /// Deleted routes, including those that were created again under the same name.
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
        // Its opaque ports do not carry HTTP.
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
    /// Applies a change. Kinds that no status depends on are ignored.
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
        // The fields that decide which of several routes wins.
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

    /// The verdicts on all routes that changes since the last call affect, sorted by name. `None`:
    /// the route is gone, or was gone in between.
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

    /// The next [`take`](Self::take) returns every route.
    pub fn concern_all(&mut self) {
        (self.concerned).extend(self.catalog.index.routes.keys().cloned());
    }
}
