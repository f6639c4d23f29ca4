//! A mesh on loopback: a controller over a directory of manifests, proxies, and addresses that are
//! reserved for this mesh.
//!
//! ```text
//! 127.A.B.N        pod N's proxy: :8080 inbound, :8000 and up outbound, :15020 admin
//! 127.A.B.(100+N)  where the app of pod N really listens, on the same port 8080
//! 127.A.B.254      the controller, and the claim to all of 127.A.B
//! ```

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::KeyPair;
use serde_json::{Value, json};

use crate::apps::{self, Answer};
use crate::process::{Process, eventually};
use crate::programs;

pub const NAMESPACE: &str = "shop";
/// The port of every app, and the inbound port of every pod.
pub const APP_PORT: u16 = 8080;
/// The first port of a pod's proxy for outbound calls.
const CALLS_PORT: u16 = 8000;
const ADMIN_PORT: u16 = 15020;
const TOKEN_ISSUER: &str = "https://tokens.test";
const CONTROLLER: &str = "spiffe://cluster.local/ns/naru-system/sa/naru-controller";

/// Files, addresses and a controller, removed on drop.
pub struct Mesh {
    pub controller: Process,
    directory: Directory,
    network: [u8; 2],
    programs: Programs,
    /// Additional arguments of the controller.
    more: Vec<String>,
    token_key: KeyPair,
    _claim: TcpListener,
}

/// The programs of a mesh.
pub struct Programs {
    pub folder: PathBuf,
    /// A program and arguments that a sidecar's command line is appended to. Empty: it runs by
    /// itself.
    pub sidecars_under: Vec<String>,
}

impl Default for Programs {
    fn default() -> Self {
        Self {
            folder: programs().to_owned(),
            sidecars_under: Vec::new(),
        }
    }
}

struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _only_litter = std::fs::remove_dir_all(&self.0);
    }
}

impl Mesh {
    /// A controller without objects.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// The same with additional arguments.
    pub async fn start_with(more: &[&str]) -> Self {
        Self::start_of(Programs::default(), more).await
    }

    /// The same with other programs.
    pub async fn start_of(programs: Programs, more: &[&str]) -> Self {
        let more: Vec<String> = more.iter().map(|arg| (*arg).to_owned()).collect();
        let (network, claim) = claim();
        let directory = Directory(std::env::temp_dir().join(format!(
            "naru-sockets-{}-{}-{}",
            std::process::id(),
            network[0],
            network[1]
        )));
        std::fs::create_dir_all(directory.0.join("manifests")).expect("a scratch directory");
        let token_key = KeyPair::generate().expect("a key");
        let public = directory.0.join("token.pub");
        std::fs::write(public, token_key.public_key_pem()).expect("write");
        let mesh = Self {
            controller: start_controller(&programs, &directory, network, &more),
            directory,
            network,
            programs,
            more,
            token_key,
            _claim: claim,
        };
        mesh.controller_is_ready().await;
        mesh
    }

    /// Restarts the controller with the same state and address.
    pub async fn restart_controller(&mut self) {
        self.controller =
            start_controller(&self.programs, &self.directory, self.network, &self.more);
        self.controller_is_ready().await;
    }

    async fn controller_is_ready(&self) {
        let address = self.controller_admin();
        eventually("the controller is ready", async || {
            let answer = apps::try_get(address, "/ready").await;
            answer.is_ok_and(|answer| answer.status == 200)
        })
        .await;
    }

    pub fn controller_admin(&self) -> SocketAddr {
        self.address(254, 15014)
    }

    /// The controller's address for proxies.
    pub fn controller_proxies(&self) -> SocketAddr {
        self.address(254, 15010)
    }

    fn address(&self, last: u8, port: u16) -> SocketAddr {
        let [a, b] = self.network;
        SocketAddr::from((Ipv4Addr::new(127, a, b, last), port))
    }

    /// The address of pod `number`.
    pub fn pod(&self, number: u8) -> SocketAddr {
        self.address(number, APP_PORT)
    }

    /// The address of the pod's app.
    pub fn app(&self, number: u8) -> SocketAddr {
        self.address(100 + number, APP_PORT)
    }

    /// Writes an object's manifest, or replaces it.
    pub fn put(&self, object: &Value) {
        let part = |value: &Value| value.as_str().expect("a name").to_lowercase();
        let name = format!(
            "{}-{}.json",
            part(&object["kind"]),
            part(&object["metadata"]["name"])
        );
        self.file(&name, &object.to_string());
    }

    /// A file in the controller's state directory.
    pub fn state(&self, name: &str) -> PathBuf {
        self.directory.0.join("state").join(name)
    }

