//! Probes of a container, sent inside the pod to its loopback addresses: redirect rules exempt
//! these, so that a probe reaches the app without the sidecar.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream};

use crate::quiet_http;
use crate::sandbox::objects::{Action, Probe};
use crate::sandbox::process::{self, Exec, Namespaces, Process, Reaper, Stage, blocking};

/// Probe interval until the container is first ready: a person is waiting for it.
const EAGER: Duration = Duration::from_millis(100);

/// The context of a container's probes.
#[derive(Clone)]
pub struct Prober {
    pub namespaces: Namespaces,
    pub reaper: Reaper,
    pub naru: std::path::PathBuf,
    /// How an `exec` probe's command is run.
    pub exec: Exec,
    pub ipv6: bool,
}

/// The result of a container's probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Ready,
    NotReady,
    /// The container must be restarted.
    Dead,
}

/// The probes of one container.
#[derive(Clone, Debug, Default)]
pub struct Probes {
    pub startup: Option<Probe>,
    pub readiness: Option<Probe>,
    pub liveness: Option<Probe>,
}

impl Prober {
    /// Probes a container that has just been started and reports each verdict; ends with
    /// [`Verdict::Dead`].
    pub async fn watch(&self, probes: &Probes, mut tell: impl FnMut(Verdict) + Send) {
        if let Some(startup) = &probes.startup
            && !self.started(startup).await
        {
            tell(Verdict::Dead);
            return;
        }
        let Some(readiness) = &probes.readiness else {
            tell(Verdict::Ready);
            self.alive(probes.liveness.as_ref()).await;
            tell(Verdict::Dead);
            return;
        };
        // In a block, so that the borrow of `tell` ends before the last verdict.
        {
            let ready = self.readiness(readiness, &mut tell);
            tokio::select! {
                () = ready => {}
                () = self.alive(probes.liveness.as_ref()) => {}
            }
        }
        tell(Verdict::Dead);
    }

    async fn started(&self, probe: &Probe) -> bool {
        tokio::time::sleep(probe.delay).await;
        let deadline = tokio::time::Instant::now() + probe.period * probe.failures;
        while !self.ask(probe).await {
            if tokio::time::Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(probe.period.min(EAGER)).await;
        }
        true
    }

    async fn readiness(&self, probe: &Probe, tell: &mut (impl FnMut(Verdict) + Send)) {
        tokio::time::sleep(probe.delay).await;
        let (mut ready, mut ever) = (false, false);
        // Consecutive results that contradict the current verdict.
        let mut against = 0;
        loop {
            if self.ask(probe).await == ready {
                against = 0;
            } else {
                against += 1;
            }
            let needed = match ready {
                true => probe.failures,
                false => probe.successes,
            };
            if against >= needed {
                ready = !ready;
                ever |= ready;
                against = 0;
                tell(match ready {
                    true => Verdict::Ready,
                    false => Verdict::NotReady,
                });
            }
            let pause = match ever {
                true => probe.period,
                false => probe.period.min(EAGER),
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Returns when the container is dead.
    async fn alive(&self, probe: Option<&Probe>) {
        let Some(probe) = probe else {
            return std::future::pending().await;
        };
        tokio::time::sleep(probe.delay).await;
        let mut failures = 0;
        while failures < probe.failures {
            tokio::time::sleep(probe.period).await;
            match self.ask(probe).await {
                true => failures = 0,
                false => failures += 1,
            }
        }
    }

    /// Runs one probe. Returns whether it succeeded.
    async fn ask(&self, probe: &Probe) -> bool {
        let answer = async {
            match &probe.action {
                Action::Tcp(port) => self.connect(*port).await.is_ok(),
                Action::Http {
                    port,
                    path,
                    headers,
                } => match self.connect(*port).await {
                    Ok(stream) => {
                        quiet_http::get(stream, "localhost", path, headers, probe.timeout)
                            .await
                            .is_ok_and(|answer| (200..400).contains(&answer.status))
                    }
                    Err(_) => false,
                },
                Action::Exec(command) => match self.start(command.clone()).await {
                    Ok(mut process) => {
                        let exit = tokio::time::timeout(probe.timeout, process.wait()).await;
                        if exit.is_err() {
                            process.signal(nix::sys::signal::Signal::SIGKILL);
                        }
                        exit.is_ok_and(|exit| exit.success())
                    }
                    Err(_) => false,
                },
            }
        };
        tokio::time::timeout(probe.timeout * 2, answer)
            .await
            .unwrap_or(false)
    }

    async fn start(&self, argv: Vec<String>) -> io::Result<Process> {
        let mut exec = self.exec.clone();
        exec.argv = argv;
        let command = process::command(&self.naru, &Stage::Exec(exec));
        let (reaper, namespaces) = (self.reaper.clone(), self.namespaces.clone());
        blocking(move || reaper.spawn(|| namespaces.spawn(command))).await
    }

    /// Connects to a port of the pod, over IPv4 and then IPv6.
    pub async fn connect(&self, port: u16) -> io::Result<TcpStream> {
        let v4 = self.connect_to(Ipv4Addr::LOCALHOST.into(), port).await;
        match v4 {
            Err(_) if self.ipv6 => self.connect_to(Ipv6Addr::LOCALHOST.into(), port).await,
            _ => v4,
        }
    }

    async fn connect_to(&self, address: IpAddr, port: u16) -> io::Result<TcpStream> {
        let namespaces = self.namespaces.clone();
        let domain = match address {
            IpAddr::V4(_) => socket2::Domain::IPV4,
            IpAddr::V6(_) => socket2::Domain::IPV6,
        };
        let socket = blocking(move || {
            namespaces.in_network(move || {
                let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
                socket.set_nonblocking(true)?;
                Ok(socket)
            })
        })
        .await?;
        TcpSocket::from_std_stream(socket.into())
            .connect(SocketAddr::new(address, port))
            .await
    }
}
