//! Naru's files on a node: the plugin's program, and its entry in the configuration of the pods'
//! network. In: the directories. Out: the repairs made, or the obstacle.
//!
//! The runtime loads the first configuration by name, so the plugin is chained to that one. A
//! configuration of one plugin (`NAME.conf`) becomes a list (`NAME.conflist`), and is kept aside
//! (`NAME.conf.naru-cni`) until Naru is removed. Every file is replaced atomically. The program is
//! installed before the entry that needs it, and removed after it.

use std::fs::{self, File, Metadata, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use super::PLUGIN;
use super::chain::{self, ChainError};

/// Suffix of a configuration that is kept aside. The runtime ignores such files.
const ASIDE: &str = "naru-cni";
/// Suffix of an incomplete file.
const UNFINISHED: &str = "naru-tmp";
/// Configurations are a few kilobytes.
const MAX_CONFIGURATION: u64 = 1 << 20;
/// How long the runtime may take to notice a changed configuration, and to stop running the removed
/// program.
const NOTICED: Duration = Duration::from_secs(2);

/// A repair that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repaired {
    Program,
    /// The entry in this file.
    Configuration(PathBuf),
}

/// Why the plugin cannot be installed.
#[derive(Debug, Error)]
pub enum NodeError {
    #[error(
        "there is no network configuration in {0}: the cluster's own CNI plugin has not put one \
         there yet"
    )]
    NoConfiguration(PathBuf),
    #[error("the network configuration {0} {1}")]
    Configuration(PathBuf, ChainError),
    #[error(
        "cannot turn the network configuration {0} into a list: {1} exists and belongs to another \
         network"
    )]
    Taken(PathBuf, PathBuf),
    #[error("{0}: {1}")]
    File(PathBuf, io::Error),
}

fn at<T>(path: &Path, result: io::Result<T>) -> Result<T, NodeError> {
    result.map_err(|error| NodeError::File(path.to_owned(), error))
}

/// The directories of a node.
#[derive(Debug)]
pub struct Node {
    /// The program to install as the plugin: the running one.
    pub source: PathBuf,
    pub bin_dir: PathBuf,
    pub conf_dir: PathBuf,
    /// Metadata of the installed program, by which a change is noticed without reading the file.
    pub placed: Option<Stamp>,
}

/// Metadata that change when a file is written or replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    inode: u64,
    length: u64,
    changed: (i64, i64),
}

