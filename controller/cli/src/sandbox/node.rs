//! The node: PID 1 of the sandbox. It sets everything up, and then handles events: manifests, pods,
//! signals, the command's exit.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use super::cluster::{Cluster, Progress};
use super::controller::{self, ControllerLog};
use super::files::{self, last_lines};
use super::network::{self, Addressing, NODE_NAME, dns, forward};
use super::objects::manifest::{self, Manifests};
use super::plan::Plan;
use super::pod::{Event, Kubelet, Status};
use super::process::{Reaper, isolate, mounts};
use super::report::Report;
use super::run_in::Command;
use super::screen::Screen;
use super::token::TokenIssuer;

/// Size limit of the node's own files: mostly logs.
const RUN_SIZE: &str = "mode=0755,size=512m";
/// Size limit of a log, in bytes, at which it is truncated.
const MAX_LOG: u64 = 2 * 1024 * 1024;
/// How often log sizes and stalled pods are checked.
const TICK: Duration = Duration::from_secs(1);
/// How often manifests are read without a notification: some file systems do not send any.
const RESCAN: Duration = Duration::from_secs(2);
/// The exit code of a shell for a program that SIGPIPE has terminated.
const SIGPIPE_EXIT: u8 = 128 + Signal::SIGPIPE as u8;
/// With --in: how long the start may go without progress before it fails.
const STALLED: Duration = Duration::from_secs(60);
/// With --in: how often a container may fail before the start fails.
const MAX_RESTARTS: u32 = 4;
/// Between the last pod's readiness and the command: the controller reads the objects that the node
/// has written.
const SETTLE: Duration = Duration::from_millis(200);
/// Capacity of the queue of pod events.
const MAX_EVENTS: usize = 1_024;

/// Isolates the process, and runs the node until a signal or the command's exit.
pub fn run(plan: Plan) -> anyhow::Result<u8> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).context("tying the node to its parent")?;
    // The parent may have died before the call; this /proc is still the machine's.
    let stat = fs::read_to_string("/proc/self/stat").context("reading /proc/self/stat")?;
    let parent = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.split(' ').nth(1))
        .context("/proc/self/stat is not as expected")?;
    ensure!(
        plan.parent.as_os_str() == parent,
        "the process that started the node is gone"
    );

    let flags = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC;
    let refused = || isolate::refused(plan.root);
    unshare(flags).with_context(|| format!("making namespaces: {}", refused()))?;
    mounts::private().with_context(refused)?;
    mounts::proc().with_context(refused)?;
    mounts::run(RUN_SIZE).with_context(refused)?;
    nix::unistd::sethostname(NODE_NAME).context("setting the host name")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting a runtime")?;
    let keep = plan.keep.clone();
    let ended = runtime.block_on(node(Arc::new(plan)));
    if let Some(directory) = keep {
        files::keep(&directory)?;
        eprintln!("naru sandbox: logs are in {}", directory.display());
    }
    // When PID 1 exits, the kernel kills all other processes.
    ended
}

