//! The admin port: metrics, probes, the tables in force, and the log filter.
//!
//! In: HTTP/1.1 from Prometheus, the kubelet and operators. Out: the answers. It runs on the
//! control thread; the number of connections and the time of each are bounded.
//!
//! # Floors
//!
//! ```text
//! bypass wait why    sockets that bypass the proxy; `naru-proxy wait`; explained decisions
//! ```

pub mod bypass;
#[cfg(test)]
mod tests;
pub mod wait;
mod why;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Body;
use hyper::header::USER_AGENT;
use hyper::{Method, Request, StatusCode};
use naru_listen::Places;
use naru_listen::admin::BOUNDS;
use naru_listen::http::Times;
use naru_listen::reply::{Reply, not_allowed, text, with_type};
use naru_listen::scrapes::Scrapes;
use serde::Serialize;
use tokio::net::TcpListener;
use tracing::{debug, info};

use crate::config::ClientAddress;
use crate::identity::Identity;
use crate::observe::logging::LogFilter;
use crate::probe::{Failure, ProbeContext, Probes};
use crate::table::{Store, Tables, View};
use crate::upstream::client_address::{self, ClientAddresses};

use why::{Question, Target};

const TIMES: Times = Times {
    // Longer than any useful probe timeout of a kubelet.
    answer: Duration::from_secs(300),
    ..naru_listen::admin::TIMES
};
/// How long reading a request body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// Bound on a request body, in bytes: a log filter.
const MAX_BODY: usize = 4 * 1024;
/// Bound on the body of a `/why` question, in bytes: the head of a request, as JSON.
const MAX_QUESTION: usize = 64 * 1024;
const PATHS: &str = "/metrics  what Prometheus scrapes\n\
    /ready    200 when the proxy carries traffic, 503 with the reasons when it does not\n\
    /live     200 as long as the control thread runs\n\
    /config   the tables in force (from this machine only)\n\
    /why      POST a request or connection: which route and rule would take it (from this machine \
    only)\n\
    /log      GET the log's filter, PUT another (from this machine only)\n\
    /probe/…  what the kubelet asks the app\n";

/// State that the admin port shows and changes. Cheap to clone.
#[derive(Clone)]
pub struct Admin {
    pub identity: Identity,
    /// Bounds concurrent scrapes of the proxy's metrics.
    pub scrapes: Scrapes,
    pub store: Arc<Mutex<Store>>,
    pub tables: Tables,
    pub health: Arc<Health>,
    /// Connection slots of the inbound listener.
    pub inbound: Places,
    pub log: LogFilter,
    pub probes: Arc<Probes>,
    /// SO_MARK of the sockets of probes.
    pub socket_mark: Option<u32>,
    pub client_addresses: ClientAddresses,
    pub client_address: ClientAddress,
}

/// The client of an admin request.
#[derive(Clone, Copy, Debug)]
struct Caller {
    /// Whether the client is on this machine.
    local: bool,
    /// The local address that was called.
    here: IpAddr,
    peer: IpAddr,
}

/// Whether the data path is up.
#[derive(Debug, Default)]
pub struct Health {
    listening: AtomicBool,
    worker_lost: AtomicBool,
    draining: AtomicBool,
    /// Sockets of other processes that bypass the mesh.
    bypassing: Mutex<Vec<String>>,
}

impl Health {
    /// The listeners are bound and the workers run.
    pub fn listening(&self) {
        self.listening.store(true, Relaxed);
    }

    /// A worker has ended: the process should be restarted.
    pub fn worker_lost(&self) {
        self.worker_lost.store(true, Relaxed);
    }

    /// Sets the sockets of other processes that are treated as the proxy's own.
    pub fn set_bypassing(&self, sockets: Vec<String>) {
        *self
            .bypassing
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = sockets;
    }

