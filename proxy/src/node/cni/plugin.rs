//! `naru-cni`: the protocol of CNI plugins, versions 0.3 to 1.1. In: the runtime's call, in the
//! environment and on standard input. Out: on standard output, the result of the previous plugins,
//! unchanged, or an error.
//!
//! `decide` is pure: it chooses the operation and the namespace. `run` performs it.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::namespace::{Namespace, Work, redirect};
use super::{ANNOTATIONS_CAPABILITY, PLUGIN};
use crate::node::redirect::{RedirectRules, Request};

/// The versions with a previous result, which a chained plugin needs.
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// The version of a reply where the runtime's version is unknown.
const VERSION: &str = "1.1.0";
/// Bound on configuration, result and annotations, in bytes: Kubernetes allows 256 KiB of
/// annotations.
const MAX_INPUT: u64 = 4 << 20;
/// Set by injection on the pods whose rules this plugin is to set.
pub const REDIRECTION_ANNOTATION: &str = "naru.dev/redirection";
/// The value of that annotation.
pub const REDIRECTION_CNI: &str = "cni";

/// Error codes of the specification, and our own from 100 on.
mod code {
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    pub const INVALID_ENVIRONMENT: u32 = 4;
    pub const INPUT: u32 = 5;
    pub const DECODING: u32 = 6;
    pub const INVALID_CONFIGURATION: u32 = 7;
    pub const ANNOTATION: u32 = 100;
    pub const REDIRECTION: u32 = 101;
}

/// An error in the format of the runtime.
#[derive(Debug, PartialEq, Eq)]
struct Error {
    code: u32,
    message: String,
}

fn error(code: u32, message: impl Into<String>) -> Error {
    Error {
        code,
        message: message.into(),
    }
}

