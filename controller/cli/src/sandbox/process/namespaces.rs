//! A pod's namespaces. A short-lived thread enters them and starts the pod's first process there;
//! later processes are started the same way.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::sync::Arc;

use nix::sched::{CloneFlags, setns, unshare};

/// Handles that keep a pod's namespaces open and let threads enter them. The PID namespace lives
/// only as long as the pod's first process.
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
    /// Creates namespaces, and starts `command` in them as PID 1 of its PID namespace. Blocks.
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
        // Read the child's links from this thread: the child mounts a /proc of its own.
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
            // The kernel lets a thread enter a mount namespace only if it shares its root and
            // directory with no other thread.
            unshare(CloneFlags::CLONE_FS)?;
            setns(&open.network, CloneFlags::CLONE_NEWNET)?;
            setns(&open.uts, CloneFlags::CLONE_NEWUTS)?;
            setns(&open.ipc, CloneFlags::CLONE_NEWIPC)?;
            setns(&open.pid, CloneFlags::CLONE_NEWPID)?;
            setns(&open.mount, CloneFlags::CLONE_NEWNS)?;
            command.spawn()
        })
    }

    /// Runs a function in the network namespace, for example to open a socket. Blocks.
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

/// Runs a function on a thread of its own, whose namespaces end with it.
fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    std::thread::Builder::new()
        .name("namespaces".to_owned())
        .spawn(work)?
        .join()
        .map_err(|_| io::Error::other("the thread that enters namespaces panicked"))?
}
