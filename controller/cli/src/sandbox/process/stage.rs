//! The role of a process of the sandbox. This program runs itself again for each role, with the
//! stage in one argument.

use std::path::Path;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::exec::Exec;
use super::mounts::Mounts;
use crate::sandbox::plan::Plan;

/// Flags of the hidden command.
#[derive(clap::Args, Clone, Debug)]
pub struct StageArgs {
    /// For people who look at the list of processes.
    pub name: String,
    /// The rest, as JSON.
    stage: String,
}

impl StageArgs {
    pub fn stage(&self) -> serde_json::Result<Stage> {
        serde_json::from_str(&self.stage)
    }
}

/// The role of a process of the sandbox.
#[derive(Debug, Serialize, Deserialize)]
pub enum Stage {
    /// The node itself: PID 1.
    Node(Box<Plan>),
    /// The process that holds a pod's namespaces: PID 1 of the pod.
    Pod(Mounts),
    /// A program in a pod.
    Exec(Exec),
}

/// The command that runs a stage. Its environment is empty.
pub fn command(naru: &Path, stage: &Stage) -> Command {
    let name = match stage {
        Stage::Node(_) => "node",
        Stage::Pod(mounts) => &mounts.name,
        Stage::Exec(exec) => &exec.name,
    };
    let mut command = Command::new(naru);
    command
        .arg("sandbox-stage")
        .arg(name)
        .arg(serde_json::to_string(stage).unwrap_or_default())
        .env_clear()
        .stdin(Stdio::null());
    // A user's own settings for this program reach the node, and nothing else does.
    if let Stage::Node(_) = stage {
        let kept = ["TERM", "RUST_BACKTRACE"].into_iter();
        command.envs(kept.filter_map(|name| Some((name, std::env::var_os(name)?))));
    }
    command
}
