//! The apps of the Gateway API's own suite, and their reports of requests.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use naru_tests::repository;
use serde_json::{Value, json};

use crate::kubernetes::{Namespace, eventually, get, run, try_kubectl};
use crate::objects::deployment;

/// How soon a change has to apply. The machine may be busy.
pub const SOON: Duration = Duration::from_secs(30);

/// The image, loaded into every node on first use.
fn image() -> &'static str {
    static IMAGE: OnceLock<String> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let mut load = Command::new("timeout");
        load.args(["--kill-after=5", "1800"])
            .arg(repository().join("tests/conformance/load"));
        let said = run(&mut load).unwrap_or_else(|error| panic!("{error}"));
        let name = said.lines().last().and_then(|line| line.split(' ').next());
        name.expect("its name").to_owned()
    })
}

/// Creates Deployments and Services `v1`, `v2` and so on, and the Service `echo` with the pods of
/// all of them.
pub fn start(namespace: &Namespace, versions: &[&str]) {
    let mut objects = Vec::new();
    for version in versions {
        let container = json!({
            "name": "echo", "image": image(),
            "args": [
                "--port=8080", "--grpc=7070", "--tcp=9090", "--port=8443", "--tls=8443",
                "--crt=/cert.crt", "--key=/cert.key",
            ],
            "readinessProbe": { "tcpSocket": { "port": 8080 }, "periodSeconds": 1 },
        });
        let mut object = deployment(version, 1, json!({ "containers": [container] }));
        object["spec"]["template"]["metadata"]["labels"]["part-of"] = "echo".into();
        objects.push(object);
        objects.push(service(version, json!({ "app": version })));
    }
    objects.push(service("echo", json!({ "part-of": "echo" })));
    namespace.apply(&objects);
    for version in versions {
        namespace.rolled_out(&format!("deployment/{version}"));
    }
}

/// With the ports and protocols of the suite's Services.
pub fn service(name: &str, selector: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": name },
        "spec": { "selector": selector, "ports": [
            { "name": "http", "port": 80, "targetPort": 8080, "appProtocol": "http" },
            { "name": "http-alt", "port": 8080, "appProtocol": "http" },
            { "name": "https", "port": 443, "targetPort": 8443 },
            { "name": "tcp", "port": 9090 },
            { "name": "grpc", "port": 7070, "appProtocol": "kubernetes.io/h2c" },
        ] },
    })
}

/// The result of a call, with its backend's view of it.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// 0: without a response.
    pub status: u16,
    /// The Deployment of the responding pod; empty: the response is the proxy's, or there is none.
    pub by: String,
    /// As received by the backend.
    pub host: String,
    pub path: String,
    pub method: String,
    /// As received by the backend. Names are in lower case, values of several lines are joined by a
    /// comma.
    pub request: BTreeMap<String, String>,
    /// As received by the client.
    pub response: BTreeMap<String, String>,
    /// The complete output.
    pub text: String,
}

impl Answer {
    /// Parses one call's part of the client's output: lines such as `[3 body] Hostname=v1-5c…`.
    fn parse(text: &str) -> Self {
        let mut answer = Self {
            text: text.to_owned(),
            ..Self::default()
        };
        let add = |map: &mut BTreeMap<String, String>, header: &str| {
            let (name, value) = header.split_once(':').unwrap_or((header, ""));
            let values = map.entry(name.to_lowercase()).or_default();
            if !values.is_empty() {
                values.push(',');
            }
            values.push_str(value);
        };
        for line in text.lines() {
            let line = line.split_once("] ").map_or(line, |(_, rest)| rest);
            match line.split_once('=') {
                Some(("StatusCode", code)) => answer.status = code.parse().unwrap_or(0),
                Some(("Hostname", pod)) => {
                    let deployment = pod.rsplitn(3, '-').last().unwrap_or_default();
                    answer.by = deployment.to_owned();
                }
                Some(("Host", host)) => answer.host = host.to_owned(),
                Some(("URL", path)) => answer.path = path.to_owned(),
                Some(("Method", method)) => answer.method = method.to_owned(),
                Some(("RequestHeader", header)) => add(&mut answer.request, header),
                Some(("ResponseHeader", header)) => add(&mut answer.response, header),
                _ => {}
            }
        }
        answer
    }

    /// The reason from the proxy.
    pub fn reason(&self) -> &str {
        self.response.get("naru-reason").map_or("", String::as_str)
    }

