//! `naru-proxy cni-install`: the agent of a node.
//!
//! ```text
//! every second: node (program, configuration) ─▶ report ◀─ repair (pods that ask)
//! admin port:   /ready /live /metrics  ◀── report
//! SIGTERM:      is the DaemonSet gone? ─┬ yes: everything is removed
//!                                       └ no, or unknown: everything stays
//! ```

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use naru_listen::http::Times;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};

use super::node::Node;
use super::repair::Repairs;
use super::report::Report;
use super::uninstalled::{ACCOUNT, ApiServer};
use crate::observe::logging::{self, LogFormat};

/// Longest time until a foreign change is repaired, and until a pod without rules is noticed.
const INTERVAL: Duration = Duration::from_secs(1);
/// Bounds of a connection to the admin port.
const TIMES: Times = Times {
    answer: Duration::from_secs(10),
    ..naru_listen::admin::TIMES
};

/// Flags of `naru-proxy cni-install`.
#[derive(Args, Clone, Debug)]
pub struct InstallArgs {
    /// The node's folder of CNI plugins.
    #[arg(
        long,
        env = "NARU_CNI_BIN_DIR",
        value_name = "DIR",
        default_value = "/opt/cni/bin"
    )]
    pub bin_dir: PathBuf,
    /// The node's folder of network configurations.
    #[arg(
        long,
        env = "NARU_CNI_CONF_DIR",
        value_name = "DIR",
        default_value = "/etc/cni/net.d"
    )]
    pub conf_dir: PathBuf,
    /// The folder with the network namespaces of the node's pods.
    #[arg(
        long,
        env = "NARU_CNI_NETNS_DIR",
        value_name = "DIR",
        default_value = "/var/run/netns"
    )]
    pub netns_dir: PathBuf,
    /// The agent's own DaemonSet: once it is deleted, the plugin is uninstalled. Without: the
    /// plugin stays.
    #[arg(
        long,
        env = "NARU_CNI_DAEMONSET",
        value_name = "NAMESPACE/NAME",
        value_parser = parse_daemonset
    )]
    pub daemonset: Option<DaemonSet>,
    /// Address of /ready, /live and /metrics. Without IPv6, [::] falls back to 0.0.0.0.
    #[arg(
        long,
        env = "NARU_ADMIN",
        value_name = "ADDRESS",
        default_value = "[::]:15031"
    )]
    pub admin: SocketAddr,
    /// Log filter: error, warn, info, debug, trace, or MODULE=LEVEL,…
    #[arg(long, env = "NARU_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,
    /// Format of the log on standard error.
    #[arg(
        long,
        env = "NARU_LOG_FORMAT",
        value_name = "FORMAT",
        value_enum,
        default_value_t = LogFormat::Text
    )]
    pub log_format: LogFormat,
}

/// The name of a DaemonSet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaemonSet {
    pub namespace: String,
    pub name: String,
}

fn parse_daemonset(text: &str) -> Result<DaemonSet, String> {
    let is_name = |name: &str| {
        let right = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        !name.is_empty() && name.chars().all(right)
    };
    match text.split_once('/') {
        Some((namespace, name)) if is_name(namespace) && is_name(name) => Ok(DaemonSet {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }),
        _ => Err("expected NAMESPACE/NAME".to_owned()),
    }
}

/// Keeps the plugin installed until a signal arrives.
pub fn run(args: InstallArgs) -> anyhow::Result<()> {
    let _log = logging::start(&args.log, args.log_format).context("starting the log")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(agent(args))
}

