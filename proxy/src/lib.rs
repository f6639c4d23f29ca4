//! Naru's sidecar proxy.
//!
//! # The life of a connection
//!
//! Data workers carry connections, and one control thread keeps them supplied. Here a request of an
//! app in one pod goes to an app in another one, through the proxies of both.
//!
//! ```text
//!  pod of the client                                        pod of the server
//! ┌─────────────────────────────────────────┐              ┌────────────────────────────────────┐
//! │ app ─▶ worker ─▶ outbound ─▶ connection │              │ worker ─▶ inbound ─▶ TLS handshake │
//! │        accept    table       detect     │              │ accept    detect     identity      │
//! │                                │        │              │              │ strict, permissive  │
//! │                 http1 │ http2 │ opaque  │              │  http1 │ http2 │ opaque            │
//! │                   route: decide         │ TCP, TLS 1.3 │       the default rule             │
//! │                   balance: pick         │ALPN says what│       the app in this pod          │
//! │                   pool ─▶ upstream ─────┼──────────────┼▶ pool ─▶ upstream ─▶ app           │
//! └─────────────────────────────────────────┘              └────────────────────────────────────┘
//!      ▲ tables, certificate                                    ▲ tables, certificate
//!    control ◀══════════════ controller ══════════════════════▶ control
//! ```
//!
//! ## On the client's side
//!
//! 1. **The app connects** to an address that it got from DNS, mostly a ClusterIP. The rules that
//!    [`node::redirect`] has set redirect the connection to the outbound listener ([`socket`]).
//! 2. **[`workers`] accepts it**, asks the kernel for the original destination, and hands it to the
//!    worker with the fewest connections, which keeps it to its end: its pools and its tasks belong
//!    to one thread, so nothing on the way takes a lock.
//! 3. **[`outbound`] looks the destination up** in [`table`]. The first time, the address is
//!    unknown: the control thread subscribes to it and the connection waits for the controller's
//!    answer, for a bounded time. From then on it is a look-up in a snapshot. The result is a
//!    Service with its routes, a single pod, or a destination outside the mesh; the last is passed
//!    through unchanged. Nothing that the client sends influences this step.
//! 4. **[`connection`] determines the protocol.** A declared protocol is taken as declared;
//!    otherwise [`wire::detect`] inspects the first bytes. While a client stays silent, the proxy
//!    connects to an endpoint: if the server sends first, the connection is opaque. Where
//!    [`route::opaque`] routes (TLSRoutes, a TCPRoute) are in force, the connection is always
//!    opaque, and these routes choose the backend.
//! 5. **[`http::http1`], [`http::http2`] or [`opaque`] carries it.** The two HTTPs read one request
//!    after the other, or many at once; each is on its own from here. An opaque connection skips
//!    the next step; to another sidecar it goes in frames ([`opaque::frame`]), so that the next one
//!    can follow on the same upstream connection.
//! 6. **[`route`] decides** which rule matches the request and which of its backends gets it, and
//!    applies the rule's filters. The table is loaded for each request, so a changed route applies
//!    to the next request on a connection that has long been open. Redirects, requests without a
//!    matching rule and CORS preflight requests are answered here. [`http::mirror`] sends copies to
//!    the mirrors that the rule names.
//! 7. **[`balance`] picks an endpoint** of the backend: the better of two by latency and load,
//!    leaving out those that have been ejected.
//! 8. **A [`upstream::pool`] gives a connection** to that endpoint, or a stream of one: between
//!    sidecars [`upstream::mux`] carries the HTTP/1 of many clients on few connections, as h2 does
//!    with HTTP/2. If the pool is empty, the [`upstream::dialer`] opens a connection: TCP to the
//!    pod's own address, then [`tls`], in which [`identity`] presents this pod's certificate and
//!    requires exactly the identity that the table names. Another workload at that address is
//!    refused before a byte of the request is sent, and ejected. ALPN selects the protocol inside.
//! 9. **The request goes out, and the response comes back**, each only as fast as its receiver
//!    reads it. If the attempt fails, [`http::retry`] decides on another: always where nothing has
//!    reached an application, otherwise as the route and the budget ([`balance::RetryBudget`])
//!    allow, with a body that was kept for it up to a limit. [`http::deadlines`] has the route's
//!    timeouts.
//! 10. **It is counted**: by handles in [`observe::metrics`] that were resolved with the table, and
//!     as a line of the [`observe::access_log`] where that is on. A response that the proxy
//!     generated carries a reason from [`observe::reason`].
//!
//! ## On the server's side
//!
//! 1. The connection arrives at the pod's own address and port; the rules redirect it to the
//!    inbound listener.
//! 2. **[`inbound`] identifies the client.** A ClientHello that offers one of Naru's ALPN protocols
//!    comes from a peer: the handshake ([`tls`]) proves its identity. Any other client has no
//!    sidecar. It is accepted as plaintext or refused, according to the pod's [`table`]; the app's
//!    own TLS is passed through untouched.
//! 3. The protocol that ALPN selected is carried by the same [`http::http1`] (on each stream of
//!    [`upstream::mux`]), [`http::http2`] or [`opaque`], with one rule that leads to the app in
//!    this pod. The client's identity is the `client` of every series that is counted here.
//!
//! ## Next to the data path
//!
//! [`control`] runs on the main thread: a certificate from the controller and its renewal, and the
//! stream of tables. A push is decoded and validated as a whole before any of it is in force;
//! invalid resources are rejected by name, and their last good version stays. [`admin`] shows all
//! of that. [`memory`] bounds how much memory peers can make the process hold. At shutdown,
//! [`drain`] signals that no new work is to start, and waits for the work in progress.
//!
//! [`node::redirect`] sets the redirect rules of a pod from inside, and [`node::cni`] from its
//! node. With them the app sees its clients' own addresses as the source of connections
//! ([`upstream::client_address`]), and requests carry the client's identity
//! ([`session::forwarded`]).
//!
//! # The files that a request passes, in order
//!
//! From an app, to a Service of the mesh:
//!
//! ```text
//! workers/mod.rs             accept, arrived    original destination; a worker
//! outbound.rs                serve              destination -> table::Destination
//!   table/tables.rs          destination        a look-up, or a bounded wait for the controller
//! connection/mod.rs          serve              HTTP/1, HTTP/2, or bytes
//!   wire/detect.rs           detect
//! http/http1/serve.rs        serve              one request after the other: head, body
//!   http/http1/head/mod.rs, framing/mod.rs      parsing, hop-by-hop fields
//! http/http1/request.rs      run                one request, and the answer to it
//!   http/exchange.rs         decide             admission, metrics, the access log
//!   route/mod.rs             decide             rule, filters, backend
//! http/http1/forward.rs      run                attempts, then the response
//!   http/attempts/mod.rs     run                one endpoint after the other, with http/retry.rs
//!   balance/mod.rs           pick               endpoint
//! http/http1/forward.rs      once               one try: a connection, the request, the response's
//!                                               head
//!   http/http1/attempt.rs    pooled, open       the connection
//!   upstream/pool/mod.rs     take, open_stream
//!   upstream/streams.rs      acquire
//!   upstream/sidecar.rs      open
//!   upstream/dialer.rs       connect            TCP, TLS, the endpoint's identity
//!   http/http1/attempt.rs    new, poll          head and body sent, the response's head read
//!   upstream/mux/stream.rs, driver.rs           frames of all streams, written together
//!   tls/stream.rs            poll_write         records: the wire
//! http/http1/pass_on.rs      pass_on            the response's head
//!   http/http1/body.rs       poll               the body each way, as fast as its receiver reads
//! http/exchange.rs           end                metrics, and the entry in the access log
//! ```
//!
//! HTTP/2 has the same steps in `http/http2/`; opaque bytes go from `connection` to
//! `opaque/mod.rs`. On the server's side it is `workers/mod.rs`, `inbound/mod.rs` (the handshake,
//! the client's identity) and `inbound/streams.rs` (its streams); then the same files as above,
//! with one rule that leads to the app in the pod.
//!
//! # Floors
//!
//! A module imports from the floors below its own, and from its own where that closes no circle.
//! The folders have maps of their own.
//!
//! ```text
//! workers                threads that accept connections and serve them
//! admin                  the admin port: for people, probes and scrapers
//! inbound outbound       the two directions of a connection, each from its start
//! connection             the protocol of a connection, by its first bytes
//! http                   requests
//! opaque                 bytes that are passed on unchanged
//! session                the facts of a downstream connection, and its worker
//! control                the stream from the controller, and the certificate
//! table                  the controller's resources, as snapshots
//! route                  the rule, the backend and the changes of a request
//! upstream               connections to endpoints, and their pools
//! balance                endpoints: choice, load, ejection, retry budget
//! config node            flags; the redirect rules of a pod, and the CNI plugin
//! identity probe tls     certificates of both sides; the kubelet's probes; TLS
//! observe                metrics, logs and reasons
//! drain memory socket wire    what all of them use
//! ```
#![forbid(unsafe_code)]

pub mod admin;
pub mod balance;
pub mod config;
pub mod connection;
pub mod control;
pub mod drain;
pub mod http;
pub mod identity;
pub mod inbound;
pub mod memory;
pub mod node;
pub mod observe;
pub mod opaque;
pub mod outbound;
pub mod probe;
pub mod route;
pub mod session;
pub mod socket;
pub mod table;
pub mod tls;
pub mod upstream;
pub mod wire;
pub mod workers;

#[cfg(test)]
mod testing;
