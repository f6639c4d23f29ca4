//! A pod: its namespaces and files, its sidecar, its containers, from the first to the last of them.
//!
//! ```text
//! namespaces, network, files ─▶ redirect rules ─▶ sidecar ready ─▶ init containers ─▶ containers
//! stop: (withdrawn from Services, a moment) ─▶ containers ─▶ sidecar ─▶ everything else
//! ```

use std::fs;
use std::io::{Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use nix::sys::signal::Signal;
use tokio::sync::{mpsc, watch};

use super::backoff::Backoff;
use super::container::{Container, Facts, PROXY_UID, Template};
use super::namespaces::Namespaces;
use super::network::{self, Addresses, NODE_V4};
use super::probe::{Prober, Probes, blocking};
use super::reaper::{Process, Reaper};
use super::report::Report;
use super::services::Family;
use super::stage::{self, Exec, Stage, Terminal, User};
use super::supervise::{Health, Runnable, Supervised, asked, last_lines};
use super::token::{self, TokenIssuer};
use super::workload::Kind;
use super::{Plan, control_plane, mounts};

pub use super::mounts::{Mounts, PROGRAMS};

/// Between the withdrawal of a pod from its Services and its SIGTERM: as long as every proxy needs to hear of it.
const WITHDRAWAL: Duration = Duration::from_secs(1);
/// Where a pod finds its token and the trust anchors.
pub const SECRETS: &str = "/run/secrets/naru";
/// The port on which a sidecar says how it is.
pub const PROXY_ADMIN_PORT: u16 = 15_020;
/// Health messages that wait to be read, at most.
const MESSAGES: usize = 64;

/// Everything about a pod that never changes.
#[derive(Clone, Debug)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub workload: String,
    pub kind: Kind,
    pub ordinal: Option<u32>,
    pub hash: String,
    pub template: Template,
    /// The number that its addresses are made of.
    pub number: u16,
    pub addresses: Addresses,
    /// It gets a sidecar.
    pub meshed: bool,
    /// Older pods have smaller ones.
    pub age: u64,
}

impl Pod {
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => Some(self.addresses.v4.into()),
            Family::V6 => self.addresses.v6.map(IpAddr::from),
        }
    }

    /// As `shop/web-6d4cf56db6-x7vbk`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// What pods need from the node. Cheap to clone.
#[derive(Clone)]
pub struct Kubelet {
    pub plan: Arc<Plan>,
    pub reaper: Reaper,
    pub tokens: Arc<TokenIssuer>,
    /// PEM of the mesh's trust anchors.
    pub anchors: watch::Receiver<Arc<Vec<u8>>>,
    pub events: mpsc::Sender<Event>,
    pub report: Report,
}

/// Something happened to a pod.
#[derive(Debug)]
pub struct Event {
    pub uid: String,
    pub status: Status,
}

/// How a pod is.
#[derive(Clone, Debug)]
pub enum Status {
    /// It is being set up; what is done right now.
    Starting(&'static str),
    /// Its containers run.
    Running {
        ready: bool,
        restarts: u32,
        namespaces: Namespaces,
    },
    /// Nothing is left of it.
    Gone,
}

/// Lives a pod's whole life. It ends some time after `stop` holds true.
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
            () = asked(&mut stop) => {}
        }
    }
    kubelet.tell(&pod, Status::Gone).await;
}

impl Kubelet {
    async fn tell(&self, pod: &Pod, status: Status) {
        let event = Event {
            uid: pod.uid.clone(),
            status,
        };
        // The node reads them for as long as there is one.
        let _node_ends = self.events.send(event).await;
    }

    /// The variables that every container has.
    pub fn base_environment(&self, pod: &Pod) -> Vec<(String, String)> {
        vec![
            ("PATH".to_owned(), format!("{PROGRAMS}:{}", self.plan.path)),
            ("HOSTNAME".to_owned(), pod.name.clone()),
            ("HOME".to_owned(), self.plan.home.clone()),
        ]
    }

    /// What one of a pod's containers runs as, and with which variables.
    pub fn exec(&self, pod: &Pod, container: &Container) -> Exec {
        let facts = Facts {
            namespace: &pod.namespace,
            name: &pod.name,
            uid: &pod.uid,
            node: super::node::NAME,
            node_ip: NODE_V4.to_string(),
            addresses: pod.addresses,
            template: &pod.template,
        };
        let own = container.environment(&facts);
        let argv = container.command(&own);
        let mut env = self.base_environment(pod);
        if container.user.is_some() {
            // The caller's home is another user's. Container runtimes say this of one that they do not know.
            env.push(("HOME".to_owned(), "/".to_owned()));
        }
        env.extend(own);
        Exec {
            name: format!("{}/{}", pod.full_name(), container.name),
            argv,
            env,
            directory: container
                .directory
                .clone()
                .unwrap_or_else(|| PathBuf::from("/")),
            or_root: false,
            user: match container.user {
                None => User::Same,
                Some((uid, gid)) if self.plan.root => User::Switch { uid, gid },
                Some((0, _)) => User::Same,
                Some((uid, gid)) => User::Mapped { uid, gid },
            },
            no_new_privileges: container.no_new_privileges,
            terminal: Terminal::Detached,
        }
    }
}

/// A pod while it lives.
pub(super) struct Life<'a> {
    pub(super) kubelet: &'a Kubelet,
    pub(super) pod: &'a Pod,
    /// The process that holds the namespaces.
    holder: Option<Process>,
    sidecar: Option<Supervised>,
    /// Init containers that stay.
    staying: Vec<Supervised>,
}

