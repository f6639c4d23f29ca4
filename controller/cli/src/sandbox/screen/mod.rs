//! The output while the mesh runs: progress, and then figures. A terminal shows a table that is
//! redrawn; other outputs get a few lines periodically.
//!
//! # Floors
//!
//! ```text
//! frame metrics      lines that fit on a terminal; rates from the proxies' metrics
//! ```

mod frame;
mod metrics;

use std::io::IsTerminal;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::task::{JoinHandle, JoinSet};

use super::cluster::{Cluster, Entry};
use super::objects::Service;
use super::pod::{PROXY_ADMIN_PORT, Status};
use super::report::Report;
use crate::quiet_http;
use frame::{Frame, USUAL};
use metrics::{Key, Meter, Part, Signals};

/// Timeout for scraping a proxy.
const SCRAPE: Duration = Duration::from_secs(1);
/// How often figures are written without a terminal.
const LINES: Duration = Duration::from_secs(5);
/// To the top of the screen.
const BEGIN: &str = "\x1b[H";
/// Clears the rest of the line, and of the screen.
const END_LINE: &str = "\x1b[K\n";
const END: &str = "\x1b[J";
/// Moves to the last row.
const LAST_ROW: &str = "\x1b[9999B";

/// The screen.
pub struct Screen {
    report: Report,
    naru: PathBuf,
    manifests: PathBuf,
    terminal: bool,
    started: bool,
    meter: Meter,
    scraping: Option<JoinHandle<Vec<(String, String)>>>,
    last: Instant,
    last_lines: Instant,
}

impl Screen {
    pub fn new(report: Report, naru: PathBuf, manifests: PathBuf) -> Self {
        Self {
            report,
            naru,
            manifests,
            terminal: std::io::stdout().is_terminal(),
            started: false,
            meter: Meter::default(),
            scraping: None,
            last: Instant::now(),
            last_lines: Instant::now(),
        }
    }

    /// Everything is ready: shows an overview, and starts the figures.
    pub fn start(&mut self, cluster: &Cluster) {
        self.started = true;
        let lines = [
            vec![String::new(), "PODS".to_owned()],
            pods(cluster),
            vec!["SERVICES".to_owned()],
            services(cluster),
            vec![String::new()],
            self.hints(cluster),
            vec![String::new()],
        ];
        self.report.show(&(lines.concat().join("\n") + "\n"));
        if self.terminal {
            self.report.hold();
            // Scroll the earlier output up instead of overwriting it.
            let (_, rows) = size();
            self.report
                .show(&format!("{LAST_ROW}{}", "\n".repeat(rows)));
        }
    }

    /// Processes the last scrapes, and starts the next ones.
    pub async fn refresh(&mut self, cluster: &Cluster) {
        if !self.started {
            return;
        }
        match self.scraping.take() {
            Some(scraping) if !scraping.is_finished() => {
                self.scraping = Some(scraping);
                return;
            }
            Some(scraping) => {
                let scrapes = scraping.await.unwrap_or_default();
                let seconds = self.last.elapsed().as_secs_f64();
                self.last = Instant::now();
                self.meter.scraped(seconds, &scrapes);
                self.show(cluster);
            }
            None => {}
        }
        let targets = cluster
            .pods()
            .into_iter()
            .filter(|entry| entry.pod.meshed && entry.namespaces().is_some())
            .map(|entry| (entry.pod.uid.clone(), entry.pod.addresses.v4.into()))
            .collect();
        self.scraping = Some(tokio::spawn(scrape(targets)));
    }

    fn show(&mut self, cluster: &Cluster) {
        let (seconds, figures) = self.meter.figures();
        if self.terminal {
            let mut pods = pods(cluster);
            pods.insert(0, "PODS".to_owned());
            let frame = Frame {
                head: vec![summary(cluster), String::new(), HEAD.to_owned()],
                rows: figures
                    .iter()
                    .map(|(key, signals)| table_row(key, signals, seconds))
                    .collect(),
                pods,
                hints: self.hints(cluster),
                messages: self.report.last(),
            };
            let (columns, rows) = size();
            let lines = frame.fit(rows).into_iter();
            let lines: Vec<String> = lines
                .map(|line| line.chars().take(columns).collect())
                .collect();
            self.report
                .show(&format!("{BEGIN}{}{END}", lines.join(END_LINE)));
        } else if self.last_lines.elapsed() >= LINES {
            self.last_lines = Instant::now();
            let rows = figures.iter().filter(|(key, _)| key.part.is_none());
            let parts: Vec<_> = rows
                .map(|(key, signals)| brief(key, signals, seconds))
                .collect();
            self.report.line(&match parts.is_empty() {
                true => "no requests".to_owned(),
                false => parts.join("; "),
            });
        }
    }

    fn hints(&self, cluster: &Cluster) -> Vec<String> {
        let workload = cluster.workload_names().into_iter().next();
        let workload = workload.unwrap_or_default();
        let manifests = near(&self.manifests);
        let naru = near(&self.naru);
        vec![
            "Try next (Ctrl-C ends everything):".to_owned(),
            format!(
                "  edit a manifest in {manifests}: a weight or a retry of an HTTPRoute holds at \
                 once, replicas start and stop pods"
            ),
            format!(
                "  {naru} sandbox --manifests {manifests} --in {workload} -- bash      a shell in \
                 a pod of a sandbox of its own"
            ),
        ]
    }
}

