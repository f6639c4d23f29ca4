//! The steps of a pod's program between `fork` and `exec`: it enters the remaining namespaces,
//! switches the user, and executes the program.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Gid, Uid, setgid, setgroups, setpgid, setsid, setuid, tcsetpgrp};
use serde::{Deserialize, Serialize};

/// A shell's exit code for a program that exists and cannot be run.
const CANNOT_RUN: u8 = 126;
/// A shell's exit code for a program that does not exist.
const NOT_FOUND: u8 = 127;

/// A program to execute.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Exec {
    pub name: String,
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
    pub directory: PathBuf,
    /// Use the root directory if the user cannot enter this one.
    pub or_root: bool,
    pub user: User,
    pub no_new_privileges: bool,
    pub terminal: Terminal,
}

/// The user of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum User {
    /// The node's user.
    Same,
    /// Another user of the machine.
    Switch { uid: u32, gid: u32 },
    /// The same user, mapped to these numbers in a user namespace of its own.
    Mapped { uid: u32, gid: u32 },
}

/// The program's relation to the terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Terminal {
    /// No controlling terminal.
    Detached,
    /// In the foreground process group, which gets the terminal's signals.
    Foreground,
}

/// Executes the program in this process. Returns only on failure.
pub fn become_program(exec: &Exec) -> ExitCode {
    let error = match prepare(exec) {
        Ok(mut command) => command.exec(),
        Err(error) => {
            eprintln!("naru sandbox: {}: {error:#}", exec.name);
            return ExitCode::from(CANNOT_RUN);
        }
    };
    let program = exec.argv.first().map_or("", String::as_str);
    eprintln!("naru sandbox: {}: cannot run {program}: {error}", exec.name);
    ExitCode::from(match error.kind() {
        std::io::ErrorKind::NotFound => NOT_FOUND,
        _ => CANNOT_RUN,
    })
}

fn prepare(exec: &Exec) -> anyhow::Result<Command> {
    let Some((program, arguments)) = exec.argv.split_first() else {
        bail!("there is no command");
    };
    match exec.terminal {
        Terminal::Detached => {
            setsid().context("setsid")?;
        }
        Terminal::Foreground => foreground()?,
    }
    match exec.user {
        User::Same => {}
        User::Switch { uid, gid } => {
            setgroups(&[]).context("setgroups")?;
            setgid(Gid::from_raw(gid)).with_context(|| format!("setgid {gid}"))?;
            setuid(Uid::from_raw(uid)).with_context(|| format!("setuid {uid}"))?;
        }
        User::Mapped { uid, gid } => {
            unshare(CloneFlags::CLONE_NEWUSER).context("making a user namespace")?;
            fs::write("/proc/self/uid_map", format!("{uid} 0 1\n")).context("uid_map")?;
            fs::write("/proc/self/gid_map", format!("{gid} 0 1\n")).context("gid_map")?;
            setgid(Gid::from_raw(gid)).with_context(|| format!("setgid {gid}"))?;
            setuid(Uid::from_raw(uid)).with_context(|| format!("setuid {uid}"))?;
        }
    }
    if exec.no_new_privileges {
        nix::sys::prctl::set_no_new_privs().context("no_new_privs")?;
    }
    let entered = std::env::set_current_dir(&exec.directory);
    let entered = match exec.or_root && entered.is_err() {
        true => std::env::set_current_dir("/"),
        false => entered,
    };
    entered.with_context(|| format!("the working directory {}", exec.directory.display()))?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(exec.env.iter().map(|(name, value)| (name, value)));
    Ok(command)
}

/// Moves this process to the foreground of the terminal of standard input, so that it gets Ctrl-C.
fn foreground() -> anyhow::Result<()> {
    let this = nix::unistd::getpid();
    setpgid(this, this).context("setpgid")?;
    // The kernel stops a background process (SIGTTOU) for the next call.
    let mut stop = SigSet::empty();
    stop.add(Signal::SIGTTOU);
    stop.thread_block()?;
    tcsetpgrp(std::io::stdin(), this).context("taking the terminal")?;
    stop.thread_unblock()?;
    Ok(())
}
