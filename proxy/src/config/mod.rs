//! Configuration of a proxy: flags and environment, parsed once at start into one struct. Nothing
//! reads the environment later.

mod span;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::identity::SpiffeId;
use crate::memory;
use crate::observe::logging::{self, LogFormat};
use crate::probe::Probes;
use crate::socket::{MappedListener, Ports, parse_mark};
pub use span::Span;

/// Most data workers. A proxy with more threads is no longer a sidecar, and each worker has pools
/// of its own.
const MAX_WORKERS: i64 = 64;

/// The configuration of a running proxy.
#[derive(Clone, Debug)]
pub struct Config {
    /// The controller's gRPC address, as `host:port`.
    pub controller: String,
    /// The SPIFFE ID that the controller must prove. Its trust domain is the mesh's.
    pub controller_identity: SpiffeId,
    /// PEM file with the anchors to trust before the controller has sent any.
    pub trust_anchors: PathBuf,
    /// File with the service-account token.
    pub token: PathBuf,
    pub namespace: String,
    pub pod: String,
    /// Port of the listener for redirected outbound connections, if there is one.
    pub outbound_port: Option<NonZeroU16>,
    /// Port of the listener for redirected inbound connections, if there is one.
    pub inbound_port: Option<NonZeroU16>,
    /// Listeners whose connections are treated as having a given original destination.
    pub map_outbound: Vec<MappedListener>,
    pub map_inbound: Vec<MappedListener>,
    pub admin: SocketAddr,
    /// The app's endpoints behind the probes on the admin port.
    pub probes: Probes,
    /// Data worker threads.
    pub workers: usize,
    /// Mark on every socket that the proxy opens, where redirect rules identify its traffic by a
    /// mark.
    pub socket_mark: Option<u32>,
    /// Write one JSON line for each request to standard output.
    pub access_log: bool,
    /// The address of HTTP clients that the app sees.
    pub client_address: ClientAddress,
    /// Fields of requests to which the client's address is appended for the app.
    pub forwarded: Vec<AddressField>,
    /// Ports of the app to which connections begin with a PROXY protocol header.
    pub proxy_protocol: Vec<u16>,
    /// Filter of the program's own log, as `info` or `naru_proxy::control=debug,info`.
    pub log: String,
    pub log_format: LogFormat,
    pub limits: Limits,
    /// Bound on the memory that peers may make the process hold, in bytes. `None`: from the limit
    /// of its cgroup.
    pub memory_budget: Option<usize>,
}

/// What HTTP clients are seen as. Opaque connections always have their client's address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ClientAddress {
    /// The client's own address. Each client has connections to the app of its own.
    #[default]
    Preserve,
    /// A stand-in, which no machine has. All clients share connections to the app.
    Hide,
}

/// A field to which the client's address is appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AddressField {
    #[value(name = "x-forwarded-for")]
    XForwardedFor,
    Forwarded,
}

/// Every bound of the data path. The defaults carry their reasons.
#[derive(Clone, Debug)]
pub struct Limits {
    /// A request's or response's whole head, in bytes. Linkerd's 16 KiB and Envoy's 60 KiB both
    /// broke users' cookies.
    pub max_header_bytes: usize,
    /// How much of a request body is kept for another attempt, in bytes.
    pub max_replay_bytes: usize,
    /// Downstream connections of the whole proxy, each direction. Of those from outside, a fifth is
    /// reserved for clients that prove an identity.
    pub max_connections: usize,
    /// Downstream connections from one address outside. A node's address may represent all clients
    /// from outside of the cluster.
    pub max_connections_per_source: usize,
    /// Concurrent streams of one downstream HTTP/2 connection.
    pub max_concurrent_streams: u32,
    /// Idle HTTP/1.1 connections kept for one endpoint by one worker; as many again for opaque TCP
    /// between sidecars.
    pub max_idle_per_endpoint: usize,
    /// Idle HTTP/1.1 connections kept by one worker; as many again for opaque TCP between sidecars.
    pub max_idle: usize,
    /// How long an upstream connection may stay unused in a pool.
    pub pool_idle: Duration,
    /// How long an upstream connection is given new requests, or connections of the app.
    pub pool_age: Duration,
    /// How long opening an upstream connection may take, TLS included.
    pub connect_timeout: Duration,
    /// How long a request waits for a stream to an endpoint whose streams are in use, on top of
    /// what opening a connection may take.
    pub stream_wait: Duration,
    /// How long an HTTP/2 client may leave a response unread: Envoy's default idle timeout of a
    /// stream.
    pub reader_timeout: Duration,
    /// How long a sidecar may leave data unacknowledged without any sign of life before its
    /// connection is closed.
    pub peer_timeout: Duration,
    /// How long a client from outside may stay silent at first, on protocols in which the client
    /// sends first.
    pub first_byte_timeout: Duration,
    /// How long a downstream client may take to send a request's head once it has begun.
    pub header_timeout: Duration,
    /// How long a downstream HTTP connection may be kept without a request, and a sidecar's
    /// unused connection for opaque TCP.
    pub keep_alive_idle: Duration,
    /// How long a downstream TLS handshake may take, and the ClientHello that a TLSRoute inspects.
    pub handshake_timeout: Duration,
    /// How long to wait for the controller's first answer about a destination.
    pub discovery_timeout: Duration,
    /// How long work in flight may go on after SIGTERM.
    pub drain_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_header_bytes: 64 * 1024,
            max_replay_bytes: 64 * 1024,
            max_connections: 10_000,
            max_connections_per_source: 5_000,
            max_concurrent_streams: 1_000,
            max_idle_per_endpoint: 128,
            max_idle: 1_024,
            pool_idle: Duration::from_secs(60),
            pool_age: Duration::from_secs(3_600),
            connect_timeout: Duration::from_secs(1),
            stream_wait: Duration::from_secs(10),
            reader_timeout: Duration::from_secs(300),
            peer_timeout: Duration::from_secs(10),
            first_byte_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(30),
            keep_alive_idle: Duration::from_secs(3_600),
            handshake_timeout: Duration::from_secs(5),
            discovery_timeout: Duration::from_secs(5),
            drain_timeout: Duration::from_secs(30),
        }
    }
}

