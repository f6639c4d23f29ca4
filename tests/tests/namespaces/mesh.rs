//! A test's mesh: manifests in a directory of its own, `naru sandbox` over them, and one command
//! inside a pod.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use naru_tests::programs;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// The default namespace of every test's pods.
pub const NAMESPACE: &str = "test";

/// Default timeout of a command in a mesh, including set-up.
const TIMEOUT: Duration = Duration::from_secs(120);
/// How long the sandbox may take to clean up after an interrupt.
const CLEAN_UP: Duration = Duration::from_secs(30);

/// Whether to run at full length, which takes minutes.
pub fn full() -> bool {
    std::env::var_os("NARU_TEST_FULL").is_some_and(|value| value != "0")
}

/// The Python with the public libraries of the tests.
pub fn python() -> String {
    let venv = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/test-venv/bin/python");
    assert!(
        venv.exists(),
        "there is no {}: run `tests/run namespaces`, which makes it and installs \
         tests/programs/requirements.txt into it",
        venv.display()
    );
    venv.display().to_string()
}

/// A file of `tests/programs`.
pub fn program(name: &str) -> String {
    format!("{}/programs/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Manifests and scratch files, deleted on drop.
pub struct Mesh {
    directory: PathBuf,
    timeout: Duration,
    programs: PathBuf,
}

impl Mesh {
    /// A namespace with sidecars, and a Deployment `client` to run commands in.
    pub fn new() -> Self {
        let mesh = Self::empty();
        mesh.put(&namespace(
            NAMESPACE,
            json!({ "naru.dev/inject": "enabled" }),
            json!({}),
        ));
        mesh.put(&Workload::new("client", "sleep infinity").deployment());
        mesh
    }

    /// A copy of the project's shop manifests, which a test may change.
    pub fn shop() -> Self {
        let mesh = Self::empty();
        let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/sandbox");
        for entry in std::fs::read_dir(manifests)
            .expect("deploy/sandbox")
            .flatten()
        {
            if entry
                .path()
                .extension()
                .is_some_and(|extension| extension == "yaml")
            {
                let copy = mesh.path("manifests").join(entry.file_name());
                std::fs::copy(entry.path(), copy).expect("copy");
            }
        }
        mesh
    }

    fn empty() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let directory =
            std::env::temp_dir().join(format!("naru-test-{}-{number}", std::process::id()));
        std::fs::create_dir_all(directory.join("manifests")).expect("a scratch directory");
        Self {
            directory,
            timeout: TIMEOUT,
            programs: programs().to_owned(),
        }
    }

    /// Uses the programs of another directory.
    pub fn programs(mut self, directory: &Path) -> Self {
        self.programs = directory.to_owned();
        self
    }

    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Writes an object's manifest, or replaces it.
    pub fn put(&self, object: &Value) {
        let path = self.manifest(object);
        let fresh = path.with_extension("new");
        std::fs::write(&fresh, object.to_string()).expect("write");
        std::fs::rename(&fresh, &path).expect("rename");
    }

    fn manifest(&self, object: &Value) -> PathBuf {
        let part = |value: &Value| value.as_str().unwrap_or("cluster").to_lowercase();
        self.directory.join("manifests").join(format!(
            "{}-{}-{}.json",
            part(&object["kind"]),
            part(&object["metadata"]["namespace"]),
            part(&object["metadata"]["name"]),
        ))
    }

    /// Adds a workload: its Deployment, its ServiceAccount and its Service.
    pub fn add(&self, workload: &Workload) {
        self.put(&workload.deployment());
        self.put(&workload.account());
        if !workload.ports.is_empty() {
            self.put(&workload.service());
        }
    }

    /// A scratch path.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// A scratch file that every user can read.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("create");
        std::fs::write(&path, content).expect("write");
        path.display().to_string()
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// Runs a script in the pod of `client` and waits for its end; it must succeed.
    pub fn run(&self, script: &str) -> String {
        self.run_in("client", script)
    }

    /// Runs a script in a pod of a Deployment and waits for its end; it must succeed.
    pub fn run_in(&self, deployment: &str, script: &str) -> String {
        self.start_in(deployment, script).succeed()
    }

    /// Starts a script in a pod of a Deployment, in the directory of the scratch files.
    pub fn start_in(&self, deployment: &str, script: &str) -> Running {
        let place = match deployment.contains('/') {
            true => deployment.to_owned(),
            false => format!("{NAMESPACE}/{deployment}"),
        };
        let naru = self.programs.join("naru");
        let scratch = self.directory.display();
        let script = format!("set -euo pipefail\ncd {scratch}\n{script}");
        let mut child = Command::new(&naru)
            .arg("sandbox")
            .arg("--manifests")
            .arg(self.directory.join("manifests"))
            .args(["--in", &place, "--", "bash", "-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", naru.display()));
        let stdout = Captured::of(child.stdout.take().expect("piped"));
        let stderr = Captured::of(child.stderr.take().expect("piped"));
        Running {
            child,
            stdout,
            stderr,
            deadline: Instant::now() + self.timeout,
            ended: None,
        }
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the scratch files are kept: {}", self.directory.display());
        } else {
            let _only_litter = std::fs::remove_dir_all(&self.directory);
        }
    }
}

