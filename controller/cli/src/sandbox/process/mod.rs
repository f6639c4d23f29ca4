//! The sandbox's processes. In: a [`Stage`] for each. Out: this program again, in the stage's
//! namespaces and as its user.
//!
//! # Floors
//!
//! ```text
//! isolate            the process outside the namespaces
//! stage              the argument that selects a process's role
//! holder exec        the roles of a pod's processes
//! mounts             the machine's files that a pod sees
//! namespaces reaper  starts processes in namespaces; collects ended ones
//! ```

pub mod exec;
pub mod holder;
pub mod isolate;
pub mod mounts;
mod namespaces;
mod reaper;
mod stage;

use std::io;

pub use exec::{Exec, Terminal, User};
pub use namespaces::Namespaces;
pub use reaper::{Exit, Process, Reaper};
pub use stage::{Stage, StageArgs, command};

/// Runs blocking work on a thread pool.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)?
}