async fn agent(args: InstallArgs) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let report = Report::new()?;
    let listener = naru_listen::bind(args.admin)
        .await
        .with_context(|| format!("--admin {}", args.admin))?;
    tokio::spawn(serve(listener, report.clone()));
    let repairs = Repairs::new(args.netns_dir.clone(), report.clone())
        .context("the agent's own network namespace")?;
    std::thread::Builder::new()
        .name("repair".to_owned())
        .spawn(move || {
            loop {
                if let Err(error) = repairs.pass() {
                    warn!(%error, "looking for pods without redirect rules");
                }
                #[expect(clippy::disallowed_methods, reason = "a thread of its own")]
                std::thread::sleep(INTERVAL);
            }
        })?;
    let mut node = Node {
        source: std::env::current_exe().context("this program's own file")?,
        bin_dir: args.bin_dir.clone(),
        conf_dir: args.conf_dir.clone(),
        placed: None,
    };
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => keep(&mut node, &report),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    match uninstalled(args.daemonset.as_ref()).await {
        true => {
            node.remove().context("removing the plugin")?;
            info!("the plugin is taken away");
        }
        false => info!(
            "the plugin stays: pods that start before the next agent does are redirected by it"
        ),
    }
    Ok(())
}

fn keep(node: &mut Node, report: &Report) {
    let kept = node.repair();
    for what in kept.iter().flatten() {
        info!(?what, "put in place");
        report.repaired(what);
    }
    let problem = kept.err().map(|error| error.to_string());
    let before = report.set(problem.clone());
    match problem {
        Some(problem) if before.as_ref() != Some(&problem) => {
            warn!(problem, "the plugin is not in place")
        }
        None if before.is_some() => info!("the plugin is in place"),
        _ => {}
    }
}

async fn uninstalled(daemonset: Option<&DaemonSet>) -> bool {
    let Some(DaemonSet { namespace, name }) = daemonset else {
        return false;
    };
    let Some(api) = ApiServer::from_environment(|name| std::env::var(name).ok()) else {
        error!("the environment names no API server to ask about the DaemonSet");
        return false;
    };
    match api.is_gone(Path::new(ACCOUNT), namespace, name).await {
        Ok(gone) => gone,
        Err(error) => {
            warn!(
                error = format!("{error:#}"),
                "asking the API server whether the DaemonSet is gone"
            );
            false
        }
    }
}

async fn serve(listener: TcpListener, report: Report) {
    let places = report.places();
    let answer = move |request: Request<Incoming>, _| {
        let answer = answer(&report, request.method(), request.uri().path());
        std::future::ready(answer)
    };
    naru_listen::http::serve(listener, places, TIMES, naru_listen::http::plain, answer).await;
}

fn answer(report: &Report, method: &Method, path: &str) -> Response<Full<Bytes>> {
    let reads = [Method::GET, Method::HEAD].contains(method);
    let (status, text) = match (path, reads) {
        ("/ready", true) => match report.problem() {
            None => (StatusCode::OK, "the plugin is in place\n".to_owned()),
            Some(problem) => (
                StatusCode::SERVICE_UNAVAILABLE,
                format!("the plugin is not in place: {problem}\n"),
            ),
        },
        ("/live", true) => (StatusCode::OK, "live\n".to_owned()),
        ("/metrics", true) => match report.render() {
            Ok(text) => (StatusCode::OK, text),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        },
        ("/ready" | "/live" | "/metrics", false) => {
            (StatusCode::METHOD_NOT_ALLOWED, "GET\n".to_owned())
        }
        _ => (
            StatusCode::NOT_FOUND,
            "There is: /ready /live /metrics\n".to_owned(),
        ),
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemonset_is_a_namespace_and_a_name() {
        let parsed = parse_daemonset("naru-system/naru-cni").expect("both");
        assert_eq!(
            (&*parsed.namespace, &*parsed.name),
            ("naru-system", "naru-cni")
        );
        for wrong in [
            "",
            "naru-cni",
            "/naru-cni",
            "naru-system/",
            "a/b/c",
            "a/../b",
            "A/b",
        ] {
            assert!(parse_daemonset(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn readiness_shows_why_the_plugin_is_not_in_place() {
        let report = Report::new().expect("metrics");
        let status = |path: &str| answer(&report, &Method::GET, path).status();
        assert_eq!(status("/ready"), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(status("/live"), StatusCode::OK);
        report.set(None);
        assert_eq!(status("/ready"), StatusCode::OK);
        assert!(
            report
                .render()
                .expect("text")
                .contains("naru_cni_in_place 1")
        );
        report.set(Some("no configuration".to_owned()));
        assert_eq!(status("/ready"), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(status("/other"), StatusCode::NOT_FOUND);
    }
}
