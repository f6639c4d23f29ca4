//! The life cycle of a pod: its namespaces and files, its sidecar, its containers.
//!
//! ```text
//! namespaces, network, files ─▶ redirect rules ─▶ sidecar ready ─▶ init containers ─▶ containers
//! stop: (withdrawn from Services, a moment) ─▶ containers ─▶ sidecar ─▶ everything else
//! ```

use std::fs;
use std::io::Read;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use nix::sys::signal::Signal;
use tokio::sync::{mpsc, watch};

use super::backoff::Backoff;
use super::files;
use super::kubelet::{Kubelet, Status};
use super::probe::{Prober, Probes};
use super::sidecar::Sidecar;
use super::supervise::{Health, Runnable, Supervised, stop_requested};
use crate::sandbox::files::{last_lines, open_log};
use crate::sandbox::network;
use crate::sandbox::objects::{Container, Pod};
use crate::sandbox::process::mounts::Mounts;
use crate::sandbox::process::{self, Namespaces, Process, Stage, blocking, isolate};
use crate::sandbox::token;

/// Between the withdrawal of a pod from its Services and its SIGTERM: enough for every proxy to get
/// the update.
const WITHDRAWAL: Duration = Duration::from_secs(1);
/// Capacity of the queue of health messages.
const MESSAGES: usize = 64;

/// Runs a pod from start to end. It ends some time after `stop` becomes true.
pub async fn live(kubelet: Kubelet, pod: Arc<Pod>, mut stop: watch::Receiver<bool>) {
    let mut backoff = Backoff::new();
    while !*stop.borrow() {
        backoff.start();
        let mut life = Life {
            kubelet: &kubelet,
            pod: &pod,
            holder: None,
            sidecar: None,
            staying: Vec::new(),
        };
        let lived = life.live(&mut stop).await;
        life.end().await;
        let Err(error) = lived else {
            break;
        };
        let pause = backoff.failed();
        kubelet.report.trouble(
            &pod.full_name(),
            &format!("{error:#}; again in {} s", pause.as_secs()),
            &[],
        );
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop_requested(&mut stop) => {}
        }
    }
    kubelet.report(&pod, Status::Gone).await;
}

/// A running pod.
struct Life<'a> {
    kubelet: &'a Kubelet,
    pod: &'a Pod,
    /// The process that holds the namespaces.
    holder: Option<Process>,
    sidecar: Option<Supervised>,
    /// Native sidecars of the manifest.
    staying: Vec<Supervised>,
}

