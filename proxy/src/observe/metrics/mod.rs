//! Metrics of the proxy. Handles are resolved once for each source, destination and route, and then
//! incremented as owned atomics; only resolving them and reading them all takes a lock.
//!
//! ```text
//! labels ─▶ series (bounded table, compared whole) ─▶ RequestMetrics, TcpMetrics ◀─ data path
//! totals (closed sets: connects, handshakes, pools, certificate, controller)    ◀─ all threads
//!                     └──────── expose ──▶ text for Prometheus
//! ```
//!
//! # Floors
//!
//! ```text
//! expose              text for Prometheus
//! mirror totals
//! request
//! ejections histogram series
//! ```

mod ejections;
mod expose;
mod histogram;
mod mirror;
mod request;
mod series;
mod totals;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use naru_listen::Places;

use crate::memory::Budget;
use crate::observe::reason::Reason;
use crate::socket::Direction;
pub use ejections::{EjectionCounter, EjectionReason};
pub use histogram::BUCKETS;
pub use mirror::{MirrorLabels, MirrorMetrics, MirrorOutcome};
use request::RetryMetrics;
pub use request::{HttpVersion, RequestMetrics, RetryOutcome, TcpMetrics};
use series::Series;
use totals::Totals;
pub use totals::{
    AppConnection, PoolProtocol, PoolState, PushOutcome, RenewalOutcome, Shown, StreamLimit,
};

/// Label sets of requests. Each is about 30 lines in a scrape and 1 KiB in memory.
const MAX_REQUEST_SERIES: usize = 4_000;
/// Label sets of other connections. Each is about 8 lines in a scrape.
const MAX_TCP_SERIES: usize = 4_000;
/// Routes of Services for which retries are counted.
const MAX_RETRY_SERIES: usize = 4_000;
/// Mirrors of rules for which copies are counted.
const MAX_MIRROR_SERIES: usize = 4_000;
/// Services for which ejections are counted.
const MAX_SERVICE_SERIES: usize = 10_000;
/// Value of every label in the overflow series.
const OVERFLOW: &str = "overflow";
/// Interval of the sweep for unused series.
pub const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// The registry. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    namespace: String,
    pod: String,
    requests: Series<RequestLabels, RequestMetrics>,
    retries: Series<RetryLabels, RetryMetrics>,
    mirrors: Series<MirrorLabels, MirrorMetrics>,
    tcp: Series<TcpLabels, TcpMetrics>,
    ejections: Series<ServiceKey, EjectionCounter>,
    /// Read when scraped, as long as the owner keeps them.
    budgets: Mutex<HashMap<ServiceKey, Weak<dyn Allowance>>>,
    totals: Totals,
    /// By listener.
    places: Mutex<Vec<(&'static str, Places)>>,
    memory: OnceLock<Budget>,
    /// The least that the app sees of its clients' addresses, by family.
    client_addresses: OnceLock<Vec<(&'static str, Shown)>>,
}

const EJECTION_REASONS: [EjectionReason; 2] = [
    EjectionReason::ConsecutiveFailures,
    EjectionReason::IdentityMismatch,
];

/// Namespace, name and port of a Service; without a port, of those beyond the bound.
type ServiceKey = (Arc<str>, Arc<str>, Option<u16>);

/// Allows a Service's retries.
pub trait Allowance: Send + Sync {
    /// How many retries are allowed right now.
    fn available(&self) -> u64;
}

/// The Service port that series are counted for.
#[derive(Clone, Debug)]
pub struct ServiceLabels {
    pub namespace: Arc<str>,
    pub service: Arc<str>,
    pub port: u16,
}

/// Labels of a series of requests. Empty where they do not apply.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RequestLabels {
    pub direction: Direction,
    /// Inbound: SPIFFE ID of the peer, or `unauthenticated`.
    pub client: Arc<str>,
    pub namespace: Arc<str>,
    pub service: Arc<str>,
    pub port: Option<u16>,
    /// `namespace/name`
    pub route: Arc<str>,
    pub rule: Arc<str>,
    /// `namespace/service:port`
    pub backend: Arc<str>,
}

/// Labels of a series of connections that are not HTTP. Empty where they do not apply.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TcpLabels {
    pub direction: Direction,
    pub client: Arc<str>,
    pub namespace: Arc<str>,
    pub service: Arc<str>,
    pub port: Option<u16>,
}

