//! The manifests in some directories, read again whenever they change.
//!
//! ```text
//! files ─▶ last good objects of each file ─▶ merged by kind, namespace, name
//!       ─▶ difference to before ─▶ events
//! ```

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::source::objects::{Object, ObjectKey};
use crate::source::parse::problem::Problem;
use crate::source::{Event, parse};

/// The largest manifest that is read, in bytes.
const MAX_MANIFEST_BYTES: u64 = 16 * 1024 * 1024;
/// Maximum depth of subdirectories. It also stops symbolic links that point upwards.
const MAX_DEPTH: usize = 8;
/// How long a file's modification time may stay the same over another write: two ticks of the
/// slowest kernel clock (100 Hz).
const CLOCK_TICK: Duration = Duration::from_millis(20);
/// How long an empty file counts as being written.
const BEING_WRITTEN: Duration = Duration::from_millis(500);

/// By directory (the later wins) and path.
type FileId = (usize, PathBuf);

/// The state of the directories.
pub struct Files {
    directories: Vec<PathBuf>,
    files: BTreeMap<FileId, File>,
    objects: HashMap<ObjectKey, Arc<Object>>,
}

/// The result of a scan.
pub struct Scan {
    pub events: Vec<Event>,
    /// The number of invalid files.
    pub problems: usize,
    /// A file may have changed right after it was read: scan again soon.
    pub unsettled: bool,
}

struct File {
    stamp: Option<Stamp>,
    /// The objects of its last valid version.
    objects: Vec<Arc<Object>>,
    problems: Vec<Problem>,
}

/// Changes when the file does.
#[derive(Clone, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    length: u64,
    modified: SystemTime,
    changed: (i64, i64),
}

impl Files {
    pub fn new(directories: Vec<PathBuf>) -> Self {
        Self {
            directories,
            files: BTreeMap::new(),
            objects: HashMap::new(),
        }
    }

    /// Reads changed files. A directory that can't be listed keeps its objects.
    pub fn scan(&mut self) -> Scan {
        let mut unsettled = false;
        for (index, directory) in self.directories.iter().enumerate() {
            let mut found = HashSet::new();
            let listed = walk(directory, MAX_DEPTH, &mut |path, metadata| {
                let id = (index, path);
                unsettled |= refresh(&mut self.files, &id, &metadata);
                found.insert(id.1);
            });
            match listed {
                Ok(()) => self.files.retain(|(other, path), file| {
                    let stays = *other != index || found.contains(path);
                    if !stays {
                        let (file, objects) = (path.display(), file.objects.len());
                        tracing::info!(%file, objects, "manifest is gone");
                    }
                    stays
                }),
                Err(error) => tracing::warn!(
                    directory = %directory.display(), %error,
                    "manifests can't be listed; those known stay in force: check that the \
                     directory is there and may be read"
                ),
            }
        }
        Scan {
            events: self.difference(),
            problems: (self.files.values())
                .filter(|file| !file.problems.is_empty())
                .count(),
            unsettled,
        }
    }

    /// Merges the files' objects and returns the differences from the last scan.
    fn difference(&mut self) -> Vec<Event> {
        let mut merged: HashMap<ObjectKey, Arc<Object>> =
            HashMap::with_capacity(self.objects.len());
        for object in self.files.values().flat_map(|file| &file.objects) {
            merged.insert(object.key(), object.clone());
        }
        let mut deleted: Vec<&ObjectKey> = (self.objects.keys())
            .filter(|key| !merged.contains_key(key))
            .collect();
        let mut applied: Vec<(&ObjectKey, &Arc<Object>)> = (merged.iter())
            .filter(|(key, object)| match self.objects.get(key) {
                Some(before) => !Arc::ptr_eq(before, object) && before != *object,
                None => true,
            })
            .collect();
        // In order of kind: a pod comes before the endpoint that refers to it.
        deleted.sort_by(|a, b| b.cmp(a));
        applied.sort_by_key(|(key, _)| *key);
        let events = (applied.into_iter())
            .map(|(_, object)| Event::Apply(Object::clone(object)))
            .chain(deleted.into_iter().map(|key| Event::Delete(key.clone())))
            .collect();
        self.objects = merged;
        events
    }
}

/// Reads the file if it has changed. True: it may change again without a new modification time.
fn refresh(files: &mut BTreeMap<FileId, File>, id: &FileId, metadata: &fs::Metadata) -> bool {
    let path = &id.1;
    let stamp = Stamp {
        inode: metadata.ino(),
        length: metadata.len(),
        modified: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    };
    let before = files.get(id);
    if before.is_some_and(|file| file.stamp.as_ref() == Some(&stamp)) {
        return false;
    }
    let age = (SystemTime::now().duration_since(stamp.modified)).unwrap_or_default();
    let had_objects = before.is_some_and(|file| !file.objects.is_empty());
    if stamp.length == 0 && had_objects && age < BEING_WRITTEN {
        return true;
    }
    let settled = age > CLOCK_TICK;
    let file = files.entry(id.clone()).or_insert(File {
        stamp: None,
        objects: Vec::new(),
        problems: Vec::new(),
    });
    let json = path.extension().is_some_and(|e| e == "json");
    let found = match read(path) {
        Ok(text) => parse::read(&text, json),
        Err(error) => parse::Found {
            problems: vec![whole(error.to_string())],
            ..parse::Found::default()
        },
    };
    let usable = found.problems.is_empty();
    let problems = [found.problems, found.ignored].concat();
    if problems != file.problems {
        for problem in &problems {
            let then = match usable {
                true => "The rest of the object is in force",
                false => "What the file said before stays in force until it is right",
            };
            tracing::error!(
                file = %path.display(), line = problem.line, object = problem.object,
                field = problem.field, last_good_objects = file.objects.len(),
                "manifest {}, {problem}. {then}",
                path.display(),
            );
        }
        if problems.is_empty() {
            tracing::info!(file = %path.display(), "manifest is right again");
        }
    }
    if usable {
        file.objects = found.objects.into_iter().map(Arc::new).collect();
    }
    file.problems = problems;
    file.stamp = settled.then_some(stamp);
    !settled
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?
        .take(MAX_MANIFEST_BYTES + 1)
        .read_to_string(&mut text)?;
    if text.len() as u64 > MAX_MANIFEST_BYTES {
        return Err(io::Error::other(format!(
            "it is over {MAX_MANIFEST_BYTES} bytes: split it"
        )));
    }
    Ok(text)
}

fn whole(message: String) -> Problem {
    Problem {
        line: None,
        object: None,
        field: None,
        message,
    }
}

/// Every manifest in the directory and its subdirectories. Links are followed, and hidden names are
/// skipped (a ConfigMap volume has its files a second time in a hidden directory).
fn walk(
    directory: &Path,
    depth: usize,
    found: &mut impl FnMut(PathBuf, fs::Metadata),
) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let hidden = (path.file_name()).is_none_or(|name| name.as_encoded_bytes()[0] == b'.');
        if hidden {
            continue;
        }
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            // Deleted since the listing, or a dangling link.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if metadata.is_dir() && depth > 0 {
            match walk(&path, depth - 1, found) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        } else if metadata.is_file()
            && (path.extension()).is_some_and(|e| e == "yaml" || e == "yml" || e == "json")
        {
            found(path, metadata);
        }
    }
    Ok(())
}
