//! The controller's process. In: the plan. Out: a controller that is kept running, and the trust
//! anchors that it has written.

mod log;

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::files::{self, OBJECTS, PUBLIC_KEY, STATE, last_lines, open_log};
use super::plan::{Mtls, Plan};
use super::process::{Process, Reaper, blocking};
use super::report::Report;
use super::token;
use crate::quiet_http;

pub use log::ControllerLog;

pub const CONTROLLER_PORT: u16 = 15_010;
const ADMIN_PORT: u16 = 15_014;
pub const CONTROLLER_IDENTITY: &str = "spiffe://cluster.local/ns/naru-system/sa/naru-controller";

/// How long the controller may take to become ready: a debug build on a busy machine needs seconds.
const START: Duration = Duration::from_secs(60);
const ASK_AGAIN: Duration = Duration::from_millis(20);
/// How often the trust anchors are read: they change once in months.
const ANCHORS_PERIOD: Duration = Duration::from_secs(5);

/// Starts the controller, waits until it is ready, and keeps it running. From then on `sender` has
/// its trust anchors.
pub async fn start(
    plan: Arc<Plan>,
    reaper: Reaper,
    report: Report,
    sender: watch::Sender<Arc<Vec<u8>>>,
) -> anyhow::Result<()> {
    let mut process = spawn(&plan, &reaper)
        .await
        .with_context(|| format!("starting {}", plan.controller.display()))?;
    let ready = async {
        loop {
            if let Some(anchors) = anchors()
                && is_ready().await
            {
                break anchors;
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    };
    let log = files::log("naru-controller");
    let found = tokio::select! {
        ready = tokio::time::timeout(START, ready) => ready.map_err(|_| {
            format!("it was not ready within {} s", START.as_secs())
        }),
        exit = process.wait() => Err(format!("it ended ({exit})")),
    };
    let found = match found {
        Ok(found) => found,
        Err(problem) => bail!(
            "naru-controller: {problem}:\n{}",
            last_lines(&log).join("\n")
        ),
    };
    sender.send_replace(Arc::new(found));
    tokio::spawn(async move {
        loop {
            let exit = process.wait().await;
            let pause = Duration::from_secs(plan.controller_pause);
            report.trouble(
                "naru-controller",
                &format!("ended ({exit}); again in {} s", pause.as_secs()),
                &last_lines(&log),
            );
            tokio::time::sleep(pause).await;
            match spawn(&plan, &reaper).await {
                Ok(again) => process = again,
                Err(error) => {
                    report.line(&format!("naru-controller cannot be started: {error}"));
                    return;
                }
            }
        }
    });
    tokio::spawn(async move {
        while !sender.is_closed() {
            tokio::time::sleep(ANCHORS_PERIOD).await;
            if let Some(found) = anchors() {
                sender.send_if_modified(|held| {
                    let changed = **held != found;
                    if changed {
                        *held = Arc::new(found);
                    }
                    changed
                });
            }
        }
    });
    Ok(())
}

async fn spawn(plan: &Plan, reaper: &Reaper) -> io::Result<Process> {
    let log = open_log(&files::log("naru-controller"))?;
    let mut command = Command::new(&plan.controller);
    command
        .arg("run")
        .arg("--manifests")
        .arg(&plan.manifests)
        .args(["--manifests", OBJECTS, "--state-dir", STATE])
        .arg(format!("--listen=0.0.0.0:{CONTROLLER_PORT}"))
        .arg(format!("--admin=0.0.0.0:{ADMIN_PORT}"))
        .args(["--trust-domain", "cluster.local"])
        .args(["--token-public-key", PUBLIC_KEY])
        .args(["--token-issuer", token::ISSUER])
        .args(["--log", &plan.controller_log])
        .args([
            "--mtls",
            match plan.mtls {
                Mtls::Permissive => "permissive",
                Mtls::Strict => "strict",
            },
        ])
        .env_clear()
        .stdin(std::process::Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    // Ctrl-C on the terminal goes to the node only, which shuts everything down in order.
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let reaper = reaper.clone();
    blocking(move || reaper.spawn(|| command.spawn())).await
}

async fn is_ready() -> bool {
    let Ok(stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, ADMIN_PORT)).await else {
        return false;
    };
    quiet_http::get(stream, "localhost", "/ready", &[], Duration::from_secs(1))
        .await
        .is_ok_and(|answer| answer.status == 200)
}

fn anchors() -> Option<Vec<u8>> {
    fs::read(Path::new(STATE).join("trust-anchors.pem"))
        .ok()
        .filter(|pem| !pem.is_empty())
}