    /// Writes a file in the directory of manifests.
    pub fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.directory.0.join("manifests").join(name);
        let fresh = self.directory.0.join(name);
        std::fs::write(&fresh, content).expect("write");
        std::fs::rename(&fresh, &path).expect("rename");
        path
    }

    /// Writes a Service and its endpoints.
    pub fn service(&self, name: &str, protocol: Option<&str>, pods: &[u8]) {
        self.put(&self.service_object(name, protocol));
        self.endpoints(name, pods);
    }

    /// The Service without endpoints.
    pub fn service_object(&self, name: &str, protocol: Option<&str>) -> Value {
        let mut port = json!({ "name": "main", "port": 80, "targetPort": APP_PORT });
        if let Some(protocol) = protocol {
            port["appProtocol"] = json!(protocol);
        }
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": name, "namespace": NAMESPACE },
            "spec": {
                "clusterIP": cluster_ip(name).to_string(),
                "selector": { "app": name },
                "ports": [port],
            },
        })
    }

    /// Writes the endpoints of a Service, as `NAME-NUMBER`.
    pub fn endpoints(&self, service: &str, pods: &[u8]) {
        self.endpoints_with(service, pods, |_| json!({}));
    }

    /// [`Self::endpoints`], with additional fields for each.
    pub fn endpoints_with(&self, service: &str, pods: &[u8], more: impl Fn(u8) -> Value) {
        let endpoint = |number: &u8| {
            let mut endpoint = json!({
                "addresses": [self.pod(*number).ip().to_string()],
                "conditions": { "ready": true, "serving": true, "terminating": false },
                "targetRef": {
                    "kind": "Pod", "namespace": NAMESPACE, "name": format!("{service}-{number}"),
                },
            });
            for (name, value) in more(*number).as_object().expect("fields") {
                endpoint[name] = value.clone();
            }
            endpoint
        };
        self.put(&json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{service}-1"), "namespace": NAMESPACE,
                "labels": { "kubernetes.io/service-name": service },
            },
            "addressType": "IPv4",
            "ports": [{ "name": "main", "port": APP_PORT, "protocol": "TCP" }],
            "endpoints": pods.iter().map(endpoint).collect::<Vec<_>>(),
        }));
    }

    /// The pod `SERVICE-NUMBER` of the service account SERVICE, with a sidecar.
    pub fn put_pod(&self, service: &str, number: u8, annotations: Value) {
        let ip = self.pod(number).ip().to_string();
        self.put(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": format!("{service}-{number}"), "namespace": NAMESPACE,
                "labels": { "app": service, "naru.dev/injected": "true" },
                "annotations": annotations,
            },
            "spec": {
                "serviceAccountName": service,
                "containers": [{ "name": "app", "ports": [{ "containerPort": APP_PORT }] }],
            },
            "status": { "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }] },
        }));
    }

    /// A pod with its ready proxy, which has outbound listeners for `services`.
    pub async fn sidecar(&self, service: &str, number: u8, services: &[&str]) -> Sidecar {
        self.put_pod(service, number, json!({}));
        self.proxy(service, number, services, &[]).await
    }

    /// The ready proxy of a pod whose object exists.
    pub async fn proxy(
        &self,
        service: &str,
        number: u8,
        services: &[&str],
        more: &[&str],
    ) -> Sidecar {
        let pod = format!("{service}-{number}");
        let token = self.directory.0.join(format!("{pod}.jwt"));
        std::fs::write(&token, self.token(service, &pod)).expect("write");
        let admin = self.address(number, ADMIN_PORT);
        let mut args = vec![
            "run".to_owned(),
            format!("--controller={}", self.address(254, 15010)),
            format!("--controller-identity={CONTROLLER}"),
            format!(
                "--trust-anchors={}",
                self.directory.0.join("state/trust-anchors.pem").display()
            ),
            format!("--token={}", token.display()),
            format!("--namespace={NAMESPACE}"),
            format!("--pod={pod}"),
            format!("--admin={admin}"),
            "--outbound-port=0".to_owned(),
            "--inbound-port=0".to_owned(),
            format!("--map-inbound={}={}", self.pod(number), self.app(number)),
        ];
        let mut calls = Vec::new();
        for (service, port) in services.iter().zip(CALLS_PORT..) {
            let listen = self.address(number, port);
            args.push(format!(
                "--map-outbound={listen}={}:80",
                cluster_ip(service)
            ));
            calls.push(((*service).to_owned(), listen));
        }
        args.extend(more.iter().map(|arg| (*arg).to_owned()));
        let sidecar = Sidecar {
            process: self.start_proxy(&pod, args),
            admin,
            calls,
        };
        eventually(&format!("{pod} is ready"), async || {
            let answer = apps::try_get(admin, "/ready").await;
            answer.is_ok_and(|answer| answer.status == 200)
        })
        .await;
        sidecar
    }

    fn start_proxy(&self, pod: &str, mut args: Vec<String>) -> Process {
        let program = self.programs.folder.join("naru-proxy");
        let [under, more @ ..] = &self.programs.sidecars_under[..] else {
            return Process::start(pod, &program, &args);
        };
        args.splice(..0, [more, &[program.display().to_string()]].concat());
        Process::start(pod, Path::new(under), &args)
    }

    fn token(&self, service_account: &str, pod: &str) -> String {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("a clock")
            .as_secs();
        let claims = json!({
            "iss": TOKEN_ISSUER,
            "sub": format!("system:serviceaccount:{NAMESPACE}:{service_account}"),
            "aud": ["naru.dev"],
            "iat": now,
            "exp": now + 3600,
            "kubernetes.io": {
                "namespace": NAMESPACE,
                "pod": { "name": pod, "uid": "1" },
                "serviceaccount": { "name": service_account, "uid": "2" },
            },
        });
        let key = EncodingKey::from_ec_der(self.token_key.serialized_der());
        jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &key).expect("a token")
    }
}

