//! The process outside: it creates the PID namespace (and, for an ordinary user, the user
//! namespace) of all other processes, and stays to forward signals and the exit code.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context, anyhow, bail};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getegid, geteuid};

use super::stage::{self, Stage};
use crate::sandbox::plan::Plan;

/// A shell adds this to a signal's number for the exit code of a process that the signal has
/// terminated.
const SIGNALLED: i32 = 128;

const HELP: &str = "the sandbox needs root, or namespaces for ordinary users. Any one of these \
    helps:\n  \
    - run it as root (sudo)\n  \
    - Debian: sysctl -w kernel.unprivileged_userns_clone=1\n  \
    - Ubuntu 23.10 and later: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0\n  \
    - RHEL and others: sysctl -w user.max_user_namespaces=10000\n  \
    - in a container: start it with --privileged (or --cap-add SYS_ADMIN --cap-add NET_ADMIN \
    --security-opt seccomp=unconfined --security-opt systempaths=unconfined)";

/// Runs the node in namespaces of its own. Returns its exit code.
pub fn run(mut plan: Plan) -> anyhow::Result<u8> {
    // Block signals before the child starts: its SIGCHLD must not be missed.
    let mut signals = SigSet::empty();
    for signal in [
        Signal::SIGCHLD,
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGQUIT,
    ] {
        signals.add(signal);
    }
    signals.thread_block().context("blocking signals")?;

    if plan.root {
        match unshare(CloneFlags::CLONE_NEWPID) {
            Ok(()) => {}
            // Root without CAP_SYS_ADMIN, as in a container.
            Err(Errno::EPERM) => plan.root = false,
            Err(error) => return Err(error).context("making a PID namespace"),
        }
    }
    if !plan.root {
        user_namespace()?;
    }
    let mut node: Command = stage::command(&plan.naru, &Stage::Node(Box::new(plan.clone())));
    let node = node
        .stdin(Stdio::inherit())
        .spawn()
        .context("starting the node")?;
    let node = Pid::from_raw(node.id().cast_signed());
    loop {
        match signals.wait().context("waiting for signals")? {
            Signal::SIGCHLD => match waitpid(node, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(_, code)) => return Ok(code as u8),
                Ok(WaitStatus::Signaled(_, signal, _)) => {
                    return Ok((SIGNALLED + signal as i32) as u8);
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error).context("waiting for the node"),
            },
            signal => {
                // The node may have just exited, which SIGCHLD reports.
                let _ended = kill(node, signal);
            }
        }
    }
}

/// Enters a new user namespace as root, and creates the PID namespace in it.
fn user_namespace() -> anyhow::Result<()> {
    let (uid, gid) = (geteuid(), getegid());
    match unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWPID) {
        Ok(()) => {}
        Err(Errno::EPERM | Errno::ENOSPC | Errno::EUSERS | Errno::ENOSYS | Errno::EINVAL) => {
            bail!("this machine lets you make no user namespace; {HELP}");
        }
        Err(error) => return Err(error).context("making a user namespace"),
    }
    let map = |file: &str, content: String| {
        fs::write(format!("/proc/self/{file}"), content).map_err(|error| {
            anyhow!("writing /proc/self/{file} in a new user namespace: {error}; {HELP}")
        })
    };
    // The kernel requires this before an unprivileged group mapping.
    map("setgroups", "deny".to_owned())?;
    map("uid_map", format!("0 {uid} 1\n"))?;
    map("gid_map", format!("0 {gid} 1\n"))
}

/// A hint for when the kernel refuses an operation that a namespace's own root may do.
pub fn refused(root: bool) -> &'static str {
    if root {
        "the kernel refused: in a container, start it with --privileged"
    } else {
        HELP
    }
}
