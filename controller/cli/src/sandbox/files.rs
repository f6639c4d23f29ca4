//! Files that the sandbox's processes share, and their logs.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// Objects that the node writes for the controller, in addition to the manifests.
pub const OBJECTS: &str = "/run/naru/objects";
/// One directory per pod.
pub const PODS: &str = "/run/naru/pods";
pub const LOGS: &str = "/run/naru/logs";
/// The controller's own directory.
pub const STATE: &str = "/run/naru/controller";
/// The public key that tokens are verified with.
pub const PUBLIC_KEY: &str = "/run/naru/token.pub";

/// How many of a container's last log lines are shown after a failure.
const SHOWN_LINES: usize = 8;
/// How many bytes at the end of a log are searched for these lines.
const TAIL: u64 = 4 * 1024;

/// Creates the directories, on the sandbox's own tmpfs.
pub fn prepare(public_key: &str) -> io::Result<()> {
    for directory in [OBJECTS, PODS, LOGS, STATE] {
        fs::create_dir_all(directory)?;
    }
    fs::write(PUBLIC_KEY, public_key)
}

/// The log file of a process.
pub fn log(name: &str) -> PathBuf {
    Path::new(LOGS).join(format!("{name}.log"))
}

/// Copies logs and objects to a directory that outlives the sandbox.
pub fn keep(directory: &Path) -> anyhow::Result<()> {
    for (from, to) in [(LOGS, "logs"), (OBJECTS, "objects")] {
        let to = directory.join(to);
        fs::create_dir_all(&to).with_context(|| format!("making {}", to.display()))?;
        for entry in fs::read_dir(from)?.flatten() {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// Opens a log for appending, so that it may be truncated while it is written.
pub fn open_log(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

/// The last lines of a log.
pub fn last_lines(log: &Path) -> Vec<String> {
    use std::io::{Read, Seek, SeekFrom};
    let read = || -> io::Result<String> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
        let mut bytes = Vec::new();
        file.take(TAIL).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<_> = text.lines().map(str::to_owned).collect();
    lines[lines.len().saturating_sub(SHOWN_LINES)..].to_vec()
}
