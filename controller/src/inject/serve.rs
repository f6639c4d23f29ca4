//! The webhook: HTTPS towards the API server, bounded in connections, bytes and time.
//!
//! In: `POST /inject` for a pod whose namespace is to have sidecars, `POST /inject/pod` for a pod in another namespace that says
//! so itself. Which of the two it is the API server decides, by the selectors of the webhook's configuration. Out: an answer to
//! the review, or an HTTP error that says what was wrong with it.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info, warn};

use super::{Options, Outcome, answer};
use crate::metrics::Metrics;
use crate::reply::{Reply, not_allowed, text, with_type};

/// Connections at once: each API server keeps a few. With one more, the oldest is closed: whoever holds connections for nothing
/// keeps no API server out.
const MAX_CONNECTIONS: usize = 256;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a request's head may take, and a connection may wait for the next one: longer than an API server keeps it.
const HEAD_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a request's body may take: less than the time that an API server waits for a webhook (10 s by default).
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes in a request's head.
const MAX_HEAD: usize = 16 * 1024;
/// Bytes in a review: an API server takes requests of 3 MiB, and the review says a little more than the pod.
const MAX_BODY: usize = 4 * 1024 * 1024;
/// Bytes in the review of nearly every pod, …
const MANY_BYTES: usize = 64 * 1024;
/// … and reviews with more than that at once: what is held in memory for others stays below 32 MiB.
const MAX_LARGE: usize = 8;
/// How long to wait after a connection could not be accepted (no file descriptors left, mostly).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// For pods in namespaces that are labelled, and for pods that are annotated.
const BY_NAMESPACE: &str = "/inject";
const BY_POD: &str = "/inject/pod";

/// Who wants to know of namespaces in which a pod was given a sidecar.
pub type Injected = Box<dyn Fn(&str) + Send + Sync>;

/// Serves until the process ends.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    options: Options,
    metrics: Metrics,
    injected: Injected,
) {
    let webhook = Arc::new(Webhook {
        tls: TlsAcceptor::from(tls),
        options,
        metrics,
        injected,
        large: Semaphore::new(MAX_LARGE),
    });
    let mut connections: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                connections.retain(|connection| !connection.is_finished());
                if connections.len() >= MAX_CONNECTIONS
                    && let Some(oldest) = connections.pop_front()
                {
                    oldest.abort();
                }
                let connection = tokio::spawn(webhook.clone().connection(stream, peer));
                connections.push_back(connection.abort_handle());
            }
            Err(error) => {
                debug!(%error, "accepting a connection of an API server");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

struct Webhook {
    tls: TlsAcceptor,
    options: Options,
    metrics: Metrics,
    injected: Injected,
    large: Semaphore,
}

impl Webhook {
    async fn connection(self: Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        let stream = match timeout(HANDSHAKE_TIMEOUT, self.tls.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            // Worth a line: an API server that does not trust the certificate says so here.
            Ok(Err(error)) => return warn!(%peer, %error, "TLS handshake with the webhook"),
            Err(_) => return debug!(%peer, "no TLS handshake with the webhook in time"),
        };
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(MAX_HEAD)
            .serve_connection(
                TokioIo::new(stream),
                service_fn(move |request| {
                    let webhook = self.clone();
                    async move { Ok::<_, Infallible>(webhook.reply(request).await) }
                }),
            )
            .await;
        if let Err(error) = served {
            debug!(%peer, %error, "a connection to the webhook");
        }
    }

    async fn reply(&self, request: Request<Incoming>) -> Reply {
        let by_namespace = match request.uri().path() {
            BY_NAMESPACE => true,
            BY_POD => false,
            _ => {
                let known = format!("there is POST {BY_NAMESPACE} and POST {BY_POD}\n");
                return text(StatusCode::NOT_FOUND, known);
            }
        };
        if request.method() != Method::POST {
            return not_allowed("POST");
        }
        let answered = match self.body(request.into_body()).await {
            Ok(review) => answer(&review, by_namespace, &self.options)
                .map_err(|problem| (StatusCode::BAD_REQUEST, problem)),
            Err(refused) => Err(refused),
        };
        match answered {
            Ok(answer) => {
                self.metrics.injection(answer.outcome);
                if let Some(namespace) = &answer.namespace {
                    (self.injected)(namespace);
                }
                let (pod, outcome) = (&answer.pod, answer.outcome.as_str());
                match &answer.reason {
                    Some(reason) => info!(pod, outcome, reason, "injection"),
                    // As many lines as there are pods would say nothing: the metric counts them.
                    None => debug!(pod, outcome, "injection"),
                }
                with_type(StatusCode::OK, "application/json", answer.body)
            }
            Err((status, problem)) => {
                self.metrics.injection(Outcome::Malformed);
                warn!(%status, problem, "a request to the webhook");
                text(status, format!("{problem}\n"))
            }
        }
    }

    /// The whole body, if it is not too long and does not take too long.
    async fn body(&self, body: Incoming) -> Result<Bytes, (StatusCode, String)> {
        let too_large = || {
            let problem = format!("a review has at most {MAX_BODY} bytes");
            (StatusCode::PAYLOAD_TOO_LARGE, problem)
        };
        let length = body.size_hint().upper().ok_or((
            StatusCode::LENGTH_REQUIRED,
            "the length of the review has to be said".to_owned(),
        ))?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > MAX_BODY {
            return Err(too_large());
        }
        let read = async {
            let _place = match length > MANY_BYTES {
                true => self.large.acquire().await.ok(),
                false => None,
            };
            Limited::new(body, MAX_BODY).collect().await
        };
        match timeout(BODY_TIMEOUT, read).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) => Err((StatusCode::BAD_REQUEST, error.to_string())),
            Err(_) => Err((
                StatusCode::REQUEST_TIMEOUT,
                "the review did not arrive in time".to_owned(),
            )),
        }
    }
}

#[cfg(test)]
#[path = "serve_tests.rs"]
mod tests;
