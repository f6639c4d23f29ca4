//! What of the controller's log is for the person who edits manifests: its warnings and errors,
//! which nobody would look for in a file. In: the log as it grows. Out: lines without what only
//! machines read.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// How much is read at once, in bytes: more than a controller writes between two looks.
const MOST: u64 = 64 * 1024;

/// The log, and how far it has been read.
pub struct ControllerLog {
    path: PathBuf,
    at: u64,
}

impl ControllerLog {
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            at: 0,
        }
    }

    /// What has been written since the last look. `known` are files of which it was said already
    /// that something is wrong with them.
    pub fn news<'a>(&mut self, known: impl Iterator<Item = &'a Path>) -> Vec<String> {
        let known: Vec<String> = known.map(|path| path.display().to_string()).collect();
        // It will be there next time.
        let text = self.read().unwrap_or_default();
        text.lines()
            .filter_map(words)
            .filter(|line| known.iter().all(|path| !line.contains(path)))
            .map(str::to_owned)
            .collect()
    }

    /// Whole lines that are new.
    fn read(&mut self) -> io::Result<String> {
        let mut file = File::open(&self.path)?;
        if file.metadata()?.len() < self.at {
            // It was begun anew.
            self.at = 0;
        }
        file.seek(SeekFrom::Start(self.at))?;
        let mut bytes = Vec::new();
        file.take(MOST).read_to_end(&mut bytes)?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n');
        bytes.truncate(whole.map_or(0, |end| end + 1));
        self.at += bytes.len() as u64;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// The message of a warning or an error: `TIME LEVEL MODULE: MESSAGE FIELDS`. The fields of a
/// manifest's problem are in its message as well.
fn words(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once(' ')?;
    let rest = rest.trim_start();
    let rest = rest.strip_prefix("WARN ").or(rest.strip_prefix("ERROR "))?;
    let (_, message) = rest.split_once(": ")?;
    Some(message.split(" file=").next().unwrap_or(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_and_errors_are_told_once_and_without_what_is_known() {
        let path = std::env::temp_dir().join(format!("naru-log-{}", std::process::id()));
        let wrong = "T ERROR naru_controller::source::files: manifest /m/a.yaml, line 18: x: \
            invalid file=/m/a.yaml line=18\n";
        let begun = "T  WARN naru_controller::compile: route is not accepted object=r";
        std::fs::write(&path, format!("T  INFO a: b\n{wrong}{begun}")).unwrap();
        let mut log = ControllerLog::new(&path);
        let nothing = std::iter::empty;
        assert_eq!(
            log.news(nothing()),
            ["manifest /m/a.yaml, line 18: x: invalid"]
        );
        std::fs::write(&path, format!("T  INFO a: b\n{wrong}{begun}\n")).unwrap();
        assert_eq!(log.news(nothing()), ["route is not accepted object=r"]);
        assert_eq!(log.news(nothing()), [""; 0]);
        std::fs::write(&path, wrong).unwrap();
        assert_eq!(log.news([Path::new("/m/a.yaml")].into_iter()), [""; 0]);
        std::fs::remove_file(&path).unwrap();
    }
}
