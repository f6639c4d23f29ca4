//! `http-route/…` and `grpc-route/…`: a route with its backends resolved.

use naru_contract as contract;
use naru_contract::ResourceName;
use naru_contract::http_filter::Kind;
use naru_contract::resource::Body;

use super::{Catalog, Compiled};
use crate::source::{BackendRef, Filter, Name, Referent, Route, RouteKind, RouteName};

/// Why a backend or a mirror can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub(super) struct Unresolved {
    /// The reason for the ResolvedRefs condition.
    pub reason: &'static str,
    pub message: String,
}

/// The resource of a route.
pub(super) fn resource(route: &RouteName) -> ResourceName {
    let Name { namespace, name } = route.name.clone();
    match route.kind {
        RouteKind::Http => ResourceName::HttpRoute { namespace, name },
        RouteKind::Grpc => ResourceName::GrpcRoute { namespace, name },
        RouteKind::Tls => ResourceName::TlsRoute { namespace, name },
        RouteKind::Tcp => ResourceName::TcpRoute { namespace, name },
    }
}

impl Catalog {
    pub(super) fn http_route(&self, kind: RouteKind, name: Name) -> Option<Compiled> {
        let route = self.index.routes.get(&RouteName { kind, name })?;
        if route.refused.is_some() {
            return None;
        }
        let mut needs = Vec::new();
        let rules = (route.rules.iter())
            .map(|rule| contract::HttpRule {
                name: rule.name.clone(),
                matches: rule.matches.clone(),
                filters: self.filters(route, &rule.filters, &mut needs),
                backends: (rule.backends.iter())
                    .map(|backend| self.backend(route, backend, &mut needs))
                    .collect(),
                request_timeout_ms: rule.request_timeout_ms,
                backend_request_timeout_ms: rule.backend_request_timeout_ms,
                retry: rule.retry.clone(),
            })
            .collect();
        needs.sort();
        needs.dedup();
        let body = Body::HttpRoute(contract::HttpRoute {
            namespace: route.name.namespace.clone(),
            name: route.name.name.clone(),
            rules,
        });
        Some(Compiled::new(body, needs))
    }

    pub(super) fn backend(
        &self,
        route: &Route,
        backend: &BackendRef,
        needs: &mut Vec<ResourceName>,
    ) -> contract::HttpBackend {
        let (endpoints, invalid) = match self.resolve(route, &backend.to) {
            Ok(name) => {
                let text = name.to_string();
                needs.push(name);
                (text, String::new())
            }
            Err(unresolved) => (String::new(), unresolved.to_string()),
        };
        contract::HttpBackend {
            weight: backend.weight,
            endpoints,
            invalid,
            filters: self.filters(route, &backend.filters, needs),
        }
    }

    /// Without mirrors that can't be resolved: requests are forwarded without them (Gateway API).
    fn filters(
        &self,
        route: &Route,
        filters: &[Filter],
        needs: &mut Vec<ResourceName>,
    ) -> Vec<contract::HttpFilter> {
        let mut served = Vec::with_capacity(filters.len());
        for filter in filters {
            match filter {
                Filter::Ready(filter) => served.push(filter.clone()),
                Filter::Mirror(mirror) => {
                    let Ok(name) = self.resolve(route, &mirror.to) else {
                        continue;
                    };
                    let kind = Kind::Mirror(contract::Mirror {
                        endpoints: name.to_string(),
                        numerator: mirror.numerator,
                        denominator: mirror.denominator,
                    });
                    served.push(contract::HttpFilter { kind: Some(kind) });
                    needs.push(name);
                }
            }
        }
        served
    }

    /// The endpoints of a backend or a mirror.
    pub(super) fn resolve(&self, route: &Route, to: &Referent) -> Result<ResourceName, Unresolved> {
        let name = &to.name;
        let no = |reason, message| Err(Unresolved { reason, message });
        if !to.is_service() {
            let group = match to.group.as_str() {
                "" => "core",
                group => group,
            };
            let message = format!(
                "{} of group {group} can't be a backend of {}, only a Service can",
                to.kind, route.name
            );
            return no("InvalidKind", message);
        }
        if !self.may_refer(route, name) {
            let message = format!(
                "no ReferenceGrant in {} lets {}s of {} refer to Service {name}",
                name.namespace,
                route.kind.as_str(),
                route.name.namespace
            );
            return no("RefNotPermitted", message);
        }
        let Some(service) = self.index.services.get(name) else {
            return no("BackendNotFound", format!("there is no Service {name}"));
        };
        // The CRD requires a port for a Service.
        let port = to.port.unwrap_or_default();
        if service.external_name {
            let message = format!("Service {name} is an ExternalName, which has no endpoints");
            return no("BackendNotFound", message);
        }
        if self.service_port(name, port).is_none() {
            let message = format!("Service {name} has no TCP port {port}");
            return no("BackendNotFound", message);
        }
        Ok(ResourceName::Endpoints {
            namespace: name.namespace.clone(),
            service: name.name.clone(),
            port,
        })
    }

    /// A consumer route may refer to the namespace of its parent Service: its clients have access
    /// anyway, and it applies to no one else (GEP-1294).
    fn may_refer(&self, route: &Route, service: &Name) -> bool {
        let own = &route.name.namespace;
        service.namespace == *own
            || (route.parents.iter()).any(|p| p.service.namespace == service.namespace)
            || self.index.is_granted(route.kind, own, service)
    }
}
