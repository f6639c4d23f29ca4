//! `http-route/…`: an HTTPRoute with its backends resolved.

use naru_contract as contract;
use naru_contract::ResourceName;
use naru_contract::resource::Body;

use super::{Catalog, Compiled};
use crate::source::{BackendRef, HttpRoute, Name};

impl Catalog {
    pub(super) fn http_route(&self, name: &Name) -> Option<Compiled> {
        let route = self.index.routes.get(name)?;
        if route.refused.is_some() {
            return None;
        }
        let mut needs = Vec::new();
        let rules = (route.rules.iter())
            .map(|rule| contract::HttpRule {
                name: rule.name.clone(),
                matches: rule.matches.clone(),
                filters: rule.filters.clone(),
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
            namespace: name.namespace.clone(),
            name: name.name.clone(),
            rules,
        });
        Some(Compiled::new(body, needs))
    }

    fn backend(
        &self,
        route: &HttpRoute,
        backend: &BackendRef,
        needs: &mut Vec<ResourceName>,
    ) -> contract::HttpBackend {
        let (endpoints, invalid) = match self.resolve(route, backend) {
            Ok(name) => {
                let text = name.to_string();
                needs.push(name);
                (text, String::new())
            }
            Err(reason) => (String::new(), reason),
        };
        contract::HttpBackend {
            weight: backend.weight,
            endpoints,
            invalid,
            filters: backend.filters.clone(),
        }
    }

    /// The endpoints that a backend stands for, or a reason of the ResolvedRefs condition with what it is about.
    fn resolve(&self, route: &HttpRoute, backend: &BackendRef) -> Result<ResourceName, String> {
        let name = &backend.name;
        if !backend.is_service() {
            let group = match backend.group.as_str() {
                "" => "core",
                group => group,
            };
            return Err(format!(
                "InvalidKind: {} of group {group} can't be a backend of {}, only a Service can",
                backend.kind, route.name
            ));
        }
        if !self.may_refer(route, name) {
            return Err(format!(
                "RefNotPermitted: no ReferenceGrant in {} lets HTTPRoutes of {} refer to Service {name}",
                name.namespace, route.name.namespace
            ));
        }
        let Some(service) = self.index.services.get(name) else {
            return Err(format!("BackendNotFound: there is no Service {name}"));
        };
        // The CRD demands a port for a Service.
        let port = backend.port.unwrap_or_default();
        if service.external_name {
            return Err(format!(
                "BackendNotFound: Service {name} is an ExternalName, which has no endpoints"
            ));
        }
        if self.service_port(name, port).is_none() {
            return Err(format!(
                "BackendNotFound: Service {name} has no TCP port {port}"
            ));
        }
        Ok(ResourceName::Endpoints {
            namespace: name.namespace.clone(),
            service: name.name.clone(),
            port,
        })
    }

    /// A route of a consumer may send to the namespace of the Service that it is about: its clients could do so anyway, and
    /// it holds for no one else (GEP-1294).
    fn may_refer(&self, route: &HttpRoute, service: &Name) -> bool {
        let own = &route.name.namespace;
        service.namespace == *own
            || (route.parents.iter()).any(|p| p.service.namespace == service.namespace)
            || self.index.is_granted(own, service)
    }
}
