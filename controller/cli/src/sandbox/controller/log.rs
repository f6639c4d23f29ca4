//! The warnings and errors of the controller's log, for the person who edits manifests. In: the log
//! as it grows. Out: its messages, without the fields that only machines read.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// How much is read at once, in bytes: more than a controller writes between two reads.
const MOST: u64 = 64 * 1024;

/// The log, and the offset up to which it has been read.
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

    /// Messages since the last call. `known` are files whose problems were already reported.
    pub fn news<'a>(&mut self, known: impl Iterator<Item = &'a Path>) -> Vec<String> {
        let known: Vec<String> = known.map(|path| path.display().to_string()).collect();
        // The next call retries.
        let text = self.read().unwrap_or_default();
        text.lines()
            .filter_map(words)
            .filter(|line| known.iter().all(|path| !line.contains(path)))
            .map(str::to_owned)
            .collect()
    }

    /// Complete lines that are new.
    fn read(&mut self) -> io::Result<String> {
        let mut file = File::open(&self.path)?;
        if file.metadata()?.len() < self.at {
            // The log was truncated.
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

/// The message of a warning or an error: `TIME LEVEL MODULE: MESSAGE FIELDS`. A message about a
/// manifest repeats its fields.
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
    fn warnings_and_errors_are_reported_once_and_without_known_ones() {
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
