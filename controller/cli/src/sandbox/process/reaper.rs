//! The node's children: started here, so that no exit is missed, and reaped here together with
//! orphans that PID 1 inherits.

use std::collections::HashMap;
use std::io;
use std::process::Child;
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Code(i32),
    Signal(Signal),
}

impl Exit {
    pub fn success(self) -> bool {
        self == Self::Code(0)
    }

    /// The exit code of a shell: 128 and the signal's number after a signal.
    pub fn code(self) -> u8 {
        match self {
            Self::Code(code) => code as u8,
            Self::Signal(signal) => (128 + signal as i32) as u8,
        }
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "{signal}"),
        }
    }
}

/// A child of the node.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    exit: oneshot::Receiver<Exit>,
    ended: Option<Exit>,
}

impl Process {
    /// Waits for its exit. Cancel-safe.
    pub async fn wait(&mut self) -> Exit {
        if let Some(exit) = self.ended {
            return exit;
        }
        // The sender is dropped only with the whole node.
        let exit = (&mut self.exit)
            .await
            .unwrap_or(Exit::Signal(Signal::SIGKILL));
        self.ended = Some(exit);
        exit
    }

    /// Sends a signal, unless the process has exited.
    pub fn signal(&mut self, signal: Signal) {
        if self.ended.is_none() && self.exit.is_empty() {
            let _ended = kill(self.pid, signal);
        }
    }

    /// Signals its whole session: all descendants that have not left it.
    pub fn signal_group(&mut self, signal: Signal) {
        let _none_left = nix::sys::signal::killpg(self.pid, signal);
    }
}

/// Dispatches the exit of each child to its waiter.
#[derive(Clone, Default)]
pub struct Reaper {
    waiting: Arc<Mutex<HashMap<Pid, oneshot::Sender<Exit>>>>,
}

impl Reaper {
    /// Starts a process with `spawn`, which may take a while and must be called on a thread that
    /// may block.
    pub fn spawn(&self, spawn: impl FnOnce() -> io::Result<Child>) -> io::Result<Process> {
        // Held during the start: if the child exits at once, `reap` waits until it is registered.
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let child = spawn()?;
        let pid = Pid::from_raw(child.id().cast_signed());
        let (sender, exit) = oneshot::channel();
        waiting.insert(pid, sender);
        Ok(Process {
            pid,
            exit,
            ended: None,
        })
    }

    /// Reaps children for the node's lifetime.
    pub async fn run(self) -> io::Result<()> {
        let mut children = signal(SignalKind::child())?;
        loop {
            self.reap();
            children.recv().await;
        }
    }

    fn reap(&self) {
        loop {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let (pid, exit) = match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, Exit::Code(code)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, Exit::Signal(signal)),
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
                Ok(_) | Err(_) => continue,
            };
            if let Some(sender) = waiting.remove(&pid) {
                let _nobody_waits = sender.send(exit);
            }
        }
    }
}
