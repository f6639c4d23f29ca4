//! Work in another network namespace, on a thread of its own, which ends with the work.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sched::{CloneFlags, setns};

use crate::node::redirect::{RedirectError, RedirectRules};

/// The network namespace of the reading thread, in the kernel's file system.
const OWN: &str = "/proc/thread-self/ns/net";

/// A network namespace, held open.
#[derive(Debug)]
pub struct Namespace {
    file: File,
    /// Device and inode, which identify the namespace.
    pub id: (u64, u64),
}

impl Namespace {
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        Ok(Self {
            id: (metadata.dev(), metadata.ino()),
            file,
        })
    }

    /// The namespace of the calling thread.
    pub fn own() -> io::Result<Self> {
        Self::open(Path::new(OWN))
    }

    /// Moves the calling thread into the namespace.
    pub fn enter(&self) -> io::Result<()> {
        Ok(setns(&self.file, CloneFlags::CLONE_NEWNET)?)
    }

    /// Runs `work` on a thread that has entered the namespace. Blocks.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter()?;
                work()
            });
            thread.join().unwrap_or_else(|_| {
                Err(io::Error::other(
                    "the thread that entered a namespace panicked",
                ))
            })
        })
    }
}

/// An operation on the rules of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Install the rules, replacing any present.
    Install,
    /// Check whether exactly these rules are in force.
    Check,
    /// Install the rules if there are none. Present rules stay unchanged.
    Add,
}

/// Why the operation failed.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    #[error("entering the pod's network namespace: {0}")]
    Enter(#[from] io::Error),
    #[error("{}", chain(.0))]
    Rules(#[from] RedirectError),
    #[error("the kernel did not answer within {} s", TIMEOUT.as_secs())]
    Timeout,
}

/// An error with its causes.
fn chain(error: &RedirectError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

/// Timeout of the kernel. It takes milliseconds; the container runtime waits for minutes.
const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// Performs `work` on the rules of the pod with this network namespace. Blocks.
pub fn redirect(namespace: &Namespace, work: Work, rules: &RedirectRules) -> Result<(), WorkError> {
    namespace.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        Ok(runtime.block_on(async {
            let done = async {
                match work {
                    Work::Install => crate::node::redirect::install(rules).await,
                    Work::Check => crate::node::redirect::check(rules).await,
                    Work::Add => match crate::node::redirect::check(rules).await {
                        Err(RedirectError::Absent) => crate::node::redirect::install(rules).await,
                        there => there,
                    },
                }
            };
            match tokio::time::timeout(TIMEOUT, done).await {
                Ok(done) => Ok(done?),
                Err(_) => Err(WorkError::Timeout),
            }
        }))
    })?
}
