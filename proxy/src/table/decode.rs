//! Decodes contract messages into the store's types: every field is validated here, so that a
//! decoded resource can be put in force.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use naru_contract as contract;
use naru_contract::ResourceName;
use naru_contract::resource::Body;
use rustls::pki_types::CertificateDer;

use super::Inbound;
use super::locality::{Hints, Place};
use super::tables::canonical;
use crate::balance::{Peer, RetryBudget};
use crate::identity::{Issuing, SpiffeIdError, authority_name};
use crate::route::Protocol;

/// Longest text in any field of an endpoint, in bytes: Kubernetes allows 253 for a name.
const MAX_TEXT: usize = 512;
/// Zones or nodes that an endpoint is hinted for: Kubernetes allows 8.
const MAX_HINTS: usize = 64;
/// Longest interval of a retry budget.
const MAX_BUDGET_INTERVAL: Duration = Duration::from_secs(3_600);

/// A resource's content, validated.
#[derive(Clone, Debug)]
pub(super) enum Content {
    TrustAnchors(Anchors),
    Inbound(Inbound, Place),
    Destination(Target),
    Service(ServiceContent),
    HttpRoute(Arc<contract::HttpRoute>),
    OpaqueRoute(OpaqueRouteContent),
    Endpoints(EndpointsContent),
}

/// The trust anchors, and the authority that issues the proxy's certificate.
#[derive(Clone, Debug)]
pub(super) struct Anchors {
    pub certificates: Vec<CertificateDer<'static>>,
    pub issuing: Issuing,
}

/// The target of an address.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Target {
    Passthrough,
    Service(ResourceName),
    Pod {
        endpoint: EndpointSpec,
        protocol: Protocol,
        namespace: Arc<str>,
        service: Arc<str>,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct ServiceContent {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub port: u16,
    pub protocol: Protocol,
    pub http_routes: Vec<ResourceName>,
    /// All TLSRoutes, or one TCPRoute. Empty where there are `http_routes`.
    pub opaque_routes: Vec<ResourceName>,
    pub endpoints: ResourceName,
    pub budget: Option<contract::RetryBudget>,
}

/// A TLSRoute or a TCPRoute.
#[derive(Clone, Debug)]
pub(super) struct OpaqueRouteContent {
    /// For a TLSRoute: at least one. For a TCPRoute: empty.
    pub hostnames: Vec<Box<str>>,
    pub backends: Vec<OpaqueBackendContent>,
}

#[derive(Clone, Debug)]
pub(super) struct OpaqueBackendContent {
    pub weight: u32,
    /// `Err`: why the backend is invalid.
    pub endpoints: Result<ResourceName, Arc<str>>,
}

#[derive(Clone, Debug)]
pub(super) struct EndpointsContent {
    pub namespace: Arc<str>,
    pub service: Arc<str>,
    pub port: u16,
    pub protocol: Protocol,
    pub node_local: bool,
    pub endpoints: BTreeMap<SocketAddr, ListedEndpoint>,
}

/// An endpoint of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ListedEndpoint {
    pub spec: EndpointSpec,
    /// Separate from the spec: the endpoint is the same for proxies in every place.
    pub hints: Hints,
}

/// One endpoint as described by the controller.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct EndpointSpec {
    pub address: SocketAddr,
    pub peer: Peer,
    pub pod: Arc<str>,
    pub workload: Arc<str>,
    pub zone: Arc<str>,
}

/// A change to the endpoints held in version `base`.
#[derive(Clone, Debug)]
pub(super) struct EndpointsChange {
    pub base: u64,
    upserted: Vec<ListedEndpoint>,
    removed: Vec<SocketAddr>,
}

/// The decoded content of a resource's update.
pub(super) enum Decoded {
    Whole(Content),
    Change(EndpointsChange),
}

/// Why a resource is rejected: the error, and the field.
pub(super) type Problem = String;