/// A path relative to the working directory, if that is shorter.
fn near(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here)
        .unwrap_or(path)
        .display()
        .to_string()
}

/// Columns and rows of the terminal.
fn size() -> (usize, usize) {
    match rustix::termios::tcgetwinsize(std::io::stdout()) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => (size.ws_col.into(), size.ws_row.into()),
        _ => USUAL,
    }
}

const HEAD: &str = "SERVICE, and its routes                              req/s  success      \
    p50      p95      p99  retries/s   TCP bytes/s";

fn table_row(key: &Key, signals: &Signals, seconds: f64) -> String {
    let name = match &key.part {
        None => key.service.clone(),
        Some(Part { route, backend }) => format!("  {route} → {backend}"),
    };
    let rate = |count: f64| format!("{:.1}", count / seconds.max(f64::MIN_POSITIVE));
    let time = |share| signals.quantile(share).map_or("-".to_owned(), duration);
    let requests = match signals.responses == 0.0 && signals.tcp_bytes > 0.0 {
        true => "-".to_owned(),
        false => rate(signals.responses),
    };
    format!(
        "{name:<50} {requests:>7}  {:>7}  {:>7}  {:>7}  {:>7}  {:>9}  {:>12}",
        signals
            .success()
            .map_or("-".to_owned(), |percent| format!("{percent:.2}%")),
        time(0.5),
        time(0.95),
        time(0.99),
        // Retries have no backend label.
        match key.part {
            None => rate(signals.retries),
            Some(_) => "-".to_owned(),
        },
        rate(signals.tcp_bytes),
    )
}

fn brief(key: &Key, signals: &Signals, seconds: f64) -> String {
    let mut text = key.service.clone();
    if signals.responses > 0.0 || signals.tcp_bytes == 0.0 {
        text.push_str(&format!(" {:.1} req/s", signals.responses / seconds));
    }
    if let (Some(success), Some(p50), Some(p99)) = (
        signals.success(),
        signals.quantile(0.5),
        signals.quantile(0.99),
    ) {
        text.push_str(&format!(
            " {success:.1}% p50 {} p99 {}",
            duration(p50),
            duration(p99)
        ));
    }
    if signals.tcp_bytes > 0.0 {
        text.push_str(&format!(" {:.0} TCP bytes/s", signals.tcp_bytes / seconds));
    }
    text
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 0.001 => format!("{:.0}us", s * 1e6),
        s if s < 1.0 => format!("{:.1}ms", s * 1e3),
        s => format!("{s:.2}s"),
    }
}

fn summary(cluster: &Cluster) -> String {
    let progress = cluster.progress();
    format!(
        "naru sandbox: {} of {} pods ready, {} Services",
        progress.ready,
        progress.wanted,
        cluster.services().count()
    )
}

/// Pods with their identities.
fn pods(cluster: &Cluster) -> Vec<String> {
    let line = |entry: &Entry| {
        let pod = &entry.pod;
        let identity = match pod.meshed {
            true => format!(
                "spiffe://cluster.local/ns/{}/sa/{}",
                pod.namespace, pod.template.service_account
            ),
            false => "(no sidecar)".to_owned(),
        };
        let state = match &entry.status {
            _ if entry.ending() => "ending",
            _ if entry.ready() => "ready",
            Status::Starting(what) => what,
            _ => "not ready",
        };
        format!(
            "  {:<44} {:<16} {state:<10} {identity}",
            pod.full_name(),
            pod.addresses.v4
        )
    };
    cluster.pods().into_iter().map(line).collect()
}

/// Services with their endpoints.
fn services(cluster: &Cluster) -> Vec<String> {
    let line = |(service, ips, ready): (&Service, &[IpAddr], usize)| {
        let ips: Vec<_> = ips.iter().map(ToString::to_string).collect();
        let name = format!("{}/{}", service.namespace, service.name);
        let place = match (&service.external_name, service.headless) {
            (Some(target), _) => target.clone(),
            (None, true) => "headless".to_owned(),
            (None, false) => ips.join(" "),
        };
        let endpoints = if ready == 1 { "endpoint" } else { "endpoints" };
        format!("  {name:<44} {place:<36} {ready} {endpoints}")
    };
    cluster.services().map(line).collect()
}

/// The metrics of each pod that responds, by its uid.
async fn scrape(targets: Vec<(String, IpAddr)>) -> Vec<(String, String)> {
    let mut asked = JoinSet::new();
    for (uid, address) in targets {
        asked.spawn(async move {
            let address = SocketAddr::new(address, PROXY_ADMIN_PORT);
            let connect = tokio::time::timeout(SCRAPE, TcpStream::connect(address));
            let stream = connect.await.ok()?.ok()?;
            let host = address.to_string();
            let answer = quiet_http::get(stream, &host, "/metrics", &[], SCRAPE)
                .await
                .ok()?;
            (answer.status == 200).then_some((uid, answer.body))
        });
    }
    let mut scrapes = Vec::new();
    while let Some(answer) = asked.join_next().await {
        scrapes.extend(answer.ok().flatten());
    }
    scrapes
}

#[cfg(test)]
mod tests;
