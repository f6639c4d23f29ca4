//! Parses a pod template into what the sandbox runs: programs with their environment, users, ports
//! and probes. Unsupported fields are reported by name rather than ignored.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use k8s_openapi::api::core::v1 as k8s;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::sandbox::network::Addresses;

/// The sidecars' user, whose connections the redirect rules exempt: containers must not use it.
pub const PROXY_UID: u32 = 1337;
/// Default of Kubernetes.
const DEFAULT_GRACE: Duration = Duration::from_secs(30);
/// Upper bound on configurable durations, in seconds: slightly over an hour, so that sums never
/// overflow.
const MAX_SECONDS: i64 = 4_000;

/// The parsed template of a workload's pods.
#[derive(Clone, Debug)]
pub struct Template {
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub service_account: String,
    pub subdomain: Option<String>,
    /// Run one after the other before the containers.
    pub init: Vec<Container>,
    pub containers: Vec<Container>,
    /// Between SIGTERM and SIGKILL.
    pub grace: Duration,
}

/// One program of a pod.
#[derive(Clone, Debug)]
pub struct Container {
    pub name: String,
    pub argv: Vec<String>,
    pub env: Vec<(String, Value)>,
    pub directory: Option<PathBuf>,
    /// User and group.
    pub user: Option<(u32, u32)>,
    pub no_new_privileges: bool,
    pub ports: Vec<Port>,
    pub readiness: Option<Probe>,
    pub liveness: Option<Probe>,
    pub startup: Option<Probe>,
    /// A native sidecar: an init container with `restartPolicy: Always`.
    pub stays: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    pub name: Option<String>,
    pub number: u16,
    pub protocol: String,
}

/// The source of a variable's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Text(String),
    Field(Field),
}

/// Fields of the pod that a variable can refer to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    Name,
    Namespace,
    Uid,
    ServiceAccount,
    NodeName,
    PodIp,
    PodIps,
    HostIp,
    Label(String),
    Annotation(String),
}

/// A probe of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    pub action: Action,
    pub delay: Duration,
    pub period: Duration,
    pub timeout: Duration,
    pub failures: u32,
    pub successes: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Http {
        port: u16,
        path: String,
        headers: Vec<(String, String)>,
    },
    Tcp(u16),
    Exec(Vec<String>),
}

/// The pod's values for variables.
pub struct Facts<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
    pub uid: &'a str,
    pub node: &'a str,
    pub node_ip: String,
    pub addresses: Addresses,
    pub template: &'a Template,
}

impl Template {
    pub fn parse(template: &k8s::PodTemplateSpec) -> anyhow::Result<Self> {
        let empty = k8s::PodSpec::default();
        let metadata = template.metadata.clone().unwrap_or_default();
        let spec = template.spec.as_ref().unwrap_or(&empty);
        ensure!(
            !spec.containers.is_empty(),
            "spec.containers: the list is empty"
        );
        let parsed = |field: &str, containers: &[k8s::Container]| {
            containers
                .iter()
                .enumerate()
                .map(|(index, container)| {
                    Container::parse(container, spec)
                        .with_context(|| format!("spec.{field}[{index}] ({})", container.name))
                })
                .collect::<anyhow::Result<Vec<_>>>()
        };
        let init = parsed(
            "initContainers",
            spec.init_containers.as_deref().unwrap_or_default(),
        )?;
        let containers = parsed("containers", &spec.containers)?;
        let mut names: Vec<_> = init.iter().chain(&containers).map(|c| &c.name).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            bail!("spec.containers: two are named {:?}", twice[0]);
        }
        ensure!(
            spec.host_network != Some(true),
            "spec.hostNetwork: the sandbox gives every pod a network of its own"
        );
        Ok(Self {
            labels: metadata.labels.unwrap_or_default(),
            annotations: metadata.annotations.unwrap_or_default(),
            service_account: spec
                .service_account_name
                .clone()
                .or_else(|| spec.service_account.clone())
                .filter(|name| !name.is_empty())
                .unwrap_or_else(|| "default".to_owned()),
            subdomain: spec.subdomain.clone(),
            init,
            containers,
            grace: spec
                .termination_grace_period_seconds
                .map(|seconds| seconds_of("spec.terminationGracePeriodSeconds", seconds))
                .transpose()?
                .unwrap_or(DEFAULT_GRACE),
        })
    }

    /// The number of a named port; a name may stand for another number in each pod.
    pub fn port(&self, name: &str, protocol: &str) -> Option<u16> {
        self.containers
            .iter()
            .chain(&self.init)
            .flat_map(|container| &container.ports)
            .find(|port| port.name.as_deref() == Some(name) && port.protocol == protocol)
            .map(|port| port.number)
    }
}

