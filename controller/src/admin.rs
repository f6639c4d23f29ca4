//! The admin port: metrics, probes, and the log's filter.
//!
//! In: HTTP/1.1 requests of Prometheus, the kubelet and people. Out: responses. Connections are
//! bounded in number and time.

use std::net::IpAddr;
use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::body::Body;
use hyper::{Method, Request, StatusCode};
use naru_listen::Places;
use naru_listen::admin::{BOUNDS, TIMES};
use naru_listen::http::Caller;
use naru_listen::reply::{Reply, not_allowed, text, with_type};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::info;

use crate::logging::LogFilter;
use crate::metrics::Metrics;

/// Timeout for the body of a request.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes in a request's body, which is a log filter.
const MAX_BODY: usize = 4 * 1024;
const PATHS: &str = "/metrics  what Prometheus scrapes\n\
    /ready    200 once the source of objects has been read whole, until the controller ends\n\
    /live     200 as long as the program runs\n\
    /log      GET the log's filter, PUT another (from this machine only)\n";

/// The state behind the admin port. Cheap to clone.
#[derive(Clone)]
pub struct Admin {
    pub metrics: Metrics,
    pub log: LogFilter,
    /// The source has been read completely.
    pub synced: watch::Receiver<bool>,
    pub stopping: watch::Receiver<bool>,
}

/// Serves until the process ends.
pub async fn serve(listener: TcpListener, admin: Admin) {
    let places = Places::new(BOUNDS);
    admin.metrics.watch_places("admin", places.clone());
    let answer = move |request, caller: Caller| {
        let admin = admin.clone();
        async move { admin.answer(request, is_loopback(caller.peer.ip())).await }
    };
    naru_listen::http::serve(listener, places, TIMES, naru_listen::http::plain, answer).await;
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Admin {
    /// `local`: the request is from this machine.
    async fn answer<B>(&self, request: Request<B>, local: bool) -> Reply
    where
        B: Body<Error: Into<BoxError>>,
    {
        let method = request.method().clone();
        let reads = matches!(method, Method::GET | Method::HEAD);
        match request.uri().path() {
            "/metrics" if reads => self.metrics().await,
            "/ready" if reads => self.ready(),
            "/live" if reads => text(StatusCode::OK, "live\n"),
            "/log" if !local => text(
                StatusCode::FORBIDDEN,
                "only from this machine: use kubectl port-forward or exec\n",
            ),
            "/log" if reads => text(StatusCode::OK, format!("{}\n", self.log.current())),
            "/log" if method == Method::PUT => self.set_log(request.into_body()).await,
            "/log" => not_allowed("GET, HEAD, PUT"),
            "/metrics" | "/ready" | "/live" => not_allowed("GET, HEAD"),
            _ => text(StatusCode::NOT_FOUND, format!("There is:\n{PATHS}")),
        }
    }

    async fn metrics(&self) -> Reply {
        match self.metrics.scrapes().text().await {
            Ok(body) => with_type(
                StatusCode::OK,
                "text/plain; version=0.0.4; charset=utf-8",
                body,
            ),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }

    fn ready(&self) -> Reply {
        let unavailable = StatusCode::SERVICE_UNAVAILABLE;
        match (*self.synced.borrow(), *self.stopping.borrow()) {
            (_, true) => text(unavailable, "shutting down\n"),
            (false, _) => text(
                unavailable,
                "the source of objects has not been read whole yet\n",
            ),
            (true, false) => text(StatusCode::OK, "ready\n"),
        }
    }

    async fn set_log<B>(&self, body: B) -> Reply
    where
        B: Body<Error: Into<BoxError>>,
    {
        let body = timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY).collect());
        let body = match body.await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) => return text(StatusCode::BAD_REQUEST, format!("{error}\n")),
            Err(_) => return text(StatusCode::REQUEST_TIMEOUT, "no whole body in time\n"),
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

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http_body_util::Full;

    async fn ask(
        admin: &Admin,
        method: Method,
        path: &str,
        body: &str,
        local: bool,
    ) -> (u16, String) {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .body(Full::new(Bytes::copy_from_slice(body.as_bytes())))
            .unwrap();
        let answer = admin.answer(request, local).await;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn it_is_ready_from_the_first_complete_read_until_shutdown() {
        let (_layer, log) = LogFilter::for_tests();
        let (synced, stopping) = (watch::Sender::new(false), watch::Sender::new(false));
        let admin = Admin {
            metrics: Metrics::new(),
            log,
            synced: synced.subscribe(),
            stopping: stopping.subscribe(),
        };
        assert_eq!(ask(&admin, Method::GET, "/live", "", false).await.0, 200);
        assert_eq!(ask(&admin, Method::GET, "/ready", "", false).await.0, 503);
        synced.send_replace(true);
        assert_eq!(ask(&admin, Method::GET, "/ready", "", false).await.0, 200);
        stopping.send_replace(true);
        assert_eq!(ask(&admin, Method::GET, "/ready", "", false).await.0, 503);
    }

    #[tokio::test]
    async fn the_log_filter_is_changed_from_this_machine_only() {
        let (_layer, log) = LogFilter::for_tests();
        let value = watch::Sender::new(false);
        let admin = Admin {
            metrics: Metrics::new(),
            log,
            synced: value.subscribe(),
            stopping: value.subscribe(),
        };
        assert_eq!(
            ask(&admin, Method::PUT, "/log", "debug", false).await.0,
            403
        );
        assert_eq!(ask(&admin, Method::PUT, "/log", "=/=", true).await.0, 400);
        assert_eq!(
            ask(&admin, Method::PUT, "/log", "debug\n", true).await.0,
            200
        );
        let shown = ask(&admin, Method::GET, "/log", "", true).await;
        assert_eq!(shown, (200, "debug\n".to_owned()));
        assert_eq!(ask(&admin, Method::POST, "/metrics", "", true).await.0, 405);
        assert_eq!(ask(&admin, Method::GET, "/none", "", true).await.0, 404);
    }
}
