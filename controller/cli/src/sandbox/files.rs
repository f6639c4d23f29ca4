//! Where the sandbox's processes leave things for each other, and their logs.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// What the node tells the controller, besides the manifests.
pub const OBJECTS: &str = "/run/naru/objects";
/// A directory for each pod.
pub const PODS: &str = "/run/naru/pods";
pub const LOGS: &str = "/run/naru/logs";
/// The controller's own.
pub const STATE: &str = "/run/naru/controller";
/// What tokens are checked with.
pub const PUBLIC_KEY: &str = "/run/naru/token.pub";

/// How many of a container's last lines are shown when it ended badly.
const SHOWN_LINES: usize = 8;
/// How much of the end of a log is looked at for them, in bytes.
const TAIL: u64 = 4 * 1024;

/// Makes the directories. The tmpfs that they are in is the sandbox's own.
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

/// Copies logs and objects to where a person can look at them later.
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

/// Opens a log so that it may be cut while it is written.
pub fn open_log(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

/// The end of a log.
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
