//! The controller's metrics. Label sets are small and closed: no input of a peer becomes a label.

mod labels;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use naru_contract::ResourceName;
use naru_listen::scrapes::Scrapes;
use naru_listen::{Limit, Places};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};

use crate::issuer::InForce;

pub use labels::{AuthorityState, Form, InjectionOutcome, StatusOutcome};

/// Upper bounds of the push latency's buckets, in seconds. A push over loopback takes about a
/// millisecond, and one to a proxy on an overloaded machine takes some seconds.
const LATENCY_BUCKETS: [f64; 14] = [
    0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0,
];

/// Cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    connected_proxies: IntGauge,
    push_latency: Histogram,
    pushes: IntCounter,
    pushed_resources: IntCounterVec,
    rejects: IntCounter,
    issued: IntCounter,
    refused: IntCounterVec,
    manifest_errors: IntGauge,
    invalid_objects: IntGaugeVec,
    watch_failures: IntCounterVec,
    status_writes: IntCounterVec,
    authority_expiry: Gauge,
    authority_info: IntGaugeVec,
    authority_state: IntGaugeVec,
    trust_anchors: IntGauge,
    proxies_behind: IntGauge,
    injections: IntCounterVec,
    objects: OnceLock<ObjectCounts>,
    streams: AtomicUsize,
    streams_refused: IntCounterVec,
    /// By listener.
    places: Mutex<Vec<(&'static str, Places)>>,
    scrapes: Scrapes,
}

