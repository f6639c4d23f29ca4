//! `naru-proxy run`: the sidecar. `naru-proxy init`: the rules that redirect a pod's connections to
//! the sidecar. `naru-proxy wait`: returns once the sidecar is ready. `naru-proxy cni-install`: the
//! agent of a node with the CNI plugin, which is this program under the name `naru-cni`.
//!
//! ```text
//! main thread: certificate, stream of tables, admin port, signals
//! data workers: listeners and connections, one runtime each
//! ```
#![forbid(unsafe_code)]

use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};
use naru_listen::descriptors::Descriptors;
use naru_listen::scrapes::Scrapes;
use naru_proxy::admin::wait::{self, WaitArgs};
use naru_proxy::admin::{self, Admin, Health, bypass};
use naru_proxy::config::{Config, RunArgs};
use naru_proxy::control::{Controller, Renewal, Sync};
use naru_proxy::drain::drain;
use naru_proxy::identity::{Identity, read_anchors};
use naru_proxy::memory::{self, Budget};
use naru_proxy::node::cni::agent::{self, InstallArgs};
use naru_proxy::node::cni::{PLUGIN, plugin};
use naru_proxy::node::redirect::{self, InitArgs};
use naru_proxy::observe::access_log::AccessLog;
use naru_proxy::observe::logging::{self, LogFilter};
use naru_proxy::observe::metrics::Metrics;
use naru_proxy::session::worker::Shared;
use naru_proxy::socket::Listeners;
use naru_proxy::table::{Store, tables};
use naru_proxy::upstream::client_address::ClientAddresses;
use naru_proxy::workers;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};

/// File descriptors of one connection and one upstream for it, in each direction.
const DESCRIPTORS: usize = 4;
/// glibc keeps the fragmented memory of a peak: 863 MiB after eight minutes without traffic.
/// jemalloc returns it within seconds, from a background thread that sleeps while there is nothing
/// to return.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// How long the access log may take to be written out at shutdown.
const LAST_LINES: Duration = Duration::from_secs(1);
/// Threads for blocking work: resolving names, reading files, rendering metrics.
const BLOCKING_THREADS: usize = 4;

#[derive(Parser)]
#[command(name = "naru-proxy", version, about = "Naru's sidecar proxy.")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Carry the connections of a pod.
    Run(Box<RunArgs>),
    /// Set the redirect rules of a pod.
    Init(InitArgs),
    /// Wait until the pod's sidecar carries traffic.
    Wait(WaitArgs),
    /// Keep the CNI plugin installed on a node, and set the rules of pods that started without it.
    CniInstall(InstallArgs),
}