/// Flags of `naru-proxy run`.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// The controller's gRPC address, as HOST:PORT.
    #[arg(long, env = "NARU_CONTROLLER", value_parser = parse_host_port)]
    controller: String,
    /// The SPIFFE ID that the controller must prove.
    #[arg(long, env = "NARU_CONTROLLER_IDENTITY", value_name = "SPIFFE_ID")]
    controller_identity: SpiffeId,
    /// PEM file with the certificates to trust until the controller sends its trust anchors.
    #[arg(long, env = "NARU_TRUST_ANCHORS", value_name = "FILE")]
    trust_anchors: PathBuf,
    /// File with the pod's service-account token for the audience naru.dev. Read again for each
    /// certificate.
    #[arg(long, env = "NARU_TOKEN", value_name = "FILE")]
    token: PathBuf,
    /// Namespace of the pod.
    #[arg(long, env = "NARU_NAMESPACE", value_parser = parse_name)]
    namespace: String,
    /// Name of the pod.
    #[arg(long, env = "NARU_POD", value_parser = parse_name)]
    pod: String,
    /// Port that outbound connections are redirected to; 0: no listener.
    #[arg(long, env = "NARU_OUTBOUND_PORT", default_value_t = 15001)]
    outbound_port: u16,
    /// Port that inbound connections are redirected to; 0: no listener.
    #[arg(long, env = "NARU_INBOUND_PORT", default_value_t = 15006)]
    inbound_port: u16,
    /// Accept connections on LISTEN as outbound ones to DESTINATION (without redirect rules;
    /// repeatable).
    #[arg(
        long,
        env = "NARU_MAP_OUTBOUND",
        value_name = "LISTEN=DESTINATION",
        value_delimiter = ','
    )]
    map_outbound: Vec<MappedListener>,
    /// Accept connections on LISTEN as inbound ones to DESTINATION (without redirect rules;
    /// repeatable).
    #[arg(
        long,
        env = "NARU_MAP_INBOUND",
        value_name = "LISTEN=DESTINATION",
        value_delimiter = ','
    )]
    map_inbound: Vec<MappedListener>,
    /// Address of metrics and probes. Without IPv6, [::] falls back to 0.0.0.0.
    #[arg(
        long,
        env = "NARU_ADMIN",
        default_value = "[::]:15020",
        value_name = "ADDRESS:PORT"
    )]
    admin: SocketAddr,
    /// The app's probe behind each /probe/… path of the admin port. Set by injection.
    #[arg(
        long,
        env = "NARU_PROBES",
        default_value = "{}",
        value_name = "JSON",
        hide_default_value = true
    )]
    probes: Probes,
    /// Threads that carry traffic.
    #[arg(
        long,
        env = "NARU_WORKERS",
        default_value_t = 1,
        value_parser = clap::value_parser!(u16).range(1..=MAX_WORKERS)
    )]
    workers: u16,
    /// Mark (SO_MARK) of every socket that the proxy opens, if the redirect rules identify the
    /// proxy by it.
    #[arg(long, env = "NARU_SOCKET_MARK", value_name = "MARK", value_parser = parse_mark)]
    socket_mark: Option<u32>,
    /// Write one JSON line for each request to standard output.
    #[arg(long, env = "NARU_ACCESS_LOG")]
    access_log: bool,
    /// The client address that the app sees on HTTP connections: the real one, or a stand-in, so
    /// that clients share connections to the app.
    #[arg(
        long,
        env = "NARU_CLIENT_ADDRESS",
        value_name = "WHAT",
        value_enum,
        default_value_t
    )]
    client_address: ClientAddress,
    /// Request header fields to which the client's address is appended for the app:
    /// x-forwarded-for, forwarded.
    #[arg(
        long,
        env = "NARU_FORWARDED_HEADERS",
        value_name = "FIELDS",
        value_enum,
        value_delimiter = ','
    )]
    forwarded_headers: Vec<AddressField>,
    /// Ports of the app that receive their clients' addresses by the PROXY protocol, version 2:
    /// 25,143.
    #[arg(
        long,
        env = "NARU_PROXY_PROTOCOL",
        value_name = "PORTS",
        value_delimiter = ','
    )]
    proxy_protocol: Vec<u16>,
    /// Log filter: error, warn, info, debug, trace, or MODULE=LEVEL,…
    #[arg(
        long,
        env = "NARU_LOG",
        default_value = "info",
        value_name = "FILTER",
        value_parser = parse_filter
    )]
    log: String,
    /// Format of the log on standard error.
    #[arg(long, env = "NARU_LOG_FORMAT", default_value = "text", value_enum)]
    log_format: LogFormat,
    #[command(flatten)]
    limits: LimitArgs,
    /// Bytes of memory that clients and servers may occupy in total. Default: three quarters of the
    /// memory limit (of 256 MiB if there is no limit or it is above 4 GiB), less 16 MiB.
    #[arg(
        long,
        env = "NARU_MEMORY_BUDGET",
        value_name = "BYTES",
        help_heading = "Limits",
        value_parser = parse_budget
    )]
    memory_budget: Option<usize>,
}

