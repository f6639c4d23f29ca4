//! `naru sandbox`: a mesh on one machine, from ordinary Kubernetes manifests.
//!
//! ```text
//! naru sandbox              outside: isolates, waits, passes signals and the exit code on
//! └─ node (PID 1)           kubelet, controller-manager, kube-proxy, DNS; has the node's network
//!    ├─ naru-controller     reads the manifests and what the node wrote
//!    ├─ pod (PID 1 of its own PID namespace): holds the pod's namespaces
//!    ├─ naru-proxy          in the pod's namespaces
//!    └─ containers          in the pod's namespaces
//! ```
//!
//! Nothing outlives the node. It is PID 1 of the PID namespace of all other processes, and is
//! killed when the process outside dies. Mounts, links, rules and files are in namespaces and on a
//! tmpfs that end with it.
//!
//! # Floors
//!
//! ```text
//! self               the command, and what each of its processes does
//! node               PID 1: reacts to events of all the others
//! screen run_in      the terminal's output; the command of --in
//! cluster            the controller-manager: the desired pods, objects, names
//! pod                the kubelet: a pod's lifecycle
//! controller         naru-controller's process
//! token              service-account tokens
//! objects            the objects that the manifests declare
//! network            links, addresses, name server, forwarder
//! process            processes and their namespaces
//! files report plan  paths; log lines; the options
//! ```

mod cluster;
mod controller;
mod files;
mod network;
mod node;
mod objects;
mod plan;
mod pod;
mod process;
mod report;
mod run_in;
mod screen;
mod token;

use std::process::ExitCode;

use nix::sys::signal::SigSet;

use plan::Plan;
use process::{Stage, exec, holder, isolate};

pub use plan::Args;
pub use process::StageArgs;

/// The exit code of a failure of the sandbox itself. It differs from a command's usual codes, as
/// those of `env` and `nice` do.
const OWN_FAILURE: u8 = 125;

/// `naru sandbox`.
pub fn run(args: Args) -> ExitCode {
    match Plan::new(args).and_then(isolate::run) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("naru sandbox: {error:#}");
            ExitCode::from(OWN_FAILURE)
        }
    }
}

/// Runs a process inside the sandbox.
pub fn run_stage(args: StageArgs) -> ExitCode {
    let failed = |error: anyhow::Error| {
        eprintln!("naru sandbox: {}: {error:#}", args.name);
        ExitCode::from(OWN_FAILURE)
    };
    let stage = match args.stage() {
        Ok(stage) => stage,
        Err(error) => return failed(anyhow::Error::from(error)),
    };
    // The process outside waits for signals, and has them blocked. The node inherits that mask and
    // unblocks them once it listens. An earlier signal would be lost, because PID 1 ignores signals
    // without a handler.
    if !matches!(stage, Stage::Node(_))
        && let Err(error) = SigSet::all().thread_unblock()
    {
        return failed(error.into());
    }
    match stage {
        Stage::Node(plan) => match node::run(*plan) {
            Ok(code) => ExitCode::from(code),
            Err(error) => failed(error),
        },
        Stage::Pod(mounts) => match holder::run(&mounts) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(error),
        },
        Stage::Exec(exec) => exec::become_program(&exec),
    }
}
