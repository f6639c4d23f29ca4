//! Every counter as a metric family for Prometheus, under the names that proxy/README.md documents.

mod family;
#[cfg(test)]
mod tests;

use std::time::Instant;

use naru_listen::Limit;
use prometheus::core::{Collector, Desc};
use prometheus::process_collector::ProcessCollector;
use prometheus::proto::{LabelPair, MetricFamily};
use prometheus::{Encoder, Registry, TextEncoder};

use super::request::status_labels;
use super::totals::{
    AppConnection, PoolProtocol, PoolState, PushOutcome, RenewalOutcome, StreamLimit,
};
use super::{
    Direction, EJECTION_REASONS, HttpVersion, Metrics, MirrorOutcome, RequestLabels, RetryOutcome,
    ServiceKey, TcpLabels,
};
use crate::memory::Use;
use crate::observe::reason::Reason;
use family::{Family, label};

/// The outcome of a success; others are reasons.
const OK: &str = "ok";

impl Metrics {
    /// All metrics in Prometheus' text format, including those of the process. Takes time in
    /// proportion to the number of series: call it off the threads that serve traffic.
    pub fn render(&self) -> Result<Vec<u8>, prometheus::Error> {
        let registry = Registry::new();
        registry.register(Box::new(Exposed::new(self.clone())?))?;
        registry.register(Box::new(ProcessCollector::for_self()))?;
        let mut text = Vec::new();
        TextEncoder::new().encode(&registry.gather(), &mut text)?;
        Ok(text)
    }
}

/// The collector of everything in [`Metrics`].
struct Exposed {
    metrics: Metrics,
    desc: Desc,
}

impl Exposed {
    fn new(metrics: Metrics) -> Result<Self, prometheus::Error> {
        // The registry distinguishes collectors by a description and needs one. The families are
        // self-describing.
        let desc = Desc::new(
            "naru_proxy_info".to_owned(),
            "Which proxy this is.".to_owned(),
            Vec::new(),
            Default::default(),
        )?;
        Ok(Self { metrics, desc })
    }
}

impl Collector for Exposed {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut families = Vec::new();
        self.requests(&mut families);
        self.tcp(&mut families);
        self.connections(&mut families);
        self.memory(&mut families);
        self.control(&mut families);
        families.retain(|family| !family.get_metric().is_empty());
        families
    }
}

impl Exposed {
    fn requests(&self, families: &mut Vec<MetricFamily>) {
        let mut requests = Family::counter("naru_requests_total", "Requests begun.");
        let mut responses = Family::counter(
            "naru_responses_total",
            "Requests ended, by the status of the response and the reason where the proxy made or \
             broke it off itself.",
        );
        let mut durations = Family::histogram(
            "naru_response_duration_seconds",
            "From the start of a request to the end of its response.",
        );
        for (labels, handle) in self.metrics.inner.requests.used() {
            let labels = request_labels(&labels);
            for version in HttpVersion::ALL {
                let begun = handle.begun(version);
                if begun > 0 {
                    requests.add(&labels, &[("protocol", version.as_str())], begun as f64);
                }
            }
            for (status, reason, count) in handle.outcomes() {
                let (status, class) = status_labels(status);
                let outcome = [
                    ("status", status.as_str()),
                    ("class", class.as_str()),
                    ("reason", reason.map_or("", Reason::as_str)),
                ];
                responses.add(&labels, &outcome, count as f64);
            }
            durations.add_histogram(&labels, handle.duration.snapshot());
        }
        let mut retries = Family::counter(
            "naru_retries_total",
            "Failed attempts that asked for a retry, by whether one was sent.",
        );
        for (labels, handle) in self.metrics.inner.retries.used() {
            let labels = vec![
                label("namespace", &labels.namespace),
                label("service", &labels.service),
                label("port", &port(labels.port)),
                label("route", &labels.route),
            ];
            for outcome in RetryOutcome::ALL {
                let count = handle.count(outcome);
                if count > 0 {
                    retries.add(&labels, &[("outcome", outcome.as_str())], count as f64);
                }
            }
        }
        let mirrored = self.mirrored();
        let mut budgets = Family::gauge(
            "naru_retry_budget_available",
            "Retries that the Service's budget allows right now.",
        );
        for (service, budget) in self.metrics.budgets().iter() {
            if let Some(budget) = budget.upgrade() {
                budgets.add(&service_labels(service), &[], budget.available() as f64);
            }
        }
        let mut ejections = Family::counter(
            "naru_endpoint_ejections_total",
            "Endpoints that were given no more work for a while, by why.",
        );
        for (service, handle) in self.metrics.inner.ejections.used() {
            for reason in EJECTION_REASONS {
                let count = handle.get(reason);
                if count > 0 {
                    let reason = [("reason", reason.as_str())];
                    ejections.add(&service_labels(&service), &reason, count as f64);
                }
            }
        }
        families.extend(
            [
                requests, responses, durations, retries, mirrored, budgets, ejections,
            ]
            .map(Family::finish),
        );
    }

