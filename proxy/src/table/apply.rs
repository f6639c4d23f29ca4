//! Applies a push in one step:
//! 1. decode and validate all resources; an invalid one is rejected, and its last valid version
//!    stays;
//! 2. build the resources that depend on them (a Service with its routes), not visible yet;
//! 3. swap: anchors, endpoints, Services, destinations, inbound, so that every reference is to a
//!    resource already in force; removals come last.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use naru_contract as contract;
use naru_contract::ResourceName;
use tracing::{info, warn};

use super::Destination;
use super::decode::{
    Content, Decoded, EndpointSpec, EndpointsContent, OpaqueRouteContent, Problem, ServiceContent,
    Target, decode,
};
use super::locality::split;
use super::store::{Held, Store};
use crate::balance::{Backend, Endpoint, EndpointSet, Load, RetryBudget, next_endpoint_id};
use crate::observe::metrics::{Metrics, PushOutcome, ServiceLabels, TcpLabels};
use crate::route::opaque::{OpaqueBackend, OpaqueRoute, OpaqueRoutes, TlsRoutes};
use crate::route::{Logical, decode_routes, default_rule};
use crate::socket::Direction;

/// Bound on the resources held. 10,000 destinations with a few resources each; a controller that
/// sends more is broken.
const MAX_RESOURCES: usize = 100_000;

/// Bound on the rejections shown.
const MAX_REJECTED: usize = 1_000;

/// Resources that have been validated and are not in force yet.
#[derive(Default)]
struct Staged {
    resources: HashMap<ResourceName, (u64, Content)>,
    logicals: HashMap<ResourceName, Arc<Logical>>,
    rejected: BTreeMap<String, Problem>,
}

impl Staged {
    fn reject(&mut self, name: &ResourceName, problem: Problem) {
        self.resources.remove(name);
        self.rejected.insert(name.to_string(), problem);
    }
}

impl Store {
    /// Puts the valid parts of a push in force.
    pub fn apply(&mut self, push: contract::Push) -> contract::Answer {
        let received = push.updates.len() + push.removed.len();
        let mut staged = Staged::default();
        for resource in push.updates {
            self.stage(resource, &mut staged);
        }
        self.check_routes(&mut staged);
        self.build_services(&mut staged);
        let Staged {
            resources,
            logicals,
            mut rejected,
        } = staged;
        self.put_in_force(resources, logicals, &mut rejected);
        self.remove(&push.removed, &mut rejected);
        self.backends
            .retain(|name, backend| self.held.contains_key(name) || Arc::strong_count(backend) > 1);
        let outcome = if rejected.is_empty() {
            PushOutcome::Accepted
        } else {
            PushOutcome::Rejected
        };
        self.metrics.push(outcome, received, self.held.len());
        for (name, reason) in &rejected {
            warn!(name, reason, "rejected; keeping the last good version");
        }
        let answer = contract::Answer {
            sequence: push.sequence,
            rejected: rejected
                .iter()
                .map(|(name, reason)| contract::Rejection {
                    name: name.clone(),
                    reason: reason.clone(),
                })
                .collect(),
        };
        self.rejected.extend(rejected);
        while self.rejected.len() > MAX_REJECTED {
            self.rejected.pop_first();
        }
        answer
    }

    /// Step 1: one resource.
    fn stage(&self, resource: contract::Resource, staged: &mut Staged) {
        let name: ResourceName = match resource.name.parse() {
            Ok(name) => name,
            Err(error) => {
                let name = resource.name.chars().take(256).collect();
                staged.rejected.insert(name, error.to_string());
                return;
            }
        };
        if resource.version == 0 {
            return staged.reject(&name, "version: 0 is no version".to_owned());
        }
        let is_new = !self.held.contains_key(&name) && !staged.resources.contains_key(&name);
        if is_new && self.held.len() + staged.resources.len() >= MAX_RESOURCES {
            return staged.reject(&name, format!("more than {MAX_RESOURCES} resources"));
        }
        match decode(&name, resource.body).and_then(|decoded| self.complete(&name, decoded, staged))
        {
            Ok(content) => {
                staged.rejected.remove(&name.to_string());
                staged.resources.insert(name, (resource.version, content));
            }
            Err(problem) => staged.reject(&name, problem),
        }
    }

