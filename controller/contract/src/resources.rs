//! The resources of a routing table. They mirror the user's objects: one changed HTTPRoute is one
//! changed resource.

use ::prost::bytes::Bytes;

/// A named piece of a routing table.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Resource {
    /// A [`crate::ResourceName`] in its text form.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Hash of the whole content, the same on every replica. Never 0.
    #[prost(fixed64, tag = "2")]
    pub version: u64,
    #[prost(oneof = "resource::Body", tags = "3, 4, 5, 6, 7, 8, 9, 10, 11")]
    pub body: Option<resource::Body>,
}

pub mod resource {
    #[derive(Clone, PartialEq, ::prost::Oneof)]
    pub enum Body {
        #[prost(message, tag = "3")]
        TrustAnchors(super::TrustAnchors),
        #[prost(message, tag = "4")]
        Inbound(super::Inbound),
        #[prost(message, tag = "5")]
        Destination(super::Destination),
        #[prost(message, tag = "6")]
        Service(super::Service),
        #[prost(message, tag = "7")]
        HttpRoute(super::HttpRoute),
        #[prost(message, tag = "8")]
        Endpoints(super::Endpoints),
        #[prost(message, tag = "9")]
        EndpointsDelta(super::EndpointsDelta),
        #[prost(message, tag = "10")]
        TlsRoute(super::TlsRoute),
        #[prost(message, tag = "11")]
        TcpRoute(super::TcpRoute),
    }
}

/// `trust-anchors`: the authorities whose signatures prove an identity.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct TrustAnchors {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub certificates_der: Vec<Bytes>,
    /// Identifies the authority that issues certificates now. A proxy whose certificate is from
    /// another authority requests a new one, at a random point within
    /// [`Self::renew_within_seconds`]. Empty from a controller without this field.
    #[prost(string, tag = "2")]
    pub issuer: String,
    #[prost(uint32, tag = "3")]
    pub renew_within_seconds: u32,
}

/// `inbound`: the settings for connections to the proxy's own pod.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Inbound {
    /// Workload of the pod for metrics, as `deployment/web`.
    #[prost(string, tag = "1")]
    pub workload: String,
    /// Ports with a declared protocol. Any other port is [`Protocol::Detect`].
    #[prost(message, repeated, tag = "2")]
    pub ports: Vec<InboundPort>,
    /// Whether clients without a mesh identity are accepted.
    #[prost(enumeration = "MtlsMode", tag = "3")]
    pub mtls: i32,
    /// The node of the pod; empty without nodes.
    #[prost(string, tag = "4")]
    pub node: String,
    /// The zone of that node; empty if unknown.
    #[prost(string, tag = "5")]
    pub zone: String,
}

#[derive(Clone, PartialEq, ::prost::Message)]
pub struct InboundPort {
    /// The container's port, 1 to 65535.
    #[prost(uint32, tag = "1")]
    pub port: u32,
    #[prost(enumeration = "Protocol", tag = "2")]
    pub protocol: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ::prost::Enumeration)]
#[repr(i32)]
pub enum MtlsMode {
    /// Clients without a mesh identity are accepted, in plaintext.
    Permissive = 0,
    /// Clients without a mesh identity are rejected.
    Strict = 1,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ::prost::Enumeration)]
#[repr(i32)]
pub enum Protocol {
    /// Not declared: the proxy detects the protocol from the first bytes.
    Detect = 0,
    Http1 = 1,
    /// HTTP/2 with prior knowledge (`kubernetes.io/h2c`, `grpc`).
    Http2 = 2,
    /// Opaque bytes.
    Tcp = 3,
}

/// `destination/<ip:port>`: the target of an address that the app connects to.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Destination {
    /// Absent: the address is outside the mesh, and connections are passed through unchanged.
    #[prost(oneof = "destination::Target", tags = "1, 2")]
    pub target: Option<destination::Target>,
}

pub mod destination {
    #[derive(Clone, PartialEq, ::prost::Oneof)]
    pub enum Target {
        /// Name of a `service/…` resource: the address is a ClusterIP with one of its ports.
        #[prost(string, tag = "1")]
        Service(String),
        /// The address is a pod's own.
        #[prost(message, boxed, tag = "2")]
        Pod(Box<super::PodDestination>),
    }
}

#[derive(Clone, PartialEq, ::prost::Message)]
pub struct PodDestination {
    #[prost(message, optional, tag = "1")]
    pub endpoint: Option<Endpoint>,
    #[prost(enumeration = "Protocol", tag = "2")]
    pub protocol: i32,
    /// Namespace of the pod.
    #[prost(string, tag = "3")]
    pub namespace: String,
    /// A Service that selects the pod's port, for metrics; empty if no Service does.
    #[prost(string, tag = "4")]
    pub service: String,
}