impl Life<'_> {
    async fn live(&mut self, stop: &mut watch::Receiver<bool>) -> anyhow::Result<()> {
        let (sender, mut told) = mpsc::channel(MESSAGES);
        let starting = self.start(&sender, &mut told);
        let (namespaces, mut containers) = tokio::select! {
            started = starting => started?,
            // What has been started by then is ended with the namespaces.
            () = asked(stop) => return Ok(()),
        };
        // The first ones are the sidecar and those that stay.
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
                self.kubelet.tell(self.pod, status).await;
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
                    break Err(anyhow!("its first process is gone ({exit}), and all others with it"));
                }
                () = asked(stop) => break Ok(()),
            }
        };
        self.holder = Some(holder);
        lived?;
        tokio::time::sleep(WITHDRAWAL).await;
        // Nobody reads what they tell from here on.
        drop(told);
        let mut ending = tokio::task::JoinSet::new();
        for container in containers.drain(..) {
            ending.spawn(container.stop());
        }
        ending.join_all().await;
        Ok(())
    }

    /// Ends what is left, in order: those that stay, the sidecar, the namespaces.
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
        let _only_litter = fs::remove_dir_all(self.directory());
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
        let prober = Prober {
            namespaces: namespaces.clone(),
            reaper: self.kubelet.reaper.clone(),
            naru: self.kubelet.plan.naru.clone(),
            exec: self.proxy_exec("probe", Vec::new()),
            ipv6: pod.addresses.v6.is_some(),
        };
        if pod.meshed {
            self.starting("redirect rules").await;
            self.redirect(&prober).await?;
            self.starting("sidecar").await;
            let sidecar = Supervised::start(self.sidecar(&prober), 0, sender.clone());
            self.sidecar = Some(sidecar);
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
        self.kubelet.tell(self.pod, Status::Starting(what)).await;
    }

    fn directory(&self) -> PathBuf {
        Path::new(control_plane::PODS).join(&self.pod.uid)
    }

    /// Makes the namespaces with the process that holds them.
    async fn namespaces(&mut self) -> anyhow::Result<Namespaces> {
        let directory = self.directory();
        mounts::write(&directory, self.pod).context("writing the pod's files")?;
        self.write_secrets()?;
        let mounts = Mounts {
            name: self.pod.full_name(),
            hostname: self.pod.name.clone(),
            directory,
            programs: self.kubelet.plan.programs().to_owned(),
            proxy: self.kubelet.plan.proxy.clone(),
        };
        let mut command = stage::command(&self.kubelet.plan.naru, &Stage::Pod(mounts));
        let log = self.log("pod");
        command
            .stdout(Stdio::piped())
            .stderr(super::supervise::open_log(&log)?);
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
            // It ends, or says that it is ready.
            let mut word = [0; 6];
            let ready = output.read_exact(&mut word).is_ok();
            Ok((process, namespaces, ready))
        })
        .await;
        let (process, namespaces, ready) = made.with_context(|| {
            format!(
                "making its namespaces: {}",
                super::isolate::refused(self.kubelet.plan.root)
            )
        })?;
        self.holder = Some(process);
        if !ready {
            bail!("{}", last_lines(&log).join("\n"));
        }
        Ok(namespaces)
    }

    /// Those there are stay valid for a while if it fails.
    fn refresh_secrets(&self) {
        if let Err(error) = self.write_secrets() {
            self.kubelet.report.say(&format!(
                "{}: writing its token: {error:#}",
                self.pod.full_name()
            ));
        }
    }

    /// Writes the token and the trust anchors, each in one step.
    fn write_secrets(&self) -> anyhow::Result<()> {
        if !self.pod.meshed {
            return Ok(());
        }
        let secrets = self.directory().join("secrets");
        let token = self.kubelet.tokens.issue(self.pod)?;
        let anchors = self.kubelet.anchors.borrow().clone();
        for (name, content, mode) in [
            ("token", token.as_bytes(), 0o400),
            ("trust-anchors.pem", anchors.as_slice(), 0o444),
        ] {
            let fresh = secrets.join(format!(".{name}"));
            let _left_by_a_failure = fs::remove_file(&fresh);
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(mode)
                .open(&fresh)?;
            file.write_all(content)?;
            if self.kubelet.plan.root {
                chown(&fresh, Some(PROXY_UID), Some(PROXY_UID))?;
            }
            fs::rename(&fresh, secrets.join(name))?;
        }
        Ok(())
    }

    pub(super) fn log(&self, container: &str) -> PathBuf {
        control_plane::log(&format!(
            "{}_{}_{container}",
            self.pod.namespace, self.pod.name
        ))
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
            log: self.log(&container.name),
            prober: Prober {
                exec: exec.clone(),
                ..prober.clone()
            },
            exec,
            report: self.kubelet.report.clone(),
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use serde_json::json;

    /// A pod of `shop`, with `number` in its addresses and a port `web`.
    pub fn pod(name: &str, number: u16, port: u16) -> Pod {
        let template = json!({
            "metadata": { "labels": { "app": "web" } },
            "spec": { "containers": [{
                "name": "a", "command": ["x"],
                "ports": [{ "name": "web", "containerPort": port }],
            }] },
        });
        let template = Template::parse(&serde_json::from_value(template).unwrap()).unwrap();
        Pod {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            workload: "web".to_owned(),
            kind: Kind::Deployment { recreate: false },
            ordinal: None,
            hash: "hash".to_owned(),
            template,
            number,
            addresses: Addresses {
                v4: [10, 244, 0, number as u8].into(),
                v6: Some(format!("fd00:10:244::{number:x}").parse().unwrap()),
            },
            meshed: true,
            age: u64::from(number),
        }
    }
}
