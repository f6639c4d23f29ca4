//! The cluster's objects as the index knows them: of each kind only the fields that routing tables
//! are made from.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use naru_contract::http_filter::Kind as FilterKind;
use naru_contract::{HttpFilter, HttpMatch, MtlsMode, Protocol, Retry, RetryBudget};

const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// A namespaced name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    pub namespace: String,
    pub name: String,
}

impl Name {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The kinds that the controller uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Namespace,
    Service,
    Pod,
    EndpointSlice,
    HttpRoute,
    GrpcRoute,
    TlsRoute,
    TcpRoute,
    BackendTrafficPolicy,
    ReferenceGrant,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Service => "Service",
            Self::Pod => "Pod",
            Self::EndpointSlice => "EndpointSlice",
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::TlsRoute => "TLSRoute",
            Self::TcpRoute => "TCPRoute",
            Self::BackendTrafficPolicy => "XBackendTrafficPolicy",
            Self::ReferenceGrant => "ReferenceGrant",
        }
    }
}

/// Which object is meant.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    pub kind: Kind,
    /// A Namespace has an empty namespace.
    pub name: Name,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.kind.as_str())?;
        match self.kind {
            Kind::Namespace => f.write_str(&self.name.name),
            _ => self.name.fmt(f),
        }
    }
}

/// An object of the cluster.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    Namespace(Namespace),
    Service(Service),
    Pod(Pod),
    EndpointSlice(EndpointSlice),
    /// A route of any kind.
    Route(Route),
    BackendTrafficPolicy(BackendTrafficPolicy),
    ReferenceGrant(ReferenceGrant),
}

impl Object {
    pub fn key(&self) -> ObjectKey {
        let (kind, name) = match self {
            Self::Namespace(o) => (Kind::Namespace, Name::new("", o.name.clone())),
            Self::Service(o) => (Kind::Service, o.name.clone()),
            Self::Pod(o) => (Kind::Pod, o.name.clone()),
            Self::EndpointSlice(o) => (Kind::EndpointSlice, o.name.clone()),
            Self::Route(o) => (o.kind.kind(), o.name.clone()),
            Self::BackendTrafficPolicy(o) => (Kind::BackendTrafficPolicy, o.name.clone()),
            Self::ReferenceGrant(o) => (Kind::ReferenceGrant, o.name.clone()),
        };
        ObjectKey { kind, name }
    }
}

/// What `naru.dev/…` annotations say. A narrower object's word replaces that of a wider one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Annotations {
    /// `naru.dev/mtls`
    pub mtls: Option<MtlsMode>,
    /// `naru.dev/opaque-ports`
    pub opaque_ports: Option<Vec<u16>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    pub name: String,
    pub annotations: Annotations,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub name: Name,
    /// Empty: headless, or not yet assigned.
    pub cluster_ips: Vec<IpAddr>,
    /// Where its ports are reached as at its own addresses: `externalIPs`, and those of load
    /// balancers.
    pub external_ips: Vec<IpAddr>,
    /// An alias for a name outside of the cluster: it has no endpoints.
    pub external_name: bool,
    /// TCP ports only.
    pub ports: Vec<ServicePort>,
    /// Empty: whoever made the Service writes its EndpointSlices.
    pub selector: BTreeMap<String, String>,
    pub publish_not_ready_addresses: bool,
    /// `internalTrafficPolicy: Local`
    pub node_local: bool,
    pub annotations: Annotations,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Empty where there is only one.
    pub name: String,
    pub port: u16,
    pub target_port: TargetPort,
    /// The port of every node at which it is reached as well.
    pub node_port: Option<u16>,
    /// What `appProtocol` says; `None`: nothing that we know.
    pub declared: Option<Protocol>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    Number(u16),
    /// Of a container port.
    Name(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub name: Name,
    pub labels: BTreeMap<String, String>,
    /// Empty for a pod in its node's network: those addresses are not its own.
    pub ips: Vec<IpAddr>,
    pub service_account: String,
    /// Empty: not on one yet.
    pub node: String,
    /// That node's own.
    pub host_ips: Vec<IpAddr>,
    /// It has a sidecar.
    pub meshed: bool,
    /// Every container has ended for good: its addresses may belong to another pod now.
    pub ended: bool,
    /// As `deployment/web`.
    pub workload: String,
    /// Container ports that have a name (TCP).
    pub named_ports: Vec<(String, u16)>,
    /// Connections to these reach the pod's containers and not its sidecar
    /// (`naru.dev/skip-inbound-ports`).
    pub bare_ports: Vec<u16>,
    pub annotations: Annotations,
}

