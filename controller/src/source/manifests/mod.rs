//! Watches directories of manifests.

mod files;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use notify::{RecursiveMode, Watcher};
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;

use super::Event;
use files::Files;

/// How long there must be no further change before the files are read: files that are written
/// together are likely complete by then.
const QUIET: Duration = Duration::from_millis(2);
/// The longest delay of a read by continuous changes.
const MAX_WAIT: Duration = Duration::from_millis(50);
/// How often the files are checked without a notification: the kernel may drop some, and some file
/// systems send none.
const RESCAN: Duration = Duration::from_secs(2);
/// When to recheck a file that may have changed right after it was read.
const SETTLE: Duration = Duration::from_millis(25);

/// Watches directories for ever; sends every change, and once [`Event::Synced`]. An object of a
/// later directory replaces that of an earlier one with the same kind, namespace and name.
/// `problems` is called with the number of invalid files whenever it changes. Ends with `Ok` when
/// the receiver of the events is dropped, and with an error when a directory can't be read at the
/// start.
pub async fn manifests(
    directories: Vec<PathBuf>,
    events: mpsc::Sender<Event>,
    problems: impl Fn(usize),
) -> io::Result<()> {
    for directory in &directories {
        std::fs::read_dir(directory).map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("manifests in {}: {error}", directory.display()),
            )
        })?;
    }
    let heard = Arc::new(Notify::new());
    // Before the first scan, so that no change falls in between.
    let _watcher = watch(&directories, heard.clone());
    let mut files = Files::new(directories);
    let (mut synced, mut reported) = (false, None);
    loop {
        let scan;
        (files, scan) = tokio::task::spawn_blocking(move || {
            let scan = files.scan();
            (files, scan)
        })
        .await
        .map_err(io::Error::other)?;
        if reported != Some(scan.problems) {
            reported = Some(scan.problems);
            problems(scan.problems);
        }
        let first = (!synced).then_some(Event::Synced);
        synced = true;
        for event in scan.events.into_iter().chain(first) {
            if events.send(event).await.is_err() {
                return Ok(());
            }
        }
        let pause = if scan.unsettled { SETTLE } else { RESCAN };
        tokio::select! {
            () = events.closed() => return Ok(()),
            changed = timeout(pause, heard.notified()) => if changed.is_ok() {
                let quiet = async { while timeout(QUIET, heard.notified()).await.is_ok() {} };
                let _ = timeout(MAX_WAIT, quiet).await;
            }
        }
    }
}

/// Notifies `heard` of changes. Without notifications, rescans still find them.
fn watch(directories: &[PathBuf], heard: Arc<Notify>) -> Option<notify::RecommendedWatcher> {
    let tell = move |event: notify::Result<notify::Event>| {
        // Ignore our own reads.
        if !event.is_ok_and(|event| event.kind.is_access()) {
            heard.notify_one();
        }
    };
    let without = |error: notify::Error| {
        tracing::warn!(
            %error, every_seconds = RESCAN.as_secs(),
            "no notices of changed manifests, so they are looked at from time to time; a higher \
             fs.inotify.max_user_watches or max_user_instances may help"
        );
    };
    let mut watcher = notify::recommended_watcher(tell).map_err(without).ok()?;
    for directory in directories {
        if let Err(error) = watcher.watch(directory, RecursiveMode::Recursive) {
            without(error);
        }
    }
    Some(watcher)
}