impl Container {
    fn parse(container: &k8s::Container, pod: &k8s::PodSpec) -> anyhow::Result<Self> {
        let mut argv = container.command.clone().unwrap_or_default();
        ensure!(
            !argv.is_empty() && !argv[0].is_empty(),
            "command: it is needed, since the sandbox runs programs of this machine and no images"
        );
        argv.extend(container.args.iter().flatten().cloned());
        ensure!(
            container.env_from.as_deref().unwrap_or_default().is_empty(),
            "envFrom: the sandbox has no ConfigMaps and Secrets; use env"
        );
        let env = container.env.iter().flatten().map(|variable| {
            Ok((
                variable.name.clone(),
                variable_value(variable).with_context(|| format!("env {:?}", variable.name))?,
            ))
        });
        let security = container.security_context.clone().unwrap_or_default();
        let pod_security = pod.security_context.clone().unwrap_or_default();
        let ports = container.ports.iter().flatten().map(|port| {
            Ok(Port {
                name: port.name.clone(),
                number: port_number("ports[].containerPort", port.container_port)?,
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            })
        });
        let ports = ports.collect::<anyhow::Result<Vec<_>>>()?;
        let probe = |field, probe: &Option<k8s::Probe>| {
            probe
                .as_ref()
                .map(|probe| Probe::parse(probe, &ports).context(field))
                .transpose()
        };
        Ok(Self {
            name: container.name.clone(),
            argv,
            env: env.collect::<anyhow::Result<_>>()?,
            directory: container.working_dir.as_ref().map(PathBuf::from),
            user: user(
                security.run_as_user.or(pod_security.run_as_user),
                security.run_as_group.or(pod_security.run_as_group),
            )?,
            no_new_privileges: security.allow_privilege_escalation == Some(false),
            readiness: probe("readinessProbe", &container.readiness_probe)?,
            liveness: probe("livenessProbe", &container.liveness_probe)?,
            startup: probe("startupProbe", &container.startup_probe)?,
            ports,
            stays: container.restart_policy.as_deref() == Some("Always"),
        })
    }

    /// Its variables with their values; `$(NAME)` expands to earlier variables.
    pub fn environment(&self, facts: &Facts<'_>) -> Vec<(String, String)> {
        let mut done: Vec<(String, String)> = Vec::with_capacity(self.env.len());
        for (name, value) in &self.env {
            let value = match value {
                Value::Text(text) => expand(text, &done),
                Value::Field(field) => field.of(facts),
            };
            done.push((name.clone(), value));
        }
        done
    }

    /// Its command with `$(NAME)` expanded.
    pub fn command(&self, environment: &[(String, String)]) -> Vec<String> {
        self.argv
            .iter()
            .map(|argument| expand(argument, environment))
            .collect()
    }
}

impl Field {
    fn parse(path: &str) -> anyhow::Result<Self> {
        let keyed = |map: &str| {
            path.strip_prefix(map)?
                .strip_prefix("['")?
                .strip_suffix("']")
                .map(str::to_owned)
        };
        Ok(match path {
            "metadata.name" => Self::Name,
            "metadata.namespace" => Self::Namespace,
            "metadata.uid" => Self::Uid,
            "spec.serviceAccountName" => Self::ServiceAccount,
            "spec.nodeName" => Self::NodeName,
            "status.podIP" => Self::PodIp,
            "status.podIPs" => Self::PodIps,
            "status.hostIP" => Self::HostIp,
            _ => match (keyed("metadata.labels"), keyed("metadata.annotations")) {
                (Some(label), _) => Self::Label(label),
                (_, Some(annotation)) => Self::Annotation(annotation),
                _ => bail!("valueFrom.fieldRef.fieldPath: {path:?} is not known"),
            },
        })
    }

