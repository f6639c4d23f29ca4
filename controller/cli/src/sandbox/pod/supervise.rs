//! One container: started, probed, restarted with growing delays, and stopped in order.

use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::backoff::Backoff;
use super::probe::{Prober, Probes, Verdict};
use crate::sandbox::files::{last_lines, open_log};
use crate::sandbox::process::{self, Exec, Exit, Process, Stage, blocking};
use crate::sandbox::report::Report;

/// How a container is run.
#[derive(Clone)]
pub struct Runnable {
    pub exec: Exec,
    pub probes: Probes,
    /// Between SIGTERM and SIGKILL.
    pub grace: Duration,
    pub log: PathBuf,
    pub prober: Prober,
    pub report: Report,
}

/// The health of a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health {
    pub ready: bool,
    pub restarts: u32,
}

/// A container that is kept running.
pub struct Supervised {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Supervised {
    /// Keeps a container running. Every change of its health is sent with `index`.
    pub fn start(runnable: Runnable, index: usize, told: mpsc::Sender<(usize, Health)>) -> Self {
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(keep_running(runnable, index, told, stopped));
        Self { stop, task }
    }

    /// Stops it, and waits until it has ended.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        // The task has ended either way.
        let _ended = self.task.await;
    }
}

async fn keep_running(
    runnable: Runnable,
    index: usize,
    told: mpsc::Sender<(usize, Health)>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut backoff = Backoff::new();
    let mut health = Health::default();
    loop {
        backoff.start();
        let ended = match runnable.start().await {
            Ok(mut process) => {
                match run(&runnable, &mut process, health, index, &told, &mut stopped).await {
                    Some(ended) => ended,
                    None => return,
                }
            }
            Err(error) => format!("cannot be started: {error}"),
        };
        health = Health {
            ready: false,
            restarts: health.restarts + 1,
        };
        let _pod_is_gone = told.send((index, health)).await;
        let pause = backoff.failed();
        runnable.report.trouble(
            &runnable.exec.name,
            &format!("{ended}; again in {} s", pause.as_secs()),
            &last_lines(&runnable.log),
        );
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop_requested(&mut stopped) => return,
        }
    }
}

/// Runs until the container ends, and returns how; or until it has stopped on request.
async fn run(
    runnable: &Runnable,
    process: &mut Process,
    mut health: Health,
    index: usize,
    told: &mpsc::Sender<(usize, Health)>,
    stopped: &mut watch::Receiver<bool>,
) -> Option<String> {
    #[expect(
        clippy::disallowed_methods,
        reason = "bounded by what is read below: a prober reports changes only"
    )]
    let (verdicts, mut verdict) = mpsc::unbounded_channel();
    let probing = runnable.prober.watch(&runnable.probes, |verdict| {
        let _read_below = verdicts.send(verdict);
    });
    tokio::pin!(probing);
    let mut probed = false;
    let ended = loop {
        tokio::select! {
            exit = process.wait() => break format!("ended ({exit})"),
            () = &mut probing, if !probed => probed = true,
            Some(verdict) = verdict.recv() => match verdict {
                Verdict::Dead => {
                    runnable.terminate(process).await;
                    break "did not answer its liveness or startup probe".to_owned();
                }
                verdict => {
                    health.ready = verdict == Verdict::Ready;
                    let _pod_is_gone = told.send((index, health)).await;
                }
            },
            () = stop_requested(stopped) => {
                runnable.terminate(process).await;
                return None;
            }
        }
    };
    // Kill its children as well.
    process.signal_group(Signal::SIGKILL);
    Some(ended)
}

impl Runnable {
    /// Starts it with its output appended to its log.
    pub async fn start(&self) -> io::Result<Process> {
        let log = open_log(&self.log)?;
        let mut command = process::command(&self.prober.naru, &Stage::Exec(self.exec.clone()));
        command
            .stdout(Stdio::from(log.try_clone()?))
            .stderr(Stdio::from(log));
        let namespaces = self.prober.namespaces.clone();
        let reaper = self.prober.reaper.clone();
        blocking(move || reaper.spawn(|| namespaces.spawn(command))).await
    }

    /// Runs it to completion.
    pub async fn run_once(&self) -> io::Result<Exit> {
        Ok(self.start().await?.wait().await)
    }

    async fn terminate(&self, process: &mut Process) {
        process.signal(Signal::SIGTERM);
        if tokio::time::timeout(self.grace, process.wait())
            .await
            .is_err()
        {
            process.signal(Signal::SIGKILL);
            process.wait().await;
        }
        process.signal_group(Signal::SIGKILL);
    }
}

/// Waits until `stop` is true, or its sender is dropped.
pub async fn stop_requested(stop: &mut watch::Receiver<bool>) {
    // Both cases mean stop.
    let _holder = stop.wait_for(|stop| *stop).await;
}
