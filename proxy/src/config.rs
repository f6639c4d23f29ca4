//! What a proxy is told at start: flags and environment, parsed once into one struct. Nothing reads
//! the environment later.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Everything that a running proxy is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// The controller's gRPC address, as `host:port`.
    pub controller: String,
    /// The SPIFFE ID that the controller must prove.
    pub controller_identity: String,
    /// PEM file with the anchors to trust before the controller has sent any.
    pub trust_anchors: PathBuf,
    /// File with the service-account token.
    pub token: PathBuf,
    pub namespace: String,
    pub pod: String,
    pub outbound_port: u16,
    pub inbound_port: u16,
    /// Listeners whose connections are taken as having had a given original destination.
    pub map_outbound: Vec<MappedListener>,
    pub map_inbound: Vec<MappedListener>,
    pub admin: SocketAddr,
    /// Data worker threads.
    pub workers: usize,
    /// Mark on every socket that the proxy opens, where rules tell its traffic by a mark.
    pub socket_mark: Option<u32>,
    pub access_log: bool,
    pub log: String,
    pub limits: Limits,
}

/// A listener that stands for an original destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedListener {
    pub listen: SocketAddr,
    pub destination: SocketAddr,
}

/// Every bound of the data path. The defaults carry their reasons.
#[derive(Clone, Debug)]
pub struct Limits {
    /// A request's or response's whole head, in bytes. Linkerd's 16 KiB and Envoy's 60 KiB both broke users' cookies.
    pub max_header_bytes: usize,
    /// How much of a request body is kept for another attempt, in bytes.
    pub max_replay_bytes: usize,
    /// Downstream connections of the whole proxy, each direction.
    pub max_connections: usize,
    /// Concurrent streams of one downstream HTTP/2 connection.
    pub max_concurrent_streams: u32,
    /// Idle HTTP/1.1 connections kept for one endpoint by one worker.
    pub max_idle_per_endpoint: usize,
    /// Idle HTTP/1.1 connections kept by one worker.
    pub max_idle: usize,
    /// How long an upstream connection may stay unused in a pool.
    pub pool_idle: Duration,
    /// How long an upstream connection is given new requests.
    pub pool_age: Duration,
    /// How long opening an upstream connection may take, TLS included.
    pub connect_timeout: Duration,
    /// How long a downstream client may take to send a request's head once it has begun.
    pub header_timeout: Duration,
    /// How long a downstream HTTP connection may be kept with no request on it.
    pub keep_alive_idle: Duration,
    /// How long a downstream TLS handshake may take.
    pub handshake_timeout: Duration,
    /// How long the first word of the controller about a destination is waited for.
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
            max_concurrent_streams: 1_000,
            max_idle_per_endpoint: 128,
            max_idle: 1_024,
            pool_idle: Duration::from_secs(60),
            pool_age: Duration::from_secs(3_600),
            connect_timeout: Duration::from_secs(1),
            header_timeout: Duration::from_secs(30),
            keep_alive_idle: Duration::from_secs(3_600),
            handshake_timeout: Duration::from_secs(5),
            discovery_timeout: Duration::from_secs(5),
            drain_timeout: Duration::from_secs(30),
        }
    }
}
