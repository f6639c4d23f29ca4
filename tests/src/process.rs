//! A program under test: its log and its exit.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Timeout for expected events: far above their usual time, for an overloaded machine.
pub const SOON: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// A running program. It is killed on drop.
pub struct Process {
    name: String,
    child: Child,
    log: Arc<Mutex<String>>,
}

impl Process {
    /// `name` is the prefix of each line of its log.
    pub fn start(name: &str, program: &Path, args: &[String]) -> Self {
        let mut child = Command::new(program)
            .args(args)
            .env_clear()
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let log = Arc::<Mutex<String>>::default();
        let lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let (filled, prefix) = (log.clone(), name.to_owned());
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                // Shown only if the test fails.
                println!("{prefix}: {line}");
                let mut log = filled.lock().expect("log");
                log.push_str(&line);
                log.push('\n');
            }
        });
        Self {
            name: name.to_owned(),
            child,
            log,
        }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The log so far.
    pub fn log(&self) -> String {
        self.log.lock().expect("log").clone()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, signal).expect("kill");
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        let _ended_already = self.child.kill();
        let _reaped = self.child.wait();
    }

    /// Whether it has exited.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("wait")
    }

    /// Waits until it exits.
    pub async fn end(&mut self) -> ExitStatus {
        let mut status = None;
        let name = self.name.clone();
        eventually(&format!("{name} ends"), async || {
            status = self.ended();
            status.is_some()
        })
        .await;
        status.expect("it has ended")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits until `check` holds.
pub async fn eventually(what: &str, mut check: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !check().await {
            tokio::time::sleep(POLL).await;
        }
    };
    if tokio::time::timeout(SOON, waiting).await.is_err() {
        panic!("it should come true, and does not: {what}");
    }
}
