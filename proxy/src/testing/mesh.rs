//! A worker with one Service, apps behind it, and a client to call it.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use naru_contract as contract;
use naru_contract::http_filter::Kind;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::net::TcpListener;
use tokio::task::{LocalSet, spawn_local};

use crate::balance::{Backend, Endpoint, EndpointSet, Load, Peer, RetryBudget, next_endpoint_id};
use crate::config::{Config, Limits};
use crate::drain::{DrainSignal, drain};
use crate::http::http2::serve;
use crate::identity::Identity;
use crate::identity::testing::{Authority, spiffe_id};
use crate::memory::Budget;
use crate::observe::access_log::AccessLog;
use crate::observe::logging::LogFormat;
use crate::observe::metrics::{Metrics, MirrorLabels, PoolProtocol, ServiceLabels, TcpLabels};
use crate::route::opaque::OpaqueRoutes;
use crate::route::{
    Logical, Mirror, Protocol, RetryPolicy, Routes, Rule, decode_routes, default_rule,
};
use crate::session::Session;
use crate::session::mirroring::Mirroring;
use crate::session::worker::Worker;
use crate::socket::Direction;
use crate::table::{Destination, DestinationCell, tables};
use crate::upstream::client_address::ClientAddresses;
use crate::upstream::pool::Pool;
use crate::upstream::{Dialer, streams};

/// Longer than any successful test takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// The worker's identity.
pub const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";
/// The address of clients from outside.
pub const ANYWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), 1);

/// Runs a test on one thread, like a worker.
pub fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let bounded = async { tokio::time::timeout(PATIENCE, test).await.expect("in time") };
    LocalSet::new().block_on(&runtime, bounded);
}

/// A worker, and the Service that every connection goes to.
pub struct Mesh {
    pub worker: Rc<Worker>,
    pub signal: Option<DrainSignal>,
    pub cell: Arc<DestinationCell>,
}

/// The parameters of a [`Mesh`].
pub struct Setup {
    pub limits: Limits,
    pub identity: Identity,
    pub protocol: Protocol,
    pub endpoints: Vec<(SocketAddr, Peer)>,
    pub mirrors: Vec<MirrorSetup>,
    pub mirroring: Rc<Mirroring>,
    pub memory: Budget,
    pub client_addresses: ClientAddresses,
    pub retry: Option<RetryPolicy>,
    pub request_timeout: Option<Duration>,
    pub backend_request_timeout: Option<Duration>,
    pub budget: RetryBudget,
    pub access_log: AccessLog,
    /// Builds routes from the default rule.
    pub routes: Option<fn(Rule) -> Routes>,
    pub opaque_routes: Option<OpaqueRoutes>,
}

/// The endpoints of a mirror, and its percentage of requests.
pub struct MirrorSetup {
    endpoints: Vec<(SocketAddr, Peer)>,
    numerator: u32,
}

impl Setup {
    pub fn new(endpoints: &[SocketAddr]) -> Self {
        let identity = Authority::new("any").identity(CLIENT);
        let plain = |address: &SocketAddr| (*address, Peer::Plain);
        Self {
            limits: Limits {
                peer_timeout: Duration::from_millis(400),
                ..Limits::default()
            },
            identity,
            protocol: Protocol::Http2,
            endpoints: endpoints.iter().map(plain).collect(),
            mirrors: Vec::new(),
            mirroring: Rc::default(),
            memory: Budget::new(64 << 20),
            client_addresses: ClientAddresses::default(),
            retry: None,
            request_timeout: None,
            backend_request_timeout: None,
            budget: RetryBudget::default(),
            access_log: AccessLog::off(),
            routes: None,
            opaque_routes: None,
        }
    }

    pub fn retry(mut self, codes: &[u16], attempts: u32) -> Self {
        self.retry = Some(RetryPolicy {
            codes: codes.to_vec(),
            attempts,
            backoff: Duration::from_millis(1),
        });
        self
    }

    /// A mirror `shop/shadow` of `numerator` out of 100 requests.
    pub fn mirror(mut self, endpoints: &[SocketAddr], numerator: u32) -> Self {
        let plain = |address: &SocketAddr| (*address, Peer::Plain);
        self.mirrors.push(MirrorSetup {
            endpoints: endpoints.iter().map(plain).collect(),
            numerator,
        });
        self
    }

