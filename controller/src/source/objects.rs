//! The cluster's objects in the index: of each kind only the fields that routing tables need.

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

/// The identity of an object.
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

/// Values of `naru.dev/…` annotations. A more specific object overrides a more general one.
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
    /// Further addresses with the same ports: `externalIPs`, and those of load balancers.
    pub external_ips: Vec<IpAddr>,
    /// `type: ExternalName`, which has no endpoints.
    pub external_name: bool,
    /// TCP ports only.
    pub ports: Vec<ServicePort>,
    /// Empty: its EndpointSlices are not managed by Kubernetes.
    pub selector: BTreeMap<String, String>,
    pub publish_not_ready_addresses: bool,
    /// `internalTrafficPolicy: Local`
    pub node_local: bool,
    pub annotations: Annotations,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Empty if there is only one port.
    pub name: String,
    pub port: u16,
    pub target_port: TargetPort,
    /// Its node port.
    pub node_port: Option<u16>,
    /// From `appProtocol`; `None`: absent or unknown.
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
    /// Empty for a pod with `hostNetwork`: those addresses belong to the node.
    pub ips: Vec<IpAddr>,
    pub service_account: String,
    /// `None`: not scheduled yet.
    pub node: Option<String>,
    /// The node's addresses.
    pub host_ips: Vec<IpAddr>,
    /// Whether it has a sidecar.
    pub meshed: bool,
    /// All containers have terminated for good: its addresses may belong to another pod now.
    pub ended: bool,
    /// As `deployment/web`.
    pub workload: String,
    /// Named container ports (TCP).
    pub named_ports: Vec<(String, u16)>,
    /// Ports that bypass the sidecar (`naru.dev/skip-inbound-ports`).
    pub bare_ports: Vec<u16>,
    pub annotations: Annotations,
}

impl Pod {
    /// The pod's zone, from the label that Kubernetes sets from 1.35 on.
    pub fn labelled_zone(&self) -> Option<&str> {
        let zone = self.labels.get(ZONE_LABEL)?;
        (!zone.is_empty()).then_some(zone)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    pub name: Name,
    /// In the same namespace, if it belongs to one.
    pub service: Option<String>,
    pub ipv6: bool,
    /// TCP ports only.
    pub ports: Vec<SlicePort>,
    pub endpoints: Vec<SliceEndpoint>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// The name of the Service's port.
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
    pub node: Option<String>,
    pub zone: Option<String>,
    /// Zones and nodes whose clients prefer it.
    pub for_zones: Vec<String>,
    pub for_nodes: Vec<String>,
}

/// When an object was created. The greatest is the youngest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Created {
    /// In Unix seconds.
    At(i64),
    /// The object has no timestamp: it counts as younger than every other.
    Unknown,
}

/// The kind of a route, in order of specificity. Of several kinds on a port, the greatest wins
/// (GEP-1294).
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

    /// Whether it routes requests. The others route connections as opaque bytes.
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Grpc)
    }
}

/// The identity of a route: routes of different kinds may have the same name.
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

/// A route of any kind, in the form of an HTTPRoute.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    pub kind: RouteKind,
    pub name: Name,
    pub created: Created,
    /// `metadata.generation`; 0 outside a cluster.
    pub generation: i64,
    /// Parents that are Services.
    pub parents: Vec<ParentRef>,
    /// SNI names of a TLSRoute.
    pub hostnames: Vec<String>,
    /// A TLSRoute or TCPRoute has one rule, with only a name and backends.
    pub rules: Vec<Rule>,
    /// Why the route as a whole can't be used: it has an unsupported feature.
    pub refused: Option<String>,
}

impl Route {
    pub fn id(&self) -> RouteName {
        RouteName {
            kind: self.kind,
            name: self.name.clone(),
        }
    }

    /// Smaller is older. Of two routes with the same age, the first by name counts as older
    /// (Gateway API).
    pub fn age(&self) -> (Created, &Name) {
        (self.created, &self.name)
    }

    /// Backends and mirrors, in the order of the route.
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
    /// The core group, as spelled in the route: empty, or `core`.
    pub group: String,
    /// The namespace is explicit rather than the route's own by default.
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

/// A filter with an unresolved reference, if any.
#[derive(Clone, Debug, PartialEq)]
pub enum Filter {
    /// Without a reference, in its final form.
    Ready(HttpFilter),
    Mirror(Mirror),
}

impl Filter {
    /// The kind of a filter without a reference.
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
    /// Numerator of the share.
    pub numerator: u32,
    /// Denominator of the share.
    pub denominator: u32,
}

/// A reference to a backend or a mirror.
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
    /// Services in the same namespace.
    pub targets: Vec<String>,
    pub retry_budget: Option<RetryBudget>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReferenceGrant {
    pub name: Name,
    /// Kinds of routes, with their namespaces, that may refer to Services of this namespace.
    pub from: Vec<(RouteKind, String)>,
    /// `None`: every Service.
    pub to: Vec<Option<String>>,
}
