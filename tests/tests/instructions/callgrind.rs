//! Sidecars under callgrind: their counts are zeroed and written out while they run, and read here.
//!
//! No terminal and no ptrace, which containers tend to forbid: vgdb leaves its command in a pipe that valgrind looks at after every
//! some thousand basic blocks, and questions to the admin port see to it that the process gets there. They are answered by the
//! control thread; each thread is counted by itself, and only the data worker's counts are taken.

use std::net::SocketAddr;
use std::path::Path;
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

/// A system call only under valgrind, which hides the kernel's page with the clock.
const CLOCK: &str = "clock_gettime";

/// What was executed between two moments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    pub instructions: f64,
    pub allocations: f64,
    #[serde(rename = "system calls")]
    pub system_calls: f64,
    #[serde(rename = "clock readings")]
    pub clock_readings: f64,
}

/// What a sidecar's command line is given to. Its counts and pipes go to `directory`.
pub fn command(directory: &Path) -> Vec<String> {
    vec![
        "valgrind".to_owned(),
        "--tool=callgrind".to_owned(),
        "--quiet".to_owned(),
        "--separate-threads=yes".to_owned(),
        // Otherwise a name is written out in the first file that has it, and in no later one.
        "--compress-strings=no".to_owned(),
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
    /// What the data worker has executed since the last of these calls, kept in the file `profile`.
    pub async fn counts(&self, profile: &Path) -> Counts {
        // Not `zero` in between: it leaves the system calls as they are.
        self.tell("dump").await;
        let prefix = format!("counts.{}.", self.sidecar.process.id());
        let threads = std::fs::read_dir(self.directory)
            .expect("counts")
            .map(|entry| entry.expect("an entry").path())
            .filter(|path| name(path).starts_with(&prefix));
        let mut worker: Option<(String, Counts)> = None;
        for path in threads {
            let file = std::fs::read_to_string(&path).expect("counts");
            std::fs::remove_file(path).expect("remove");
            let counts = read(&file);
            // The others do next to nothing.
            if worker
                .as_ref()
                .is_none_or(|(_, other)| other.instructions < counts.instructions)
            {
                worker = Some((file, counts));
            }
        }
        let (file, counts) = worker.expect("callgrind writes a file for each thread");
        // Functions that have not returned were called no times, which callgrind_annotate takes for no calls at all.
        let file = file.replace("\ncalls=0 ", "\ncalls=1 ");
        std::fs::write(profile, file).expect("write");
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

/// Counts of a file in callgrind's format: <https://valgrind.org/docs/manual/cl-format.html>. Its lines are the names of functions,
/// each with what it executed itself, and with its calls: whom, how often, and what they executed altogether.
fn read(file: &str) -> Counts {
    let mut counts = Counts::default();
    let (mut function, mut called) = ("", "");
    let mut lines = file.lines();
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix("fn=") {
            function = name;
        } else if let Some(name) = line.strip_prefix("cfn=") {
            called = name;
        } else if let Some(calls) = line.strip_prefix("calls=") {
            if ALLOCATORS.contains(&called) {
                let (times, _) = calls.split_once(' ').expect("times and place");
                counts.allocations += number(times);
            }
            lines.next();
        } else if line.starts_with(|c: char| c.is_ascii_digit() || "+-*".contains(c)) {
            // The place, and then what `command` has counted; zeros at the end are left out.
            let mut costs = line.split(' ').skip(1).map(number);
            counts.instructions += costs.next().unwrap_or_default();
            let system_calls = costs.next().unwrap_or_default();
            match function {
                CLOCK => counts.clock_readings += system_calls,
                _ => counts.system_calls += system_calls,
            }
        }
    }
    counts
}

fn number(text: &str) -> f64 {
    text.parse().expect("a number")
}