    /// Applies a change to the held version, and performs the checks that need the state in force.
    fn complete(
        &self,
        name: &ResourceName,
        decoded: Decoded,
        staged: &Staged,
    ) -> Result<Content, Problem> {
        match decoded {
            Decoded::Whole(content) => {
                if let Content::TrustAnchors(anchors) = &content {
                    self.identity
                        .check_trust_anchors(anchors.certificates.clone())
                        .map_err(|error| error.to_string())?;
                }
                Ok(content)
            }
            Decoded::Change(change) => {
                let base = match staged.resources.get(name) {
                    Some((version, content)) => Some((*version, content)),
                    None => self
                        .held
                        .get(name)
                        .map(|held| (held.version, &held.content)),
                };
                match base {
                    Some((version, Content::Endpoints(endpoints))) if version == change.base => {
                        Ok(Content::Endpoints(endpoints.changed(change)))
                    }
                    Some((version, _)) => Err(format!(
                        "base_version: the version in force is {version:x}, not {:x}",
                        change.base
                    )),
                    None => Err("base_version: nothing is in force".to_owned()),
                }
            }
        }
    }

    /// Step 1, for errors that only decoding a whole route reveals.
    fn check_routes(&mut self, staged: &mut Staged) {
        // Counters that are never exposed: the route may not be attached to a Service yet.
        let metrics = Metrics::default();
        let labels = ServiceLabels {
            namespace: "".into(),
            service: "".into(),
            port: 0,
        };
        let mut wrong = Vec::new();
        for (name, (_, content)) in &staged.resources {
            if let Content::HttpRoute(route) = content {
                let resolve = &mut |name: &str| backend(&mut self.backends, name);
                if let Err(error) = decode_routes(&[route.as_ref()], resolve, &metrics, &labels) {
                    wrong.push((name.clone(), format!("{}: {}", error.field, error.problem)));
                }
            }
        }
        for (name, problem) in wrong {
            staged.reject(&name, problem);
        }
    }

    /// Step 2: every Service that has changed, or one of whose routes has.
    fn build_services(&mut self, staged: &mut Staged) {
        let names: HashSet<ResourceName> = staged
            .resources
            .iter()
            .map(|(name, (_, content))| (name, content))
            .chain(self.held.iter().map(|(name, held)| (name, &held.content)))
            .filter_map(|(name, content)| match content {
                Content::Service(service) => {
                    let changed = staged.resources.contains_key(name)
                        || service
                            .routes()
                            .any(|route| staged.resources.contains_key(route));
                    changed.then(|| name.clone())
                }
                _ => None,
            })
            .collect();
        for name in names {
            match self.build_service(&name, &staged.resources) {
                Ok(logical) => {
                    staged.logicals.insert(name, logical);
                }
                Err(problem) => staged.reject(&name, problem),
            }
        }
    }

    fn build_service(
        &mut self,
        name: &ResourceName,
        staged: &HashMap<ResourceName, (u64, Content)>,
    ) -> Result<Arc<Logical>, Problem> {
        let held = &self.held;
        let find = |name: &ResourceName| match staged.get(name) {
            Some((_, content)) => Some(content),
            None => held.get(name).map(|held| &held.content),
        };
        let Some(Content::Service(service)) = find(name) else {
            return Err("the Service is gone".to_owned());
        };
        // A route that was rejected and never had a valid version counts as unattached.
        let routes: Vec<&contract::HttpRoute> = service
            .http_routes
            .iter()
            .filter_map(find)
            .filter_map(|content| match content {
                Content::HttpRoute(route) => Some(route.as_ref()),
                _ => None,
            })
            .collect();
        let labels = service_labels(service);
        let routes = if routes.is_empty() {
            None
        } else {
            let resolve = &mut |name: &str| backend(&mut self.backends, name);
            let routes = decode_routes(&routes, resolve, &self.metrics, &labels)
                .map_err(|error| error.to_string())?;
            Some(routes)
        };
        let opaque_routes = {
            let routes = service.opaque_routes.iter();
            let found = routes.filter_map(|name| match find(name)? {
                Content::OpaqueRoute(route) => Some((name, route)),
                _ => None,
            });
            opaque_routes(&found.collect::<Vec<_>>(), &mut self.backends)
        };
        let own = backend_named(&mut self.backends, &service.endpoints)
            .ok_or("endpoints: names no endpoints")?;
        let old_budget = match held.get(name).map(|held| &held.content) {
            Some(Content::Service(old)) if old.budget == service.budget => self
                .logicals
                .get(name)
                .map(|logical| logical.budget.clone()),
            _ => None,
        };
        let budget = old_budget.unwrap_or_else(|| Arc::new(service.retry_budget()));
        self.metrics.watch_budget(&labels, &budget);
        Ok(Arc::new(Logical {
            namespace: service.namespace.clone(),
            service: service.name.clone(),
            port: service.port,
            protocol: service.protocol,
            routes,
            opaque_routes,
            default_rule: Arc::new(default_rule(own, &self.metrics, &labels)),
            budget,
            tcp: self.metrics.tcp(outbound_tcp(&labels)),
        }))
    }