/// Decodes the body of resource `name`.
pub(super) fn decode(name: &ResourceName, body: Option<Body>) -> Result<Decoded, Problem> {
    let body = body.ok_or("the resource is empty, or of a kind that this proxy does not know")?;
    let content = match (name, body) {
        (ResourceName::TrustAnchors, Body::TrustAnchors(anchors)) => {
            let der = anchors.certificates_der.into_iter();
            Content::TrustAnchors(Anchors {
                certificates: der.map(|der| der.to_vec().into()).collect(),
                issuing: Issuing {
                    issuer: match &*anchors.issuer {
                        "" => None,
                        name => Some(
                            authority_name(name)
                                .ok_or("issuer: not a name of letters and digits")?,
                        ),
                    },
                    renew_within: Duration::from_secs(anchors.renew_within_seconds.into()),
                },
            })
        }
        (ResourceName::Inbound, Body::Inbound(inbound)) => {
            let place = Place {
                node: place_name("node", &inbound.node)?,
                zone: place_name("zone", &inbound.zone)?,
            };
            Content::Inbound(decode_inbound(inbound)?, place)
        }
        (ResourceName::Destination(_), Body::Destination(destination)) => {
            Content::Destination(decode_destination(destination)?)
        }
        (
            ResourceName::Service {
                namespace,
                name,
                port,
                ..
            },
            Body::Service(service),
        ) => Content::Service(decode_service(service, (namespace, name, *port))?),
        (
            ResourceName::HttpRoute { namespace, name }
            | ResourceName::GrpcRoute { namespace, name },
            Body::HttpRoute(route),
        ) => {
            same("namespace", &route.namespace, namespace)?;
            same("name", &route.name, name)?;
            Content::HttpRoute(Arc::new(route))
        }
        (ResourceName::TlsRoute { namespace, name }, Body::TlsRoute(route)) => {
            same("namespace", &route.namespace, namespace)?;
            same("name", &route.name, name)?;
            Content::OpaqueRoute(OpaqueRouteContent {
                hostnames: decode_hostnames(&route.hostnames)?,
                backends: decode_opaque_backends(&route.backends)?,
            })
        }
        (ResourceName::TcpRoute { namespace, name }, Body::TcpRoute(route)) => {
            same("namespace", &route.namespace, namespace)?;
            same("name", &route.name, name)?;
            Content::OpaqueRoute(OpaqueRouteContent {
                hostnames: Vec::new(),
                backends: decode_opaque_backends(&route.backends)?,
            })
        }
        (
            ResourceName::Endpoints {
                namespace,
                service,
                port,
            },
            Body::Endpoints(endpoints),
        ) => Content::Endpoints(decode_endpoints(endpoints, (namespace, service, *port))?),
        (ResourceName::Endpoints { .. }, Body::EndpointsDelta(delta)) => {
            return Ok(Decoded::Change(decode_delta(delta)?));
        }
        _ => return Err("the content is of another kind than the name".to_owned()),
    };
    Ok(Decoded::Whole(content))
}

impl EndpointsContent {
    /// The endpoints after `change`.
    pub fn changed(&self, change: EndpointsChange) -> Self {
        let mut changed = self.clone();
        for address in change.removed {
            changed.endpoints.remove(&address);
        }
        for endpoint in change.upserted {
            changed.endpoints.insert(endpoint.spec.address, endpoint);
        }
        changed
    }
}

impl ServiceContent {
    /// Every attached route.
    pub fn routes(&self) -> impl Iterator<Item = &ResourceName> {
        self.http_routes.iter().chain(&self.opaque_routes)
    }

    /// The configured budget, or the default.
    pub fn retry_budget(&self) -> RetryBudget {
        match &self.budget {
            None => RetryBudget::default(),
            Some(budget) => RetryBudget::new(
                budget.percent,
                Duration::from_millis(budget.interval_ms),
                budget.min_retries_per_1000_s as f64 / 1_000.0,
            ),
        }
    }
}

