//! Sidecars under callgrind: their counts are zeroed and written out while they run, and read here.
//!
//! No terminal and no ptrace, which containers tend to forbid: vgdb leaves its command in a pipe that valgrind looks at after every
//! some thousand basic blocks, and questions to the admin port see to it that the process gets there. They are answered by the
//! control thread; each thread is counted by itself, and only the data worker's counts are taken.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use naru_tests::apps;
use naru_tests::mesh::Sidecar;
use naru_tests::process::SOON;
use serde::{Deserialize, Serialize};
use tokio::process::Command;

/// What programs ask memory of. `realloc` counts as one, whether it moves or not.
const ALLOCATORS: [&str; 6] = [
    "malloc",
    "calloc",
    "realloc",
    "memalign",
    "posix_memalign",
    "aligned_alloc",
];

/// What was executed between two moments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    pub instructions: f64,
    pub allocations: f64,
    #[serde(rename = "system calls")]
    pub system_calls: f64,
}

/// What a sidecar's command line is given to. Its counts and pipes go to `directory`.
pub fn command(directory: &Path) -> Vec<String> {
    vec![
        "valgrind".to_owned(),
        "--tool=callgrind".to_owned(),
        "--quiet".to_owned(),
        "--separate-threads=yes".to_owned(),
        // Counts system calls too; their time is not looked at.
        "--collect-systime=usec".to_owned(),
        format!("--vgdb-prefix={}", vgdb_prefix(directory)),
        format!("--callgrind-out-file={}/counts.%p", directory.display()),
    ]
}

fn vgdb_prefix(directory: &Path) -> String {
    format!("{}/vgdb", directory.display())
}

/// A sidecar that is counted.
pub struct Counted<'a> {
    pub sidecar: &'a Sidecar,
    pub directory: &'a Path,
}

impl Counted<'_> {
    /// Forgets what was executed so far.
    pub async fn zero(&self) {
        self.tell("zero").await;
    }

    /// What the data worker has executed since the last of these calls, kept in the file `profile`.
    pub async fn counts(&self, profile: &Path) -> Counts {
        self.tell("dump").await;
        let prefix = format!("counts.{}.", self.sidecar.process.id());
        let threads = std::fs::read_dir(self.directory)
            .expect("counts")
            .map(|entry| entry.expect("an entry").path())
            .filter(|path| name(path).starts_with(&prefix));
        let mut worker: Option<(PathBuf, Counts)> = None;
        for path in threads {
            let counts = read(&std::fs::read_to_string(&path).expect("counts"));
            let busiest = worker
                .as_ref()
                .is_none_or(|(_, other)| other.instructions < counts.instructions);
            let less = match busiest {
                true => worker.replace((path, counts)).map(|(path, _)| path),
                false => Some(path),
            };
            if let Some(path) = less {
                std::fs::remove_file(path).expect("remove");
            }
        }
        let (path, counts) = worker.expect("callgrind writes a file for each thread");
        std::fs::rename(path, profile).expect("rename");
        counts
    }

    /// Has valgrind obey `word`.
    async fn tell(&self, word: &str) {
        let mut vgdb = Command::new("vgdb")
            .arg(format!("--vgdb-prefix={}", vgdb_prefix(self.directory)))
            .arg(format!("--pid={}", self.sidecar.process.id()))
            .args(["--max-invoke-ms=0", word])
            // The names of the pipes have the user's in them.
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("vgdb, which comes with valgrind");
        let admin = self.sidecar.admin;
        let obeyed = async {
            tokio::select! {
                ended = vgdb.wait() => ended.expect("vgdb"),
                () = keep_busy(admin) => unreachable!("it never ends"),
            }
        };
        let obeyed = tokio::time::timeout(SOON, obeyed).await;
        assert!(
            obeyed.is_ok_and(|status| status.success()),
            "valgrind does not {word} its counts"
        );
    }
}

async fn keep_busy(admin: SocketAddr) {
    loop {
        // It may be in the middle of what it was told.
        let _answer = apps::try_get(admin, "/ready").await;
    }
}

fn name(path: &Path) -> &str {
    path.file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default()
}

/// Counts of a file in callgrind's format: <https://valgrind.org/docs/manual/cl-format.html>.
fn read(file: &str) -> Counts {
    let mut counts = Counts::default();
    let mut events: Vec<&str> = Vec::new();
    // A function is named where it comes up first, and a number from there on.
    let mut names: HashMap<&str, &str> = HashMap::new();
    let mut called = "";
    for line in file.lines() {
        if let Some(names) = line.strip_prefix("events: ") {
            events = names.split(' ').collect();
        } else if let Some(values) = line.strip_prefix("totals: ") {
            for (event, value) in events.iter().zip(values.split(' ')) {
                let value = value.parse().expect("a number");
                match *event {
                    "Ir" => counts.instructions = value,
                    "sysCount" => counts.system_calls = value,
                    _ => {}
                }
            }
        } else if let Some(function) = line.strip_prefix("cfn=").or(line.strip_prefix("fn=")) {
            let (number, name) = function.split_once(' ').unwrap_or((function, ""));
            let name = match name {
                "" => names.get(number).copied().unwrap_or_default(),
                name => {
                    names.insert(number, name);
                    name
                }
            };
            if line.starts_with('c') {
                called = name;
            }
        } else if let Some(calls) = line.strip_prefix("calls=") {
            // A recursion has the level behind it.
            let name = called.split('\'').next().unwrap_or_default();
            if ALLOCATORS.contains(&name) {
                let times = calls.split(' ').next().unwrap_or_default();
                counts.allocations += times.parse::<f64>().expect("a number");
            }
        }
    }
    counts
}