    pub fn start(self) -> Mesh {
        let (signal, drain) = drain();
        let metrics = Metrics::default();
        let (tables, _misses) = tables("shop", metrics.clone(), Duration::ZERO);
        let dialer = Rc::new(Dialer {
            limits: self.limits.clone(),
            identity: self.identity.clone(),
            metrics: metrics.clone(),
            memory: self.memory.clone(),
            mark: None,
        });
        let worker = Rc::new(Worker {
            config: Arc::new(config(self.limits)),
            tables,
            identity: self.identity,
            metrics: metrics.clone(),
            access_log: self.access_log,
            drain,
            memory: self.memory,
            client_addresses: self.client_addresses,
            http1_pool: Pool::new(PoolProtocol::Http1, &dialer),
            http1_streams: streams::Pool::new(&dialer),
            tcp_pool: Pool::new(PoolProtocol::Tcp, &dialer),
            http2_pool: streams::Pool::new(&dialer),
            dialer,
            clients: Default::default(),
            mirroring: self.mirroring,
            random: RefCell::new(SmallRng::seed_from_u64(1)),
            listening: Default::default(),
        });
        let labels = ServiceLabels {
            namespace: "shop".into(),
            service: "web".into(),
            port: 80,
        };
        let backend = |service: &str, endpoints: &[(SocketAddr, Peer)]| {
            let endpoints = endpoints.iter().map(|(address, peer)| {
                Arc::new(Endpoint {
                    id: next_endpoint_id(),
                    address: *address,
                    peer: peer.clone(),
                    pod: "".into(),
                    workload: "".into(),
                    zone: "".into(),
                    load: Load::new(metrics.ejections(&labels)),
                })
            });
            let endpoints = EndpointSet::new(endpoints.collect());
            Arc::new(Backend::new("shop".into(), service.into(), 80, endpoints))
        };
        let mirrors = self.mirrors.iter().map(|mirror| Mirror {
            backend: backend("shadow", &mirror.endpoints),
            numerator: mirror.numerator,
            denominator: 100,
            metrics: metrics.mirror(MirrorLabels {
                namespace: "shop".into(),
                service: "web".into(),
                port: Some(80),
                route: "".into(),
                rule: "".into(),
                mirror: "shop/shadow:80".into(),
            }),
        });
        let mirrors: Vec<Mirror> = mirrors.collect();
        let backend = backend("web", &self.endpoints);
        let rule = || {
            let mut rule = default_rule(backend.clone(), &metrics, &labels);
            rule.mirrors = mirrors.clone();
            rule.retry = self.retry.clone();
            rule.request_timeout = self.request_timeout;
            rule.backend_request_timeout = self.backend_request_timeout;
            rule
        };
        let logical = Logical {
            namespace: labels.namespace.clone(),
            service: labels.service.clone(),
            port: 80,
            protocol: self.protocol,
            routes: self.routes.map(|routes| routes(rule())),
            opaque_routes: self.opaque_routes,
            default_rule: Arc::new(rule()),
            budget: Arc::new(self.budget),
            tcp: metrics.tcp(TcpLabels {
                direction: Direction::Outbound,
                client: "".into(),
                namespace: labels.namespace.clone(),
                service: labels.service.clone(),
                port: Some(80),
            }),
        };
        let cell = Arc::new(DestinationCell::new(
            ([10, 96, 0, 1], 80).into(),
            Destination::Logical(Arc::new(logical)),
        ));
        Mesh {
            worker,
            signal: Some(signal),
            cell,
        }
    }
}

/// A route of one rule with this filter, to the backend of `rule`.
pub fn filtered(rule: &Rule, kind: Kind) -> Routes {
    let route = contract::HttpRoute {
        rules: vec![contract::HttpRule {
            filters: vec![contract::HttpFilter { kind: Some(kind) }],
            backends: vec![contract::HttpBackend {
                weight: 1,
                ..contract::HttpBackend::default()
            }],
            ..contract::HttpRule::default()
        }],
        ..contract::HttpRoute::default()
    };
    let labels = ServiceLabels {
        namespace: "shop".into(),
        service: "web".into(),
        port: 80,
    };
    let resolve = &mut |_: &str| rule.target(0);
    decode_routes(&[&route], resolve, &Metrics::default(), &labels).expect("a route")
}

