//! The sandbox's processes. In: a [`Stage`] for each. Out: this program again, in the stage's
//! namespaces and as its user.
//!
//! # Floors
//!
//! ```text
//! isolate            the process outside
//! stage              the argument that says what a process is
//! holder exec        what a pod's processes do
//! mounts             what a pod sees of the machine's files
//! namespaces reaper  where processes are started, and where they are buried
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