/// `service/<client-namespace>/<namespace>/<name>/<port>`: one port of a Service, as seen by the
/// clients of one namespace (GEP-1294: consumer routes apply to their own namespace).
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Service {
    #[prost(string, tag = "1")]
    pub namespace: String,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(uint32, tag = "3")]
    pub port: u32,
    #[prost(enumeration = "Protocol", tag = "4")]
    pub protocol: i32,
    /// Names of `http-route/…` or `grpc-route/…` resources, in order of precedence between equal
    /// matches (Gateway API: the oldest, then by namespace and name). Empty: every request goes to
    /// `endpoints`, unless there are `opaque_routes`.
    #[prost(string, repeated, tag = "5")]
    pub http_routes: Vec<String>,
    /// Name of the `endpoints/…` resource of the Service's own pods.
    #[prost(string, tag = "6")]
    pub endpoints: String,
    /// Absent: the proxy's default (20 % and 10 a second).
    #[prost(message, optional, tag = "7")]
    pub retry_budget: Option<RetryBudget>,
    /// Names of `tls-route/…` resources, in the order of `http_routes`, or of one `tcp-route/…`.
    /// Connections to the port are then opaque, whatever `protocol` is, and these routes apply.
    /// Empty if there are `http_routes`.
    #[prost(string, repeated, tag = "8")]
    pub opaque_routes: Vec<String>,
}

/// The budget for retries on top of the requests themselves (GEP-3388).
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct RetryBudget {
    /// Retries for each hundred requests, 0 to 100.
    #[prost(uint32, tag = "1")]
    pub percent: u32,
    /// The interval in which requests and retries are counted, in milliseconds.
    #[prost(uint64, tag = "2")]
    pub interval_ms: u64,
    /// Retries per second that are allowed regardless of the number of requests, in thousandths.
    #[prost(uint64, tag = "3")]
    pub min_retries_per_1000_s: u64,
}

/// `http-route/<namespace>/<name>`: an HTTPRoute (Gateway API v1.7);
/// `grpc-route/<namespace>/<name>`: a GRPCRoute, converted to the same form.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct HttpRoute {
    #[prost(string, tag = "1")]
    pub namespace: String,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(message, repeated, tag = "3")]
    pub rules: Vec<HttpRule>,
}

#[derive(Clone, PartialEq, ::prost::Message)]
pub struct HttpRule {
    /// Empty if the user gave none.
    #[prost(string, tag = "1")]
    pub name: String,
    /// At least one of them must match. Empty: every request.
    #[prost(message, repeated, tag = "2")]
    pub matches: Vec<HttpMatch>,
    /// In the order of application.
    #[prost(message, repeated, tag = "3")]
    pub filters: Vec<HttpFilter>,
    #[prost(message, repeated, tag = "4")]
    pub backends: Vec<HttpBackend>,
    /// For the whole request including retries, in milliseconds; 0: none.
    #[prost(uint64, tag = "5")]
    pub request_timeout_ms: u64,
    /// For each attempt, in milliseconds; 0: none.
    #[prost(uint64, tag = "6")]
    pub backend_request_timeout_ms: u64,
    #[prost(message, optional, tag = "7")]
    pub retry: Option<Retry>,
}

/// All criteria must match.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct HttpMatch {
    #[prost(message, optional, tag = "1")]
    pub path: Option<PathMatch>,
    #[prost(message, repeated, tag = "2")]
    pub headers: Vec<NamedMatch>,
    #[prost(message, repeated, tag = "3")]
    pub query: Vec<NamedMatch>,
    /// Empty: any.
    #[prost(string, tag = "4")]
    pub method: String,
}

#[derive(Clone, PartialEq, ::prost::Message)]
pub struct PathMatch {
    #[prost(enumeration = "PathMatchKind", tag = "1")]
    pub kind: i32,
    #[prost(string, tag = "2")]
    pub value: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ::prost::Enumeration)]
#[repr(i32)]
pub enum PathMatchKind {
    /// By whole path segments: `/a` matches `/a` and `/a/b`, not `/ab`.
    Prefix = 0,
    Exact = 1,
    /// RE2 syntax; must match the whole path.
    RegularExpression = 2,
}

/// A header (with a case-insensitive name) or a query parameter (with a case-sensitive name).
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct NamedMatch {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub value: String,
    /// `value` is a regular expression that must match the whole value.
    #[prost(bool, tag = "3")]
    pub regular_expression: bool,
}