async fn node(plan: Arc<Plan>) -> anyhow::Result<u8> {
    let report = Report::new();
    let reaper = Reaper::default();
    let mut ends = Ends::new()?;
    SigSet::all()
        .thread_unblock()
        .context("listening for signals")?;
    tokio::spawn(reaper.clone().run());

    let ipv6 = network::has_ipv6();
    report.line(match (plan.root, ipv6) {
        (true, true) => "node network (root's namespaces, IPv4 and IPv6)",
        (false, true) => "node network (a user namespace, IPv4 and IPv6)",
        (true, false) => "node network (root's namespaces; this kernel has no IPv6)",
        (false, false) => "node network (a user namespace; this kernel has no IPv6)",
    });
    network::set_up(ipv6).await?;
    let names = watch::Sender::new(Arc::default());
    let forwarding = watch::Sender::new(Arc::default());
    dns::start(names.subscribe()).await?;
    forward::start(ipv6, forwarding.subscribe())?;

    let tokens = Arc::new(TokenIssuer::new()?);
    files::prepare(tokens.public_key()).context("preparing /run")?;
    let (_watcher, mut changes) = manifest::watch(&plan.manifests)?;
    let mut manifests = Manifests::new(plan.manifests.clone(), plan.replicas.clone());
    let mut errors = manifests.read().problems;
    let anchors = watch::Sender::new(Arc::default());
    let (sender, mut events) = mpsc::channel(MAX_EVENTS);
    let kubelet = Kubelet {
        plan: plan.clone(),
        reaper: reaper.clone(),
        tokens,
        anchors: anchors.subscribe(),
        events: sender,
        report: report.clone(),
    };
    let mut cluster = Cluster::new(kubelet.clone(), Addressing::new(ipv6), names, forwarding);
    errors.extend(cluster.set_wanted(manifests.objects()));
    ensure!(errors.is_empty(), "{}", errors.join("\n"));
    check(&plan, &cluster)?;
    report.line(&format!("manifests: {}", plan.manifests.display()));
    cluster.publish()?;

    report.line("controller");
    let started = controller::start(plan.clone(), reaper.clone(), report.clone(), anchors);
    tokio::select! {
        started = started => started?,
        code = ends.next() => return Ok(code),
    }
    let mut run = Run {
        start: Start::new(&cluster),
        screen: Screen::new(report.clone(), plan.naru.clone(), plan.manifests.clone()),
        report,
        kubelet,
        command: None,
    };
    run.report.line(&format!(
        "pods: {} to start (the first start of a sidecar fetches its certificate)",
        cluster.progress().wanted
    ));
    cluster.reconcile()?;
    let mut controller_log = ControllerLog::new(&files::log("naru-controller"));
    let mut tick = tokio::time::interval(TICK);
    let mut rescan = tokio::time::interval(RESCAN);
    loop {
        tokio::select! {
            code = ends.next() => return Ok(code),
            exit = run.command_ended() => return exit,
            () = manifest::changed(&mut changes) => run.read(&mut manifests, &mut cluster)?,
            _ = rescan.tick() => {
                run.read(&mut manifests, &mut cluster)?;
                for line in controller_log.news(manifests.wrong()) {
                    run.report.line(&format!("naru-controller: {line}"));
                }
            }
            Some(event) = events.recv() => {
                run.note(&cluster, &event);
                cluster.note(event);
                // Events that arrived meanwhile are handled in the same step.
                while let Ok(event) = events.try_recv() {
                    run.note(&cluster, &event);
                    cluster.note(event);
                }
                cluster.reconcile()?;
            }
            _ = tick.tick() => {
                if plan.run_in.is_none() && run.report.closed() {
                    return Ok(SIGPIPE_EXIT);
                }
                cut_logs();
                run.screen.refresh(&cluster).await;
            }
        }
        run.advance(&cluster).await?;
    }
}

fn check(plan: &Plan, cluster: &Cluster) -> anyhow::Result<()> {
    let names = cluster.workload_names();
    ensure!(
        !names.is_empty(),
        "{}: there is no Deployment or StatefulSet in it",
        plan.manifests.display()
    );
    let mut wanted: Vec<String> = plan.replicas.keys().cloned().collect();
    wanted.extend(plan.run_in.iter().map(|run_in| run_in.workload.to_string()));
    for name in wanted {
        ensure!(
            names.contains(&name),
            "there is no Deployment or StatefulSet {name}; there are: {}",
            names.join(", ")
        );
    }
    Ok(())
}

/// Signals that end the node.
struct Ends {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
    quit: tokio::signal::unix::Signal,
}

impl Ends {
    fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("listening for signals");
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
            quit: listen(SignalKind::quit())?,
        })
    }

    /// The exit code for the next signal.
    async fn next(&mut self) -> u8 {
        let signal = tokio::select! {
            _ = self.interrupt.recv() => Signal::SIGINT,
            _ = self.terminate.recv() => Signal::SIGTERM,
            _ = self.hangup.recv() => Signal::SIGHUP,
            _ = self.quit.recv() => Signal::SIGQUIT,
        };
        128 + signal as u8
    }
}

/// The progress of the start.
struct Start {
    progress: Progress,
    since: Instant,
    done: bool,
}

impl Start {
    fn new(cluster: &Cluster) -> Self {
        Self {
            progress: cluster.progress(),
            since: Instant::now(),
            done: false,
        }
    }
}

/// The node's tasks other than reconciling the cluster.
struct Run {
    start: Start,
    screen: Screen,
    report: Report,
    kubelet: Kubelet,
    command: Option<Command>,
}