type ObjectCounts = Box<dyn Fn() -> Vec<(&'static str, usize)> + Send + Sync>;

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    pub fn new() -> Self {
        let registry = Registry::new();
        let metrics = Self(Arc::new(Inner {
            connected_proxies: register(
                &registry,
                IntGauge::new(
                    "naru_controller_connected_proxies",
                    "Proxies with a stream open.",
                ),
            ),
            push_latency: register(
                &registry,
                Histogram::with_opts(
                    HistogramOpts::new(
                        "naru_controller_push_latency_seconds",
                        "Time from a change in the source to its acceptance by a proxy.",
                    )
                    .buckets(LATENCY_BUCKETS.to_vec()),
                ),
            ),
            pushes: register(
                &registry,
                IntCounter::new("naru_controller_pushes_total", "Pushes sent to proxies."),
            ),
            pushed_resources: register(
                &registry,
                IntCounterVec::new(
                    Opts::new(
                        "naru_controller_pushed_resources_total",
                        "Resources sent to proxies.",
                    ),
                    &["kind", "form"],
                ),
            ),
            rejects: register(
                &registry,
                IntCounter::new(
                    "naru_controller_rejects_total",
                    "Resources that proxies rejected.",
                ),
            ),
            issued: register(
                &registry,
                IntCounter::new(
                    "naru_controller_certificates_issued_total",
                    "Certificates issued to proxies.",
                ),
            ),
            refused: register(
                &registry,
                IntCounterVec::new(
                    Opts::new(
                        "naru_controller_certificates_refused_total",
                        "Requests for certificates that were refused.",
                    ),
                    &["reason"],
                ),
            ),
            manifest_errors: register(
                &registry,
                IntGauge::new(
                    "naru_controller_manifest_errors",
                    "Manifests that do not parse now.",
                ),
            ),
            invalid_objects: register(
                &registry,
                IntGaugeVec::new(
                    Opts::new(
                        "naru_controller_invalid_objects",
                        "Objects of the API server that can't be used as they are.",
                    ),
                    &["kind"],
                ),
            ),
            watch_failures: register(
                &registry,
                IntCounterVec::new(
                    Opts::new(
                        "naru_controller_watch_failures_total",
                        "Requests to list or watch objects that failed.",
                    ),
                    &["kind"],
                ),
            ),
            status_writes: register(
                &registry,
                IntCounterVec::new(
                    Opts::new(
                        "naru_controller_status_writes_total",
                        "Writes of the status of routes.",
                    ),
                    &["outcome"],
                ),
            ),
            authority_expiry: register(
                &registry,
                Gauge::new(
                    "naru_controller_authority_expiry_timestamp_seconds",
                    "When the mesh's certificate authority expires, in Unix seconds.",
                ),
            ),
            authority_info: register(
                &registry,
                IntGaugeVec::new(
                    Opts::new(
                        "naru_controller_authority_info",
                        "1, with the name of the authority that certificates are issued with.",
                    ),
                    &["issuer"],
                ),
            ),
            authority_state: register(
                &registry,
                IntGaugeVec::new(
                    Opts::new(
                        "naru_controller_authority_state",
                        "1 for the state that the mesh's certificate authority is in, 0 for the \
                         others.",
                    ),
                    &["state"],
                ),
            ),
            trust_anchors: register(
                &registry,
                IntGauge::new("naru_controller_trust_anchors", "Trust anchors in force."),
            ),
            proxies_behind: register(
                &registry,
                IntGauge::new(
                    "naru_controller_proxies_without_trust_anchors",
                    "Connected proxies that have not taken the trust anchors in force.",
                ),
            ),
            injections: register(
                &registry,
                IntCounterVec::new(
                    Opts::new(
                        "naru_controller_injections_total",
                        "Pods that the webhook was asked about.",
                    ),
                    &["outcome"],
                ),
            ),
            streams_refused: register(
                &registry,
                IntCounterVec::new(
                    Opts::new(
                        "naru_controller_streams_refused_total",
                        "Streams of proxies that were refused, by the limit that was reached.",
                    ),
                    &["limit"],
                ),
            ),
            places: Mutex::default(),
            scrapes: Scrapes::new({
                let registry = registry.clone();
                move || render(&registry).map_err(|error| error.to_string())
            }),
            objects: OnceLock::new(),
            streams: AtomicUsize::new(0),
            registry: registry.clone(),
        }));
        let objects = Objects::new(&metrics).expect("a valid metric");
        let refused = Refused::new(&metrics).expect("a valid metric");
        let process = prometheus::process_collector::ProcessCollector::for_self();
        for collector in [
            Box::new(objects) as Box<dyn Collector>,
            Box::new(refused),
            Box::new(process),
        ] {
            registry
                .register(collector)
                .expect("a metric of its own name");
        }
        metrics
    }

    /// Counts a stream until the guard is dropped. `None`: there are already `most` streams.
    pub fn stream(&self, most: usize) -> Option<StreamGuard> {
        let add = |count| (count < most).then_some(count + 1);
        self.0
            .streams
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add)
            .ok()?;
        self.0.connected_proxies.inc();
        Some(StreamGuard(self.clone()))
    }

    /// A stream was rejected. `limit` is from a closed set.
    pub fn stream_refused(&self, limit: &'static str) {
        self.0.streams_refused.with_label_values(&[limit]).inc();
    }

    /// Exposes the limits that the connections of `listener` have hit.
    pub fn watch_places(&self, listener: &'static str, places: Places) {
        let watched = self.0.places.lock();
        let mut watched = watched.unwrap_or_else(PoisonError::into_inner);
        watched.push((listener, places));
    }

    pub fn push(&self) {
        self.0.pushes.inc();
    }

    pub fn pushed_resource(&self, name: &ResourceName, form: Form) {
        let form = match form {
            Form::Full => "full",
            Form::Delta => "delta",
        };
        self.0
            .pushed_resources
            .with_label_values(&[kind(name), form])
            .inc();
    }

    pub fn push_accepted(&self, latency: Duration) {
        self.0.push_latency.observe(latency.as_secs_f64());
    }

    pub fn rejected(&self, resources: usize) {
        self.0.rejects.inc_by(resources as u64);
    }

    pub fn issued(&self) {
        self.0.issued.inc();
    }

    /// `reason` is from a closed set.
    pub fn refused(&self, reason: &'static str) {
        self.0.refused.with_label_values(&[reason]).inc();
    }

    pub fn manifest_errors(&self, count: usize) {
        self.0
            .manifest_errors
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// The number of unusable objects of a kind.
    pub fn invalid_objects(&self, kind: &'static str, count: usize) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        (self.0.invalid_objects.with_label_values(&[kind])).set(count);
    }

    /// Objects of a kind could not be listed or watched.
    pub fn watch_failed(&self, kind: &'static str) {
        self.0.watch_failures.with_label_values(&[kind]).inc();
    }

    pub fn status_written(&self, outcome: StatusOutcome) {
        let outcome = match outcome {
            StatusOutcome::Written => "written",
            StatusOutcome::Failed => "failed",
        };
        self.0.status_writes.with_label_values(&[outcome]).inc();
    }

    /// `behind`: proxies that have not applied the anchors in force.
    pub fn authority(&self, state: AuthorityState, in_force: &InForce, behind: usize) {
        for other in AuthorityState::ALL {
            let gauge = (self.0.authority_state).with_label_values(&[other.as_str()]);
            gauge.set(i64::from(other == state));
        }
        let since = (in_force.ca.expires()).duration_since(SystemTime::UNIX_EPOCH);
        (self.0.authority_expiry).set(since.unwrap_or_default().as_secs_f64());
        self.0.authority_info.reset();
        let info = (self.0.authority_info).with_label_values(&[in_force.ca.id()]);
        info.set(1);
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.0.trust_anchors.set(count(in_force.anchors.len()));
        self.0.proxies_behind.set(count(behind));
    }

    pub fn injection(&self, outcome: InjectionOutcome) {
        let outcome = outcome.as_str();
        self.0.injections.with_label_values(&[outcome]).inc();
    }

    /// The source of object counts, read at each scrape. Only the first call has an effect.
    pub fn count_objects(
        &self,
        counts: impl Fn() -> Vec<(&'static str, usize)> + Send + Sync + 'static,
    ) {
        let _ = self.0.objects.set(Box::new(counts));
    }

    /// All metrics in Prometheus' text format.
    pub fn render(&self) -> prometheus::Result<Vec<u8>> {
        render(&self.0.registry)
    }

    /// The same, rendered once for all concurrent scrapes, off the serving threads.
    pub fn scrapes(&self) -> Scrapes {
        self.0.scrapes.clone()
    }
}

fn render(registry: &Registry) -> prometheus::Result<Vec<u8>> {
    let mut text = Vec::new();
    TextEncoder::new().encode(&registry.gather(), &mut text)?;
    Ok(text)
}

/// Connections that the listeners have rejected, collected at each scrape.
struct Refused {
    counter: IntCounterVec,
    metrics: std::sync::Weak<Inner>,
}

impl Refused {
    fn new(metrics: &Metrics) -> prometheus::Result<Self> {
        Ok(Self {
            counter: IntCounterVec::new(
                Opts::new(
                    "naru_controller_connections_refused_total",
                    "Connections that a listener refused or gave up for others, by the limit that \
                     was reached.",
                ),
                &["listener", "limit"],
            )?,
            metrics: Arc::downgrade(&metrics.0),
        })
    }
}

impl Collector for Refused {
    fn desc(&self) -> Vec<&Desc> {
        self.counter.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        if let Some(metrics) = self.metrics.upgrade() {
            let watched = metrics.places.lock();
            let watched = watched.unwrap_or_else(PoisonError::into_inner);
            for (listener, places) in watched.iter() {
                for limit in Limit::ALL {
                    let labels = [*listener, limit.as_str()];
                    let counter = self.counter.with_label_values(&labels);
                    counter.inc_by(places.refused(limit).saturating_sub(counter.get()));
                }
            }
        }
        self.counter.collect()
    }
}

/// Counts a stream while it lives.
pub struct StreamGuard(Metrics);

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.0.streams.fetch_sub(1, Ordering::Relaxed);
        self.0.0.connected_proxies.dec();
    }
}

