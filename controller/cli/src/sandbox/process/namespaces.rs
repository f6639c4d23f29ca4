//! A pod's namespaces: made by a thread that enters them, starts the pod's first process there, and
//! ends; entered again in the same way for each process that follows.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::sync::Arc;

use nix::sched::{CloneFlags, setns, unshare};

/// Handles that keep a pod's namespaces open, and lead into them. The PID namespace lives only as
/// long as the pod's first process.
#[derive(Clone, Debug)]
pub struct Namespaces {
    open: Arc<Open>,
}

#[derive(Debug)]
struct Open {
    network: File,
    mount: File,
    uts: File,
    ipc: File,
    pid: File,
}

impl Namespaces {
    /// Makes namespaces, and in them a process of `command`, PID 1 of its PID namespace. Blocks.
    pub fn create(mut command: Command) -> io::Result<(Self, Child)> {
        let mut child = on_a_thread(move || {
            unshare(
                CloneFlags::CLONE_NEWNET
                    | CloneFlags::CLONE_NEWNS
                    | CloneFlags::CLONE_NEWUTS
                    | CloneFlags::CLONE_NEWIPC
                    | CloneFlags::CLONE_NEWPID,
            )?;
            command.spawn()
        })?;
        // Not on that thread: the child mounts a /proc of its own there.
        let of_child = |kind: &str| File::open(format!("/proc/{}/ns/{kind}", child.id()));
        let open = || {
            Ok(Open {
                network: of_child("net")?,
                mount: of_child("mnt")?,
                uts: of_child("uts")?,
                ipc: of_child("ipc")?,
                pid: of_child("pid")?,
            })
        };
        match open() {
            Ok(open) => {
                let open = Arc::new(open);
                Ok((Self { open }, child))
            }
            Err(error) => {
                let _ended_by_itself = child.kill();
                Err(error)
            }
        }
    }

    /// Starts a process in all of them. Blocks.
    pub fn spawn(&self, mut command: Command) -> io::Result<Child> {
        let open = self.open.clone();
        on_a_thread(move || {
            // A mount namespace can be entered only by a thread whose root and directory are its
            // own.
            unshare(CloneFlags::CLONE_FS)?;
            setns(&open.network, CloneFlags::CLONE_NEWNET)?;
            setns(&open.uts, CloneFlags::CLONE_NEWUTS)?;
            setns(&open.ipc, CloneFlags::CLONE_NEWIPC)?;
            setns(&open.pid, CloneFlags::CLONE_NEWPID)?;
            setns(&open.mount, CloneFlags::CLONE_NEWNS)?;
            command.spawn()
        })
    }

    /// Does something in the network namespace, as opening a socket. Blocks.
    pub fn in_network<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let open = self.open.clone();
        on_a_thread(move || {
            setns(&open.network, CloneFlags::CLONE_NEWNET)?;
            work()
        })
    }

    /// A handle of the network namespace.
    pub fn network(&self) -> io::Result<OwnedFd> {
        Ok(self.open.network.try_clone()?.into())
    }
}

/// A thread's namespaces go with it.
fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    std::thread::Builder::new()
        .name("namespaces".to_owned())
        .spawn(work)?
        .join()
        .map_err(|_| io::Error::other("the thread that enters namespaces panicked"))?
}