fn decode_inbound(inbound: contract::Inbound) -> Result<Inbound, Problem> {
    let mut ports = HashMap::new();
    for (index, declared) in inbound.ports.iter().enumerate() {
        let field = format!("ports[{index}]");
        let number = port(declared.port).map_err(within(&field))?;
        let protocol = protocol(declared.protocol).map_err(within(&field))?;
        if ports.insert(number, protocol).is_some() {
            return Err(format!("{field}: {number} is there twice"));
        }
    }
    let strict = match contract::MtlsMode::try_from(inbound.mtls) {
        Ok(contract::MtlsMode::Permissive) => false,
        Ok(contract::MtlsMode::Strict) => true,
        Err(_) => {
            return Err(format!(
                "mtls: this proxy does not know the value {}",
                inbound.mtls
            ));
        }
    };
    Ok(Inbound {
        workload: text("workload", &inbound.workload)?,
        strict,
        ports,
    })
}

fn decode_destination(destination: contract::Destination) -> Result<Target, Problem> {
    use contract::destination::Target as Wire;
    match destination.target {
        None => Ok(Target::Passthrough),
        Some(Wire::Service(name)) => Ok(Target::Service(service_name("service", &name)?)),
        Some(Wire::Pod(pod)) => Ok(Target::Pod {
            endpoint: endpoint(pod.endpoint.as_ref().ok_or("pod.endpoint: missing")?)
                .map_err(within("pod.endpoint"))?,
            protocol: protocol(pod.protocol).map_err(within("pod"))?,
            namespace: text("pod.namespace", &pod.namespace)?,
            service: text("pod.service", &pod.service)?,
        }),
    }
}

fn decode_service(
    service: contract::Service,
    (namespace, name, number): (&str, &str, u16),
) -> Result<ServiceContent, Problem> {
    same("namespace", &service.namespace, namespace)?;
    same("name", &service.name, name)?;
    same("port", &service.port, &u32::from(number))?;
    let mut http_routes = Vec::with_capacity(service.http_routes.len());
    for (index, route) in service.http_routes.iter().enumerate() {
        match route.parse() {
            Ok(name @ (ResourceName::HttpRoute { .. } | ResourceName::GrpcRoute { .. })) => {
                http_routes.push(name);
            }
            _ => {
                return Err(format!(
                    "http_routes[{index}]: {route:?} names no HTTPRoute"
                ));
            }
        }
    }
    let opaque_routes = decode_opaque_routes(&service.opaque_routes)?;
    if !http_routes.is_empty() && !opaque_routes.is_empty() {
        return Err("opaque_routes: there are http_routes as well".to_owned());
    }
    let endpoints = endpoints_name("endpoints", &service.endpoints)?;
    if let Some(budget) = &service.retry_budget {
        if budget.percent > 100 {
            return Err(format!(
                "retry_budget.percent: {} is over 100",
                budget.percent
            ));
        }
        let interval = Duration::from_millis(budget.interval_ms);
        if interval.is_zero() || interval > MAX_BUDGET_INTERVAL {
            return Err(format!(
                "retry_budget.interval_ms: {} is not within 1 and {}",
                budget.interval_ms,
                MAX_BUDGET_INTERVAL.as_millis()
            ));
        }
    }
    Ok(ServiceContent {
        namespace: text("namespace", &service.namespace)?,
        name: text("name", &service.name)?,
        port: number,
        protocol: protocol(service.protocol)?,
        http_routes,
        opaque_routes,
        endpoints,
        budget: service.retry_budget,
    })
}

