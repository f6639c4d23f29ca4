//! What a meshed pod has beside its containers: the redirect rules and the sidecar. In: the pod and
//! its annotations. Out: the command lines of `naru-proxy`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};

use super::container::{Action, PROXY_UID, Probe};
use super::control_plane;
use super::mounts::PROXY;
use super::network::NODE_V4;
use super::pod::{Life, PROXY_ADMIN_PORT, SECRETS};
use super::probe::{Prober, Probes};
use super::stage::{Exec, Terminal, User};
use super::supervise::{Runnable, last_lines};

/// Marks the sockets of a sidecar that has no user of its own.
const PROXY_MARK: u32 = 0x6e61;
/// How long a sidecar may take to finish what is in flight after its pod's containers have ended.
const PROXY_GRACE: Duration = Duration::from_secs(5);

impl Life<'_> {
    /// The sidecar's program, as the node's own user, with arguments.
    pub(super) fn proxy_exec(&self, name: &str, arguments: Vec<String>) -> Exec {
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

    /// Puts the redirect rules in place.
    pub(super) async fn redirect(&self, prober: &Prober) -> anyhow::Result<()> {
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
        let init = Runnable {
            exec: self.proxy_exec("naru-init", arguments),
            probes: Probes::default(),
            grace: Duration::ZERO,
            log: self.log("naru-init"),
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

    /// The sidecar as it is kept running.
    pub(super) fn sidecar(&self, prober: &Prober) -> Runnable {
        let plan = &self.kubelet.plan;
        let log = self
            .annotation("naru.dev/log-level")
            .unwrap_or(&plan.proxy_log);
        let mut arguments: Vec<String> = vec![
            "run".to_owned(),
            format!("--controller={NODE_V4}:{}", control_plane::CONTROLLER_PORT),
            format!(
                "--controller-identity={}",
                control_plane::CONTROLLER_IDENTITY
            ),
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
                // Case and spaces mean nothing in a cluster either.
                let value = value.to_ascii_lowercase().replace(' ', "");
                arguments.push(format!("--{flag}={value}"));
            }
        }
        let mut exec = self.proxy_exec("naru-proxy", arguments);
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
            log: self.log("naru-proxy"),
            prober: prober.clone(),
            report: self.kubelet.report.clone(),
        }
    }
}
