//! The test cluster, through its scripts, and a test's own namespaces in it.

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use naru_tests::repository;
use serde_json::{Value, json};

use crate::objects::{deployment, pod_spec, server, service};
use crate::turns;

/// How long pods may take to become ready. Images are on the nodes; the machine may be busy.
pub const READY: Duration = Duration::from_secs(120);

/// Whether to run at full length, which takes minutes.
pub fn full() -> bool {
    std::env::var_os("NARU_TEST_FULL").is_some_and(|value| value != "0")
}

/// Runs one of the scripts of `tests/cluster`, or a command, and returns its output.
pub fn run(command: &mut Command) -> Result<String, String> {
    ran(command.stdin(Stdio::null()).output())
}

fn ran(output: std::io::Result<Output>) -> Result<String, String> {
    let output = output.map_err(|error| error.to_string())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(format!(
            "{}: {}{}",
            output.status,
            text(&output.stderr),
            text(&output.stdout)
        )),
    }
}

/// A script of `tests/cluster`, with a timeout of three minutes.
pub fn script(name: &str) -> Command {
    assert!(turns::taken(), "a test begins with its turn: see turns.rs");
    let path = repository().join("tests/cluster").join(name);
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", "180"]).arg(path);
    command
}

/// Installs Naru as `up --naru` does, with additional arguments for Helm, or upgrades the
/// installation to that.
pub fn try_install_naru(arguments: &[&str]) -> Result<String, String> {
    run(script("install").args(arguments))
}

/// [`try_install_naru`], which must succeed.
pub fn install_naru(arguments: &[&str]) {
    try_install_naru(arguments).unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
}

/// kubectl, which may fail.
pub fn try_kubectl(arguments: &[&str]) -> Result<String, String> {
    run(script("kubectl").args(arguments))
}

/// kubectl, which must succeed.
pub fn kubectl(arguments: &[&str]) -> String {
    try_kubectl(arguments).unwrap_or_else(|error| panic!("kubectl {arguments:?}: {error}"))
}

/// What kubectl gives as JSON.
pub fn get(arguments: &[&str]) -> Value {
    let text = kubectl(&[&["get", "-o", "json"], arguments].concat());
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {text}"))
}