/// The output of a program so far.
struct Captured {
    text: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Captured {
    fn of(mut from: impl Read + Send + 'static) -> Self {
        let text = Arc::<Mutex<Vec<u8>>>::default();
        let filled = text.clone();
        let reader = std::thread::spawn(move || {
            let mut chunk = [0; 8192];
            while let Ok(read @ 1..) = from.read(&mut chunk) {
                filled
                    .lock()
                    .expect("text")
                    .extend_from_slice(&chunk[..read]);
            }
        });
        Self {
            text,
            reader: Some(reader),
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.text.lock().expect("text")).into_owned()
    }

    fn finish(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.join().expect("reader");
        }
    }
}

/// A mesh with a command in one of its pods.
pub struct Running {
    child: Child,
    stdout: Captured,
    stderr: Captured,
    deadline: Instant,
    ended: Option<ExitStatus>,
}

impl Running {
    /// The command's output so far.
    pub fn written(&self) -> String {
        self.stdout.text()
    }

    /// The sandbox's output so far.
    pub fn said(&self) -> String {
        self.stderr.text()
    }

    /// Waits until the command's output contains `text`.
    pub fn wait_for(&mut self, text: &str) {
        while !self.written().contains(text) {
            if self.ended().is_some() || Instant::now() > self.deadline {
                panic!("{text:?} was not written\n{}", self.transcript());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether the command has exited.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("wait");
        }
        self.ended
    }

    /// Waits until it exits, which must be a success, and returns its output.
    pub fn succeed(mut self) -> String {
        let status = self.wait();
        assert!(status.success(), "{status}\n{}", self.transcript());
        self.written()
    }

    /// Waits until it exits, with any status.
    pub fn wait(&mut self) -> ExitStatus {
        let status = loop {
            if let Some(status) = self.ended() {
                break status;
            }
            if Instant::now() > self.deadline {
                let transcript = self.transcript();
                self.stop();
                panic!("it took too long\n{transcript}");
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        self.stdout.finish();
        self.stderr.finish();
        status
    }

    /// The pids of the mesh's processes whose program has this name.
    pub fn processes(&self, program: &str) -> Vec<u32> {
        let mut parents = std::collections::HashMap::new();
        let mut named = Vec::new();
        for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<u32>().ok())
            else {
                continue;
            };
            // A process may exit between the two reads.
            let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else {
                continue;
            };
            let Some((name, rest)) = stat
                .split_once('(')
                .and_then(|(_, rest)| rest.rsplit_once(") "))
            else {
                continue;
            };
            let parent = rest
                .split(' ')
                .nth(1)
                .and_then(|parent| parent.parse().ok());
            parents.insert(pid, parent.unwrap_or(0));
            // The kernel truncates names to 15 bytes.
            if program.starts_with(name) && name.len() == program.len().min(15) {
                named.push(pid);
            }
        }
        let ours = |pid: &u32| {
            std::iter::successors(Some(*pid), |pid| parents.get(pid).copied())
                .take_while(|pid| *pid > 1)
                .any(|pid| pid == self.child.id())
        };
        named.into_iter().filter(ours).collect()
    }

    /// Sends SIGINT to the sandbox, as a person would.
    pub fn interrupt(&self) {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        // It may have just exited.
        let _ended = kill(pid, Signal::SIGINT);
    }

    /// Sends SIGINT to the sandbox, as a person would, and gives it time to clean up.
    pub fn stop(&mut self) {
        if self.ended().is_some() {
            return;
        }
        self.interrupt();
        let deadline = Instant::now() + CLEAN_UP;
        while self.ended().is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        if self.ended().is_none() {
            let _ended = self.child.kill();
            let _reaped = self.child.wait();
            eprintln!("the sandbox did not end within {CLEAN_UP:?} of SIGINT");
        }
    }

    fn transcript(&self) -> String {
        format!(
            "--- the command wrote:\n{}\n--- the sandbox wrote:\n{}",
            self.stdout.text(),
            self.stderr.text()
        )
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A Namespace.
pub fn namespace(name: &str, labels: Value, annotations: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": { "name": name, "labels": labels, "annotations": annotations },
    })
}

/// A headless Service with a Service's pods as endpoints, as `SERVICE-pods`.
pub fn pods_of(service: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": format!("{service}-pods"), "namespace": NAMESPACE },
        "spec": {
            "clusterIP": "None",
            "selector": { "app": service },
            "ports": [{ "name": "metrics", "port": 15020, "targetPort": 15020 }],
        },
    })
}