    pub fn location(&self) -> &str {
        self.response.get("location").map_or("", String::as_str)
    }
}

/// The source of calls: the Deployment's pod.
pub struct Client<'a> {
    pub namespace: &'a Namespace,
    pub deployment: &'a str,
}

impl Client<'_> {
    /// The output of the suite's client with these arguments, whether or not it succeeds.
    pub fn print(&self, arguments: &[&str]) -> String {
        let from = format!("deploy/{}", self.deployment);
        let exec = [
            "-n",
            &self.namespace.0,
            "exec",
            &from,
            "-c",
            "echo",
            "--",
            "client",
        ];
        try_kubectl(&[&exec[..], arguments].concat()).unwrap_or_else(|printed| printed)
    }

    /// One call: `http://echo/path`, and further arguments such as `-H`, `name:value`.
    pub fn call(&self, url: &str, arguments: &[&str]) -> Answer {
        Answer::parse(&self.print(&[&[url], arguments].concat()))
    }

    /// Many calls, over a few connections.
    pub fn calls(&self, url: &str, count: usize, arguments: &[&str]) -> Vec<Answer> {
        let number = format!("--count={count}");
        let printed = self.print(&[&[url, &number], arguments].concat());
        let mut parts: BTreeMap<usize, String> = BTreeMap::new();
        for line in printed.lines() {
            let number = line.strip_prefix('[').and_then(|rest| {
                let end = rest.find([' ', ']'])?;
                rest[..end].parse().ok()
            });
            if let Some(number) = number {
                let part = parts.entry(number).or_default();
                part.push_str(line);
                part.push('\n');
            }
        }
        parts.values().map(|part| Answer::parse(part)).collect()
    }

    /// Repeats a call until the response is right.
    pub fn until(&self, url: &str, arguments: &[&str], right: impl Fn(&Answer) -> bool) -> Answer {
        eventually(url, SOON, || {
            let answer = self.call(url, arguments);
            match right(&answer) {
                true => Ok(answer),
                false => Err(format!("{arguments:?}: {}", answer.text)),
            }
        })
    }
}

/// A route of a kind for a Service of `parent` (`echo`, or `echo:80`), with these rules.
pub fn route(kind: &str, name: &str, parent: &str, rules: Value) -> Value {
    let (service, port) = parent.split_once(':').unwrap_or((parent, ""));
    let (namespace, service) = service.split_once('/').unwrap_or(("", service));
    let mut reference = json!({ "group": "", "kind": "Service", "name": service });
    if let Ok(port) = port.parse::<u16>() {
        reference["port"] = port.into();
    }
    if !namespace.is_empty() {
        reference["namespace"] = namespace.into();
    }
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": kind, "metadata": { "name": name },
        "spec": { "parentRefs": [reference], "rules": rules },
    })
}

/// A backend on port 80.
pub fn to(service: &str) -> Value {
    json!({ "name": service, "port": 80 })
}

/// Waits until a route has a condition at its current generation. Returns the condition's status,
/// reason and message.
pub fn condition(namespace: &Namespace, kind: &str, name: &str, wanted: &str) -> Condition {
    eventually(&format!("{kind} {name} has {wanted}"), SOON, || {
        let route = get(&["-n", &namespace.0, kind, name]);
        let generation = &route["metadata"]["generation"];
        let parents = route["status"]["parents"].as_array().into_iter().flatten();
        let ours = parents.filter(|parent| parent["controllerName"] == "naru.dev/controller");
        let conditions = ours
            .filter_map(|parent| parent["conditions"].as_array())
            .flatten();
        let mut conditions = conditions
            .filter(|condition| condition["type"] == wanted)
            .filter(|condition| condition["observedGeneration"] == *generation);
        match conditions.next() {
            Some(found) => Ok(Condition {
                status: found["status"].as_str().unwrap_or_default().to_owned(),
                reason: found["reason"].as_str().unwrap_or_default().to_owned(),
                message: found["message"].as_str().unwrap_or_default().to_owned(),
            }),
            None => Err(route["status"].to_string()),
        }
    })
}

/// A condition of a route's status.
#[derive(Clone, Debug)]
pub struct Condition {
    pub status: String,
    pub reason: String,
    pub message: String,
}

impl Condition {
    pub fn is(&self, status: &str, reason: &str) -> bool {
        self.status == status && self.reason == reason
    }
}
