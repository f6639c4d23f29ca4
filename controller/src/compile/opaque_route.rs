//! `tls-route/…` and `tcp-route/…`: a route for connections with its backends resolved.

use naru_contract as contract;
use naru_contract::resource::Body;

use super::{Catalog, Compiled};
use crate::source::{Name, RouteKind, RouteName};

impl Catalog {
    pub(super) fn opaque_route(&self, kind: RouteKind, name: Name) -> Option<Compiled> {
        let route = self.index.routes.get(&RouteName { kind, name })?;
        if route.refused.is_some() {
            return None;
        }
        let mut needs = Vec::new();
        let mut backends = Vec::new();
        for backend in route.rules.iter().flat_map(|rule| &rule.backends) {
            let backend = self.backend(route, backend, &mut needs);
            backends.push(contract::OpaqueBackend {
                weight: backend.weight,
                endpoints: backend.endpoints,
                invalid: backend.invalid,
            });
        }
        needs.sort();
        needs.dedup();
        let Name { namespace, name } = route.name.clone();
        let body = match kind {
            RouteKind::Tls => Body::TlsRoute(contract::TlsRoute {
                namespace,
                name,
                hostnames: route.hostnames.clone(),
                backends,
            }),
            _ => Body::TcpRoute(contract::TcpRoute {
                namespace,
                name,
                backends,
            }),
        };
        Some(Compiled::new(body, needs))
    }
}
