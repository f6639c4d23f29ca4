//! The mesh's part of a pod: the redirect rules and the sidecar. In: the pod and its annotations.
//! Out: the command lines of `naru-proxy`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};

use super::files;
use super::kubelet::Kubelet;
use super::probe::{Prober, Probes};
use super::supervise::Runnable;
use crate::sandbox::controller::{CONTROLLER_IDENTITY, CONTROLLER_PORT};
use crate::sandbox::files::last_lines;
use crate::sandbox::network::NODE_V4;
use crate::sandbox::objects::{Action, PROXY_UID, Pod, Probe};
use crate::sandbox::process::mounts::{PROXY, SECRETS};
use crate::sandbox::process::{Exec, Terminal, User};

/// The sidecar's admin port.
pub const PROXY_ADMIN_PORT: u16 = 15_020;

/// Marks the sockets of a sidecar that shares its user.
const PROXY_MARK: u32 = 0x6e61;
/// How long a sidecar may take to finish requests in flight after its pod's containers have ended.
const PROXY_GRACE: Duration = Duration::from_secs(5);

/// The sidecar of a pod.
pub struct Sidecar<'a> {
    pub kubelet: &'a Kubelet,
    pub pod: &'a Pod,
}

impl Sidecar<'_> {
    /// Runs the sidecar's program as the node's own user.
    pub fn exec(&self, name: &str, arguments: Vec<String>) -> Exec {
        let mut argv = vec![PROXY.to_owned()];
        argv.extend(arguments);
        Exec {
            name: format!("{}/{name}", self.pod.full_name()),
            argv,
            env: Vec::new(),
            directory: PathBuf::from("/"),
            or_root: false,
            user: User::Same,
            no_new_privileges: false,
            terminal: Terminal::Detached,
        }
    }

    fn annotation(&self, name: &str) -> Option<&str> {
        self.pod.template.annotations.get(name).map(String::as_str)
    }

    /// Sets the redirect rules.
    pub async fn redirect(&self, prober: &Prober) -> anyhow::Result<()> {
        let mut arguments = vec!["init".to_owned()];
        if self.kubelet.plan.root {
            arguments.push(format!("--proxy-uid={PROXY_UID}"));
        } else {
            arguments.push(format!("--proxy-mark={PROXY_MARK}"));
        }
        for list in [
            "skip-inbound-ports",
            "skip-outbound-ports",
            "skip-outbound-cidrs",
        ] {
            if let Some(value) = self.annotation(&format!("naru.dev/{list}")) {
                arguments.push(format!("--{list}={value}"));
            }
        }
        let class_e = self.annotation("naru.dev/class-e-in-use");
        if class_e.is_some_and(|value| value.trim().eq_ignore_ascii_case("true")) {
            arguments.push("--class-e-in-use".to_owned());
        }
        let init = Runnable {
            exec: self.exec("naru-init", arguments),
            probes: Probes::default(),
            grace: Duration::ZERO,
            log: files::log(self.pod, "naru-init"),
            prober: prober.clone(),
            report: self.kubelet.report.clone(),
        };
        let exit = init.run_once().await.context("starting naru-proxy init")?;
        if !exit.success() {
            bail!(
                "naru-proxy init: {exit}: {}",
                last_lines(&init.log).join("\n")
            );
        }
        Ok(())
    }

    /// The sidecar as a supervised container.
    pub fn runnable(&self, prober: &Prober) -> Runnable {
        let plan = &self.kubelet.plan;
        let log = self
            .annotation("naru.dev/log-level")
            .unwrap_or(&plan.proxy_log);
        let mut arguments: Vec<String> = vec![
            "run".to_owned(),
            format!("--controller={NODE_V4}:{}", CONTROLLER_PORT),
            format!("--controller-identity={}", CONTROLLER_IDENTITY),
            format!("--trust-anchors={SECRETS}/trust-anchors.pem"),
            format!("--token={SECRETS}/token"),
            format!("--namespace={}", self.pod.namespace),
            format!("--pod={}", self.pod.name),
            format!("--log={log}"),
        ];
        if !plan.root {
            arguments.push(format!("--socket-mark={PROXY_MARK}"));
        }
        if plan.access_log {
            arguments.push("--access-log".to_owned());
        }
        for flag in ["client-address", "forwarded-headers", "proxy-protocol"] {
            if let Some(value) = self.annotation(&format!("naru.dev/{flag}")) {
                // Annotation values ignore case and spaces, as in a cluster.
                let value = value.to_ascii_lowercase().replace(' ', "");
                arguments.push(format!("--{flag}={value}"));
            }
        }
        let mut exec = self.exec("naru-proxy", arguments);
        if plan.root {
            exec.user = User::Switch {
                uid: PROXY_UID,
                gid: PROXY_UID,
            };
        }
        let ready = Probe {
            action: Action::Http {
                port: PROXY_ADMIN_PORT,
                path: "/ready".to_owned(),
                headers: Vec::new(),
            },
            delay: Duration::ZERO,
            period: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            failures: 3,
            successes: 1,
        };
        Runnable {
            exec,
            probes: Probes {
                readiness: Some(ready),
                ..Probes::default()
            },
            grace: PROXY_GRACE,
            log: files::log(self.pod, "naru-proxy"),
            prober: prober.clone(),
            report: self.kubelet.report.clone(),
        }
    }
}