impl Run {
    /// Reads the manifests, and reconciles the cluster with them.
    fn read(&self, manifests: &mut Manifests, cluster: &mut Cluster) -> anyhow::Result<()> {
        let reading = manifests.read();
        let mut problems = reading.problems;
        if reading.changed {
            problems.extend(cluster.set_wanted(manifests.objects()));
        }
        for problem in problems {
            self.report
                .line(&format!("what was in force before stays: {problem}"));
        }
        match reading.changed {
            true => cluster.reconcile(),
            false => Ok(()),
        }
    }

    /// Reports an event to the user.
    fn note(&self, cluster: &Cluster, event: &Event) {
        let Some(entry) = cluster
            .pods()
            .into_iter()
            .find(|entry| entry.pod.uid == event.uid)
        else {
            return;
        };
        let name = entry.pod.full_name();
        match &event.status {
            Status::Running { ready: true, .. } if !entry.ready() => {
                self.report
                    .line(&format!("{name} is ready ({})", entry.pod.addresses.v4));
            }
            Status::Running { ready: false, .. } if entry.ready() => {
                self.report.line(&format!("{name} is not ready any more"));
            }
            Status::Gone => self.report.line(&format!("{name} is gone")),
            _ => {}
        }
    }

    /// Advances the start: reports progress, and finishes with the command or the table.
    async fn advance(&mut self, cluster: &Cluster) -> anyhow::Result<()> {
        if self.start.done {
            return Ok(());
        }
        let progress = cluster.progress();
        if progress != self.start.progress {
            self.start.progress = progress;
            self.start.since = Instant::now();
        }
        if progress.ready < progress.wanted {
            return match self.kubelet.plan.run_in {
                Some(_) => self.give_up(cluster),
                None => Ok(()),
            };
        }
        self.start.done = true;
        self.report.line("everything is ready");
        let Some(run_in) = self.kubelet.plan.run_in.clone() else {
            self.screen.start(cluster);
            return Ok(());
        };
        tokio::time::sleep(SETTLE).await;
        let workload = &run_in.workload;
        let entry = cluster
            .ready_pod(&workload.namespace, &workload.name)
            .with_context(|| format!("--in {workload}: it has no pods (spec.replicas: 0)"))?;
        self.command = Some(Command::start(&self.kubelet, entry, &run_in).await?);
        Ok(())
    }

    /// Fails when the start has stalled.
    fn give_up(&self, cluster: &Cluster) -> anyhow::Result<()> {
        let pods = cluster.pods();
        let waiting = pods
            .iter()
            .filter(|entry| !entry.ready() && !entry.ending());
        let failing = waiting
            .clone()
            .find(|entry| entry.restarts() > MAX_RESTARTS);
        if let Some(entry) = failing {
            bail!(
                "{} does not run: its containers have ended again and again",
                entry.pod.full_name()
            );
        }
        if self.start.since.elapsed() < STALLED {
            return Ok(());
        }
        let mut text = format!(
            "nothing has become ready for {} s; not ready are:",
            STALLED.as_secs()
        );
        for entry in waiting {
            let state = match &entry.status {
                Status::Starting(what) => what,
                _ => "running, not ready",
            };
            text.push_str(&format!("\n  {} ({state})", entry.pod.full_name()));
            let mut containers: Vec<_> = entry
                .pod
                .template
                .containers
                .iter()
                .map(|c| c.name.as_str())
                .collect();
            if entry.pod.meshed {
                containers.insert(0, "naru-proxy");
            }
            for container in containers {
                let log = format!("{}_{}_{container}", entry.pod.namespace, entry.pod.name);
                for line in last_lines(&files::log(&log)) {
                    text.push_str(&format!("\n    {container} | {line}"));
                }
            }
        }
        bail!("{text}")
    }

    async fn command_ended(&mut self) -> anyhow::Result<u8> {
        match &mut self.command {
            Some(command) => Ok(command.wait().await.code()),
            None => std::future::pending().await,
        }
    }
}

/// Truncates logs that have become too large: their writers append.
fn cut_logs() {
    let Ok(logs) = fs::read_dir(files::LOGS) else {
        return;
    };
    for log in logs.flatten() {
        if log
            .metadata()
            .is_ok_and(|metadata| metadata.len() > MAX_LOG)
        {
            let file = fs::OpenOptions::new().write(true).open(log.path());
            let _next_time = file.and_then(|file| file.set_len(0));
        }
    }
}