/// A Service's routes for connections: they are of one kind, and there is at most one TCPRoute.
fn decode_opaque_routes(routes: &[String]) -> Result<Vec<ResourceName>, Problem> {
    let mut names = Vec::with_capacity(routes.len());
    for (index, route) in routes.iter().enumerate() {
        match route.parse() {
            Ok(name @ ResourceName::TlsRoute { .. }) => names.push(name),
            Ok(name @ ResourceName::TcpRoute { .. }) if routes.len() == 1 => names.push(name),
            Ok(ResourceName::TcpRoute { .. }) => {
                return Err(format!(
                    "opaque_routes[{index}]: a TCPRoute takes everything, and there are others"
                ));
            }
            _ => {
                return Err(format!(
                    "opaque_routes[{index}]: {route:?} names no TLSRoute and no TCPRoute"
                ));
            }
        }
    }
    Ok(names)
}

fn decode_hostnames(hostnames: &[String]) -> Result<Vec<Box<str>>, Problem> {
    if hostnames.is_empty() {
        return Err("hostnames: a TLSRoute has at least one".to_owned());
    }
    let mut decoded = Vec::with_capacity(hostnames.len());
    for (index, hostname) in hostnames.iter().enumerate() {
        let field = format!("hostnames[{index}]");
        let name = hostname.strip_prefix("*.").unwrap_or(hostname);
        let known = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.');
        if name.is_empty() || !name.bytes().all(known) {
            return Err(format!(
                "{field}: {hostname:?} is not a lower-case host name"
            ));
        }
        text(&field, hostname)?;
        decoded.push(hostname.as_str().into());
    }
    Ok(decoded)
}

fn decode_opaque_backends(
    backends: &[contract::OpaqueBackend],
) -> Result<Vec<OpaqueBackendContent>, Problem> {
    let mut decoded = Vec::with_capacity(backends.len());
    for (index, backend) in backends.iter().enumerate() {
        let endpoints = match backend.invalid.as_str() {
            "" => {
                let field = format!("backends[{index}].endpoints");
                Ok(endpoints_name(&field, &backend.endpoints)?)
            }
            invalid => Err(invalid.into()),
        };
        decoded.push(OpaqueBackendContent {
            weight: backend.weight,
            endpoints,
        });
    }
    Ok(decoded)
}

fn decode_endpoints(
    message: contract::Endpoints,
    (namespace, service, number): (&str, &str, u16),
) -> Result<EndpointsContent, Problem> {
    same("namespace", &message.namespace, namespace)?;
    same("service", &message.service, service)?;
    same("port", &message.port, &u32::from(number))?;
    let mut endpoints = BTreeMap::new();
    for endpoint in each(&message.endpoints, "endpoints")? {
        if let Some(other) = endpoints.insert(endpoint.spec.address, endpoint) {
            return Err(format!("endpoints: {} is there twice", other.spec.address));
        }
    }
    Ok(EndpointsContent {
        namespace: text("namespace", &message.namespace)?,
        service: text("service", &message.service)?,
        port: number,
        protocol: protocol(message.protocol)?,
        node_local: message.node_local,
        endpoints,
    })
}

fn decode_delta(delta: contract::EndpointsDelta) -> Result<EndpointsChange, Problem> {
    let upserted = each(&delta.upserted, "upserted")?;
    let mut removed = Vec::with_capacity(delta.removed.len());
    for (index, endpoint) in delta.removed.iter().enumerate() {
        removed.push(address(endpoint).map_err(within(&format!("removed[{index}]")))?);
    }
    let mut seen = HashSet::new();
    let touched = upserted.iter().map(|endpoint| &endpoint.spec.address);
    for address in touched.chain(&removed) {
        if !seen.insert(*address) {
            return Err(format!("{address} is there twice"));
        }
    }
    Ok(EndpointsChange {
        base: delta.base_version,
        upserted,
        removed,
    })
}

fn each(endpoints: &[contract::Endpoint], field: &str) -> Result<Vec<ListedEndpoint>, Problem> {
    let decoded = endpoints.iter().enumerate();
    decoded
        .map(|(index, message)| listed(message).map_err(within(&format!("{field}[{index}]"))))
        .collect()
}

