//! The server: HTTP/1.1 and HTTP/2 on one port until SIGTERM, followed by a drain. Also the
//! features of every service: a health endpoint, fault injection, and propagation of trace context.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tonic::body::Body;

/// How long requests in flight may take after SIGTERM.
const DRAIN: Duration = Duration::from_secs(10);
/// Timeout for a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause after an accept error, for example without free file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Trace context headers, which are propagated to calls.
pub const TRACE_HEADERS: [HeaderName; 3] = [
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
    HeaderName::from_static("baggage"),
];

#[derive(clap::Args, Clone, Debug)]
pub struct Listen {
    /// Address to listen on.
    #[arg(long, env = "SHOP_LISTEN", default_value = "[::]:8080")]
    pub listen: SocketAddr,
}

/// What goes wrong on purpose.
#[derive(clap::Args, Clone, Debug)]
pub struct Faults {
    /// Part of the requests that is answered with 503, from 0 to 1.
    #[arg(long, env = "SHOP_FAIL_RATIO", default_value_t = 0.0, value_parser = ratio)]
    pub fail_ratio: f64,
    /// Milliseconds that every answer waits.
    #[arg(
        long,
        env = "SHOP_DELAY",
        default_value_t = 0,
        value_name = "MILLISECONDS"
    )]
    pub delay: u64,
}

fn ratio(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|ratio| (0.0..=1.0).contains(ratio))
        .ok_or_else(|| "expected a number from 0 to 1".to_owned())
}

impl Faults {
    /// Delays the response as configured, and returns whether it should fail.
    pub async fn strike(&self) -> bool {
        if self.delay > 0 {
            tokio::time::sleep(Duration::from_millis(self.delay)).await;
        }
        self.fail_ratio > 0.0 && rand::random::<f64>() < self.fail_ratio
    }
}

/// Serves `answer` until SIGTERM or SIGINT. `GET /healthz` is answered here, without faults.
pub async fn serve<F, R>(
    name: &str,
    listen: Listen,
    faults: Faults,
    answer: F,
) -> anyhow::Result<()>
where
    F: Fn(Request<Incoming>) -> R + Send + Sync + 'static,
    R: Future<Output = Response<Body>> + Send + 'static,
{
    let listener = bind(name, listen.listen).await?;
    let answer = Arc::new((faults, answer));
    let service = tower::service_fn(move |request: Request<Incoming>| {
        let answer = answer.clone();
        async move {
            let (faults, answer) = &*answer;
            Ok::<_, std::convert::Infallible>(if request.uri().path() == "/healthz" {
                text(StatusCode::OK, "ok\n")
            } else if faults.strike().await {
                unavailable(request.headers())
            } else {
                answer(request).await
            })
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT);
    builder.http2().timer(TokioTimer::new());
    let graceful = GracefulShutdown::new();
    accept(listener, |stream| {
        let service = TowerToHyperService::new(service.clone());
        let connection = builder
            .serve_connection(TokioIo::new(stream), service)
            .into_owned();
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            // A client that disconnects early is not an error of the server.
            let _client_gone = connection.await;
        });
    })
    .await?;
    if tokio::time::timeout(DRAIN, graceful.shutdown())
        .await
        .is_err()
    {
        eprintln!("{name}: gave up on requests that took longer than {DRAIN:?} to finish");
    }
    Ok(())
}

/// Creates a listener, and logs its address.
pub async fn bind(name: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = match TcpListener::bind(address).await {
        // A machine without IPv6.
        Err(_) if address.ip().is_unspecified() && address.is_ipv6() => {
            TcpListener::bind(("0.0.0.0", address.port())).await
        }
        other => other,
    }
    .with_context(|| format!("listening on {address}"))?;
    println!("{name}: listening on {}", listener.local_addr()?);
    Ok(listener)
}

/// Passes every connection to `connection` until SIGTERM or SIGINT, then stops listening.
pub async fn accept(listener: TcpListener, connection: impl Fn(TcpStream)) -> anyhow::Result<()> {
    let mut stopped = std::pin::pin!(stopped()?);
    loop {
        tokio::select! {
            () = &mut stopped => return Ok(()),
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    // Small responses must not wait for each other (Nagle); without the option they
                    // are only slower.
                    let _slower = stream.set_nodelay(true);
                    connection(stream);
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
        }
    }
}

/// Completes at SIGTERM or SIGINT.
pub fn stopped() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// The trace context headers of a request, for its outgoing calls.
pub fn trace_of(headers: &HeaderMap) -> HeaderMap {
    TRACE_HEADERS
        .iter()
        .filter_map(|name| Some((name.clone(), headers.get(name)?.clone())))
        .collect()
}

pub fn text(status: StatusCode, text: &str) -> Response<Body> {
    respond(status, "text/plain; charset=utf-8", text.to_owned())
}

pub fn json(status: StatusCode, value: &serde_json::Value) -> Response<Body> {
    respond(status, "application/json", format!("{value}\n"))
}

fn respond(status: StatusCode, kind: &'static str, text: String) -> Response<Body> {
    let mut response = Response::new(Body::new(http_body_util::Full::from(text)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// An error in the protocol of the client.
fn unavailable(headers: &HeaderMap) -> Response<Body> {
    let grpc = headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    if grpc {
        tonic::Status::unavailable("this service fails on purpose").into_http()
    } else {
        text(
            StatusCode::SERVICE_UNAVAILABLE,
            "this service fails on purpose\n",
        )
    }
}