    /// Step 3.
    fn put_in_force(
        &mut self,
        mut resources: HashMap<ResourceName, (u64, Content)>,
        logicals: HashMap<ResourceName, Arc<Logical>>,
        rejected: &mut BTreeMap<String, Problem>,
    ) {
        if let Some((_, Content::TrustAnchors(anchors))) =
            resources.get(&ResourceName::TrustAnchors)
        {
            let certificates = anchors.certificates.clone();
            let count = certificates.len();
            match self.identity.set_trust_anchors(certificates) {
                Ok(changed) => {
                    if changed {
                        info!(anchors = count, "new trust anchors are in force");
                    }
                    self.identity.set_issuing(anchors.issuing.clone());
                }
                Err(error) => {
                    let name = ResourceName::TrustAnchors;
                    rejected.insert(name.to_string(), error.to_string());
                    resources.remove(&name);
                }
            }
        }
        let place = match resources.get(&ResourceName::Inbound) {
            Some((_, Content::Inbound(_, place))) if *place != self.place => Some(place.clone()),
            _ => None,
        };
        if let Some(place) = place {
            self.place = place;
            self.choose_again();
        }
        for (name, (_, content)) in &resources {
            if let Content::Endpoints(endpoints) = content {
                self.set_endpoints(name, endpoints);
            }
        }
        let mut changed: HashSet<ResourceName> = logicals.keys().cloned().collect();
        self.logicals.extend(logicals);
        changed.extend(resources.keys().cloned());
        let mut inbound = None;
        for (name, (version, content)) in resources {
            if let Content::Inbound(content, _) = &content {
                inbound = Some(content.clone());
            }
            self.rejected.remove(&name.to_string());
            self.held.insert(
                name,
                Held {
                    version,
                    content,
                    since: SystemTime::now(),
                },
            );
        }
        self.point_destinations(&changed);
        if let Some(inbound) = inbound {
            self.shared.set_inbound(inbound);
        }
    }

    /// Updates the cells of all destinations that are in `changed`, or whose Service is.
    fn point_destinations(&mut self, changed: &HashSet<ResourceName>) {
        let cells: Vec<_> = self
            .cells
            .values()
            .map(|entry| entry.cell.clone())
            .filter(|cell| {
                let name = ResourceName::Destination(cell.address);
                let service = match self.content(&name) {
                    Some(Content::Destination(Target::Service(service))) => Some(service),
                    _ => None,
                };
                changed.contains(&name) || service.is_some_and(|service| changed.contains(service))
            })
            .collect();
        for cell in cells {
            let old = cell.load().clone();
            if let Some(destination) = self.destination(cell.address, Some(&old)) {
                cell.store(destination);
            }
        }
    }

    /// The current destination at `address`; `old` is the previous one. `None`: unchanged, as the
    /// controller has not answered, or its Service was rejected and never had a valid version.
    pub(super) fn destination(
        &mut self,
        address: SocketAddr,
        old: Option<&Destination>,
    ) -> Option<Destination> {
        let name = ResourceName::Destination(address);
        let Some(Content::Destination(target)) = self.content(&name) else {
            return None;
        };
        match target.clone() {
            Target::Passthrough => Some(Destination::Passthrough),
            Target::Service(service) => {
                let logical = self.logicals.get(&service)?;
                Some(Destination::Logical(logical.clone()))
            }
            Target::Pod {
                endpoint,
                protocol,
                namespace,
                service,
            } => {
                let labels = ServiceLabels {
                    namespace: namespace.clone(),
                    service: service.clone(),
                    port: endpoint.address.port(),
                };
                let set = EndpointSet::new(vec![self.endpoint(&endpoint, &labels)]);
                let backend = Backend::new(namespace.clone(), service.clone(), labels.port, set);
                let rule = default_rule(Arc::new(backend), &self.metrics, &labels);
                let budget = match old {
                    Some(Destination::Logical(logical)) => logical.budget.clone(),
                    _ => Arc::new(RetryBudget::default()),
                };
                Some(Destination::Logical(Arc::new(Logical {
                    namespace,
                    service,
                    port: labels.port,
                    protocol,
                    routes: None,
                    opaque_routes: None,
                    default_rule: Arc::new(rule),
                    budget,
                    tcp: self.metrics.tcp(outbound_tcp(&labels)),
                })))
            }
        }
    }

    fn remove(&mut self, names: &[String], rejected: &mut BTreeMap<String, Problem>) {
        for text in names {
            match text.parse() {
                // Without them the proxy could not work at all: a controller that removes them is
                // wrong.
                Ok(ResourceName::TrustAnchors | ResourceName::Inbound) => {
                    rejected.insert(text.clone(), "cannot be removed, only replaced".to_owned());
                }
                Ok(name) => {
                    self.held.remove(&name);
                    self.logicals.remove(&name);
                    self.rejected.remove(text);
                }
                Err(error) => {
                    let text = text.chars().take(256).collect();
                    rejected.insert(text, error.to_string());
                }
            }
        }
    }

