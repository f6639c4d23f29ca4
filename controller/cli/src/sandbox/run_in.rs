//! The command of `--in`: in a pod's namespaces, with its environment and user, and the caller's
//! standard streams and working directory.

use std::io::IsTerminal;
use std::process::Stdio;

use anyhow::Context;

use super::cluster::Entry;
use super::plan::RunIn;
use super::pod::Kubelet;
use super::process::{self, Exit, Process, Stage, Terminal, blocking};

/// A running command.
pub struct Command {
    process: Process,
}

impl Command {
    /// Starts it in a ready pod.
    pub async fn start(kubelet: &Kubelet, entry: &Entry, run_in: &RunIn) -> anyhow::Result<Self> {
        let namespaces = entry.namespaces().context("the pod is gone")?.clone();
        let container = entry
            .pod
            .template
            .containers
            .first()
            .context("the pod has no containers")?;
        let mut exec = kubelet.exec(&entry.pod, container);
        exec.name = format!("{} (--in)", entry.pod.full_name());
        exec.argv = run_in.command.clone();
        exec.directory = run_in.directory.clone();
        exec.or_root = true;
        if let Ok(terminal) = std::env::var("TERM") {
            exec.env.push(("TERM".to_owned(), terminal));
        }
        exec.terminal = match std::io::stdin().is_terminal() {
            true => Terminal::Foreground,
            false => Terminal::Detached,
        };
        let mut command = process::command(&kubelet.plan.naru, &Stage::Exec(exec));
        command
            .stdin(Stdio::inherit())
            .stdout(Stdio::inherit())
            .stderr(Stdio::inherit());
        let reaper = kubelet.reaper.clone();
        let process = blocking(move || reaper.spawn(|| namespaces.spawn(command)))
            .await
            .context("starting the command")?;
        Ok(Self { process })
    }

    /// Waits until it exits.
    pub async fn wait(&mut self) -> Exit {
        self.process.wait().await
    }
}
