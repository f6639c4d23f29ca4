//! The webhook: an HTTPS server for the API server, bounded in connections, bytes and time.
//!
//! In: `POST /inject` for a pod in a namespace with injection, `POST /inject/pod` for a pod in
//! another namespace that opts in itself. The API server chooses the path by the selectors of the
//! webhook's configuration. Out: a response to the review, or an HTTP error with the reason.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Incoming};
use hyper::{Method, Request, StatusCode};
use naru_listen::http::{Caller, Times};
use naru_listen::reply::{Reply, not_allowed, text, with_type};
use naru_listen::turns::Turns;
use naru_listen::{Bounds, Places};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, info, warn};

use super::{Options, answer};
use crate::metrics::{InjectionOutcome, Metrics};

/// Concurrent connections: an API server opens one for each pending review.
const BOUNDS: Bounds = Bounds {
    waiting: 512,
    waiting_of_source: 256,
    taken: 512,
    taken_of_source: 256,
    spare: 64,
    all: 512,
    of_source: 256,
};
const TIMES: Times = Times {
    // Includes the TLS handshake.
    head: Duration::from_secs(5),
    // Longer than an API server keeps an idle connection.
    idle: Duration::from_secs(120),
    // The default timeout of webhooks in the API server.
    answer: Duration::from_secs(10),
    write: Duration::from_secs(10),
    max_head: 16 * 1024,
};
/// Timeout for a request's body: less than the API server's timeout of webhooks (10 s by default).
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// Size limit of a review: an API server accepts requests of 3 MiB, and the review is slightly
/// larger than the pod.
const MAX_BODY: usize = 4 * 1024 * 1024;
/// Reviews up to this size, in bytes, count as small: nearly all are.
const MANY_BYTES: usize = 64 * 1024;
/// Concurrent larger reviews: the memory for them stays below 32 MiB.
const MAX_LARGE: usize = 8;
/// Concurrent larger reviews from one address.
const MAX_LARGE_OF_SOURCE: usize = 4;
/// Larger reviews from one address that wait.
const MAX_LARGE_WAITING: usize = 256;

/// For pods in labelled namespaces, and for annotated pods.
const BY_NAMESPACE: &str = "/inject";
const BY_POD: &str = "/inject/pod";

/// Callback with the namespace of each injected pod.
pub type Injected = Box<dyn Fn(&str) + Send + Sync>;

/// Serves until the process ends.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    options: Options,
    metrics: Metrics,
    injected: Injected,
) {
    let places = Places::new(BOUNDS);
    metrics.watch_places("webhook", places.clone());
    let webhook = Arc::new(Webhook {
        options,
        metrics,
        injected,
        large: Turns::new(MAX_LARGE, MAX_LARGE_OF_SOURCE),
    });
    let tls = TlsAcceptor::from(tls);
    let open = move |stream, peer| shake_hands(tls.clone(), stream, peer);
    let answer = move |request, caller: Caller| {
        let webhook = webhook.clone();
        async move { webhook.reply(request, caller.peer.ip()).await }
    };
    naru_listen::http::serve(listener, places, TIMES, open, answer).await;
}

async fn shake_hands(
    tls: TlsAcceptor,
    stream: TcpStream,
    peer: SocketAddr,
) -> Option<TlsStream<TcpStream>> {
    let shaken = tls.accept(stream).await;
    shaken
        // Logged, because an API server that does not trust the certificate shows up here.
        .inspect_err(|error| warn!(%peer, %error, "TLS handshake with the webhook"))
        .ok()
}

struct Webhook {
    options: Options,
    metrics: Metrics,
    injected: Injected,
    /// Turns for large reviews, by source address.
    large: Turns<IpAddr>,
}

impl Webhook {
    async fn reply(&self, request: Request<Incoming>, source: IpAddr) -> Reply {
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
        let answered = match self.body(request.into_body(), source).await {
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
                    // One line for each pod would be noise: the metric counts them.
                    None => debug!(pod, outcome, "injection"),
                }
                with_type(StatusCode::OK, "application/json", answer.body)
            }
            Err((status, problem)) => {
                self.metrics.injection(InjectionOutcome::Malformed);
                warn!(%status, problem, "a request to the webhook");
                text(status, format!("{problem}\n"))
            }
        }
    }

    /// Reads the whole body, bounded in size and time.
    async fn body(&self, body: Incoming, source: IpAddr) -> Result<Bytes, (StatusCode, String)> {
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
            let _turn = match length > MANY_BYTES {
                true => Some(self.large.take(source, MAX_LARGE_WAITING).await?),
                false => None,
            };
            Some(Limited::new(body, MAX_BODY).collect().await)
        };
        match timeout(BODY_TIMEOUT, read).await {
            Ok(Some(Ok(body))) => Ok(body.to_bytes()),
            Ok(Some(Err(error))) => Err((StatusCode::BAD_REQUEST, error.to_string())),
            Ok(None) => Err((
                StatusCode::TOO_MANY_REQUESTS,
                "too many large reviews of this address wait".to_owned(),
            )),
            Err(_) => Err((
                StatusCode::REQUEST_TIMEOUT,
                "the review did not arrive in time".to_owned(),
            )),
        }
    }
}

#[cfg(test)]
mod tests;