/// The number of objects of each kind, collected at each scrape.
struct Objects {
    gauge: IntGaugeVec,
    metrics: std::sync::Weak<Inner>,
}

impl Objects {
    fn new(metrics: &Metrics) -> prometheus::Result<Self> {
        Ok(Self {
            gauge: IntGaugeVec::new(
                Opts::new(
                    "naru_controller_objects",
                    "Objects that the controller knows.",
                ),
                &["kind"],
            )?,
            metrics: Arc::downgrade(&metrics.0),
        })
    }
}

impl Collector for Objects {
    fn desc(&self) -> Vec<&Desc> {
        self.gauge.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let metrics = self.metrics.upgrade();
        let counts = metrics
            .as_ref()
            .and_then(|metrics| metrics.objects.get())
            .map(|counts| counts())
            .unwrap_or_default();
        for (kind, count) in counts {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.gauge.with_label_values(&[kind]).set(count);
        }
        self.gauge.collect()
    }
}

fn kind(name: &ResourceName) -> &'static str {
    match name {
        ResourceName::TrustAnchors => "trust-anchors",
        ResourceName::Inbound => "inbound",
        ResourceName::Destination(_) => "destination",
        ResourceName::Service { .. } => "service",
        ResourceName::HttpRoute { .. } => "http-route",
        ResourceName::GrpcRoute { .. } => "grpc-route",
        ResourceName::TlsRoute { .. } => "tls-route",
        ResourceName::TcpRoute { .. } => "tcp-route",
        ResourceName::Endpoints { .. } => "endpoints",
    }
}

fn register<C: Collector + Clone + 'static>(
    registry: &Registry,
    collector: prometheus::Result<C>,
) -> C {
    // Names are constant and unique, so registration cannot fail.
    let collector = collector.expect("a valid metric");
    registry
        .register(Box::new(collector.clone()))
        .expect("a metric of its own name");
    collector
}

#[cfg(test)]
mod tests;