/// A pod's proxy.
pub struct Sidecar {
    pub process: Process,
    pub admin: SocketAddr,
    calls: Vec<(String, SocketAddr)>,
}

impl Sidecar {
    /// The outbound address of a Service for the pod's app.
    pub fn calls(&self, service: &str) -> SocketAddr {
        let found = self.calls.iter().find(|(name, _)| name == service);
        found.expect("a Service that the pod calls").1
    }

    /// GET of a Service by the pod's app.
    pub async fn get(&self, service: &str) -> Answer {
        apps::get(self.calls(service), "/").await
    }

    /// Sum of the series of a metric that have all of these labels.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        metric(self.admin, name, labels).await
    }
}

/// Sum of the series of a metric that have all of these labels, read from an admin port.
pub async fn metric(admin: SocketAddr, name: &str, labels: &[&str]) -> f64 {
    let answer = apps::get(admin, "/metrics").await;
    let series = answer.body.lines().filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let (found, with) = series.split_once('{').unwrap_or((series, ""));
        let fits = found == name && labels.iter().all(|label| with.contains(label));
        fits.then(|| value.parse::<f64>().expect("a number"))
    });
    series.sum()
}

/// The value of a label of the only series of a metric, read from an admin port. `None`: there is
/// no such series.
pub async fn label(admin: SocketAddr, name: &str, label: &str) -> Option<String> {
    let answer = apps::get(admin, "/metrics").await;
    let prefix = format!("{name}{{");
    let series = answer.body.lines().find(|line| line.starts_with(&prefix))?;
    let (_, value) = series.split_once(&format!("{label}=\""))?;
    Some(value.split('"').next()?.to_owned())
}

/// An HTTPRoute that splits the requests to a Service.
pub fn split(service: &str, weights: &[(&str, u32)]) -> Value {
    let backends = weights
        .iter()
        .map(|(name, weight)| json!({ "name": name, "port": 80, "weight": weight }));
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": { "name": service, "namespace": NAMESPACE },
        "spec": {
            "parentRefs": [{ "group": "", "kind": "Service", "name": service }],
            "rules": [{ "name": "split", "backendRefs": backends.collect::<Vec<_>>() }],
        },
    })
}

/// The ClusterIP of a Service: an address derived from its name.
pub fn cluster_ip(service: &str) -> Ipv4Addr {
    let hash = service.bytes().fold(7_u16, |hash, byte| {
        hash.wrapping_mul(31).wrapping_add(u16::from(byte))
    });
    let [high, low] = hash.to_be_bytes();
    Ipv4Addr::new(10, 96, high, low)
}

/// Addresses 127.A.B that are reserved for this mesh while the socket is open.
fn claim() -> ([u8; 2], TcpListener) {
    static NEXT: AtomicU8 = AtomicU8::new(0);
    let a = u8::try_from(std::process::id() % 250 + 2).expect("a byte");
    for _ in 0..=u8::MAX {
        let b = NEXT.fetch_add(1, Ordering::Relaxed);
        // The owner of this port owns the other addresses.
        let socket = TcpListener::bind((Ipv4Addr::new(127, a, b, 254), 15000));
        if let Ok(socket) = socket {
            return ([a, b], socket);
        }
    }
    panic!("no addresses of 127.0.0.0/8 are free, or they are none of this machine's");
}

fn start_controller(
    programs: &Programs,
    directory: &Directory,
    [a, b]: [u8; 2],
    more: &[String],
) -> Process {
    let path = |name: &str| directory.0.join(name).display().to_string();
    let mut args = vec![
        "run".to_owned(),
        format!("--manifests={}", path("manifests")),
        format!("--state-dir={}", path("state")),
        format!("--token-public-key={}", path("token.pub")),
        format!("--token-issuer={TOKEN_ISSUER}"),
        format!("--listen=127.{a}.{b}.254:15010"),
        format!("--admin=127.{a}.{b}.254:15014"),
    ];
    args.extend_from_slice(more);
    Process::start(
        "controller",
        &programs.folder.join("naru-controller"),
        &args,
    )
}