impl From<&Metadata> for Stamp {
    fn from(metadata: &Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            length: metadata.len(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl Node {
    /// Repairs the node's files. Usually there is nothing to repair.
    pub fn repair(&mut self) -> Result<Vec<Repaired>, NodeError> {
        let mut repaired = Vec::new();
        if self.place_program()? {
            repaired.push(Repaired::Program);
        }
        if let Some(file) = self.chain()? {
            repaired.push(Repaired::Configuration(file));
        }
        Ok(repaired)
    }

    fn program(&self) -> PathBuf {
        self.bin_dir.join(PLUGIN)
    }

    fn place_program(&mut self) -> Result<bool, NodeError> {
        let program = self.program();
        let stamp = |program: &Path| {
            fs::symlink_metadata(program)
                .ok()
                .map(|found| Stamp::from(&found))
        };
        if self.placed.is_some() && stamp(&program) == self.placed {
            return Ok(false);
        }
        let wanted = at(&self.source, fs::read(&self.source))?;
        // A previous agent has installed it.
        let is_there = fs::symlink_metadata(&program)
            .is_ok_and(|found| found.is_file() && found.mode() & 0o777 == 0o755)
            && fs::read(&program).is_ok_and(|found| found == wanted);
        if !is_there {
            write_whole(&program, &wanted, 0o755)?;
        }
        self.placed = stamp(&program);
        Ok(!is_there)
    }

    /// Chains the plugin, and returns the file that was changed.
    fn chain(&self) -> Result<Option<PathBuf>, NodeError> {
        let path = self.configurations()?.into_iter().next();
        let path = path.ok_or_else(|| NodeError::NoConfiguration(self.conf_dir.clone()))?;
        let (text, mode) = read(&path)?;
        let wrong = |error| NodeError::Configuration(path.clone(), error);
        if is_list(&path) {
            let Some(list) = chain::chained(&text).map_err(wrong)? else {
                return Ok(None);
            };
            write_whole(&path, list.as_bytes(), mode)?;
            return Ok(Some(path));
        }
        let list = chain::list_of(&text).map_err(wrong)?;
        let list_path = path.with_extension("conflist");
        // A list made by an agent from the earlier content of the file may be replaced.
        if list_path.exists() && !aside(&path).exists() {
            return Err(NodeError::Taken(path, list_path));
        }
        write_whole(&list_path, list.as_bytes(), mode)?;
        at(&path, fs::rename(&path, aside(&path)))?;
        Ok(Some(list_path))
    }

    /// The configurations that the runtime would read, in its order.
    fn configurations(&self) -> Result<Vec<PathBuf>, NodeError> {
        let entries = at(&self.conf_dir, fs::read_dir(&self.conf_dir))?;
        let mut paths = Vec::new();
        for entry in entries {
            let path = at(&self.conf_dir, entry)?.path();
            let extension = path.extension().and_then(|extension| extension.to_str());
            if matches!(extension, Some("conf" | "conflist" | "json")) && path.is_file() {
                paths.push(path);
            }
        }
        paths.sort();
        Ok(paths)
    }

    /// Removes all of Naru's files from the node. Continues after an error, and returns the first.
    pub fn remove(&self) -> Result<(), NodeError> {
        let unchained = self.unchain();
        let program = self.program();
        if program.exists() {
            #[expect(clippy::disallowed_methods, reason = "a program's end: no task waits")]
            std::thread::sleep(NOTICED);
        }
        let gone = match fs::remove_file(&program) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(NodeError::File(program, error))
            }
            _ => Ok(()),
        };
        unchained.and(gone)
    }

    fn unchain(&self) -> Result<(), NodeError> {
        let mut first = Ok(());
        for path in self.configurations()?.iter().filter(|path| is_list(path)) {
            let done = unchain_file(path);
            first = first.and(done);
        }
        // Restores files that were kept aside and whose list was removed by another program.
        for entry in at(&self.conf_dir, fs::read_dir(&self.conf_dir))?.flatten() {
            if entry
                .path()
                .extension()
                .is_some_and(|extension| extension == ASIDE)
            {
                first = first.and(at(&entry.path(), fs::remove_file(entry.path())));
            }
        }
        first
    }
}

fn unchain_file(path: &Path) -> Result<(), NodeError> {
    let (text, mode) = read(path)?;
    let Some(list) = chain::unchained(&text)
        .map_err(|error| NodeError::Configuration(path.to_owned(), error))?
    else {
        return Ok(());
    };
    for single in ["conf", "json"].map(|extension| path.with_extension(extension)) {
        if aside(&single).exists() {
            at(&single, fs::rename(aside(&single), &single))?;
            return at(path, fs::remove_file(path));
        }
    }
    write_whole(path, list.as_bytes(), mode)
}

fn is_list(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension == "conflist")
}

fn aside(path: &Path) -> PathBuf {
    with_suffix(path, ASIDE)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

/// A configuration and its mode.
fn read(path: &Path) -> Result<(String, u32), NodeError> {
    let metadata = at(path, fs::metadata(path))?;
    if metadata.len() > MAX_CONFIGURATION {
        let error = io::Error::other(format!("is longer than {MAX_CONFIGURATION} bytes"));
        return Err(NodeError::File(path.to_owned(), error));
    }
    let text = at(path, fs::read_to_string(path))?;
    Ok((text, metadata.mode() & 0o777))
}

/// Writes a temporary file and renames it, so that readers never see a partial file.
fn write_whole(path: &Path, content: &[u8], mode: u32) -> Result<(), NodeError> {
    let unfinished = with_suffix(path, UNFINISHED);
    let written = (|| {
        let mut file = File::create(&unfinished)?;
        file.write_all(content)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&unfinished, path)
    })();
    if written.is_err() {
        let _is_not_there = fs::remove_file(&unfinished);
    }
    at(path, written)
}

#[cfg(test)]
mod tests;
