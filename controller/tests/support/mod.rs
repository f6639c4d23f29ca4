//! A running controller with its manifests, and clients that speak the contract as proxies do.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, SystemTime};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::KeyPair;
use serde_json::{Value, json};

mod proxy;

pub use proxy::{Proxy, certify, held, hello, resource};

pub const TOKEN_ISSUER: &str = "https://tokens.test";

/// A controller on loopback, which is killed on drop.
pub struct Controller {
    pub directory: Directory,
    token_key: KeyPair,
    child: Child,
    pub address: SocketAddr,
    admin: SocketAddr,
}

/// A temporary directory, deleted on drop.
pub struct Directory(pub PathBuf);

impl Directory {
    fn new() -> Self {
        let name = format!(
            "naru-serve-{}-{:x}",
            std::process::id(),
            rand::random::<u64>()
        );
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(path.join("manifests")).unwrap();
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Controller {
    /// With the shop's `web` and `db` and their pods.
    pub fn start() -> Self {
        let directory = Directory::new();
        let token_key = KeyPair::generate().unwrap();
        std::fs::write(directory.0.join("token.pub"), token_key.public_key_pem()).unwrap();
        for (file, object) in shop() {
            write(&directory.0, &file, &object);
        }
        let (child, address, admin) = spawn(&directory.0);
        let controller = Self {
            directory,
            token_key,
            child,
            address,
            admin,
        };
        controller.wait_until_ready();
        controller
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts another controller with the same state.
    pub fn start_again(&mut self) {
        (self.child, self.address, self.admin) = spawn(&self.directory.0);
        self.wait_until_ready();
    }

    /// Sends SIGTERM.
    pub fn terminate(&mut self) {
        let pid = self.child.id().to_string();
        let status = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(status.unwrap().success());
    }

    pub fn exit_status(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    /// Writes a manifest.
    pub fn write(&self, file: &str, object: &Value) {
        write(&self.directory.0, file, object);
    }

    /// The token of a pod.
    pub fn token(&self, namespace: &str, service_account: &str, pod: &str) -> String {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_secs();
        self.sign(&json!({
            "iss": TOKEN_ISSUER,
            "sub": format!("system:serviceaccount:{namespace}:{service_account}"),
            "aud": ["naru.dev"],
            "iat": now,
            "exp": now + 3600,
            "kubernetes.io": {
                "namespace": namespace,
                "pod": {"name": pod, "uid": "1"},
                "serviceaccount": {"name": service_account, "uid": "2"},
            },
        }))
    }

    pub fn sign(&self, claims: &Value) -> String {
        let key = EncodingKey::from_ec_der(self.token_key.serialized_der());
        jsonwebtoken::encode(&Header::new(Algorithm::ES256), claims, &key).unwrap()
    }

    /// The admin port's response: status line, headers and body.
    pub fn admin(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.admin).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// The value of a metric, by its name with labels.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.admin("/metrics");
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    fn wait_until_ready(&self) {
        for _ in 0..1_000 {
            if self.admin("/ready").starts_with("HTTP/1.1 200") {
                return;
            }
            #[expect(clippy::disallowed_methods, reason = "a test's own thread")]
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("{}", self.admin("/ready"));
    }
}

fn spawn(directory: &Path) -> (Child, SocketAddr, SocketAddr) {
    let path = |name: &str| directory.join(name).into_os_string();
    let mut child = Command::new(env!("CARGO_BIN_EXE_naru-controller"))
        .arg("run")
        .args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
        .args(["--token-issuer", TOKEN_ISSUER])
        .args(["--log", "info,naru_controller=debug"])
        .arg("--manifests")
        .arg(path("manifests"))
        .arg("--state-dir")
        .arg(path("state"))
        .arg("--token-public-key")
        .arg(path("token.pub"))
        .env("NO_COLOR", "1")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut find = |what: &str| -> SocketAddr {
        for line in lines.by_ref() {
            let line = line.unwrap();
            eprintln!("{line}");
            if let Some((_, address)) = line.split_once(what) {
                return address.trim().parse().unwrap();
            }
        }
        panic!("the controller has ended");
    };
    let admin = find("admin port on ");
    let address = find("listening on ");
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            assert!(
                !line.contains("PRIVATE KEY") && !line.contains("eyJ"),
                "a secret in the log"
            );
            eprintln!("{line}");
        }
    });
    (child, address, admin)
}

fn write(directory: &Path, file: &str, object: &Value) {
    let path = directory.join("manifests").join(file);
    let temporary = directory.join(file);
    std::fs::write(&temporary, serde_json::to_vec_pretty(object).unwrap()).unwrap();
    std::fs::rename(temporary, path).unwrap();
}

fn shop() -> Vec<(String, Value)> {
    let mut objects = vec![
        ("web.json".to_owned(), service("web", "10.96.0.10", "http")),
        ("web-endpoints.json".to_owned(), endpoints("web", 1..=8)),
        ("db.json".to_owned(), service("db", "10.96.0.20", "tcp")),
        ("db-endpoints.json".to_owned(), endpoints("db", 51..=51)),
    ];
    for pod in ["web-1", "client-1", "client-2"] {
        let account = pod.split('-').next().unwrap();
        objects.push((format!("pod-{pod}.json"), self::pod(pod, account)));
    }
    objects
}

/// A Service with port 80.
pub fn service(name: &str, cluster_ip: &str, app_protocol: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {
            "clusterIP": cluster_ip,
            "clusterIPs": [cluster_ip],
            "selector": {"app": name},
            "ports": [{
                "name": "main", "port": 80, "targetPort": 8080, "appProtocol": app_protocol,
            }],
        },
    })
}

/// The endpoints 10.244.0.N of a Service.
pub fn endpoints(service: &str, last_bytes: impl IntoIterator<Item = u8>) -> Value {
    let endpoint = |last: u8| {
        json!({
            "addresses": [format!("10.244.0.{last}")],
            "conditions": {"ready": true, "serving": true, "terminating": false},
        })
    };
    let all: Vec<Value> = last_bytes.into_iter().map(endpoint).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{service}-1"),
            "namespace": "shop",
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4",
        "ports": [{"name": "main", "port": 8080, "protocol": "TCP"}],
        "endpoints": all,
    })
}

pub fn pod(name: &str, service_account: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "shop",
            "labels": {"app": service_account, "naru.dev/injected": "true"},
        },
        "spec": {
            "serviceAccountName": service_account,
            "containers": [{"name": "app", "ports": [{"containerPort": 8080}]}],
        },
        "status": {"phase": "Running", "podIP": "10.244.1.1", "podIPs": [{"ip": "10.244.1.1"}]},
    })
}
