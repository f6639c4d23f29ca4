//! The server for proxies: TLS, gRPC, and one task for each stream.
//!
//! ```text
//! accept (TCP, TLS) ─▶ grpc ─┬─ Certify ─▶ issuer
//!                            └─ Sync ─▶ stream ─ table (what this proxy has and should have)
//!                                         ▲
//!                       source ─▶ hub ────┘ wakes the streams whose closure has the change
//! ```
//!
//! # Floors
//!
//! ```text
//! grpc                the two gRPC methods
//! accept              connections, and their clients' identities
//! tls
//! stream              the stream of one proxy
//! hub                 what all streams share
//! table               the resources of one proxy, sent and wanted
//! delta route_feed    endpoints as differences; routes as they change
//! ```

mod accept;
mod delta;
mod grpc;
mod hub;
mod route_feed;
mod stream;
mod table;
mod tls;

use std::sync::Arc;
use std::time::Duration;

use naru_contract::TrustAnchors;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tracing::warn;

pub use hub::Hub;
pub use route_feed::RouteFeed;
pub use tls::TlsError;

use crate::compile::Catalog;
use crate::issuer::{InForce, Issuer};
use crate::metrics::Metrics;

/// Streams on one connection: a proxy syncs on one connection, and requests certificates on
/// another.
const MAX_CONCURRENT_STREAMS: u32 = 2;
/// HTTP/2 window of a stream and of a connection, in bytes: an upper bound on the unread data of a
/// peer. A hello with ten thousand destinations takes about this much.
const WINDOW: u32 = 256 * 1024;
/// Bytes in a request's headers.
const MAX_HEADER_BYTES: u32 = 16 * 1024;
/// Interval of HTTP/2 pings that check whether a connection is alive, and the timeout for their
/// responses.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// How long connections may take to close when the controller shuts down.
const DRAIN: Duration = Duration::from_secs(5);

/// The server for proxies.
pub struct Serve {
    pub issuer: Arc<Issuer>,
    pub hub: Arc<Hub>,
    pub metrics: Metrics,
    renew_within: Duration,
}

impl Serve {
    /// `renew_within`: the period in which proxies renew their certificates after another authority
    /// has started to issue.
    pub fn new(issuer: Issuer, catalog: Catalog, metrics: Metrics, renew_within: Duration) -> Self {
        let anchors = trust_anchors(&issuer.in_force(), renew_within);
        let hub = Arc::new(Hub::new(catalog, anchors));
        let counted = Arc::downgrade(&hub);
        metrics.count_objects(move || {
            counted
                .upgrade()
                .map_or(Vec::new(), |hub| hub.object_counts())
        });
        Self {
            issuer: Arc::new(issuer),
            hub,
            metrics,
            renew_within,
        }
    }

    /// Serves on `listener` until `stopping` becomes true, and then drains for a bounded time.
    pub async fn run(
        self,
        listener: TcpListener,
        mut stopping: watch::Receiver<bool>,
    ) -> Result<(), TlsError> {
        let config = tls::config(&self.issuer)?;
        let renewal = tokio::spawn(tls::renew(self.issuer.clone(), config.clone()));
        let publishing = tokio::spawn(publish_trust_anchors(
            self.issuer.clone(),
            self.hub.clone(),
            self.renew_within,
        ));
        let connections =
            accept::start(listener, config, self.issuer.trust_domain(), &self.metrics);
        let methods = grpc::Methods {
            issuer: self.issuer,
            turns: grpc::turns(),
            context: stream::Context {
                hub: self.hub,
                metrics: self.metrics,
                stopping: stopping.clone(),
                shares: stream::Shares::default(),
            },
        };
        let mut stop = stopping.clone();
        let server = Server::builder()
            .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .http2_max_header_list_size(MAX_HEADER_BYTES)
            .http2_keepalive_interval(Some(PING_INTERVAL))
            .http2_keepalive_timeout(Some(PING_TIMEOUT))
            .serve_with_incoming_shutdown(methods, ReceiverStream::new(connections), async move {
                let _ = stop.wait_for(|stopping| *stopping).await;
            });
        let drained = async {
            let _ = stopping.wait_for(|stopping| *stopping).await;
            tokio::time::sleep(DRAIN).await;
        };
        tokio::select! {
            done = server => if let Err(error) = done {
                warn!(%error, "serving proxies");
            },
            () = drained => warn!("closed connections that were still open"),
        }
        renewal.abort();
        publishing.abort();
        Ok(())
    }
}

/// Sends the trust anchors to all proxies, whenever they change.
async fn publish_trust_anchors(issuer: Arc<Issuer>, hub: Arc<Hub>, renew_within: Duration) {
    let mut changes = issuer.changes();
    loop {
        let in_force = changes.borrow_and_update().clone();
        hub.set_trust_anchors(trust_anchors(&in_force, renew_within));
        if changes.changed().await.is_err() {
            return;
        }
    }
}

fn trust_anchors(in_force: &InForce, renew_within: Duration) -> TrustAnchors {
    TrustAnchors {
        certificates_der: in_force.anchors_der(),
        issuer: in_force.ca.id().to_owned(),
        renew_within_seconds: u32::try_from(renew_within.as_secs()).unwrap_or(u32::MAX),
    }
}
