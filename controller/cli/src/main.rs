//! `naru`, the command-line interface.
//!
//! # Floors
//!
//! ```text
//! routes         the routes of a Service
//! why            the route that a request takes
//! sidecar        queries to a sidecar
//! check sandbox  checks of an installation; a local mesh
//! destination    the destination behind an address
//! kubernetes quiet_http
//! annotations report table
//! ```
#![forbid(unsafe_code)]

#[path = "../../src/annotations.rs"]
mod annotations;
mod check;
mod destination;
#[cfg(test)]
#[path = "../../src/kubernetes/fake_api.rs"]
mod fake_api;
mod kubernetes;
mod quiet_http;
mod report;
mod routes;
mod sandbox;
mod sidecar;
mod table;
mod why;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "naru", version, about = "Naru, a service mesh.")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check whether Naru can be installed in a cluster, or whether an installation works. Each
    /// problem is shown with its fix.
    Check(check::Args),
    /// Run a mesh of real sidecars on this machine, from a directory of Kubernetes manifests.
    Sandbox(Box<sandbox::Args>),
    /// Show the routes of a Service that are in force in a client's sidecar, in order of
    /// precedence, and those that are not, each with the reason.
    Routes(routes::Args),
    /// Explain which route and rule take a request, and why the others do not, from the tables in
    /// force in a sidecar.
    ///
    /// Exits with 0 if a backend would get the request, with 1 if no backend would, and with 2 if
    /// the question cannot be answered.
    Why(why::Args),
    /// Run one stage of the sandbox inside its namespaces.
    #[command(hide = true)]
    SandboxStage(sandbox::StageArgs),
}

fn main() -> ExitCode {
    match Args::parse().command {
        Command::Check(args) => check::run(args),
        Command::Sandbox(args) => sandbox::run(*args),
        Command::Routes(args) => routes::run(args),
        Command::Why(args) => why::run(args),
        Command::SandboxStage(args) => sandbox::run_stage(args),
    }
}
