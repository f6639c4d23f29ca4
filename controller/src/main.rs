//! `naru-controller run`: reads objects, compiles routing tables, and pushes them to the proxies.
#![forbid(unsafe_code)]

use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use kube::Client;
use naru_controller::admin::{self, Admin};
use naru_controller::authority::{
    AuthorityError, Keeper, Make, SecretStore, Store, StoreError, Terms,
};
use naru_controller::compile::{Catalog, CatalogOptions};
use naru_controller::config::{Config, Origin};
use naru_controller::inject::{self, Injected, Redirection};
use naru_controller::install::Install;
use naru_controller::issuer::{Issuer, PublicKey, TokenCheck, TokenReviewer};
use naru_controller::kubernetes;
use naru_controller::logging::{self, LogFilter, LogFormat};
use naru_controller::metrics::Metrics;
use naru_controller::serve::{Hub, Serve};
use naru_controller::source::{self, Event};
use naru_controller::status;
use naru_controller::uninstall::{self, UninstallArgs};
use naru_listen::descriptors::Descriptors;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

/// Capacity of the queue of the source's events: large enough to rarely block the source.
const MAX_EVENTS: usize = 1_024;
/// Delay before a required request to the API server is retried.
const API_PAUSE: Duration = Duration::from_secs(2);

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
    /// Remove the objects that the controller has created, unless pods still have sidecars. `helm
    /// uninstall` runs this.
    Uninstall(UninstallArgs),
}