/// [`filtered`], with a CORS filter for `https://shop.example`.
pub fn for_the_shop(rule: Rule) -> Routes {
    let cors = contract::Cors {
        allow_origins: vec!["https://shop.example".to_owned()],
        max_age_seconds: 5,
        ..contract::Cors::default()
    };
    filtered(&rule, Kind::Cors(cors))
}

fn config(limits: Limits) -> Config {
    Config {
        client_address: Default::default(),
        forwarded: Vec::new(),
        proxy_protocol: Vec::new(),
        controller: String::new(),
        controller_identity: "spiffe://cluster.local/ns/naru-system/sa/naru-controller"
            .parse()
            .expect("a SPIFFE ID"),
        trust_anchors: Default::default(),
        token: Default::default(),
        namespace: "shop".to_owned(),
        pod: "client".to_owned(),
        outbound_port: None,
        inbound_port: None,
        map_outbound: Vec::new(),
        map_inbound: Vec::new(),
        admin: ([127, 0, 0, 1], 0).into(),
        probes: crate::probe::Probes::default(),
        workers: 1,
        socket_mark: None,
        access_log: false,
        log: String::new(),
        log_format: LogFormat::Text,
        limits,
        memory_budget: None,
    }
}

impl Mesh {
    /// A new downstream connection.
    pub async fn client(&self) -> SendRequest<Bytes> {
        self.client_with(&h2::client::Builder::new()).await.0
    }

    /// A new downstream connection, and its result.
    pub async fn client_with(
        &self,
        builder: &h2::client::Builder,
    ) -> (
        SendRequest<Bytes>,
        tokio::task::JoinHandle<Result<(), h2::Error>>,
    ) {
        let session = Session::outbound(self.worker.clone(), self.cell.clone());
        connect(session, builder).await
    }

    /// A new downstream connection from outside.
    pub async fn inbound_client(
        &self,
    ) -> (
        SendRequest<Bytes>,
        tokio::task::JoinHandle<Result<(), h2::Error>>,
    ) {
        let (worker, cell) = (self.worker.clone(), self.cell.clone());
        let session = Session::peer(worker, cell, spiffe_id(CLIENT), ANYWHERE);
        connect(session, &h2::client::Builder::new()).await
    }

    /// How many copies have ended with this result.
    pub fn mirrored(&self, result: &str) -> f64 {
        let result = format!("result=\"{result}\"");
        self.metric(&["naru_mirrored_requests_total{", &result])
    }

    /// The value of the first metric line that contains all of `parts`.
    pub fn metric(&self, parts: &[&str]) -> f64 {
        let text = self.worker.metrics.render().expect("metrics");
        let text = String::from_utf8(text).expect("text");
        text.lines()
            .find(|line| !line.starts_with('#') && parts.iter().all(|part| line.contains(part)))
            .and_then(|line| line.rsplit(' ').next()?.parse().ok())
            .unwrap_or(0.0)
    }
}

pub async fn connect(
    session: Session,
    builder: &h2::client::Builder,
) -> (
    SendRequest<Bytes>,
    tokio::task::JoinHandle<Result<(), h2::Error>>,
) {
    let (ours, theirs) = tokio::io::duplex(1024 * 1024);
    spawn_local(serve(session, theirs));
    let (send, connection) = builder.handshake(ours).await.expect("a handshake");
    let ended = spawn_local(connection);
    (send.ready().await.expect("a connection"), ended)
}

/// A request that an app has received.
pub struct Call {
    pub request: Request<RecvStream>,
    pub respond: SendResponse<Bytes>,
}

/// A listening app.
pub struct App {
    pub address: SocketAddr,
    /// Connections accepted.
    pub connections: Rc<Cell<usize>>,
    /// Requests received.
    pub calls: Rc<Cell<usize>>,
}