/// Retries are counted by route, not by rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct RetryLabels {
    namespace: Arc<str>,
    service: Arc<str>,
    port: Option<u16>,
    route: Arc<str>,
}

impl Metrics {
    /// `namespace` and `pod` are those of `naru_proxy_info`.
    pub fn new(namespace: &str, pod: &str) -> Self {
        Self {
            inner: Arc::new(Inner {
                namespace: namespace.to_owned(),
                pod: pod.to_owned(),
                requests: Series::new(MAX_REQUEST_SERIES),
                retries: Series::new(MAX_RETRY_SERIES),
                mirrors: Series::new(MAX_MIRROR_SERIES),
                tcp: Series::new(MAX_TCP_SERIES),
                ejections: Series::new(MAX_SERVICE_SERIES),
                budgets: Mutex::default(),
                totals: Totals::default(),
                places: Mutex::default(),
                memory: OnceLock::new(),
                client_addresses: OnceLock::new(),
            }),
        }
    }

    /// The handle for a label set. Resolve it once and keep it.
    pub fn request(&self, labels: RequestLabels) -> Arc<RequestMetrics> {
        self.inner
            .requests
            .resolve(labels, RequestLabels::overflow, |labels| {
                RequestMetrics::new(self.retries(labels))
            })
    }

    /// The handle for a label set. Resolve it once and keep it.
    pub fn tcp(&self, labels: TcpLabels) -> Arc<TcpMetrics> {
        self.inner
            .tcp
            .resolve(labels, TcpLabels::overflow, |_| TcpMetrics::default())
    }

    /// The handle for a label set. Resolve it once and keep it.
    pub fn mirror(&self, labels: MirrorLabels) -> Arc<MirrorMetrics> {
        self.inner.mirrors.resolve(
            labels,
            |_| MirrorLabels::overflow(),
            |_| MirrorMetrics::default(),
        )
    }

    fn retries(&self, labels: &RequestLabels) -> Arc<RetryMetrics> {
        let labels = RetryLabels {
            namespace: labels.namespace.clone(),
            service: labels.service.clone(),
            port: labels.port,
            route: labels.route.clone(),
        };
        self.inner.retries.resolve(
            labels,
            |_| RetryLabels::overflow(),
            |_| RetryMetrics::default(),
        )
    }

    /// The counter of ejections of a Service's endpoints.
    pub fn ejections(&self, service: &ServiceLabels) -> Arc<EjectionCounter> {
        let overflow: Arc<str> = OVERFLOW.into();
        self.inner.ejections.resolve(
            service_key(service),
            |_| (overflow.clone(), overflow, None),
            |_| EjectionCounter::default(),
        )
    }

    /// Exposes the rest of `budget`, as long as it is in use.
    pub fn watch_budget(&self, service: &ServiceLabels, budget: &Arc<impl Allowance + 'static>) {
        let budget = Arc::downgrade(budget);
        self.budgets().insert(service_key(service), budget);
    }

    /// Exposes the limits that connections of `listener` met.
    pub fn watch_places(&self, listener: &'static str, places: Places) {
        self.places().push((listener, places));
    }

