//! `naru-controller run`: reads objects, compiles routing tables, and pushes them to the proxies.
#![forbid(unsafe_code)]

use std::pin::Pin;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use naru_controller::admin::{self, Admin};
use naru_controller::compile::{Catalog, CatalogOptions};
use naru_controller::config::{Config, Source};
use naru_controller::issuer::{Ca, Issuer, PublicKey, TokenCheck, TokenReviewer};
use naru_controller::kubernetes;
use naru_controller::logging::{self, LogFilter};
use naru_controller::metrics::Metrics;
use naru_controller::serve::{self, Serve};
use naru_controller::source::{self, Event};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::info;

/// Events of the source that wait to be applied. Enough to never hold it up for long.
const MAX_EVENTS: usize = 1_024;

#[derive(Parser)]
#[command(name = "naru-controller", version, about = "Naru's controller.")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the proxies of a mesh.
    Run(Box<Config>),
}

fn main() -> ExitCode {
    let Command::Run(config) = Args::parse().command;
    match run(*config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("naru-controller: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(config: Config) -> anyhow::Result<()> {
    let log = logging::start(&config.log, config.log_format).context("starting the log")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let done = runtime.block_on(controller(config, log));
    runtime.shutdown_background();
    done
}

/// Runs until a signal, or until the source of objects fails.
async fn controller(config: Config, log: LogFilter) -> anyhow::Result<()> {
    // Before anything can take long: a signal must never be missed.
    let mut terminate = signal(SignalKind::terminate()).context("listening for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for signals")?;
    let metrics = Metrics::new();
    let ca = Ca::open(&config.state_dir, &config.trust_domain, SystemTime::now())
        .with_context(|| format!("--state-dir {}", config.state_dir.display()))?;
    let (events, mut received) = mpsc::channel(MAX_EVENTS);
    let (tokens, watching) = source(&config, events, &metrics).await?;
    let issuer = Issuer::new(ca, &config.trust_domain, tokens);
    let catalog = Catalog::new(CatalogOptions {
        trust_domain: config.trust_domain.clone(),
        mtls: config.mtls.into(),
    });
    let serve = Serve::new(issuer, catalog, metrics.clone());
    let hub = serve.hub.clone();

    let admin_listener = serve::bind(config.admin)
        .await
        .with_context(|| format!("--admin {}", config.admin))?;
    let listener = serve::bind(config.listen)
        .await
        .with_context(|| format!("--listen {}", config.listen))?;
    info!("admin port on {}", admin_listener.local_addr()?);
    info!("listening on {}", listener.local_addr()?);

    let (stop, stopping) = watch::channel(false);
    let admin = Admin {
        metrics: metrics.clone(),
        log,
        synced: hub.synced(),
        stopping: stopping.clone(),
    };
    tokio::spawn(admin::serve(admin_listener, admin));
    let watching = tokio::spawn(watching);
    tokio::spawn(async move {
        while let Some(event) = received.recv().await {
            hub.apply(event);
        }
    });
    let serving = tokio::spawn(serve.run(listener, stopping));
    tokio::pin!(serving);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        done = &mut serving => return done?.context("serving proxies"),
        done = watching => {
            done??;
            bail!("the watch of the source of objects has ended");
        }
    }
    info!("shutting down");
    stop.send_replace(true);
    serving.await?.context("serving proxies")
}

type Watching = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

/// How tokens are checked, and what sends the events of the source of objects.
async fn source(
    config: &Config,
    events: mpsc::Sender<Event>,
    metrics: &Metrics,
) -> anyhow::Result<(TokenCheck, Watching)> {
    let metrics = metrics.clone();
    match config.source() {
        None => bail!(
            "objects come from --kubernetes or from --manifests, and the latter takes --token-public-key and --token-issuer as well"
        ),
        Some(Source::Kubernetes) => {
            let client = kubernetes::client().await.context("--kubernetes")?;
            let tokens = TokenCheck::Review(TokenReviewer::new(client.clone()));
            let watching = async move {
                source::cluster(client, events, metrics).await;
                Ok(())
            };
            Ok((tokens, Box::pin(watching)))
        }
        Some(Source::Manifests {
            directories,
            token_public_key,
            token_issuer,
        }) => {
            let key =
                PublicKey::read(&token_public_key, &token_issuer).context("--token-public-key")?;
            let watching = async move {
                let report = move |count| metrics.manifest_errors(count);
                let watching = source::manifests(directories, events, report);
                watching.await.context("--manifests")
            };
            Ok((TokenCheck::PublicKey(key), Box::pin(watching)))
        }
    }
}