fn listed(message: &contract::Endpoint) -> Result<ListedEndpoint, Problem> {
    let names = |field: &str, names: &[String]| {
        if names.len() > MAX_HINTS {
            return Err(format!("{field}: more than {MAX_HINTS}"));
        }
        names.iter().map(|name| text(field, name)).collect()
    };
    Ok(ListedEndpoint {
        spec: endpoint(message)?,
        hints: Hints {
            node: place_name("node", &message.node)?,
            for_zones: names("for_zones", &message.for_zones)?,
            for_nodes: names("for_nodes", &message.for_nodes)?,
        },
    })
}

fn endpoint(message: &contract::Endpoint) -> Result<EndpointSpec, Problem> {
    let peer = match message.identity.as_str() {
        "" => Peer::Plain,
        identity => {
            let id = identity.parse();
            Peer::Mesh(id.map_err(|error: SpiffeIdError| format!("identity: {error}"))?)
        }
    };
    Ok(EndpointSpec {
        address: address(message)?,
        peer,
        pod: text("pod", &message.pod)?,
        workload: text("workload", &message.workload)?,
        zone: text("zone", &message.zone)?,
    })
}

fn address(endpoint: &contract::Endpoint) -> Result<SocketAddr, Problem> {
    let ip = &endpoint.ip[..];
    let ip = match (<[u8; 4]>::try_from(ip), <[u8; 16]>::try_from(ip)) {
        (Ok(v4), _) => IpAddr::from(v4),
        (_, Ok(v6)) => IpAddr::from(v6),
        _ => {
            return Err(format!(
                "ip: an address has 4 or 16 bytes, not {}",
                ip.len()
            ));
        }
    };
    let address = canonical(SocketAddr::new(ip, port(endpoint.port)?));
    if address.ip().is_unspecified() || address.ip().is_multicast() {
        return Err(format!("ip: {} is the address of no pod", address.ip()));
    }
    Ok(address)
}

fn port(number: u32) -> Result<u16, Problem> {
    match u16::try_from(number) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!("port: {number} is not within 1 and 65535")),
    }
}

fn protocol(number: i32) -> Result<Protocol, Problem> {
    match contract::Protocol::try_from(number) {
        Ok(contract::Protocol::Detect) => Ok(Protocol::Detect),
        Ok(contract::Protocol::Http1) => Ok(Protocol::Http),
        Ok(contract::Protocol::Http2) => Ok(Protocol::Http2),
        Ok(contract::Protocol::Tcp) => Ok(Protocol::Tcp),
        Err(_) => Err(format!(
            "protocol: this proxy does not know the value {number}"
        )),
    }
}

fn service_name(field: &str, text: &str) -> Result<ResourceName, Problem> {
    match text.parse() {
        Ok(name @ ResourceName::Service { .. }) => Ok(name),
        _ => Err(format!("{field}: {text:?} names no service")),
    }
}

fn endpoints_name(field: &str, text: &str) -> Result<ResourceName, Problem> {
    match text.parse() {
        Ok(name @ ResourceName::Endpoints { .. }) => Ok(name),
        _ => Err(format!("{field}: {text:?} names no endpoints")),
    }
}

fn text(field: &str, text: &str) -> Result<Arc<str>, Problem> {
    if text.len() > MAX_TEXT {
        return Err(format!("{field}: longer than {MAX_TEXT} bytes"));
    }
    Ok(text.into())
}

/// The name of a node or zone. `None`: it is unknown.
fn place_name(field: &str, name: &str) -> Result<Option<Arc<str>>, Problem> {
    Ok(Some(text(field, name)?).filter(|name| !name.is_empty()))
}

fn same<T: PartialEq<U> + std::fmt::Debug, U: std::fmt::Debug + ?Sized>(
    field: &str,
    content: &T,
    name: &U,
) -> Result<(), Problem> {
    if content == name {
        Ok(())
    } else {
        Err(format!(
            "{field}: is {content:?}, and the resource's name says {name:?}"
        ))
    }
}

fn within(field: &str) -> impl Fn(Problem) -> Problem {
    move |problem| format!("{field}.{problem}")
}
