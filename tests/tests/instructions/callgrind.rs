//! Sidecars under callgrind: the test dumps their counts while they run, and reads them.
//!
//! It needs neither a terminal nor ptrace, which containers tend to forbid. vgdb leaves its command
//! in a pipe that valgrind polls every some thousand basic blocks, and requests to the admin port
//! make the process execute that many. The control thread handles them; each thread is counted
//! separately, and only the data worker's counts are used.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use naru_tests::apps;
use naru_tests::mesh::Sidecar;
use naru_tests::process::SOON;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::process::Command;

/// Allocation functions. `realloc` counts as one, whether it moves or not.
const ALLOCATORS: [&str; 11] = [
    "_rjem_malloc",
    "_rjem_mallocx",
    "_rjem_calloc",
    "_rjem_realloc",
    "_rjem_rallocx",
    "malloc",
    "calloc",
    "realloc",
    "memalign",
    "posix_memalign",
    "aligned_alloc",
];

/// A system call only under valgrind, which hides the vDSO.
const CLOCK: &str = "clock_gettime";

/// Counts of an interval, or a request's share of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    pub instructions: f64,
    pub allocations: f64,
    #[serde(rename = "system calls")]
    pub system_calls: f64,
    #[serde(rename = "clock readings")]
    pub clock_readings: f64,
}

/// Pins this thread and its children to one processor: the number of reads of a sidecar then does
/// not depend on the relative speed of the processes.
pub fn stay_on_one_processor() {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this).expect("processors");
    let mut one = CpuSet::new();
    let first = (0..CpuSet::count()).find(|number| allowed.is_set(*number) == Ok(true));
    one.set(first.expect("a processor")).expect("a processor");
    sched_setaffinity(this, &one).expect("a processor of its own");
}

/// The command that runs a sidecar under callgrind. Its counts and pipes go to `directory`.
pub fn command(directory: &Path) -> Vec<String> {
    // With these policies a woken process waits until its waker blocks. Real-time scheduling, which
    // requires a privilege, also prevents preemption by others.
    let [policy, priority] = match may_run_in_real_time() {
        true => ["--fifo", "1"],
        false => ["--batch", "0"],
    };
    vec![
        "chrt".to_owned(),
        policy.to_owned(),
        priority.to_owned(),
        "valgrind".to_owned(),
        "--tool=callgrind".to_owned(),
        "--quiet".to_owned(),
        "--separate-threads=yes".to_owned(),
        // With compression, a name is spelled out only in the first file that contains it.
        "--compress-strings=no".to_owned(),
        // Counts system calls as well; their time is ignored.
        "--collect-systime=usec".to_owned(),
        format!("--vgdb-prefix={}", vgdb_prefix(directory)),
        format!("--callgrind-out-file={}/counts.%p", directory.display()),
    ]
}

/// Whether the sidecars run without preemption. Otherwise other programs interrupt them.
pub fn may_run_in_real_time() -> bool {
    let tried = std::process::Command::new("chrt")
        .args(["--fifo", "1", "true"])
        .output();
    tried.is_ok_and(|tried| tried.status.success())
}

fn vgdb_prefix(directory: &Path) -> String {
    format!("{}/vgdb", directory.display())
}

/// A sidecar under callgrind.
pub struct Counted<'a> {
    pub sidecar: &'a Sidecar,
    pub directory: &'a Path,
}

impl Counted<'_> {
    /// The counts of the data worker since the last call of this or `dump`, stored in the file
    /// `profile`.
    pub async fn counts(&self, profile: &Path) -> Counts {
        self.dump().await;
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
            // The other threads are nearly idle.
            if worker
                .as_ref()
                .is_none_or(|(_, other)| other.instructions < counts.instructions)
            {
                worker = Some((file, counts));
            }
        }
        let (file, counts) = worker.expect("callgrind writes a file for each thread");
        // Functions that have not returned have calls=0, which callgrind_annotate ignores.
        let file = file.replace("\ncalls=0 ", "\ncalls=1 ");
        std::fs::write(profile, file).expect("write");
        counts
    }

    /// Makes valgrind write a file for each thread, and reset the counts. (Its command `zero` does
    /// not reset system calls.)
    async fn dump(&self) {
        let vgdb = Command::new("vgdb")
            .arg(format!("--vgdb-prefix={}", vgdb_prefix(self.directory)))
            .arg(format!("--pid={}", self.sidecar.process.id()))
            .args(["--max-invoke-ms=0", "dump"])
            // The pipes' names contain the user's name.
            .env_clear()
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let admin = self.sidecar.admin;
        let obeyed = async {
            tokio::select! {
                ended = vgdb => ended.expect("vgdb, which comes with valgrind"),
                () = keep_busy(admin) => unreachable!("it never ends"),
            }
        };
        let obeyed = tokio::time::timeout(SOON, obeyed).await;
        let obeyed = obeyed.unwrap_or_else(|_| panic!("valgrind does not write its counts"));
        assert!(obeyed.status.success(), "{obeyed:?}");
    }
}

async fn keep_busy(admin: SocketAddr) {
    loop {
        // The previous command may still be in progress.
        let _answer = apps::try_get(admin, "/ready").await;
    }
}

fn name(path: &Path) -> &str {
    path.file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default()
}

/// Parses a file in callgrind's format: <https://valgrind.org/docs/manual/cl-format.html>. Its
/// lines are function names, each with its own cost, and with its calls: the callee, their number,
/// and their inclusive cost.
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
            // The position, and then the counts of `command`; trailing zeros are omitted.
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

#[test]
fn calls_of_a_function_are_not_counted_twice() {
    let counts = read(
        "version: 1\nevents: Ir sysCount sysTime\nsummary: 45 3 9\n\n\
         fl=???\nfn=naru_proxy::serve\n0 30\ncfn=malloc\ncalls=2 0 \n0 10\ncfn=clock_gettime\n\
         calls=1 0 \n0 5 1 3\n\n\
         fn=malloc\n0 10\n\nfn=clock_gettime\n+0 5 1 3\n\nfn=send\n* 0 2 6\n\ntotals: 45 3 9\n",
    );
    let expected = Counts {
        instructions: 45.0,
        allocations: 2.0,
        system_calls: 2.0,
        clock_readings: 1.0,
    };
    assert_eq!(counts, expected);
}