/// Creates or updates objects.
pub fn try_apply(manifest: &str) -> Result<String, String> {
    let child = script("kubectl")
        .args(["apply", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.map_err(|error| error.to_string())?;
    let mut input = child.stdin.take().expect("piped");
    input
        .write_all(manifest.as_bytes())
        .map_err(|error| error.to_string())?;
    drop(input);
    ran(child.wait_with_output())
}

/// [`try_apply`], which must succeed.
pub fn apply(objects: &[Value]) {
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
    try_apply(&list.to_string()).unwrap_or_else(|error| panic!("{error}\n{list}"));
}

/// Waits until `check` succeeds.
pub fn eventually<T>(
    what: &str,
    within: Duration,
    mut check: impl FnMut() -> Result<T, String>,
) -> T {
    let deadline = Instant::now() + within;
    loop {
        match check() {
            Ok(found) => return found,
            Err(why) if Instant::now() > deadline => {
                panic!("{what}: not within {within:?}: {why}")
            }
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}

/// A namespace of the test's own, deleted on drop.
pub struct Namespace(pub String);

impl Namespace {
    /// A namespace with injection.
    pub fn meshed(name: &str) -> Self {
        Self::with_labels(name, json!({ "naru.dev/inject": "enabled" }))
    }

    /// A shared namespace, which is not deleted.
    pub fn existing(name: &str) -> std::mem::ManuallyDrop<Self> {
        std::mem::ManuallyDrop::new(Self(name.to_owned()))
    }

    pub fn with_labels(name: &str, labels: Value) -> Self {
        // Left by an earlier run that was interrupted.
        kubectl(&["delete", "namespace", name, "--ignore-not-found"]);
        apply(&[json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels },
        })]);
        Self(name.to_owned())
    }

    /// kubectl in this namespace; it must succeed.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        kubectl(&[&["-n", &self.0], arguments].concat())
    }

    pub fn get(&self, arguments: &[&str]) -> Value {
        get(&[&["-n", &self.0], arguments].concat())
    }

    /// Applies objects in this namespace.
    pub fn apply(&self, objects: &[Value]) {
        let mut objects = objects.to_vec();
        for object in &mut objects {
            object["metadata"]["namespace"] = self.0.clone().into();
        }
        apply(&objects);
    }

    /// Creates the Deployment `web` of a server, and its Service, and waits until it is ready.
    pub fn serve_web(&self, replicas: u32) {
        self.apply(&[
            deployment("web", replicas, pod_spec(server())),
            service("web"),
        ]);
        self.rolled_out("deployment/web");
    }

    /// Waits until a Job has completed; it must not fail.
    pub fn completed(&self, job: &str) {
        eventually(job, READY, || {
            let status = &self.get(&["job", job])["status"];
            match (&status["succeeded"], &status["failed"]) {
                (Value::Number(_), _) => Ok(()),
                (_, Value::Number(_)) => panic!("the job {job} failed: {status}"),
                _ => Err(status.to_string()),
            }
        });
    }

    /// Waits until a rollout is complete: `deployment/web`.
    pub fn rolled_out(&self, what: &str) {
        let timeout = format!("--timeout={}s", READY.as_secs());
        self.kubectl(&["rollout", "status", what, &timeout]);
    }

    /// The pods with these labels that are not terminating.
    pub fn pods(&self, selector: &str) -> Vec<Value> {
        let pods = self.get(&["pods", "-l", selector]);
        let pods = pods["items"].as_array().expect("a list").iter();
        let alive = pods.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        alive.cloned().collect()
    }

    /// The names of [`Self::pods`].
    pub fn pod_names(&self, selector: &str) -> Vec<String> {
        let pods = self.pods(selector);
        let names = pods
            .iter()
            .filter_map(|pod| pod["metadata"]["name"].as_str());
        names.map(str::to_owned).collect()
    }

    /// The metrics of a pod's sidecar (port 15020) or a controller (15014).
    pub fn metrics(&self, pod: &str, port: u16) -> String {
        let path = format!(
            "/api/v1/namespaces/{}/pods/{pod}:{port}/proxy/metrics",
            self.0
        );
        kubectl(&["get", "--raw", &path])
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show();
        }
        let _gone_with_the_cluster = try_kubectl(&["delete", "namespace", &self.0, "--wait=false"]);
    }
}

impl Namespace {
    /// Prints the state of the namespace for the report of a failure.
    fn show(&self) {
        for what in [
            &["get", "pods", "-o", "wide"][..],
            &["events", "--types=Warning"],
            &["describe", "pods"],
            &[
                "logs",
                "-l",
                "naru.dev/injected=true",
                "-c",
                "naru-proxy",
                "--prefix",
                "--tail=20",
            ],
        ] {
            let shown = try_kubectl(&[&["-n", &self.0], what].concat());
            let shown = shown.unwrap_or_else(|error| error);
            let end: Vec<&str> = shown.lines().rev().take(150).collect();
            eprintln!("== kubectl -n {} {}", self.0, what.join(" "));
            end.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

/// Whether a pod is ready.
pub fn pod_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// The sum of a metric's samples whose labels contain every one of `labels`.
pub fn sum(metrics: &str, name: &str, labels: &[&str]) -> f64 {
    metrics
        .lines()
        .filter(|line| line.starts_with(name))
        .filter(|line| matches!(line.as_bytes().get(name.len()), Some(b'{' | b' ')))
        .filter(|line| labels.iter().all(|label| line.contains(label)))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

/// The name of the scripts' cluster.
pub fn name() -> String {
    std::env::var("NARU_CLUSTER").unwrap_or_else(|_| "naru".to_owned())
}

/// A program in the network namespace of the control plane, which reaches all pods.
pub fn control(program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net=/run/netns/{}-cp", name()))
        .arg(program);
    command
}

/// A path for a scratch file.
pub fn scratch(file: &str) -> String {
    let path =
        std::env::temp_dir().join(format!("naru-cluster-test-{}-{file}", std::process::id()));
    path.display().to_string()
}