/// The outcome of a call.
#[derive(Debug, PartialEq)]
enum Step {
    /// Do nothing and reply with nothing.
    Nothing,
    Say(Value),
    /// Perform an operation on the rules of a pod, then reply with the result, if any.
    Redirect {
        work: Work,
        namespace: PathBuf,
        rules: RedirectRules,
        result: Option<Value>,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Configuration {
    cni_version: String,
    prev_result: Option<Map<String, Value>>,
    #[serde(default)]
    runtime_config: Option<Map<String, Value>>,
}

/// Answers the call that this process was started for.
pub fn run() -> ExitCode {
    let mut input = Vec::new();
    let read = std::io::stdin().take(MAX_INPUT + 1).read_to_end(&mut input);
    let version = version_of(&input);
    let done = match read {
        Err(cause) => Err(error(
            code::INPUT,
            format!("reading the configuration: {cause}"),
        )),
        Ok(length) if length as u64 > MAX_INPUT => Err(error(
            code::INPUT,
            format!("the configuration is longer than {MAX_INPUT} bytes"),
        )),
        Ok(_) => decide(|name| std::env::var(name).ok(), &input).and_then(perform),
    };
    let (said, exit) = match done {
        Ok(said) => (said, ExitCode::SUCCESS),
        Err(Error { code, message }) => {
            let message = format!("{PLUGIN}: {message}");
            let said = json!({ "cniVersion": version, "code": code, "msg": message });
            (Some(said), ExitCode::FAILURE)
        }
    };
    match said.map(|said| writeln!(std::io::stdout(), "{said}")) {
        None | Some(Ok(())) => exit,
        Some(Err(_)) => ExitCode::FAILURE,
    }
}

/// The runtime's version, for an error that occurs before the configuration is parsed.
fn version_of(input: &[u8]) -> String {
    let configuration = serde_json::from_slice::<Value>(input).unwrap_or_default();
    let version = configuration["cniVersion"].as_str();
    version.unwrap_or(VERSION).to_owned()
}

fn perform(step: Step) -> Result<Option<Value>, Error> {
    match step {
        Step::Nothing => Ok(None),
        Step::Say(said) => Ok(Some(said)),
        Step::Redirect {
            work,
            namespace: path,
            rules,
            result,
        } => {
            let failed = |cause: &dyn std::fmt::Display| {
                let doing = match work {
                    Work::Check => "checking",
                    Work::Install | Work::Add => "setting",
                };
                error(
                    code::REDIRECTION,
                    format!(
                        "{doing} the pod's redirect rules: {}: {cause}",
                        path.display()
                    ),
                )
            };
            let namespace = Namespace::open(&path).map_err(|cause| failed(&cause))?;
            let own = Namespace::own().map_err(|cause| failed(&cause))?;
            if namespace.id == own.id {
                return Err(failed(
                    &"this is the host's own network, which is never redirected",
                ));
            }
            redirect(&namespace, work, &rules).map_err(|cause| failed(&cause))?;
            Ok(result)
        }
    }
}

fn decide(variable: impl Fn(&str) -> Option<String>, input: &[u8]) -> Result<Step, Error> {
    let needed = |name: &str| {
        let value = variable(name).filter(|value| !value.is_empty());
        value.ok_or_else(|| {
            error(
                code::INVALID_ENVIRONMENT,
                format!("{name} is not set: a container runtime sets it"),
            )
        })
    };
    let command = needed("CNI_COMMAND")?;
    if command == "VERSION" {
        let version = version_of(input);
        return Ok(Step::Say(
            json!({ "cniVersion": version, "supportedVersions": VERSIONS }),
        ));
    }
    let configuration: Configuration = serde_json::from_slice(input)
        .map_err(|cause| error(code::DECODING, format!("the configuration: {cause}")))?;
    if !VERSIONS.contains(&&*configuration.cni_version) {
        return Err(error(
            code::INCOMPATIBLE_VERSION,
            format!(
                "CNI version {} is not one of {}",
                configuration.cni_version,
                VERSIONS.join(", ")
            ),
        ));
    }
    let work = match &*command {
        "ADD" => Work::Install,
        "CHECK" => Work::Check,
        // The rules end with the namespace, and nothing is kept elsewhere.
        "DEL" | "GC" | "STATUS" => return Ok(Step::Nothing),
        other => {
            return Err(error(
                code::INVALID_ENVIRONMENT,
                format!("CNI_COMMAND={other} is not known"),
            ));
        }
    };
    needed("CNI_CONTAINERID")?;
    let Some(mut previous) = configuration.prev_result else {
        return Err(error(
            code::INVALID_CONFIGURATION,
            "there is no result of a plugin before this one: it makes no network, and belongs at \
             the end of a list",
        ));
    };
    previous
        .entry("cniVersion")
        .or_insert_with(|| configuration.cni_version.into());
    let result = (work == Work::Install).then(|| previous.into());
    let annotations = configuration
        .runtime_config
        .as_ref()
        .and_then(|config| config.get(ANNOTATIONS_CAPABILITY));
    let Some(request) = request(annotations) else {
        return Ok(result.map_or(Step::Nothing, Step::Say));
    };
    let namespace = needed("CNI_NETNS")?.into();
    let left_alone = request
        .parse()
        .map_err(|cause| error(code::ANNOTATION, format!("the annotation naru.dev/{cause}")))?;
    Ok(Step::Redirect {
        work,
        namespace,
        rules: RedirectRules::of_pod(left_alone),
        result,
    })
}

/// The request in the pod's annotations. `None`: redirection by other means. With a runtime that
/// passes no annotations, every pod looks like that; an injected pod is then stopped by its own
/// check.
fn request(annotations: Option<&Value>) -> Option<Request> {
    let text = |name: &str| annotations?.get(name)?.as_str();
    let skipped = |what: &str| {
        text(&format!("naru.dev/skip-{what}"))
            .unwrap_or_default()
            .to_owned()
    };
    (text(REDIRECTION_ANNOTATION)? == REDIRECTION_CNI).then(|| Request {
        skip_inbound_ports: skipped("inbound-ports"),
        skip_outbound_ports: skipped("outbound-ports"),
        skip_outbound_cidrs: skipped("outbound-cidrs"),
        class_e_in_use: text("naru.dev/class-e-in-use")
            .unwrap_or_default()
            .to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The configuration that containerd sends for a pod with these annotations.
    fn configuration(annotations: Value) -> Value {
        json!({
            "cniVersion": "1.0.0",
            "name": "pods",
            "type": "naru-cni",
            "capabilities": { "io.kubernetes.cri.pod-annotations": true },
            "runtimeConfig": { "io.kubernetes.cri.pod-annotations": annotations },
            "prevResult": {
                "cniVersion": "1.0.0",
                "interfaces": [{
                    "name": "eth0",
                    "mac": "02:42:ac:11:00:02",
                    "sandbox": "/var/run/netns/cni-1",
                }],
                "ips": [{ "interface": 0, "address": "10.244.1.7/24", "gateway": "10.244.1.1" }],
                "routes": [{ "dst": "0.0.0.0/0" }],
                "dns": {},
                "ours": { "kept": 1 },
            },
        })
    }

    fn injected() -> Value {
        json!({
            "naru.dev/redirection": "cni",
            "naru.dev/skip-inbound-ports": "9100",
            "naru.dev/skip-outbound-cidrs": "169.254.169.254/32",
        })
    }

    fn called(command: &str, input: &Value) -> Result<Step, Error> {
        let variable = |name: &str| match name {
            "CNI_COMMAND" => Some(command.to_owned()),
            "CNI_CONTAINERID" => Some("c1".to_owned()),
            "CNI_NETNS" => Some("/var/run/netns/cni-1".to_owned()),
            _ => None,
        };
        decide(variable, input.to_string().as_bytes())
    }

    #[test]
    fn add_sets_the_rules_of_an_injected_pod_and_passes_the_result_on_unchanged() {
        let input = configuration(injected());
        let step = called("ADD", &input).expect("a step");
        let Step::Redirect {
            work,
            namespace,
            rules,
            result,
        } = step
        else {
            panic!("{step:?}");
        };
        assert_eq!(
            (work, &*namespace.to_string_lossy()),
            (Work::Install, "/var/run/netns/cni-1")
        );
        assert_eq!(result.as_ref(), Some(&input["prevResult"]));
        assert_eq!(rules.inbound_ports_skipped, [9100, 15020]);
        assert_eq!(
            rules.outbound_cidrs_skipped[0].to_string(),
            "169.254.169.254/32"
        );
    }

    #[test]
    fn other_pods_are_passed_on_unchanged() {
        for annotations in [
            json!({}),
            json!({ "naru.dev/redirection": "init" }),
            Value::Null,
        ] {
            let input = configuration(annotations);
            assert_eq!(
                called("ADD", &input),
                Ok(Step::Say(input["prevResult"].clone()))
            );
            assert_eq!(called("CHECK", &input), Ok(Step::Nothing));
        }
        let mut input = configuration(Value::Null);
        input
            .as_object_mut()
            .expect("an object")
            .remove("runtimeConfig");
        assert_eq!(
            called("ADD", &input),
            Ok(Step::Say(input["prevResult"].clone()))
        );
    }

    #[test]
    fn a_result_without_a_version_gets_that_of_the_call() {
        let mut input = configuration(json!({}));
        let previous = input["prevResult"].as_object_mut().expect("an object");
        previous.remove("cniVersion");
        let Ok(Step::Say(said)) = called("ADD", &input) else {
            panic!("nothing is said");
        };
        assert_eq!(said["cniVersion"], "1.0.0");
    }

    #[test]
    fn check_compares_and_prints_nothing() {
        let step = called("CHECK", &configuration(injected()));
        assert!(
            matches!(
                step,
                Ok(Step::Redirect {
                    work: Work::Check,
                    result: None,
                    ..
                })
            ),
            "{step:?}"
        );
    }

    #[test]
    fn calls_that_end_a_pod_need_nothing_and_never_fail() {
        for command in ["DEL", "GC", "STATUS"] {
            assert_eq!(
                called(
                    command,
                    &json!({ "cniVersion": "1.1.0", "name": "pods", "type": "naru-cni" })
                ),
                Ok(Step::Nothing)
            );
        }
    }

    #[test]
    fn the_versions_are_those_that_have_a_previous_result() {
        let said = json!({
            "cniVersion": "1.0.0",
            "supportedVersions": ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"],
        });
        assert_eq!(
            called("VERSION", &json!({ "cniVersion": "1.0.0" })),
            Ok(Step::Say(said))
        );
    }

    #[test]
    fn errors_have_the_codes_of_the_specification() {
        let code =
            |command: &str, input: Value| called(command, &input).map_err(|error| error.code);
        let with = |key: &str, value: Value| {
            let mut input = configuration(injected());
            input[key] = value;
            input
        };
        assert_eq!(code("ADD", with("cniVersion", "0.2.0".into())), Err(1));
        assert_eq!(code("ADD", with("prevResult", Value::Null)), Err(7));
        assert_eq!(code("ADD", json!("no configuration")), Err(6));
        assert_eq!(code("REMOVE", configuration(injected())), Err(4));
        let slip = configuration(
            json!({ "naru.dev/redirection": "cni", "naru.dev/skip-outbound-ports": "http" }),
        );
        let error = called("ADD", &slip).expect_err("no port");
        assert_eq!(error.code, 100);
        assert!(
            error
                .message
                .starts_with("the annotation naru.dev/skip-outbound-ports: \"http\""),
            "{}",
            error.message
        );
        assert_eq!(decide(|_| None, b"{}").map_err(|error| error.code), Err(4));
    }
}