    fn of(&self, facts: &Facts<'_>) -> String {
        let v4 = facts.addresses.v4.to_string();
        match self {
            Self::Name => facts.name.to_owned(),
            Self::Namespace => facts.namespace.to_owned(),
            Self::Uid => facts.uid.to_owned(),
            Self::ServiceAccount => facts.template.service_account.clone(),
            Self::NodeName => facts.node.to_owned(),
            Self::HostIp => facts.node_ip.clone(),
            Self::PodIp => v4,
            Self::PodIps => match facts.addresses.v6 {
                Some(v6) => format!("{v4},{v6}"),
                None => v4,
            },
            Self::Label(key) => facts.template.labels.get(key).cloned().unwrap_or_default(),
            Self::Annotation(key) => facts
                .template
                .annotations
                .get(key)
                .cloned()
                .unwrap_or_default(),
        }
    }
}

impl Probe {
    fn parse(probe: &k8s::Probe, ports: &[Port]) -> anyhow::Result<Self> {
        let port = |field: &str, port: &IntOrString| match port {
            IntOrString::Int(number) => port_number(field, *number),
            IntOrString::String(name) => ports
                .iter()
                .find(|port| port.name.as_ref() == Some(name))
                .map(|port| port.number)
                .with_context(|| format!("{field}: the container has no port named {name:?}")),
        };
        let action = if let Some(http) = &probe.http_get {
            ensure!(
                http.scheme.as_deref().unwrap_or("HTTP") == "HTTP",
                "httpGet.scheme: the sandbox probes with HTTP only"
            );
            Action::Http {
                port: port("httpGet.port", &http.port)?,
                path: http.path.clone().unwrap_or_else(|| "/".to_owned()),
                headers: http
                    .http_headers
                    .iter()
                    .flatten()
                    .map(|header| (header.name.clone(), header.value.clone()))
                    .collect(),
            }
        } else if let Some(tcp) = &probe.tcp_socket {
            Action::Tcp(port("tcpSocket.port", &tcp.port)?)
        } else if let Some(grpc) = &probe.grpc {
            // The sandbox only checks that the port accepts connections.
            Action::Tcp(port_number("grpc.port", grpc.port)?)
        } else if let Some(exec) = &probe.exec {
            let command = exec.command.clone().unwrap_or_default();
            ensure!(!command.is_empty(), "exec.command: it is empty");
            Action::Exec(command)
        } else {
            bail!("it says neither httpGet, tcpSocket, grpc nor exec");
        };
        let seconds = |field, value: Option<i32>, default: i64, least: i64| {
            seconds_of(field, i64::from(value.unwrap_or(default as i32)).max(least))
        };
        let count = |value: Option<i32>, default| {
            value
                .and_then(|value| u32::try_from(value).ok())
                .unwrap_or(default)
                .max(1)
        };
        Ok(Self {
            action,
            delay: seconds("initialDelaySeconds", probe.initial_delay_seconds, 0, 0)?,
            period: seconds("periodSeconds", probe.period_seconds, 10, 1)?,
            timeout: seconds("timeoutSeconds", probe.timeout_seconds, 1, 1)?,
            failures: count(probe.failure_threshold, 3),
            successes: count(probe.success_threshold, 1),
        })
    }
}

fn variable_value(variable: &k8s::EnvVar) -> anyhow::Result<Value> {
    let Some(source) = &variable.value_from else {
        return Ok(Value::Text(variable.value.clone().unwrap_or_default()));
    };
    match &source.field_ref {
        Some(field) => Ok(Value::Field(Field::parse(&field.field_path)?)),
        None => bail!("valueFrom: the sandbox knows fieldRef only"),
    }
}

fn user(uid: Option<i64>, gid: Option<i64>) -> anyhow::Result<Option<(u32, u32)>> {
    let number = |field: &str, value: i64| {
        u32::try_from(value).with_context(|| format!("securityContext.{field}: {value}"))
    };
    let Some(uid) = uid else {
        return Ok(None);
    };
    let uid = number("runAsUser", uid)?;
    ensure!(
        uid != PROXY_UID,
        "securityContext.runAsUser: {PROXY_UID} is the sidecar's own, whose connections no rule \
         redirects"
    );
    let gid = match gid {
        Some(gid) => number("runAsGroup", gid)?,
        None => uid,
    };
    Ok(Some((uid, gid)))
}

fn port_number(field: &str, number: i32) -> anyhow::Result<u16> {
    u16::try_from(number)
        .ok()
        .filter(|number| *number > 0)
        .with_context(|| format!("{field}: {number} is not a port"))
}

fn seconds_of(field: &str, seconds: i64) -> anyhow::Result<Duration> {
    match u64::try_from(seconds) {
        Ok(count) if seconds <= MAX_SECONDS => Ok(Duration::from_secs(count)),
        _ => bail!("{field}: {seconds} is not within 0 to {MAX_SECONDS}"),
    }
}