    fn bypassing(&self) -> Vec<String> {
        let sockets = self.bypassing.lock();
        sockets.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The proxy is shutting down.
    pub fn draining(&self) {
        self.draining.store(true, Relaxed);
    }
}

/// The configuration in force, and the connections that bypass the proxy.
#[derive(Serialize)]
struct ConfigView {
    #[serde(rename = "clientAddresses")]
    client_addresses: client_address::View,
    #[serde(flatten)]
    tables: View,
    /// Sockets of processes that run as the proxy's user: see [`crate::admin::bypass`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    bypassing: Vec<String>,
}

#[derive(Serialize)]
struct Readiness {
    ready: bool,
    /// Why the proxy is not ready.
    reasons: Vec<&'static str>,
}

/// Listens on `address`. Without IPv6, `[::]` falls back to `0.0.0.0`.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    naru_listen::bind(address).await
}

/// Connection slots for an admin port.
pub fn places() -> Places {
    Places::new(BOUNDS)
}

/// Serves until the process ends.
pub async fn serve(listener: TcpListener, places: Places, admin: Admin) {
    let answer = move |request, caller: naru_listen::http::Caller| {
        let admin = admin.clone();
        let caller = Caller {
            local: is_loopback(caller.peer.ip()),
            here: caller.here.ip().to_canonical(),
            peer: caller.peer.ip(),
        };
        async move { admin.answer(request, caller).await }
    };
    naru_listen::http::serve(listener, places, TIMES, naru_listen::http::plain, answer).await;
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Admin {
    async fn answer<B>(&self, request: Request<B>, caller: Caller) -> Reply
    where
        B: Body<Error: Into<BoxError>>,
    {
        let path = request.uri().path().to_owned();
        let method = request.method().clone();
        let reads = matches!(method, Method::GET | Method::HEAD);
        match path.as_str() {
            "/metrics" if reads => self.metrics().await,
            "/ready" if reads => self.ready(),
            "/live" if reads => text(StatusCode::OK, "live\n"),
            "/config" | "/log" | "/why" if !caller.local => text(
                StatusCode::FORBIDDEN,
                "only from this machine: use kubectl port-forward or exec\n",
            ),
            "/config" if reads => self.config(),
            "/log" if reads => text(StatusCode::OK, format!("{}\n", self.log.current())),
            "/log" if method == Method::PUT => self.set_log(request.into_body()).await,
            "/log" => not_allowed("GET, HEAD, PUT"),
            "/why" if method == Method::POST => self.why(request.into_body()).await,
            "/why" => not_allowed("POST"),
            "/metrics" | "/ready" | "/live" | "/config" => not_allowed("GET, HEAD"),
            _ => match path.strip_prefix("/probe/") {
                Some(name) if reads => self.probe(name, &request, caller).await,
                _ => text(StatusCode::NOT_FOUND, format!("There is:\n{PATHS}")),
            },
        }
    }

    /// Probes the app. Only the status is passed on; the app's response is kept private.
    async fn probe<B>(&self, name: &str, request: &Request<B>, caller: Caller) -> Reply {
        let user_agent = request.headers().get(USER_AGENT);
        let context = ProbeContext {
            here: caller.here,
            user_agent: user_agent
                .and_then(|agent| agent.to_str().ok())
                .unwrap_or("kube-probe"),
            source: self.client_addresses.of(caller.peer).address,
            socket_mark: self.socket_mark,
        };
        match self.probes.run(name, context).await {
            None => text(StatusCode::NOT_FOUND, "there is no such probe\n"),
            Some(Ok(status)) => text(
                StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY),
                format!("the app's status is {status}\n"),
            ),
            Some(Err(failure)) => {
                debug!(probe = name, %failure, "the app did not pass");
                let status = match failure {
                    Failure::Slow(_) => StatusCode::GATEWAY_TIMEOUT,
                    Failure::NotServing(_) => StatusCode::SERVICE_UNAVAILABLE,
                    _ => StatusCode::BAD_GATEWAY,
                };
                text(status, format!("{failure}\n"))
            }
        }
    }

    async fn metrics(&self) -> Reply {
        match self.scrapes.text().await {
            Ok(body) => with_type(
                StatusCode::OK,
                "text/plain; version=0.0.4; charset=utf-8",
                body,
            ),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }

    fn ready(&self) -> Reply {
        let reasons = self.missing();
        let status = match reasons.is_empty() {
            true => StatusCode::OK,
            false => StatusCode::SERVICE_UNAVAILABLE,
        };
        json(
            status,
            &Readiness {
                ready: reasons.is_empty(),
                reasons,
            },
        )
    }

    /// The reasons why the proxy is not ready.
    fn missing(&self) -> Vec<&'static str> {
        let store = self.store();
        let missing = [
            (!self.identity.is_valid(), "there is no valid certificate"),
            (
                !store.knows_inbound(),
                "the controller has not said how this pod is to be reached",
            ),
            (
                !self.health.listening.load(Relaxed),
                "the listeners are not up",
            ),
            (
                self.health.worker_lost.load(Relaxed),
                "a worker thread has ended",
            ),
            (self.health.draining.load(Relaxed), "shutting down"),
            (
                self.inbound.is_full(),
                "no other connection can be taken in: see naru_connections_refused_total",
            ),
        ];
        missing
            .into_iter()
            .filter_map(|(is_missing, what)| is_missing.then_some(what))
            .collect()
    }

    fn config(&self) -> Reply {
        let view = ConfigView {
            client_addresses: self.client_addresses.view(self.client_address),
            tables: self.store().view(),
            bypassing: self.health.bypassing(),
        };
        json(StatusCode::OK, &view)
    }

    async fn why<B>(&self, body: B) -> Reply
    where
        B: Body<Error: Into<BoxError>>,
    {
        let wrong = |error: String| text(StatusCode::BAD_REQUEST, format!("{error}\n"));
        let asked = whole(body, MAX_QUESTION).await;
        let asked = asked.and_then(|body| {
            let question = Question::parse(&body)?;
            Ok((question.target()?, question.sample()?))
        });
        let (target, sample) = match asked {
            Ok(asked) => asked,
            Err(error) => return wrong(error),
        };
        let attached = match target {
            Target::Address(address) => {
                self.tables.destination(address).await;
                Some(self.store().attached(address))
            }
            Target::Service {
                name,
                namespace,
                port,
            } => self
                .store()
                .attached_by_name(namespace.as_deref(), &name, port),
        };
        let Some(attached) = attached else {
            let unknown = "this pod has not called that Service yet, as far as its proxy knows: \
                ask for its address\n";
            return text(StatusCode::NOT_FOUND, unknown);
        };
        // There are as many patterns as matches, so this runs off the control thread: misses of the
        // data path must not wait for it.
        let answer = tokio::task::spawn_blocking(move || why::answer(attached, sample.as_ref()));
        match answer.await {
            Ok(answer) => json(StatusCode::OK, &answer),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn set_log<B>(&self, body: B) -> Reply
    where
        B: Body<Error: Into<BoxError>>,
    {
        let body = match whole(body, MAX_BODY).await {
            Ok(body) => body,
            Err(error) => return text(StatusCode::BAD_REQUEST, format!("{error}\n")),
        };
        let filter = match std::str::from_utf8(&body) {
            Ok(filter) => filter.trim(),
            Err(error) => return text(StatusCode::BAD_REQUEST, format!("{error}\n")),
        };
        match self.log.set(filter) {
            Ok(()) => {
                info!(filter, "the log's filter has been changed");
                text(StatusCode::OK, format!("{filter}\n"))
            }
            Err(error) => text(StatusCode::BAD_REQUEST, format!("{error}\n")),
        }
    }
}

/// Reads a body of at most `limit` bytes, within a time limit.
async fn whole<B>(body: B, limit: usize) -> Result<Bytes, String>
where
    B: Body<Error: Into<BoxError>>,
{
    let body = Limited::new(body, limit).collect();
    match tokio::time::timeout(BODY_TIMEOUT, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the body did not arrive in time".to_owned()),
    }
}

fn json(status: StatusCode, value: &impl Serialize) -> Reply {
    match serde_json::to_vec_pretty(value) {
        Ok(mut body) => {
            body.push(b'\n');
            with_type(status, "application/json", body)
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}