impl Pod {
    /// The zone that it is in, as Kubernetes labels it from 1.35 on.
    pub fn labelled_zone(&self) -> Option<&str> {
        let zone = self.labels.get(ZONE_LABEL)?;
        (!zone.is_empty()).then_some(zone)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    pub name: Name,
    /// Of the same namespace. Empty: of none.
    pub service: String,
    pub ipv6: bool,
    /// TCP ports only.
    pub ports: Vec<SlicePort>,
    pub endpoints: Vec<SliceEndpoint>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// Of the Service's port.
    pub name: String,
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    pub ip: IpAddr,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub pod: Option<Name>,
    pub node: String,
    pub zone: String,
    /// Zones and nodes whose clients are to prefer it.
    pub for_zones: Vec<String>,
    pub for_nodes: Vec<String>,
}

/// Seconds since the epoch. An object without one is younger than every other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Created(pub i64);

impl Created {
    pub const UNKNOWN: Self = Self(i64::MAX);
}

/// What a route was written as. Where routes of several kinds are attached to a port, those of the
/// greatest win (GEP-1294).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RouteKind {
    Tcp,
    Tls,
    Http,
    Grpc,
}

impl RouteKind {
    pub const ALL: [Self; 4] = [Self::Tcp, Self::Tls, Self::Http, Self::Grpc];

    pub fn kind(self) -> Kind {
        match self {
            Self::Tcp => Kind::TcpRoute,
            Self::Tls => Kind::TlsRoute,
            Self::Http => Kind::HttpRoute,
            Self::Grpc => Kind::GrpcRoute,
        }
    }

    pub fn as_str(self) -> &'static str {
        self.kind().as_str()
    }

    /// Whether it is about requests. The others are about connections, of whatever bytes.
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Grpc)
    }
}

/// Which route is meant: two of different kinds may have one name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteName {
    pub kind: RouteKind,
    pub name: Name,
}

impl fmt::Display for RouteName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.as_str(), self.name)
    }
}

/// A route of any kind, in the words of an HTTPRoute.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    pub kind: RouteKind,
    pub name: Name,
    pub created: Created,
    /// Counts changes of what was asked for; 0 outside of a cluster.
    pub generation: i64,
    /// Those that are Services.
    pub parents: Vec<ParentRef>,
    /// Names that a client has to ask for: only of a TLSRoute.
    pub hostnames: Vec<String>,
    /// A TLSRoute and a TCPRoute have one, of nothing but a name and backends.
    pub rules: Vec<Rule>,
    /// Why the route as a whole can't be used: it asks for something that we can't do.
    pub refused: Option<String>,
}

impl Route {
    pub fn id(&self) -> RouteName {
        RouteName {
            kind: self.kind,
            name: self.name.clone(),
        }
    }

    /// Smaller is older. Of two routes of one age the first by name counts as the older one
    /// (Gateway API).
    pub fn age(&self) -> (Created, &Name) {
        (self.created, &self.name)
    }

    /// Backends and mirrors, in the order in which they are written.
    pub fn referents(&self) -> impl Iterator<Item = &Referent> {
        self.rules.iter().flat_map(|rule| {
            let backends = (rule.backends.iter())
                .flat_map(|backend| [&backend.to].into_iter().chain(mirrors(&backend.filters)));
            mirrors(&rule.filters).chain(backends)
        })
    }
}

fn mirrors(filters: &[Filter]) -> impl Iterator<Item = &Referent> {
    filters.iter().filter_map(|filter| match filter {
        Filter::Mirror(mirror) => Some(&mirror.to),
        Filter::Ready(_) => None,
    })
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentRef {
    pub service: Name,
    /// Kubernetes' own, as the route spells it: empty, or `core`.
    pub group: String,
    /// The namespace was named, and is not just the route's own.
    pub names_namespace: bool,
    /// `None`: every port.
    pub port: Option<u16>,
    /// Name of a port; `None`: every port.
    pub port_name: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    pub name: String,
    pub matches: Vec<HttpMatch>,
    pub filters: Vec<Filter>,
    pub backends: Vec<BackendRef>,
    pub request_timeout_ms: u64,
    pub backend_request_timeout_ms: u64,
    pub retry: Option<Retry>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct BackendRef {
    pub to: Referent,
    pub weight: u32,
    pub filters: Vec<Filter>,
}

/// A filter, before what it refers to is resolved.
#[derive(Clone, Debug, PartialEq)]
pub enum Filter {
    /// Refers to nothing: as it is served.
    Ready(HttpFilter),
    Mirror(Mirror),
}

impl Filter {
    /// Of a filter that refers to nothing.
    pub fn kind(&self) -> Option<&FilterKind> {
        match self {
            Self::Ready(filter) => filter.kind.as_ref(),
            Self::Mirror(_) => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Mirror {
    pub to: Referent,
    /// Of so many requests …
    pub numerator: u32,
    /// … out of so many.
    pub denominator: u32,
}

/// What a route refers to as a place for requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Referent {
    pub group: String,
    pub kind: String,
    pub name: Name,
    pub port: Option<u16>,
}

impl Referent {
    pub fn is_service(&self) -> bool {
        self.group.is_empty() && self.kind == "Service"
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct BackendTrafficPolicy {
    pub name: Name,
    pub created: Created,
    /// Services of the same namespace.
    pub targets: Vec<String>,
    pub retry_budget: Option<RetryBudget>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReferenceGrant {
    pub name: Name,
    /// Namespaces whose routes of a kind may refer to this one's Services.
    pub from: Vec<(RouteKind, String)>,
    /// `None` among them: every Service.
    pub to: Vec<Option<String>>,
}