/// Expands `$(NAME)` if the variable exists; `$$` is a dollar sign.
fn expand(text: &str, variables: &[(String, String)]) -> String {
    let mut done = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        done.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("$$") {
            done.push('$');
            rest = after;
            continue;
        }
        let named = rest
            .strip_prefix("$(")
            .and_then(|inner| inner.split_once(')'));
        let known = named.and_then(|(name, after)| {
            let (_, value) = variables.iter().rev().find(|(known, _)| known == name)?;
            Some((value, after))
        });
        match known {
            Some((value, after)) => {
                done.push_str(value);
                rest = after;
            }
            None => {
                done.push('$');
                rest = &rest[1..];
            }
        }
    }
    done.push_str(rest);
    done
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn template(spec: serde_json::Value) -> anyhow::Result<Template> {
        let template = json!({ "metadata": { "labels": { "app": "web" } }, "spec": spec });
        Template::parse(&serde_json::from_value(template).unwrap())
    }

    #[test]
    fn references_to_variables_are_expanded_as_in_kubernetes() {
        let variables = [("HOST".to_owned(), "web".to_owned())];
        assert_eq!(expand("http://$(HOST):80", &variables), "http://web:80");
        assert_eq!(
            expand("$$(HOST) $(NONE) $HOST $", &variables),
            "$(HOST) $(NONE) $HOST $"
        );
        assert_eq!(expand("$(HOST", &variables), "$(HOST");
    }

    #[test]
    fn variables_refer_to_fields_of_the_pod_and_to_earlier_variables() {
        let template = template(json!({ "containers": [{
            "name": "a", "command": ["run"], "args": ["--at", "$(URL)"],
            "env": [
                { "name": "IP", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } },
                { "name": "URL", "value": "http://$(IP)/$(LATER)" },
                { "name": "APP",
                    "valueFrom": { "fieldRef": { "fieldPath": "metadata.labels['app']" } } },
            ],
        }] }))
        .unwrap();
        let facts = Facts {
            namespace: "shop",
            name: "web-1",
            uid: "u",
            node: "n",
            node_ip: String::new(),
            addresses: Addresses {
                v4: [10, 244, 0, 2].into(),
                v6: None,
            },
            template: &template,
        };
        let container = &template.containers[0];
        let environment = container.environment(&facts);
        assert_eq!(environment[1].1, "http://10.244.0.2/$(LATER)");
        assert_eq!(environment[2].1, "web");
        assert_eq!(
            container.command(&environment),
            ["run", "--at", "http://10.244.0.2/$(LATER)"]
        );
    }

    #[test]
    fn unsupported_fields_are_named() {
        let wrong = |container: serde_json::Value| {
            let error = template(json!({ "containers": [container] })).unwrap_err();
            format!("{error:#}")
        };
        let error = wrong(json!({ "name": "a", "image": "nginx" }));
        assert!(
            error.contains("spec.containers[0] (a): command: it is needed"),
            "{error}"
        );
        let error = wrong(json!({ "name": "a", "command": ["x"], "env": [
            { "name": "K", "valueFrom": { "secretKeyRef": { "name": "s", "key": "k" } } }
        ] }));
        assert!(error.contains("env \"K\": valueFrom"), "{error}");
        let error = wrong(
            json!({ "name": "a", "command": ["x"], "securityContext": { "runAsUser": 1337 } }),
        );
        assert!(error.contains("runAsUser: 1337"), "{error}");
        let error = wrong(json!({ "name": "a", "command": ["x"],
            "readinessProbe": { "httpGet": { "port": "web" } } }));
        assert!(error.contains("no port named \"web\""), "{error}");
    }

    #[test]
    fn probes_have_kubernetes_defaults_and_named_ports() {
        let template = template(json!({ "containers": [{
            "name": "a", "command": ["x"], "ports": [{ "name": "web", "containerPort": 8080 }],
            "readinessProbe": { "httpGet": { "port": "web" } },
        }] }))
        .unwrap();
        let probe = template.containers[0].readiness.clone().unwrap();
        assert_eq!(
            probe.action,
            Action::Http {
                port: 8080,
                path: "/".to_owned(),
                headers: Vec::new()
            }
        );
        assert_eq!(probe.period, Duration::from_secs(10));
        assert_eq!(probe.failures, 3);
        assert_eq!(template.port("web", "TCP"), Some(8080));
    }
}