impl Limits {
    /// Lowers the bound on connections to `all`, and the bound per address in proportion: one
    /// client must not fill the rest.
    pub fn lower_connections(&mut self, all: usize) {
        let of_source = self.max_connections_per_source.saturating_mul(all);
        let of_source = (of_source / self.max_connections.max(1)).max(1);
        self.max_connections_per_source = self.max_connections_per_source.min(of_source);
        self.max_connections = all;
    }
}

macro_rules! limit_args {
    ($($(#[doc = $doc:literal])* $field:ident: $type:ty, $env:literal, $min:literal;)*) => {
        /// Every bound of the data path as a flag; the defaults are those of [`Limits`].
        #[derive(Args, Clone, Debug)]
        #[command(next_help_heading = "Limits")]
        struct LimitArgs {
            $($(#[doc = $doc])*
            #[arg(
                long,
                env = $env,
                default_value_t = <$type>::from(Limits::default().$field),
                value_parser = at_least::<$type>($min)
            )]
            $field: $type,)*
        }

        impl From<LimitArgs> for Limits {
            fn from(args: LimitArgs) -> Self {
                Self { $($field: args.$field.into(),)* }
            }
        }
    };
}

limit_args! {
    /// Bytes in the whole head of a request or response.
    max_header_bytes: usize, "NARU_MAX_HEADER_BYTES", "1024";
    /// Bytes of a request body that are kept for another attempt.
    max_replay_bytes: usize, "NARU_MAX_REPLAY_BYTES", "0";
    /// Downstream connections, each direction.
    max_connections: usize, "NARU_MAX_CONNECTIONS", "1";
    /// Downstream connections from one address outside.
    max_connections_per_source: usize, "NARU_MAX_CONNECTIONS_PER_SOURCE", "1";
    /// Concurrent streams of one downstream HTTP/2 connection.
    max_concurrent_streams: u32, "NARU_MAX_CONCURRENT_STREAMS", "1";
    /// Idle HTTP/1.1 connections that one worker keeps for one endpoint; as many again for opaque
    /// TCP between sidecars.
    max_idle_per_endpoint: usize, "NARU_MAX_IDLE_PER_ENDPOINT", "0";
    /// Idle HTTP/1.1 connections that one worker keeps; as many again for opaque TCP between
    /// sidecars.
    max_idle: usize, "NARU_MAX_IDLE", "0";
    /// How long an upstream connection may stay unused in a pool.
    pool_idle: Span, "NARU_POOL_IDLE", "1ms";
    /// How long an upstream connection carries new requests, or new connections of the app.
    pool_age: Span, "NARU_POOL_AGE", "1ms";
    /// How long opening an upstream connection may take, TLS included.
    connect_timeout: Span, "NARU_CONNECT_TIMEOUT", "1ms";
    /// How long a request waits for a stream when all of the endpoint's streams, or its client's
    /// share of them, are in use. Then it is refused. Opening a connection has its own time limit.
    stream_wait: Span, "NARU_STREAM_WAIT", "0s";
    /// How long a client may leave a response unread. Then its stream, or its connection over
    /// HTTP/1.1, is ended, because it occupies a connection to the endpoint that others share.
    reader_timeout: Span, "NARU_READER_TIMEOUT", "1ms";
    /// How long another pod's sidecar may show no sign of life while a request or the beginning of
    /// an opaque connection waits for it. Then its connection is closed, as that of a node that is
    /// cut off. Over HTTP/2, where PINGs go out at half of this interval, it may take half as long
    /// again.
    peer_timeout: Span, "NARU_PEER_TIMEOUT", "1s";
    /// How long a client from outside may stay silent at first on a port that is declared as HTTP.
    first_byte_timeout: Span, "NARU_FIRST_BYTE_TIMEOUT", "1ms";
    /// How long a client may take to send a request's head once it has begun.
    header_timeout: Span, "NARU_HEADER_TIMEOUT", "1ms";
    /// How long a downstream HTTP connection may stay without a request, and a sidecar's connection
    /// for opaque TCP unused.
    keep_alive_idle: Span, "NARU_KEEP_ALIVE_IDLE", "1ms";
    /// How long a downstream TLS handshake may take, and the ClientHello that a TLSRoute inspects.
    handshake_timeout: Span, "NARU_HANDSHAKE_TIMEOUT", "1ms";
    /// How long a request or connection waits for the controller's first answer about its
    /// destination.
    discovery_timeout: Span, "NARU_DISCOVERY_TIMEOUT", "1ms";
    /// How long work in flight may go on after SIGTERM.
    drain_timeout: Span, "NARU_DRAIN_TIMEOUT", "0s";
}

impl Config {
    /// Where the data path listens.
    pub fn ports(&self) -> Ports<'_> {
        Ports {
            outbound: self.outbound_port,
            inbound: self.inbound_port,
            map_outbound: &self.map_outbound,
            map_inbound: &self.map_inbound,
        }
    }
}