impl Life<'_> {
    async fn live(&mut self, stop: &mut watch::Receiver<bool>) -> anyhow::Result<()> {
        let (sender, mut told) = mpsc::channel(MESSAGES);
        let starting = self.start(&sender, &mut told);
        let (namespaces, mut containers) = tokio::select! {
            started = starting => started?,
            // Processes started so far end with the namespaces.
            () = stop_requested(stop) => return Ok(()),
        };
        // The sidecar comes first, then the native sidecars.
        let mut health = vec![Health::default(); containers.len() + self.staying.len() + 1];
        health[0].ready = true;
        let mut restarts = 0;
        let mut anchors = self.kubelet.anchors.clone();
        anchors.mark_unchanged();
        let mut refresh = tokio::time::interval(token::REFRESH);
        refresh.tick().await;
        let mut shown = None;
        let mut holder = self.holder.take().context("it has no namespaces")?;
        let lived = loop {
            let ready = health.iter().all(|health| health.ready);
            if shown != Some((ready, restarts)) {
                shown = Some((ready, restarts));
                let namespaces = namespaces.clone();
                let status = Status::Running {
                    ready,
                    restarts,
                    namespaces,
                };
                self.kubelet.report(self.pod, status).await;
            }
            tokio::select! {
                Some((index, change)) = told.recv() => {
                    if let Some(health) = health.get_mut(index) {
                        *health = change;
                    }
                    restarts = health.iter().map(|health| health.restarts).sum();
                }
                Ok(()) = anchors.changed() => self.refresh_secrets(),
                _ = refresh.tick() => self.refresh_secrets(),
                exit = holder.wait() => {
                    break Err(anyhow!("its first process is gone ({exit}), and all others with \
                        it"));
                }
                () = stop_requested(stop) => break Ok(()),
            }
        };
        self.holder = Some(holder);
        lived?;
        tokio::time::sleep(WITHDRAWAL).await;
        // Later health messages are dropped.
        drop(told);
        let mut ending = tokio::task::JoinSet::new();
        for container in containers.drain(..) {
            ending.spawn(container.stop());
        }
        ending.join_all().await;
        Ok(())
    }

    /// Stops the rest, in order: the native sidecars, the sidecar, the namespaces.
    async fn end(mut self) {
        while let Some(container) = self.staying.pop() {
            container.stop().await;
        }
        if let Some(sidecar) = self.sidecar.take() {
            sidecar.stop().await;
        }
        if let Some(mut holder) = self.holder.take() {
            holder.signal(Signal::SIGKILL);
            holder.wait().await;
        }
        network::disconnect_pod(self.pod.number).await;
        let _only_litter = fs::remove_dir_all(files::directory(self.pod));
    }

    async fn start(
        &mut self,
        sender: &mpsc::Sender<(usize, Health)>,
        told: &mut mpsc::Receiver<(usize, Health)>,
    ) -> anyhow::Result<(Namespaces, Vec<Supervised>)> {
        let pod = self.pod;
        self.starting("network").await;
        let namespaces = self.namespaces().await?;
        network::connect_pod(&namespaces, pod.number, pod.addresses)
            .await
            .context("connecting the pod")?;
        let sidecar = Sidecar {
            kubelet: self.kubelet,
            pod,
        };
        let prober = Prober {
            namespaces: namespaces.clone(),
            reaper: self.kubelet.reaper.clone(),
            naru: self.kubelet.plan.naru.clone(),
            exec: sidecar.exec("probe", Vec::new()),
            ipv6: pod.addresses.v6.is_some(),
        };
        if pod.meshed {
            self.starting("redirect rules").await;
            sidecar.redirect(&prober).await?;
            self.starting("sidecar").await;
            let runnable = sidecar.runnable(&prober);
            self.sidecar = Some(Supervised::start(runnable, 0, sender.clone()));
            while let Some((_, health)) = told.recv().await {
                if health.ready {
                    break;
                }
            }
        }
        self.starting("init containers").await;
        let mut index = 1;
        for container in &pod.template.init {
            let runnable = self.runnable(container, &prober);
            if container.stays {
                let supervised = Supervised::start(runnable, index, sender.clone());
                self.staying.push(supervised);
                index += 1;
                continue;
            }
            let mut backoff = Backoff::new();
            loop {
                let exit = runnable.run_once().await?;
                if exit.success() {
                    break;
                }
                let pause = backoff.failed();
                self.kubelet.report.trouble(
                    &runnable.exec.name,
                    &format!("ended ({exit}); again in {} s", pause.as_secs()),
                    &last_lines(&runnable.log),
                );
                tokio::time::sleep(pause).await;
            }
        }
        self.starting("containers").await;
        let containers = (index..)
            .zip(&pod.template.containers)
            .map(|(index, container)| {
                Supervised::start(self.runnable(container, &prober), index, sender.clone())
            })
            .collect();
        Ok((namespaces, containers))
    }

    async fn starting(&self, what: &'static str) {
        self.kubelet.report(self.pod, Status::Starting(what)).await;
    }

    /// Creates the namespaces, with the process that holds them.
    async fn namespaces(&mut self) -> anyhow::Result<Namespaces> {
        let directory = files::directory(self.pod);
        files::write(&directory, self.pod).context("writing the pod's files")?;
        files::write_secrets(self.kubelet, self.pod)?;
        let mounts = Mounts {
            name: self.pod.full_name(),
            hostname: self.pod.name.clone(),
            directory,
            programs: self.kubelet.plan.programs().to_owned(),
            proxy: self.kubelet.plan.proxy.clone(),
        };
        let mut command = process::command(&self.kubelet.plan.naru, &Stage::Pod(mounts));
        let log = files::log(self.pod, "pod");
        command.stdout(Stdio::piped()).stderr(open_log(&log)?);
        let reaper = self.kubelet.reaper.clone();
        let made = blocking(move || {
            let mut made = None;
            let process = reaper.spawn(|| {
                let (namespaces, mut child) = Namespaces::create(command)?;
                let output = child.stdout.take();
                made = Some((namespaces, output));
                Ok(child)
            })?;
            let Some((namespaces, Some(mut output))) = made else {
                return Err(std::io::Error::other("the process has no output"));
            };
            // The process either exits or reports readiness.
            let mut word = [0; 6];
            let ready = output.read_exact(&mut word).is_ok();
            Ok((process, namespaces, ready))
        })
        .await;
        let (process, namespaces, ready) = made.with_context(|| {
            format!(
                "making its namespaces: {}",
                isolate::refused(self.kubelet.plan.root)
            )
        })?;
        self.holder = Some(process);
        if !ready {
            bail!("{}", last_lines(&log).join("\n"));
        }
        Ok(namespaces)
    }

    /// If this fails, the existing secrets stay valid for a while.
    fn refresh_secrets(&self) {
        if let Err(error) = files::write_secrets(self.kubelet, self.pod) {
            self.kubelet.report.line(&format!(
                "{}: writing its token: {error:#}",
                self.pod.full_name()
            ));
        }
    }

    fn runnable(&self, container: &Container, prober: &Prober) -> Runnable {
        let exec = self.kubelet.exec(self.pod, container);
        Runnable {
            probes: Probes {
                startup: container.startup.clone(),
                readiness: container.readiness.clone(),
                liveness: container.liveness.clone(),
            },
            grace: self.pod.template.grace,
            log: files::log(self.pod, &container.name),
            prober: Prober {
                exec: exec.clone(),
                ..prober.clone()
            },
            exec,
            report: self.kubelet.report.clone(),
        }
    }
}