    fn places(&self) -> std::sync::MutexGuard<'_, Vec<(&'static str, Places)>> {
        (self.inner.places.lock()).unwrap_or_else(PoisonError::into_inner)
    }

    fn budgets(&self) -> std::sync::MutexGuard<'_, HashMap<ServiceKey, Weak<dyn Allowance>>> {
        self.inner
            .budgets
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes series without an owner and without recent traffic. Call it each [`SWEEP_INTERVAL`].
    pub fn sweep(&self, now: Instant) {
        self.inner.requests.sweep(now);
        self.inner.retries.sweep(now);
        self.inner.mirrors.sweep(now);
        self.inner.tcp.sweep(now);
        self.inner.ejections.sweep(now);
        self.budgets().retain(|_, budget| budget.strong_count() > 0);
    }

    /// Exposes the process' memory budget. The first call counts.
    pub fn watch_memory(&self, budget: Budget) {
        let _ = self.inner.memory.set(budget);
    }

    /// Counts an attempted upstream connection. `reason`: why it failed.
    pub fn upstream_connect(&self, reason: Option<Reason>) {
        self.inner.totals.upstream_connect(reason);
    }

    /// Records the least that the app sees of its clients' addresses, by family. The first call
    /// counts.
    pub fn app_shown(&self, at_worst: Vec<(&'static str, Shown)>) {
        let _ = self.inner.client_addresses.set(at_worst);
    }

    /// Counts an attempted connection to the app, with the client address shown to it.
    pub fn app_connect(&self, shown: Shown) {
        self.inner.totals.app_connect(shown);
    }

    /// Counts a finished TLS handshake. `reason`: why it failed.
    pub fn handshake(&self, direction: Direction, reason: Option<Reason>) {
        self.inner.totals.handshake(direction, reason);
    }

    /// Counts a peer's connection that is closed because its certificate has expired.
    pub fn connection_expired(&self) {
        self.inner.totals.connection_expired();
    }

    /// Counts a request that was refused a stream to an endpoint.
    pub fn stream_refused(&self, protocol: PoolProtocol, limit: StreamLimit) {
        self.inner.totals.stream_refused(protocol, limit);
    }

    /// Adds upstream connections to a pool's gauge or, where negative, removes them.
    pub fn pool_connections(&self, protocol: PoolProtocol, state: PoolState, change: i64) {
        self.inner.totals.pool_connections(protocol, state, change);
    }

    /// Sets the number of sockets of other processes that the rules treat as the proxy's.
    pub fn bypassing(&self, sockets: usize) {
        self.inner.totals.set_bypassing(sockets);
    }

    /// Counts an event of an HTTP/1.1 connection to an endpoint without a sidecar.
    pub fn app_connection(&self, event: AppConnection) {
        self.inner.totals.app_connection(event);
    }

    /// Counts a client's HTTP/2 connection that is slowed down from now on.
    pub fn http2_slowed(&self) {
        self.inner.totals.http2_slowed();
    }

    /// Counts a dropped line of the access log.
    pub fn access_log_dropped(&self) {
        self.inner.totals.access_log_dropped();
    }

    /// Counts a request for a certificate.
    pub fn certificate_renewal(&self, outcome: RenewalOutcome) {
        self.inner.totals.certificate_renewal(outcome);
    }

    /// Sets the expiry of the certificate in force, in Unix seconds, and the name of its issuer, if
    /// that is announced.
    pub fn certificate(&self, expires: i64, issuer: Option<&str>) {
        self.inner.totals.certificate(expires, issuer);
    }

    /// Sets whether the stream from the controller is open.
    pub fn controller_connected(&self, connected: bool) {
        self.inner.totals.controller_connected(connected);
    }

    /// Records a message from the controller, including heartbeats.
    pub fn controller_message(&self, now: Instant) {
        self.inner.totals.controller_message(now);
    }

    /// Time since the controller's last message. `None`: no message yet.
    pub fn controller_silence(&self, now: Instant) -> Option<Duration> {
        self.inner.totals.controller_silence(now)
    }

    /// Counts a processed push of `resources`; `held` are in force now.
    pub fn push(&self, outcome: PushOutcome, resources: usize, held: usize) {
        self.inner.totals.push(outcome, resources, held);
    }
}

fn service_key(service: &ServiceLabels) -> ServiceKey {
    (
        service.namespace.clone(),
        service.service.clone(),
        Some(service.port),
    )
}

impl series::Handle for EjectionCounter {
    fn uses(&self) -> u64 {
        let reasons = EJECTION_REASONS.into_iter();
        reasons.map(|reason| self.get(reason)).sum()
    }
}

/// For tests, and wherever there is no pod name.
impl Default for Metrics {
    fn default() -> Self {
        Self::new("", "")
    }
}

impl RequestLabels {
    fn overflow(&self) -> Self {
        let overflow: Arc<str> = OVERFLOW.into();
        Self {
            direction: self.direction,
            client: overflow.clone(),
            namespace: overflow.clone(),
            service: overflow.clone(),
            port: None,
            route: overflow.clone(),
            rule: overflow.clone(),
            backend: overflow,
        }
    }
}

impl TcpLabels {
    fn overflow(&self) -> Self {
        let overflow: Arc<str> = OVERFLOW.into();
        Self {
            direction: self.direction,
            client: overflow.clone(),
            namespace: overflow.clone(),
            service: overflow,
            port: None,
        }
    }
}

impl RetryLabels {
    fn overflow() -> Self {
        let overflow: Arc<str> = OVERFLOW.into();
        Self {
            namespace: overflow.clone(),
            service: overflow.clone(),
            port: None,
            route: overflow,
        }
    }
}