#[derive(Clone, PartialEq, ::prost::Message)]
pub struct HttpFilter {
    #[prost(oneof = "http_filter::Kind", tags = "1, 2, 3, 4, 5, 6")]
    pub kind: Option<http_filter::Kind>,
}

pub mod http_filter {
    #[derive(Clone, PartialEq, ::prost::Oneof)]
    pub enum Kind {
        #[prost(message, tag = "1")]
        RequestHeaders(super::HeaderModifier),
        #[prost(message, tag = "2")]
        ResponseHeaders(super::HeaderModifier),
        #[prost(message, tag = "3")]
        Redirect(super::Redirect),
        #[prost(message, tag = "4")]
        Rewrite(super::Rewrite),
        /// May be repeated, unlike the others.
        #[prost(message, tag = "5")]
        Mirror(super::Mirror),
        /// Only on a rule.
        #[prost(message, tag = "6")]
        Cors(super::Cors),
    }
}

/// `set`, then `add`, then `remove`.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct HeaderModifier {
    #[prost(message, repeated, tag = "1")]
    pub set: Vec<Header>,
    #[prost(message, repeated, tag = "2")]
    pub add: Vec<Header>,
    #[prost(string, repeated, tag = "3")]
    pub remove: Vec<String>,
}

#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Header {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub value: String,
}

/// The proxy responds itself. Absent parts are those of the request.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Redirect {
    #[prost(string, tag = "1")]
    pub scheme: String,
    #[prost(string, tag = "2")]
    pub hostname: String,
    #[prost(message, optional, tag = "3")]
    pub path: Option<PathModifier>,
    /// 0: by the specification's rule (the well-known port of `scheme`, else the request's own).
    #[prost(uint32, tag = "4")]
    pub port: u32,
    /// 301, 302, 303, 307 or 308.
    #[prost(uint32, tag = "5")]
    pub status: u32,
}

#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Rewrite {
    #[prost(string, tag = "1")]
    pub hostname: String,
    #[prost(message, optional, tag = "2")]
    pub path: Option<PathModifier>,
}

#[derive(Clone, PartialEq, ::prost::Message)]
pub struct PathModifier {
    #[prost(enumeration = "PathModifierKind", tag = "1")]
    pub kind: i32,
    #[prost(string, tag = "2")]
    pub value: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ::prost::Enumeration)]
#[repr(i32)]
pub enum PathModifierKind {
    ReplaceFullPath = 0,
    /// Replaces what the rule's prefix match covered.
    ReplacePrefixMatch = 1,
}

/// Also sends a share of the requests here, without waiting for the response. A mirror that can't
/// be resolved is omitted and reported in the route's status.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Mirror {
    /// Name of an `endpoints/…` resource.
    #[prost(string, tag = "1")]
    pub endpoints: String,
    /// Numerator of the share.
    #[prost(uint32, tag = "2")]
    pub numerator: u32,
    /// Denominator of the share. At least 1, and at least `numerator`.
    #[prost(uint32, tag = "3")]
    pub denominator: u32,
}

/// Cross-origin requests of browsers (Fetch standard, section 3.3). In each list a sole `*` matches
/// everything.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Cors {
    /// `scheme://host` or `scheme://host:port`, where the host may be `*` or begin with `*.`.
    #[prost(string, repeated, tag = "1")]
    pub allow_origins: Vec<String>,
    #[prost(bool, tag = "2")]
    pub allow_credentials: bool,
    #[prost(string, repeated, tag = "3")]
    pub allow_methods: Vec<String>,
    #[prost(string, repeated, tag = "4")]
    pub allow_headers: Vec<String>,
    #[prost(string, repeated, tag = "5")]
    pub expose_headers: Vec<String>,
    /// How long a browser may cache the response to a preflight request, in seconds.
    #[prost(uint32, tag = "6")]
    pub max_age_seconds: u32,
}

#[derive(Clone, PartialEq, ::prost::Message)]
pub struct HttpBackend {
    /// Share of the rule's requests, relative to the other backends' weights.
    #[prost(uint32, tag = "1")]
    pub weight: u32,
    /// Name of an `endpoints/…` resource. Empty if `invalid` is set.
    #[prost(string, tag = "2")]
    pub endpoints: String,
    /// Why the backend can't be used (a reason of its ResolvedRefs condition, and its subject). Its
    /// share of the requests gets 500.
    #[prost(string, tag = "3")]
    pub invalid: String,
    #[prost(message, repeated, tag = "4")]
    pub filters: Vec<HttpFilter>,
}

