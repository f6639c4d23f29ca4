//! A sidecar's settings from the pod's annotations. In: the pod and the defaults. Out: validated
//! settings, so that a typo is reported when the pod is created rather than by a sidecar that does
//! not start.

use k8s_openapi::api::core::v1::Pod;

use super::names::{CLASS_E_ANNOTATION, annotation};
use super::options::{Options, Resources};
use super::refusal::Refusal;
use crate::annotations::{
    boolean, client_address, forwarded_headers, is_strict, networks, ports, quantity,
};
use crate::logging::parse_filter;

/// Settings of a sidecar and its redirect rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub log: String,
    pub access_log: bool,
    /// The client address that the app sees on HTTP connections, if the pod sets it.
    pub client_address: Option<&'static str>,
    /// Header fields to which the client's address is appended; empty: none.
    pub forwarded_headers: String,
    pub resources: Resources,
    /// Ports of the app that get the client's address by the PROXY protocol; empty: none.
    pub proxy_protocol: String,
    /// In the syntax of `naru-proxy init`.
    pub skip_inbound_ports: String,
    pub skip_outbound_ports: String,
    pub skip_outbound_cidrs: String,
    /// Addresses in 240.0.0.0/4 are in use.
    pub class_e_in_use: bool,
}

impl Settings {
    pub fn of(pod: &Pod, options: &Options) -> Result<Self, Refusal> {
        let quantity = |name, default: &str| {
            let given = read(pod, name, quantity)?;
            Ok::<_, Refusal>(given.unwrap_or_else(|| default.to_owned()))
        };
        // The controller uses these itself: with an invalid value the pod would not behave as
        // intended.
        read(pod, "naru.dev/mtls", is_strict)?;
        read(pod, "naru.dev/opaque-ports", ports)?;
        let ports = |name| Ok::<_, Refusal>(read(pod, name, ports)?.map_or(String::new(), joined));
        let networks = read(pod, "naru.dev/skip-outbound-cidrs", networks)?;
        let access_log = read(pod, "naru.dev/access-log", boolean)?;
        let class_e_in_use = read(pod, CLASS_E_ANNOTATION, boolean)?;
        let client_address = read(pod, "naru.dev/client-address", client_address)?;
        let forwarded = read(pod, "naru.dev/forwarded-headers", forwarded_headers)?;
        let default = &options.resources;
        Ok(Self {
            log: read(pod, "naru.dev/log-level", filter)?.unwrap_or_else(|| options.log.clone()),
            access_log: access_log.unwrap_or(false),
            client_address,
            forwarded_headers: forwarded.map_or(String::new(), joined),
            resources: Resources {
                cpu_request: quantity("naru.dev/proxy-cpu-request", &default.cpu_request)?,
                cpu_limit: quantity("naru.dev/proxy-cpu-limit", &default.cpu_limit)?,
                memory_request: quantity("naru.dev/proxy-memory-request", &default.memory_request)?,
                memory_limit: quantity("naru.dev/proxy-memory-limit", &default.memory_limit)?,
            },
            proxy_protocol: ports("naru.dev/proxy-protocol")?,
            skip_inbound_ports: ports("naru.dev/skip-inbound-ports")?,
            skip_outbound_ports: ports("naru.dev/skip-outbound-ports")?,
            skip_outbound_cidrs: networks.map_or(String::new(), joined),
            class_e_in_use: class_e_in_use.unwrap_or(options.class_e_in_use),
        })
    }
}

fn filter(text: &str) -> Result<String, String> {
    parse_filter(text)
        .map(|_| text.to_owned())
        .map_err(|error| error.to_string())
}

/// The value of a pod's annotation. `None`: it is absent.
pub(super) fn read<'a, T>(
    pod: &'a Pod,
    name: &'static str,
    read: impl Fn(&'a str) -> Result<T, String>,
) -> Result<Option<T>, Refusal> {
    let Some(value) = annotation(pod, name) else {
        return Ok(None);
    };
    read(value)
        .map(Some)
        .map_err(|problem| Refusal::Annotation {
            name,
            value: value.to_owned(),
            problem,
        })
}

fn joined<T: ToString>(items: Vec<T>) -> String {
    let items: Vec<String> = items.iter().map(T::to_string).collect();
    items.join(",")
}
