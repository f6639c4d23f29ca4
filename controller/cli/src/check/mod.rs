//! `naru check`: whether Naru can be installed in a cluster, or whether it works there.
//!
//! ```text
//! kubeconfig ─▶ is there a controller? ─┬─ no ─▶ cluster, rights, surroundings
//!                                       └─ yes ▶ cluster, controller, webhook, trust, pods,
//!                                                routes, values
//! ```
//!
//! In: an API server. Out: a report in which every problem comes with its fix. The check is
//! read-only: it creates only access reviews and, as dry runs, pods.
//!
//! # Floors
//!
//! ```text
//! webhook
//! trust                                 the certificate authority and its trust anchors
//! connected                             the sidecars' streams from a controller
//! client_addresses surroundings values
//! metrics pods
//! controller install_rights routes
//! rights cluster                        permissions; the API server
//! report api
//! finding names                         findings; names in their texts
//! ```

mod api;
mod client_addresses;
mod cluster;
mod connected;
mod controller;
mod finding;
mod install_rights;
mod metrics;
pub mod names;
pub mod pods;
mod report;
mod rights;
pub mod routes;
mod surroundings;
#[cfg(test)]
mod tests;
mod trust;
mod values;
mod webhook;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use kube::{Client, Error};
use tokio::time::timeout;

use crate::kubernetes::client;
use crate::report::{Output, find_out};
use api::Installation;
use finding::{Group, failure, problem, unknown};
use report::{Report, Stage};

/// Timeout for the API server's first response.
const FIRST_ANSWER: Duration = Duration::from_secs(10);

/// Flags of `naru check`.
#[derive(clap::Args)]
pub struct Args {
    /// Check the requirements of an installation, even if there is one. Without: only if no
    /// controller is found.
    #[arg(long)]
    pre: bool,
    /// Path of the kubeconfig. Without: the one that kubectl uses.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig. Without: the current one.
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// The controller's namespace.
    #[arg(long, short, value_name = "NAME", default_value = "naru-system")]
    namespace: String,
    /// Format of the report.
    #[arg(long, short, value_name = "FORM", value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Runs the checks and writes the report. The exit code is 0 if there is no failure.
pub fn run(args: Args) -> ExitCode {
    let report = match find_out(report(&args)) {
        Ok(report) => report,
        Err(error) => {
            eprintln!("naru check: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let mut out = std::io::stdout().lock();
    let written = report.write(args.output, &mut out);
    match report.ok && written.is_ok() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

async fn report(args: &Args) -> anyhow::Result<Report> {
    let (client, address) = client(args.kubeconfig.as_deref(), args.context.as_deref()).await?;
    Ok(check(&client, &address, &args.namespace, args.pre).await)
}

async fn check(client: &Client, address: &str, namespace: &str, pre: bool) -> Report {
    let mut cluster = Group::new("cluster");
    let first = async {
        match pre {
            true => client.apiserver_version().await.map(|_| None),
            false => Installation::find(client, namespace).await,
        }
    };
    let installation = match timeout(FIRST_ANSWER, first).await {
        Ok(Ok(installation)) => installation,
        Ok(Err(Error::Api(status))) if status.code == 403 => {
            return without_rights(cluster, client, namespace, &status.message).await;
        }
        // No further check is possible.
        Ok(Err(error)) => return no_answer(cluster, address, &problem(&error), pre).await,
        Err(_) => return no_answer(cluster, address, "no answer in time", pre).await,
    };
    cluster::check(&mut cluster, client).await;
    match installation {
        None => {
            let (rights, surroundings) = tokio::join!(
                install_rights::check(client, namespace),
                surroundings::check(client, namespace),
            );
            Report::new(Stage::Before, vec![cluster, rights, surroundings])
        }
        Some(installed) => {
            let (controller, webhook, trust, pods, routes, values) = tokio::join!(
                controller::check(client, &installed),
                webhook::check(client, &installed),
                trust::check(client, &installed),
                pods::check(client, &installed),
                routes::check(client),
                values::check(client, &installed),
            );
            let groups = vec![cluster, controller, webhook, trust, pods, routes, values];
            Report::new(Stage::After, groups)
        }
    }
}

/// The checks that remain when the user may not read the controller.
async fn without_rights(
    mut cluster: Group,
    client: &Client,
    namespace: &str,
    refused: &str,
) -> Report {
    cluster::check(&mut cluster, client).await;
    let found = unknown(
        format!("whether there is a controller can't be checked: {refused}"),
        format!(
            "run naru check as a user who may get deployments, pods and endpointslices in \
             {namespace}, or have it permitted to you; --namespace names another, and --pre checks \
             what an installation needs"
        ),
    );
    let mut controller = Group::new("controller");
    controller.check("ready", async { Ok(vec![found]) }).await;
    let routes = routes::check(client).await;
    Report::new(Stage::After, vec![cluster, controller, routes])
}

async fn no_answer(mut cluster: Group, address: &str, problem: &str, pre: bool) -> Report {
    let found = failure(
        format!("the API server at {address} gives no answer to work with: {problem}"),
        "see `kubectl cluster-info`; --kubeconfig and --context choose another cluster or user",
    );
    cluster.check("api-server", async { Ok(vec![found]) }).await;
    let stage = match pre {
        true => Stage::Before,
        false => Stage::After,
    };
    Report::new(stage, vec![cluster])
}