#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Retry {
    /// Statuses that are retried, 400 to 599.
    #[prost(uint32, repeated, tag = "1")]
    pub codes: Vec<u32>,
    /// Retries after the first attempt. 0: none.
    #[prost(uint32, tag = "2")]
    pub attempts: u32,
    /// Minimum delay between two attempts, in milliseconds; 0: the proxy's default.
    #[prost(uint64, tag = "3")]
    pub backoff_ms: u64,
}

/// `tls-route/<namespace>/<name>`: a TLSRoute (Gateway API v1.7). It applies to connections whose
/// SNI matches one of its names.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct TlsRoute {
    #[prost(string, tag = "1")]
    pub namespace: String,
    #[prost(string, tag = "2")]
    pub name: String,
    /// In lower case: `a.example`, or `*.example` for every name that ends in `.example`. At least
    /// one.
    #[prost(string, repeated, tag = "3")]
    pub hostnames: Vec<String>,
    #[prost(message, repeated, tag = "4")]
    pub backends: Vec<OpaqueBackend>,
}

/// `tcp-route/<namespace>/<name>`: a TCPRoute (Gateway API v1.7). It applies to every connection.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct TcpRoute {
    #[prost(string, tag = "1")]
    pub namespace: String,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(message, repeated, tag = "3")]
    pub backends: Vec<OpaqueBackend>,
}

#[derive(Clone, PartialEq, ::prost::Message)]
pub struct OpaqueBackend {
    /// Share of the route's connections, relative to the other backends' weights.
    #[prost(uint32, tag = "1")]
    pub weight: u32,
    /// Name of an `endpoints/…` resource. Empty if `invalid` is set.
    #[prost(string, tag = "2")]
    pub endpoints: String,
    /// Why the backend can't be used, as in [`HttpBackend::invalid`]. Its share of the connections
    /// is rejected.
    #[prost(string, tag = "3")]
    pub invalid: String,
}

/// `endpoints/<namespace>/<service>/<port>`: the endpoints of one Service port. It contains only
/// those that accept new connections.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Endpoints {
    #[prost(string, tag = "1")]
    pub namespace: String,
    #[prost(string, tag = "2")]
    pub service: String,
    #[prost(uint32, tag = "3")]
    pub port: u32,
    #[prost(message, repeated, tag = "4")]
    pub endpoints: Vec<Endpoint>,
    /// The protocol that the pods speak on this port.
    #[prost(enumeration = "Protocol", tag = "5")]
    pub protocol: i32,
    /// Each proxy uses only the endpoints on its own node (`internalTrafficPolicy: Local`). Hints
    /// do not apply then.
    #[prost(bool, tag = "6")]
    pub node_local: bool,
}

/// One pod address.
#[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
pub struct Endpoint {
    /// 4 or 16 bytes, network order.
    #[prost(bytes = "bytes", tag = "1")]
    pub ip: Bytes,
    #[prost(uint32, tag = "2")]
    pub port: u32,
    /// The SPIFFE ID that the pod must prove. Empty: the pod has no sidecar, and connections to it
    /// are in plaintext.
    #[prost(string, tag = "3")]
    pub identity: String,
    #[prost(string, tag = "4")]
    pub pod: String,
    /// As `deployment/web`.
    #[prost(string, tag = "5")]
    pub workload: String,
    #[prost(string, tag = "6")]
    pub zone: String,
    /// The node of the pod. Set only if the Service is `node_local`.
    #[prost(string, tag = "7")]
    pub node: String,
    /// Zones whose clients prefer it, from the EndpointSlice's hints. They apply if every endpoint
    /// has some and at least one endpoint has the client's zone.
    #[prost(string, repeated, tag = "8")]
    pub for_zones: Vec<String>,
    /// Nodes whose clients prefer it, likewise; they take precedence over zones.
    #[prost(string, repeated, tag = "9")]
    pub for_nodes: Vec<String>,
}

/// A change to an [`Endpoints`] that the proxy holds in version `base_version`. The resource's
/// `version` is that of the result. A proxy without the base rejects the delta, and gets the whole
/// resource.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct EndpointsDelta {
    #[prost(fixed64, tag = "1")]
    pub base_version: u64,
    /// New endpoints, and replacements of those with the same address and port.
    #[prost(message, repeated, tag = "2")]
    pub upserted: Vec<Endpoint>,
    /// Only `ip` and `port` are set.
    #[prost(message, repeated, tag = "3")]
    pub removed: Vec<Endpoint>,
}
