//! What a pod's annotations ask of its sidecar. In: the pod and the defaults. Out: settings that are known to be right, so that
//! a slip of the pen is told when the pod is created and not by a sidecar that does not start.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;

use super::options::{Resources, quantity};
use super::{Options, Refusal, annotation};
use crate::logging::parse_filter;

/// Settings of one sidecar and its redirect rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub log: String,
    pub access_log: bool,
    pub resources: Resources,
    /// As `naru-proxy init` takes them.
    pub skip_inbound_ports: String,
    pub skip_outbound_ports: String,
    pub skip_outbound_cidrs: String,
}

impl Settings {
    pub fn of(pod: &Pod, options: &Options) -> Result<Self, Refusal> {
        let read = |name, read: fn(&str) -> Result<String, String>| match annotation(pod, name) {
            None => Ok(None),
            Some(value) => read(value)
                .map(Some)
                .map_err(|problem| Refusal::Annotation {
                    name,
                    value: value.to_owned(),
                    problem,
                }),
        };
        let quantity = |name, default: &str| {
            Ok::<_, Refusal>(read(name, quantity)?.unwrap_or_else(|| default.to_owned()))
        };
        let default = &options.resources;
        Ok(Self {
            log: read("naru.dev/log-level", filter)?.unwrap_or_else(|| options.log.clone()),
            access_log: read("naru.dev/access-log", boolean)?.as_deref() == Some("true"),
            resources: Resources {
                cpu_request: quantity("naru.dev/proxy-cpu-request", &default.cpu_request)?,
                cpu_limit: quantity("naru.dev/proxy-cpu-limit", &default.cpu_limit)?,
                memory_request: quantity("naru.dev/proxy-memory-request", &default.memory_request)?,
                memory_limit: quantity("naru.dev/proxy-memory-limit", &default.memory_limit)?,
            },
            skip_inbound_ports: read("naru.dev/skip-inbound-ports", ports)?.unwrap_or_default(),
            skip_outbound_ports: read("naru.dev/skip-outbound-ports", ports)?.unwrap_or_default(),
            skip_outbound_cidrs: read("naru.dev/skip-outbound-cidrs", networks)?
                .unwrap_or_default(),
        })
    }
}

fn filter(text: &str) -> Result<String, String> {
    parse_filter(text)
        .map(|_| text.to_owned())
        .map_err(|error| error.to_string())
}

fn boolean(text: &str) -> Result<String, String> {
    match text {
        "true" | "false" => Ok(text.to_owned()),
        _ => Err("expected true or false".to_owned()),
    }
}

fn ports(text: &str) -> Result<String, String> {
    list(text, |item| match item.parse::<u16>() {
        Ok(1..) => Ok(()),
        _ => Err(format!("{item:?} is no port: expected 1 to 65535")),
    })
}

fn networks(text: &str) -> Result<String, String> {
    list(text, |item| {
        let (address, prefix) = item.split_once('/').unwrap_or((item, "0"));
        let longest = match address.parse() {
            Ok(IpAddr::V4(_)) => 32,
            Ok(IpAddr::V6(_)) => 128,
            Err(_) => {
                return Err(format!(
                    "{item:?} is no network: expected ADDRESS or ADDRESS/BITS"
                ));
            }
        };
        match prefix.parse::<u8>() {
            Ok(prefix) if prefix <= longest => Ok(()),
            _ => Err(format!(
                "{item:?} is no network: the prefix is 0 to {longest}"
            )),
        }
    })
}

/// The items between commas, without what is around them.
fn list(text: &str, check: impl Fn(&str) -> Result<(), String>) -> Result<String, String> {
    let items = text.split(',').map(str::trim);
    let items: Vec<&str> = items.filter(|item| !item.is_empty()).collect();
    items.iter().try_for_each(|item| check(item))?;
    Ok(items.join(","))
}