    fn memory(&self, families: &mut Vec<MetricFamily>) {
        let Some(budget) = self.metrics.inner.memory.get() else {
            return;
        };
        let mut size = Family::gauge(
            "naru_memory_budget_bytes",
            "What clients and servers can make the proxy hold.",
        );
        size.add(&[], &[], budget.size() as f64);
        let mut charged = Family::gauge(
            "naru_memory_charged_bytes",
            "What is held of the budget of memory now.",
        );
        charged.add(&[], &[], budget.charged() as f64);
        let mut refused = Family::counter(
            "naru_memory_refusals_total",
            "What the budget of memory had no room for.",
        );
        for what in Use::ALL {
            let what_label = [("what", what.as_str())];
            refused.add(&[], &what_label, budget.refused(what) as f64);
        }
        families.extend([size, charged, refused].map(Family::finish));
    }

    fn mirrored(&self) -> Family {
        let mut mirrored = Family::counter(
            "naru_mirrored_requests_total",
            "Copies of requests for mirrors, by what became of them.",
        );
        for (labels, handle) in self.metrics.inner.mirrors.used() {
            let labels = vec![
                label("namespace", &labels.namespace),
                label("service", &labels.service),
                label("port", &port(labels.port)),
                label("route", &labels.route),
                label("rule", &labels.rule),
                label("mirror", &labels.mirror),
            ];
            for outcome in MirrorOutcome::ALL {
                let count = handle.count(outcome);
                if count > 0 {
                    mirrored.add(&labels, &[("result", outcome.as_str())], count as f64);
                }
            }
        }
        mirrored
    }

    fn tcp(&self, families: &mut Vec<MetricFamily>) {
        let mut connections = Family::counter(
            "naru_tcp_connections_total",
            "Connections accepted that are not HTTP.",
        );
        let mut open = Family::gauge(
            "naru_tcp_connections_open",
            "Connections that are open and not HTTP.",
        );
        let mut bytes = Family::counter(
            "naru_tcp_bytes_total",
            "Bytes of connections that are not HTTP: sent to the upstream, or received from it.",
        );
        let mut closed = Family::counter(
            "naru_tcp_closed_total",
            "Connections ended that are not HTTP, with the reason where they did not end in order.",
        );
        for (labels, handle) in self.metrics.inner.tcp.used() {
            let labels = tcp_labels(&labels);
            let load = |counter: &std::sync::atomic::AtomicU64| {
                counter.load(std::sync::atomic::Ordering::Relaxed) as f64
            };
            connections.add(&labels, &[], load(&handle.connections));
            let now_open = handle.open.load(std::sync::atomic::Ordering::Relaxed);
            open.add(&labels, &[], now_open as f64);
            bytes.add(&labels, &[("way", "sent")], load(&handle.sent));
            bytes.add(&labels, &[("way", "received")], load(&handle.received));
            for (reason, count) in handle.closed_by_reason() {
                let reason = reason.map_or("", Reason::as_str);
                closed.add(&labels, &[("reason", reason)], count as f64);
            }
        }
        families.extend([connections, open, bytes, closed].map(Family::finish));
    }