fn main() -> ExitCode {
    // A container runtime calls plugins without arguments.
    let name = std::env::args_os().next().unwrap_or_default();
    if Path::new(&name)
        .file_name()
        .is_some_and(|name| name == PLUGIN)
    {
        return plugin::run();
    }
    let done = match Args::parse().command {
        Command::Run(args) => run(Config::from(*args)),
        Command::Init(args) => redirect::run(args),
        Command::Wait(args) => wait::run(args),
        Command::CniInstall(args) => agent::run(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("naru-proxy: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut config: Config) -> anyhow::Result<()> {
    let log = logging::start(&config.log, config.log_format).context("starting the log")?;
    let wanted = config.limits.max_connections;
    let all = Descriptors::raise().connections(wanted, DESCRIPTORS, "--max-connections");
    config.limits.lower_connections(all);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .context("starting the control runtime")?;
    let done = runtime.block_on(proxy(Arc::new(config), log));
    // A pending name resolution must not delay the exit.
    runtime.shutdown_background();
    done
}

/// Runs until a signal arrives and the work in flight has ended.
async fn proxy(config: Arc<Config>, log: LogFilter) -> anyhow::Result<()> {
    // Before anything that can take long, so that no signal is missed.
    let mut signals = Signals::new().context("listening for signals")?;
    let metrics = Metrics::new(&config.namespace, &config.pod);
    let memory = Budget::new(config.memory_budget.unwrap_or_else(memory::from_cgroup));
    metrics.watch_memory(memory.clone());
    let anchors = read_anchors(&config.trust_anchors).with_context(|| {
        format!(
            "--trust-anchors {}: a PEM file with the mesh's root certificates is needed; the \
             controller writes one to its state directory",
            config.trust_anchors.display()
        )
    })?;
    let identity = Identity::new(config.controller_identity.trust_domain(), anchors)
        .with_context(|| format!("--trust-anchors {}", config.trust_anchors.display()))?;
    let admin_listener = admin::bind(config.admin)
        .await
        .with_context(|| format!("--admin {}", config.admin))?;
    let (tables, misses) = tables(
        &config.namespace,
        metrics.clone(),
        config.limits.discovery_timeout,
    );
    let store = Store::new(&tables, identity.clone(), metrics.clone());
    let store = Arc::new(Mutex::new(store));
    let (access_log, access_log_writer) = match config.access_log {
        true => {
            let (log, writer) = AccessLog::start(metrics.clone(), std::io::stdout())
                .context("starting the access log")?;
            (log, Some(writer))
        }
        false => (AccessLog::off(), None),
    };
    let health = Arc::new(Health::default());
    let (drain_signal, drain) = drain();

    let controller = Controller {
        config: config.clone(),
        identity: identity.clone(),
    };
    let renewal = Renewal {
        identity: identity.clone(),
        metrics: metrics.clone(),
        controller: controller.clone(),
    };
    let sync = Sync::new(controller, store.clone(), misses, metrics.clone());
    let admin_address = admin_listener.local_addr()?;
    let (inbound, admin_places) = (workers::places(&config.limits), admin::places());
    metrics.watch_places("inbound", inbound.clone());
    metrics.watch_places("admin", admin_places.clone());
    let rendered = metrics.clone();
    let client_addresses = ClientAddresses::find(config.socket_mark).await;
    metrics.app_shown(client_addresses.at_worst().collect());
    let admin = Admin {
        identity: identity.clone(),
        scrapes: Scrapes::new(move || rendered.render().map_err(|error| error.to_string())),
        inbound: inbound.clone(),
        store,
        tables: tables.clone(),
        health: health.clone(),
        log,
        probes: Arc::new(config.probes.clone()),
        socket_mark: config.socket_mark,
        client_addresses,
        client_address: config.client_address,
    };
    let seen = client_addresses.view(config.client_address);
    info!(%seen, "addresses that the app sees its clients at");
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(renewal.run());
    tasks.spawn(sync.run());
    tasks.spawn(admin::serve(admin_listener, admin_places, admin));
    tasks.spawn(bypass::watch(
        config.clone(),
        health.clone(),
        metrics.clone(),
    ));

    let listeners = Listeners::bind(&config.ports()).context("listening for connections")?;
    let workers = workers::start(
        Shared {
            config: config.clone(),
            tables,
            identity,
            metrics,
            access_log,
            drain,
            inbound,
            memory: memory.clone(),
            client_addresses,
        },
        listeners,
    )
    .context("starting the workers")?;
    health.listening();
    info!(
        namespace = config.namespace,
        pod = config.pod,
        version = env!("CARGO_PKG_VERSION"),
        admin = %admin_address,
        workers = config.workers,
        memory_budget = memory.size(),
        "naru-proxy is up"
    );

    tokio::select! {
        name = signals.next() => info!(signal = name, "shutting down"),
        ended = tasks.join_next() => {
            error!(?ended, "a control task has ended");
            anyhow::bail!("a control task has ended; this is a defect of naru-proxy");
        }
        () = workers.lost() => {
            health.worker_lost();
            anyhow::bail!("a worker thread has ended; this is a defect of naru-proxy");
        }
    }
    // First announce the shutdown, then stop accepting new work.
    health.draining();
    drain_signal.start();
    tokio::select! {
        () = drain_signal.finished() => info!("everything in flight is done"),
        () = tokio::time::sleep(config.limits.drain_timeout) => {
            warn!(
                after = ?config.limits.drain_timeout,
                "the drain time is over; closing connections with requests in flight"
            );
        }
        name = signals.next() => {
            warn!(signal = name, "second signal: closing connections with requests in flight");
        }
    }
    if let Some(writer) = access_log_writer {
        writer.finish(LAST_LINES);
    }
    Ok(())
}

/// The signals that end the proxy.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