/// Starts an app that answers with `handle`.
pub async fn app<F>(handle: impl Fn(Call) -> F + 'static) -> App
where
    F: Future<Output = ()> + 'static,
{
    app_with(h2::server::Builder::new(), handle).await
}

pub async fn app_with<F>(builder: h2::server::Builder, handle: impl Fn(Call) -> F + 'static) -> App
where
    F: Future<Output = ()> + 'static,
{
    let (listener, app) = listening().await;
    let (connections, calls) = (app.connections.clone(), app.calls.clone());
    let handle = Rc::new(handle);
    spawn_local(async move {
        while let Ok((socket, _)) = listener.accept().await {
            connections.set(connections.get() + 1);
            let (handle, calls, builder) = (handle.clone(), calls.clone(), builder.clone());
            spawn_local(async move {
                let Ok(mut connection) = builder.handshake::<_, Bytes>(socket).await else {
                    return;
                };
                while let Some(Ok((request, respond))) = connection.accept().await {
                    calls.set(calls.get() + 1);
                    spawn_local(handle(Call { request, respond }));
                }
            });
        }
    });
    app
}

/// A listening socket, and the app that will serve it.
pub async fn listening() -> (TcpListener, App) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a socket");
    let app = App {
        address: listener.local_addr().expect("an address"),
        connections: Rc::default(),
        calls: Rc::default(),
    };
    (listener, app)
}

/// An app that answers every request with `status` and `body`, after reading it.
pub async fn answering(status: u16, body: &'static str) -> App {
    app(move |mut call| async move {
        read(call.request.body_mut()).await;
        answer(&mut call.respond, status, body);
    })
    .await
}

pub fn answer(respond: &mut SendResponse<Bytes>, status: u16, body: &'static str) {
    let response = Response::builder().status(status).body(()).expect("a head");
    if let Ok(mut send) = respond.send_response(response, body.is_empty())
        && !body.is_empty()
    {
        let _ = send.send_data(Bytes::from_static(body.as_bytes()), true);
    }
}

/// An address without a listener.
pub async fn unused_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a socket");
    listener.local_addr().expect("an address")
}

pub fn get(path: &str) -> Request<()> {
    request("GET", path)
}

pub fn request(method: &str, path: &str) -> Request<()> {
    Request::builder()
        .method(method)
        .uri(format!("http://web{path}"))
        .body(())
        .expect("a request")
}

pub fn grpc(path: &str) -> Request<()> {
    let mut request = request("POST", path);
    let headers = request.headers_mut();
    headers.insert("content-type", "application/grpc".parse().expect("a value"));
    headers.insert("te", "trailers".parse().expect("a value"));
    request
}

/// A whole response.
#[derive(Debug)]
pub struct Got {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub trailers: Option<HeaderMap>,
}

impl Got {
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().expect("text"))
    }
}

/// Sends a request with `body` and reads the response.
pub async fn call(
    client: &SendRequest<Bytes>,
    request: Request<()>,
    body: &[u8],
) -> Result<Got, h2::Error> {
    let mut client = client.clone().ready().await?;
    let (response, mut send) = client.send_request(request, body.is_empty())?;
    if !body.is_empty() {
        // A server may answer before it has read all of it.
        let _ = write(&mut send, Bytes::copy_from_slice(body), true).await;
    }
    collect(response.await?).await
}

pub async fn collect(response: Response<RecvStream>) -> Result<Got, h2::Error> {
    let (head, mut body) = response.into_parts();
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        bytes.extend_from_slice(&data);
        let _ = body.flow_control().release_capacity(data.len());
    }
    Ok(Got {
        status: head.status.as_u16(),
        headers: head.headers,
        body: bytes,
        trailers: body.trailers().await?,
    })
}

/// Reads a body to its end. Returns its length.
pub async fn read(body: &mut RecvStream) -> usize {
    let mut length = 0;
    while let Some(Ok(data)) = body.data().await {
        length += data.len();
        let _ = body.flow_control().release_capacity(data.len());
    }
    length
}

/// Writes as the window allows.
pub async fn write(
    send: &mut SendStream<Bytes>,
    mut data: Bytes,
    end: bool,
) -> Result<(), h2::Error> {
    while !data.is_empty() {
        send.reserve_capacity(data.len());
        let room = match send.capacity() {
            0 => match poll_fn(|cx| send.poll_capacity(cx)).await {
                Some(room) => room?,
                None => return Ok(()),
            },
            room => room,
        };
        let part = data.split_to(room.min(data.len()));
        let last = end && data.is_empty();
        send.send_data(part, last)?;
    }
    Ok(())
}

/// The code with which a stream was reset.
pub fn code(result: Result<Got, h2::Error>) -> Option<h2::Reason> {
    let error = result.expect_err("an error");
    assert!(error.is_reset(), "{error}");
    error.reason()
}

/// Waits until `condition` holds.
pub async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