    fn connections(&self, families: &mut Vec<MetricFamily>) {
        let totals = &self.metrics.inner.totals;
        let outcome = |reason: Option<Reason>| reason.map_or(OK, Reason::as_str);
        let mut connects = Family::counter(
            "naru_upstream_connects_total",
            "Attempts to open an upstream connection, by outcome.",
        );
        for (reason, count) in totals.upstream_connects() {
            connects.add(&[], &[("outcome", outcome(reason))], count as f64);
        }
        let mut app_connects = Family::counter(
            "naru_app_connects_total",
            "Attempts to connect to the app, by what it sees as the client's address.",
        );
        for (shown, count) in totals.app_connects() {
            app_connects.add(&[], &[("client_address", shown.as_str())], count as f64);
        }
        let mut at_worst = Family::gauge(
            "naru_app_client_addresses",
            "What the app sees of its clients at worst, by what the pod's kernel allows.",
        );
        for (family, shown) in self
            .metrics
            .inner
            .client_addresses
            .get()
            .into_iter()
            .flatten()
        {
            let labels = [("family", *family), ("client_address", shown.as_str())];
            at_worst.add(&[], &labels, 1.0);
        }
        let mut handshakes = Family::counter(
            "naru_tls_handshakes_total",
            "TLS handshakes with peers, by outcome.",
        );
        for direction in Direction::ALL {
            for (reason, count) in totals.handshakes(direction) {
                let labels = [
                    ("direction", direction.as_str()),
                    ("outcome", outcome(reason)),
                ];
                handshakes.add(&[], &labels, count as f64);
            }
        }
        let mut pool = Family::gauge(
            "naru_pool_connections",
            "Upstream connections in the pools of all workers.",
        );
        for protocol in PoolProtocol::ALL {
            for state in PoolState::ALL {
                let labels = [("protocol", protocol.as_str()), ("state", state.as_str())];
                pool.add(&[], &labels, totals.pooled(protocol, state) as f64);
            }
        }
        let mut apps = Family::counter(
            "naru_app_connection_events_total",
            "What became of connections to endpoints without a sidecar.",
        );
        for event in AppConnection::ALL {
            let count = totals.app_connections(event);
            apps.add(&[], &[("event", event.as_str())], count as f64);
        }
        let mut refused = Family::counter(
            "naru_connections_refused_total",
            "Connections that a listener refused or gave up for others, by the limit that was \
             reached.",
        );
        for (listener, places) in self.metrics.places().iter() {
            for limit in Limit::ALL {
                let labels = [("listener", *listener), ("limit", limit.as_str())];
                refused.add(&[], &labels, places.refused(limit) as f64);
            }
        }
        let mut streams = Family::counter(
            "naru_streams_refused_total",
            "Requests that were refused a stream to an endpoint, by the limit that was reached.",
        );
        // An opaque connection has no streams.
        for protocol in [PoolProtocol::Http1, PoolProtocol::Http2] {
            for limit in StreamLimit::ALL {
                let labels = [("protocol", protocol.as_str()), ("limit", limit.as_str())];
                streams.add(&[], &labels, totals.streams_refused(protocol, limit) as f64);
            }
        }
        let connections = [connects, app_connects, at_worst, handshakes, pool, apps];
        families.extend(connections.map(Family::finish));
        families.extend([refused, streams].map(Family::finish));
    }