/// A Deployment with its other objects, all of the same name.
#[derive(Clone)]
pub struct Workload {
    pub name: String,
    pub namespace: String,
    pub script: String,
    pub replicas: u32,
    pub annotations: Value,
    pub ports: Vec<Value>,
    pub service: String,
    pub headless: bool,
    pub probe: Option<u16>,
}

impl Workload {
    /// A workload whose pods run a shell script.
    pub fn new(name: &str, script: &str) -> Self {
        Self {
            name: name.to_owned(),
            namespace: NAMESPACE.to_owned(),
            script: script.to_owned(),
            replicas: 1,
            annotations: json!({}),
            ports: Vec::new(),
            service: name.to_owned(),
            headless: false,
            probe: None,
        }
    }

    pub fn namespace(mut self, namespace: &str) -> Self {
        self.namespace = namespace.to_owned();
        self
    }

    pub fn replicas(mut self, replicas: u32) -> Self {
        self.replicas = replicas;
        self
    }

    pub fn annotate(mut self, key: &str, value: &str) -> Self {
        self.annotations[key] = json!(value);
        self
    }

    /// Pods that are endpoints of another workload's Service.
    pub fn behind(mut self, service: &str) -> Self {
        self.service = service.to_owned();
        self
    }

    pub fn headless(mut self) -> Self {
        self.headless = true;
        self
    }

    /// A port of the Service with its target port, which the readiness probe uses.
    pub fn port(mut self, port: u16, target: u16, protocol: Option<&str>) -> Self {
        let mut entry = json!({ "name": format!("p{port}"), "port": port, "targetPort": target });
        if let Some(protocol) = protocol {
            entry["appProtocol"] = json!(protocol);
        }
        self.ports.push(entry);
        self.probe = Some(target);
        self
    }

    pub fn deployment(&self) -> Value {
        let labels = json!({ "app": self.service, "workload": self.name });
        let mut container = json!({
            "name": "app", "image": "unused",
            "command": ["bash", "-c"], "args": [self.script],
        });
        if let Some(port) = self.probe {
            container["readinessProbe"] =
                json!({ "tcpSocket": { "port": port }, "periodSeconds": 1 });
        }
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": { "name": self.name, "namespace": self.namespace },
            "spec": {
                "replicas": self.replicas,
                "selector": { "matchLabels": labels },
                "template": {
                    "metadata": { "labels": labels, "annotations": self.annotations },
                    "spec": {
                        "serviceAccountName": self.name,
                        "terminationGracePeriodSeconds": 10,
                        "containers": [container],
                    },
                },
            },
        })
    }

    pub fn account(&self) -> Value {
        json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": { "name": self.name, "namespace": self.namespace },
        })
    }

    pub fn service(&self) -> Value {
        let mut service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": self.service, "namespace": self.namespace },
            "spec": { "selector": { "app": self.service }, "ports": self.ports },
        });
        if self.headless {
            service["spec"]["clusterIP"] = json!("None");
        }
        service
    }
}

/// Runs a command outside the mesh; it must succeed.
pub fn host(command: &str) -> String {
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", command])
        .output()
        .expect("bash");
    assert!(
        output.status.success(),
        "{command}\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Checks that a program is installed; otherwise the test fails, and names the package.
pub fn need(program: &str, package: &str) {
    let found = Command::new("bash")
        .args(["-c", &format!("command -v {program}")])
        .output()
        .expect("bash");
    assert!(
        found.status.success(),
        "{program} is not installed: `apt-get install {package}`, or let `tests/run` do it"
    );
}