fn main() -> ExitCode {
    let done = match Args::parse().command {
        Command::Run(config) => run(*config),
        Command::Uninstall(args) => run_uninstall(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("naru-controller: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(config: Config) -> anyhow::Result<()> {
    let log = logging::start(&config.log, config.log_format).context("starting the log")?;
    // Before any descriptor is opened: each connection of a proxy takes one.
    Descriptors::raise();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let done = runtime.block_on(controller(config, log));
    runtime.shutdown_background();
    done
}

fn run_uninstall(args: UninstallArgs) -> anyhow::Result<()> {
    let _log = logging::start("info", LogFormat::Text).context("starting the log")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    runtime.block_on(async {
        let client = kubernetes::client().await?;
        uninstall::run(client, &args).await
    })
}

/// Runs until a signal, or until the source of objects fails.
async fn controller(config: Config, log: LogFilter) -> anyhow::Result<()> {
    // Before any slow step, so that no signal is missed.
    let mut terminate = signal(SignalKind::terminate()).context("listening for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for signals")?;
    let metrics = Metrics::new();
    let client = match config.kubernetes {
        true => Some(kubernetes::client().await.context("--kubernetes")?),
        false => None,
    };
    let keeper = tokio::select! {
        keeper = authority(&config, client.as_ref()) => keeper?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let (events, mut received) = mpsc::channel(MAX_EVENTS);
    let (tokens, watching) = source(&config, client.clone(), events, &metrics)?;
    let issuer = Issuer::new(keeper.in_force(), &config.trust_domain, tokens);
    let catalog = Catalog::new(CatalogOptions {
        trust_domain: config.trust_domain.clone(),
        mtls: config.mtls.into(),
    });
    let serve = Serve::new(issuer, catalog, metrics.clone(), config.ca_renew_within);
    let hub = serve.hub.clone();
    let counted = hub.clone();
    let behind = move || counted.behind();
    tokio::spawn(keeper.run(serve.issuer.clone(), behind, metrics.clone()));
    if let Some((address, options)) = config.inject.webhook(serve.issuer.controller().to_string()) {
        if options.redirection == Redirection::Cni && !options.native_sidecars {
            // Without native sidecars the connections of a pod's own init containers would be
            // redirected before the sidecar runs.
            bail!("--redirection cni needs native sidecars (Kubernetes 1.29 or later)");
        }
        let certificate = config.inject.certificate(&serve.issuer);
        let (tls, refresh) = certificate.serve().context("the webhook's certificate")?;
        let listener = naru_listen::bind(address)
            .await
            .with_context(|| format!("--webhook {address}"))?;
        info!("webhook on {}", listener.local_addr()?);
        tokio::spawn(refresh);
        let injected = install(&config, client.clone(), &serve.issuer, hub.clone());
        let webhook = inject::serve(listener, tls, options, metrics.clone(), injected);
        tokio::spawn(webhook);
    }

    let admin_listener = naru_listen::bind(config.admin)
        .await
        .with_context(|| format!("--admin {}", config.admin))?;
    let listener = naru_listen::bind(config.listen)
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
    let status = client.map(|client| {
        let (hub, stopping) = (hub.clone(), stopping.clone());
        tokio::spawn(status::run(client, hub, metrics, stopping))
    });
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
    let served = serving.await?.context("serving proxies");
    if let Some(status) = status {
        status.await?;
    }
    served
}

/// Loads the mesh's certificate authority. Waits for an API server that is unreachable.
async fn authority(config: &Config, client: Option<&Client>) -> anyhow::Result<Keeper> {
    let terms = Terms {
        trust_for: config.ca_trust_for,
        retire_for: config.ca_retire_for,
    };
    if config.ca_retire_for <= config.ca_renew_within {
        bail!("--ca-retire-for has to be longer than --ca-renew-within");
    }
    let may_make = match client {
        Some(client) if !config.ca_replace_lost => Make::WithoutSidecars(client.clone()),
        _ => Make::Always,
    };
    let open = async |store| Keeper::open(store, terms, &config.trust_domain, &may_make).await;
    let (client, name) = match (client, &config.ca_secret, &config.state_dir) {
        (Some(client), Some(name), _) => (client, name),
        (_, _, Some(directory)) => {
            return open(Store::Directory(directory.clone()))
                .await
                .with_context(|| format!("--state-dir {}", directory.display()));
        }
        _ => bail!("a certificate authority is kept in --ca-secret or in --state-dir"),
    };
    loop {
        let store = Store::Secret(Box::new(SecretStore {
            client: client.clone(),
            namespace: config.namespace.clone(),
            name: name.clone(),
        }));
        match open(store).await {
            Ok(keeper) => return Ok(keeper),
            Err(AuthorityError::Store(StoreError::Api(error))) => {
                warn!(%error, "--ca-secret {name}: trying again");
                tokio::time::sleep(API_PAUSE).await;
            }
            Err(error) => return Err(error).with_context(|| format!("--ca-secret {name}")),
        }
    }
}

/// Maintains the objects that injected pods need. Returns a handle for namespaces with injected
/// pods.
fn install(config: &Config, client: Option<Client>, issuer: &Issuer, hub: Arc<Hub>) -> Injected {
    let (Some(client), Some(name)) = (client, config.inject.webhook_configuration.clone()) else {
        return Box::new(|_| ());
    };
    let install = Install {
        client,
        webhook_configuration: name,
        ca_bundle: config.inject.webhook_certificate.is_none(),
        trust: issuer.changes(),
        meshed: Box::new(move || hub.meshed_namespaces()),
    };
    let (needed, keeping) = install.start();
    tokio::spawn(keeping);
    Box::new(move |namespace| needed.in_namespace(namespace))
}

type Watching = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

/// The token validation, and the task that sends the source's events.
fn source(
    config: &Config,
    client: Option<Client>,
    events: mpsc::Sender<Event>,
    metrics: &Metrics,
) -> anyhow::Result<(TokenCheck, Watching)> {
    let metrics = metrics.clone();
    match config.origin() {
        None => bail!(
            "objects come from --kubernetes or from --manifests, and the latter takes \
             --token-public-key and --token-issuer as well"
        ),
        Some(Origin::Kubernetes) => {
            let client = client.context("--kubernetes")?;
            let tokens = TokenCheck::Review(TokenReviewer::new(client.clone()));
            let watching = async move {
                source::cluster(client, events, metrics).await;
                Ok(())
            };
            Ok((tokens, Box::pin(watching)))
        }
        Some(Origin::Manifests {
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