    fn control(&self, families: &mut Vec<MetricFamily>) {
        let inner = &self.metrics.inner;
        let totals = &inner.totals;
        let single = |mut family: Family, value: f64| {
            family.add(&[], &[], value);
            family.finish()
        };
        let mut info = Family::gauge("naru_proxy_info", "Which proxy this is. Always 1.");
        let labels = [
            ("namespace", inner.namespace.as_str()),
            ("pod", inner.pod.as_str()),
            ("version", env!("CARGO_PKG_VERSION")),
        ];
        info.add(&[], &labels, 1.0);
        let mut renewals = Family::counter(
            "naru_certificate_renewals_total",
            "Requests for a certificate, by outcome.",
        );
        for outcome in RenewalOutcome::ALL {
            let count = totals.certificate_renewals(outcome);
            renewals.add(&[], &[("outcome", outcome.as_str())], count as f64);
        }
        let mut pushes = Family::counter(
            "naru_table_pushes_total",
            "Pushes from the controller, by whether all of it is in force.",
        );
        for outcome in PushOutcome::ALL {
            let count = totals.pushes(outcome);
            pushes.add(&[], &[("outcome", outcome.as_str())], count as f64);
        }
        families.extend([info, renewals, pushes].map(Family::finish));
        families.extend([
            single(
                Family::gauge(
                    "naru_controller_connected",
                    "Whether the stream from the controller is open.",
                ),
                totals.is_controller_connected() as f64,
            ),
            single(
                Family::gauge("naru_table_resources", "Resources in force."),
                totals.held_resources() as f64,
            ),
            single(
                Family::counter(
                    "naru_table_received_resources_total",
                    "Resources received from the controller.",
                ),
                totals.received_resources() as f64,
            ),
            single(
                Family::counter(
                    "naru_metric_series_dropped_total",
                    "Label sets that were counted under \"overflow\" because there were too many.",
                ),
                (inner.requests.refused()
                    + inner.retries.refused()
                    + inner.mirrors.refused()
                    + inner.tcp.refused()
                    + inner.ejections.refused()) as f64,
            ),
            single(
                Family::gauge(
                    "naru_bypassing_sockets",
                    "Sockets of other processes that run as the proxy's user.",
                ),
                totals.bypassing() as f64,
            ),
            single(
                Family::counter(
                    "naru_connections_expired_total",
                    "Connections of peers that were broken off since the peer's certificate had \
                     expired.",
                ),
                totals.connections_expired() as f64,
            ),
            single(
                Family::counter(
                    "naru_access_log_dropped_total",
                    "Lines of the access log that could not be written in time.",
                ),
                totals.access_log_lines_dropped() as f64,
            ),
            single(
                Family::counter(
                    "naru_http2_slowed_total",
                    "How often a client's HTTP/2 connection was not read for a while: its frames \
                     cost too much.",
                ),
                totals.http2_connections_slowed() as f64,
            ),
        ]);
        if let Some(issuer) = totals.certificate_issuer() {
            let mut certificate = Family::gauge(
                "naru_certificate_info",
                "Which authority the certificate in force is of. Always 1.",
            );
            certificate.add(&[label("issuer", &issuer)], &[], 1.0);
            families.push(certificate.finish());
        }
        // An event that has not happened yet has no value, rather than one that is wrong by
        // decades.
        let since = [
            (
                "naru_certificate_expiry_timestamp_seconds",
                "When the certificate in force expires, in Unix seconds.",
                totals.certificate_expires().map(|at| at as f64),
            ),
            (
                "naru_table_last_change_timestamp_seconds",
                "When the controller last changed anything, in Unix seconds.",
                totals.last_change().map(|at| at as f64),
            ),
            (
                "naru_table_staleness_seconds",
                "Time since the last word of the controller.",
                totals
                    .controller_silence(Instant::now())
                    .map(|silence| silence.as_secs_f64()),
            ),
        ];
        for (name, help, value) in since {
            if let Some(value) = value {
                families.push(single(Family::gauge(name, help), value));
            }
        }
    }
}

fn request_labels(labels: &RequestLabels) -> Vec<LabelPair> {
    vec![
        label("direction", labels.direction.as_str()),
        label("client", &labels.client),
        label("namespace", &labels.namespace),
        label("service", &labels.service),
        label("port", &port(labels.port)),
        label("route", &labels.route),
        label("rule", &labels.rule),
        label("backend", &labels.backend),
    ]
}

fn tcp_labels(labels: &TcpLabels) -> Vec<LabelPair> {
    vec![
        label("direction", labels.direction.as_str()),
        label("client", &labels.client),
        label("namespace", &labels.namespace),
        label("service", &labels.service),
        label("port", &port(labels.port)),
    ]
}

fn service_labels((namespace, service, number): &ServiceKey) -> Vec<LabelPair> {
    vec![
        label("namespace", namespace),
        label("service", service),
        label("port", &port(*number)),
    ]
}

fn port(port: Option<u16>) -> String {
    port.map_or_else(String::new, |port| port.to_string())
}
