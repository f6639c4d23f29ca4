//! The parsed flags. In: the command line. Out: a [`Plan`], which the process outside creates and
//! passes to the node.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

/// Flags of `naru sandbox`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Directory of manifests: Namespaces, ServiceAccounts, Services, Deployments, StatefulSets,
    /// HTTPRoutes.
    #[arg(long, default_value = "deploy/sandbox", value_name = "DIR")]
    manifests: PathBuf,
    /// Number of pods of a Deployment or StatefulSet, instead of the one in its manifest
    /// (repeatable).
    #[arg(long, value_name = "NAMESPACE/NAME=N")]
    replicas: Vec<Replicas>,
    /// Log filter of every sidecar: error, warn, info, debug, trace, or MODULE=LEVEL,…
    #[arg(long, default_value = "info", value_name = "FILTER")]
    proxy_log: String,
    /// Log every request in every sidecar.
    #[arg(long)]
    access_log: bool,
    /// Log filter of the controller.
    #[arg(long, default_value = "info", value_name = "FILTER")]
    controller_log: String,
    /// Seconds before a controller that has ended, or was killed, is restarted.
    #[arg(long, default_value_t = 1, value_name = "SECONDS")]
    controller_pause: u64,
    /// How pods treat clients without a sidecar.
    #[arg(long, default_value = "permissive")]
    mtls: Mtls,
    /// Keep the logs of every process, and the objects that the controller was given, in --state.
    #[arg(long)]
    keep: bool,
    /// The directory for --keep [default: naru-sandbox-PID in the directory for temporary files].
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// The sidecar's program [default: naru-proxy beside this program].
    #[arg(long, value_name = "FILE")]
    proxy_bin: Option<PathBuf>,
    /// The controller's program [default: naru-controller beside this program].
    #[arg(long, value_name = "FILE")]
    controller_bin: Option<PathBuf>,
    /// Use a user namespace even as root, as an ordinary user's sandbox does.
    #[arg(long)]
    user_namespace: bool,
    /// Run COMMAND in a pod of this Deployment or StatefulSet once everything is ready, and end
    /// with it.
    #[arg(long = "in", value_name = "NAMESPACE/NAME", requires = "command")]
    run_in: Option<Workload>,
    /// The command of --in, after `--`.
    #[arg(last = true, value_name = "COMMAND", requires = "run_in")]
    command: Vec<String>,
}

/// The mesh-wide rule for clients without a mesh identity.
#[derive(Clone, Copy, Debug, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mtls {
    /// They are let in.
    Permissive,
    /// They are refused.
    Strict,
}

/// `NAMESPACE/NAME` of a Deployment or StatefulSet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Workload {
    pub namespace: String,
    pub name: String,
}

impl FromStr for Workload {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some((namespace, name))
                if !namespace.is_empty() && !name.is_empty() && !name.contains('/') =>
            {
                Ok(Self {
                    namespace: namespace.to_owned(),
                    name: name.to_owned(),
                })
            }
            _ => Err(format!("{text:?} is not NAMESPACE/NAME, as shop/web")),
        }
    }
}

impl std::fmt::Display for Workload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// `NAMESPACE/NAME=N`.
#[derive(Clone, Debug)]
struct Replicas(Workload, u32);

impl FromStr for Replicas {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not NAMESPACE/NAME=N, as shop/web=3");
        let (workload, number) = text.split_once('=').ok_or_else(wrong)?;
        Ok(Self(
            workload.parse()?,
            number.parse().map_err(|_| wrong())?,
        ))
    }
}

/// The settings that the process outside passes to the node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// The parent process, by its path in the machine's /proc: the node ends with it.
    pub parent: PathBuf,
    /// The machine's users are available: the sandbox was started as root, and has no user
    /// namespace of its own.
    pub root: bool,
    pub manifests: PathBuf,
    pub replicas: BTreeMap<String, u32>,
    pub proxy_log: String,
    /// Sidecars log every request.
    pub access_log: bool,
    pub controller_log: String,
    pub mtls: Mtls,
    /// The directory that logs are copied to at the end.
    pub keep: Option<PathBuf>,
    pub naru: PathBuf,
    pub proxy: PathBuf,
    pub controller: PathBuf,
    /// `PATH` and `HOME` of the caller.
    pub path: String,
    pub home: String,
    /// Delay before an ended controller restarts, in seconds.
    pub controller_pause: u64,
    pub run_in: Option<RunIn>,
}

impl Plan {
    /// Validates the flags on this machine.
    pub fn new(args: Args) -> anyhow::Result<Self> {
        let manifests = std::path::absolute(&args.manifests)?;
        ensure!(
            manifests.is_dir(),
            "--manifests {}: there is no such directory",
            args.manifests.display()
        );
        let naru = std::env::current_exe().context("finding this program's own file")?;
        let beside = |given: Option<PathBuf>, flag, name| -> anyhow::Result<PathBuf> {
            let program = match given {
                Some(program) => std::path::absolute(program)?,
                None => naru.with_file_name(name),
            };
            if !program.is_file() {
                bail!(
                    "there is no {}: build it (cargo build --release -p {name}), or say where it \
                     is with {flag}",
                    program.display()
                );
            }
            Ok(program)
        };
        let plan = Self {
            parent: std::fs::read_link("/proc/self").context("/proc is not mounted")?,
            root: nix::unistd::geteuid().is_root() && !args.user_namespace,
            proxy: beside(args.proxy_bin, "--proxy-bin", "naru-proxy")?,
            controller: beside(args.controller_bin, "--controller-bin", "naru-controller")?,
            naru,
            replicas: args
                .replicas
                .into_iter()
                .map(|Replicas(workload, number)| (workload.to_string(), number))
                .collect(),
            proxy_log: args.proxy_log,
            access_log: args.access_log,
            controller_log: args.controller_log,
            mtls: args.mtls,
            keep: match (args.keep, args.state) {
                (_, Some(directory)) => Some(std::path::absolute(directory)?),
                (true, None) => {
                    Some(std::env::temp_dir().join(format!("naru-sandbox-{}", std::process::id())))
                }
                (false, None) => None,
            },
            path: std::env::var("PATH").unwrap_or_default(),
            home: std::env::var("HOME").unwrap_or_else(|_| "/".to_owned()),
            controller_pause: args.controller_pause,
            run_in: match args.run_in {
                Some(workload) => Some(RunIn {
                    workload,
                    command: args.command,
                    directory: std::env::current_dir().context("finding the current directory")?,
                }),
                None => None,
            },
            manifests,
        };
        for path in [&plan.manifests, &plan.naru, &plan.proxy, &plan.controller] {
            ensure!(
                !path.starts_with("/run") && !path.starts_with("/var/run"),
                "{}: the sandbox has a /run of its own; move it elsewhere",
                path.display()
            );
        }
        Ok(plan)
    }

    /// The directory of this program.
    pub fn programs(&self) -> &Path {
        self.naru.parent().unwrap_or(Path::new("/"))
    }
}

/// A command to run in a pod.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunIn {
    pub workload: Workload,
    pub command: Vec<String>,
    /// The caller's working directory: pods see the machine's files.
    pub directory: PathBuf,
}