impl From<RunArgs> for Config {
    fn from(args: RunArgs) -> Self {
        Self {
            controller: args.controller,
            controller_identity: args.controller_identity,
            trust_anchors: args.trust_anchors,
            token: args.token,
            namespace: args.namespace,
            pod: args.pod,
            outbound_port: NonZeroU16::new(args.outbound_port),
            inbound_port: NonZeroU16::new(args.inbound_port),
            map_outbound: args.map_outbound,
            map_inbound: args.map_inbound,
            admin: args.admin,
            probes: args.probes,
            workers: usize::from(args.workers),
            socket_mark: args.socket_mark,
            access_log: args.access_log,
            client_address: args.client_address,
            forwarded: args.forwarded_headers,
            proxy_protocol: args.proxy_protocol,
            log: args.log,
            log_format: args.log_format,
            limits: args.limits.into(),
            memory_budget: args.memory_budget,
        }
    }
}

/// A parser that rejects values below `least`.
fn at_least<T>(
    least: &'static str,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static
where
    T: FromStr<Err: fmt::Display> + PartialOrd + fmt::Display,
{
    move |text| {
        let value: T = text.parse().map_err(|error: T::Err| error.to_string())?;
        match least.parse::<T>() {
            Ok(least) if value < least => Err(format!("must be at least {least}")),
            _ => Ok(value),
        }
    }
}

fn parse_host_port(text: &str) -> Result<String, String> {
    let wrong = || format!("{text:?} is not HOST:PORT, as naru-controller.naru-system:15010");
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let bare_ipv6 = host.contains(':') && !(host.starts_with('[') && host.ends_with(']'));
    match port.parse::<u16>() {
        Ok(1..) if !host.is_empty() && !bare_ipv6 => Ok(text.to_owned()),
        _ => Err(wrong()),
    }
}

/// Kubernetes' rule for the names of namespaces and pods, close enough to catch a variable that was
/// not filled in.
fn parse_name(text: &str) -> Result<String, String> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    if (1..=253).contains(&text.len()) && text.bytes().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err("expected lower-case letters, digits, '-' and '.'".to_owned())
    }
}

fn parse_budget(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(bytes) if bytes >= memory::SMALLEST => Ok(bytes),
        Ok(_) => Err(format!("must be at least {} bytes", memory::SMALLEST)),
        Err(error) => Err(error.to_string()),
    }
}

fn parse_filter(text: &str) -> Result<String, String> {
    logging::parse(text)
        .map(|_| text.to_owned())
        .map_err(|error| error.to_string())
}

#[cfg(test)]
impl Config {
    /// The configuration of the mandatory flags, for tests that change the fields they are about.
    pub(crate) fn for_tests() -> Self {
        use clap::Parser;
        let needed = tests::NEEDED.iter();
        tests::Command::parse_from(needed).run.into()
    }
}