    /// The proxy's place has changed: it may have to use other endpoints.
    fn choose_again(&mut self) {
        let held = std::mem::take(&mut self.held);
        for (name, held) in &held {
            if let Content::Endpoints(endpoints) = &held.content {
                self.set_endpoints(name, endpoints);
            }
        }
        self.held = held;
    }

    fn set_endpoints(&mut self, name: &ResourceName, content: &EndpointsContent) {
        let set = self.endpoint_set(content);
        if let Some(backend) = backend_named(&mut self.backends, name) {
            backend.set_endpoints(set);
        }
    }

    fn endpoint_set(&mut self, content: &EndpointsContent) -> EndpointSet {
        let labels = ServiceLabels {
            namespace: content.namespace.clone(),
            service: content.service.clone(),
            port: content.port,
        };
        let listed = content.endpoints.values();
        let listed = listed.map(|listed| (&listed.hints, &listed.spec));
        let split = split(&self.place, content.node_local, listed);
        let mut live = |specs: Vec<&EndpointSpec>| {
            let specs = specs.into_iter();
            specs.map(|spec| self.endpoint(spec, &labels)).collect()
        };
        EndpointSet::preferring(live(split.preferred), live(split.fallback))
    }

    /// The endpoint of `spec`, with its existing load and health if there is one.
    fn endpoint(&mut self, spec: &EndpointSpec, labels: &ServiceLabels) -> Arc<Endpoint> {
        if let Some(endpoint) = self.endpoints.get(spec).and_then(Weak::upgrade) {
            return endpoint;
        }
        let endpoint = Arc::new(Endpoint {
            id: next_endpoint_id(),
            address: spec.address,
            peer: spec.peer.clone(),
            pod: spec.pod.clone(),
            workload: spec.workload.clone(),
            zone: spec.zone.clone(),
            load: Load::new(self.metrics.ejections(labels)),
        });
        self.endpoints
            .insert(spec.clone(), Arc::downgrade(&endpoint));
        endpoint
    }
}

/// `None`: no such route. In order of precedence.
fn opaque_routes(
    routes: &[(&ResourceName, &OpaqueRouteContent)],
    backends: &mut HashMap<ResourceName, Arc<Backend>>,
) -> Option<OpaqueRoutes> {
    let built = routes.iter().map(|(name, content)| {
        let backends = content.backends.iter().map(|backend| OpaqueBackend {
            weight: backend.weight,
            backend: match &backend.endpoints {
                Ok(name) => {
                    backend_named(backends, name).ok_or_else(|| "it names no endpoints".into())
                }
                Err(invalid) => Err(invalid.clone()),
            },
        });
        let (ResourceName::TlsRoute { namespace, name }
        | ResourceName::TcpRoute { namespace, name }) = name
        else {
            return None;
        };
        Some(Arc::new(OpaqueRoute {
            name: format!("{namespace}/{name}").into(),
            hostnames: content.hostnames.clone(),
            backends: backends.collect(),
        }))
    });
    let built: Vec<_> = built.flatten().collect();
    let first = built.first()?;
    Some(match first.hostnames.is_empty() {
        true => OpaqueRoutes::Tcp(first.clone()),
        false => OpaqueRoutes::Tls(TlsRoutes::new(built)),
    })
}

fn service_labels(service: &ServiceContent) -> ServiceLabels {
    ServiceLabels {
        namespace: service.namespace.clone(),
        service: service.name.clone(),
        port: service.port,
    }
}

fn outbound_tcp(labels: &ServiceLabels) -> TcpLabels {
    TcpLabels {
        direction: Direction::Outbound,
        client: "".into(),
        namespace: labels.namespace.clone(),
        service: labels.service.clone(),
        port: Some(labels.port),
    }
}

/// The backend `name`; an empty one while its endpoints are missing (or rejected): requests to it
/// fail with "no-endpoint" until they arrive.
fn backend(backends: &mut HashMap<ResourceName, Arc<Backend>>, name: &str) -> Option<Arc<Backend>> {
    backend_named(backends, &name.parse().ok()?)
}

fn backend_named(
    backends: &mut HashMap<ResourceName, Arc<Backend>>,
    name: &ResourceName,
) -> Option<Arc<Backend>> {
    let ResourceName::Endpoints {
        namespace,
        service,
        port,
    } = name
    else {
        return None;
    };
    let backend = backends.entry(name.clone()).or_insert_with(|| {
        Arc::new(Backend::new(
            namespace.as_str().into(),
            service.as_str().into(),
            *port,
            EndpointSet::default(),
        ))
    });
    Some(backend.clone())
}
