//! The tables in force, in readable form: `/config` of the admin port.

use std::net::SocketAddr;
use std::time::SystemTime;

use naru_contract::ResourceName;
use serde::Serialize;

use super::Destination;
use super::decode::{Content, EndpointSpec, OpaqueBackendContent, Target};
use super::store::{Held, Store};
use crate::balance::{EndpointSet, Peer};

/// The proxy's configuration.
#[derive(Debug, Serialize)]
pub struct View {
    /// Addresses that the app has called, with their destinations.
    destinations: Vec<DestinationView>,
    /// Resources in force, by name.
    resources: Vec<ResourceView>,
    /// Rejected resources, with the reason. The version before stays in force.
    rejected: Vec<RejectedView>,
}

#[derive(Debug, Serialize)]
struct DestinationView {
    address: SocketAddr,
    /// `logical`, `passthrough`, or `unknown` until the controller has answered.
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<&'static str>,
}

#[derive(Debug, Serialize)]
struct ResourceView {
    name: String,
    /// Hash of the content: equal on every proxy and controller with the same content.
    version: String,
    /// When it was put in force, in Unix seconds.
    since: u64,
    #[serde(flatten)]
    content: ContentView,
}

#[derive(Debug, Serialize)]
struct RejectedView {
    name: String,
    reason: String,
}

#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
enum ContentView {
    TrustAnchors {
        count: usize,
    },
    Inbound {
        workload: String,
        node: String,
        zone: String,
        mtls: &'static str,
        ports: std::collections::BTreeMap<u16, &'static str>,
    },
    Destination {
        target: String,
    },
    Service {
        protocol: &'static str,
        http_routes: Vec<String>,
        opaque_routes: Vec<String>,
        endpoints: String,
    },
    HttpRoute {
        rules: Vec<RuleView>,
    },
    TlsRoute {
        hostnames: Vec<String>,
        backends: Vec<BackendView>,
    },
    TcpRoute {
        backends: Vec<BackendView>,
    },
    Endpoints {
        protocol: &'static str,
        endpoints: Vec<EndpointView>,
    },
}

#[derive(Debug, Serialize)]
struct RuleView {
    name: String,
    matches: usize,
    filters: usize,
    backends: Vec<BackendView>,
    request_timeout_ms: u64,
    backend_request_timeout_ms: u64,
    /// Retries after the first attempt.
    retries: u32,
}

#[derive(Debug, Serialize)]
struct BackendView {
    endpoints: String,
    weight: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    invalid: String,
}

#[derive(Debug, Serialize)]
struct EndpointView {
    address: SocketAddr,
    /// Empty: plaintext.
    identity: String,
    pod: String,
    workload: String,
    zone: String,
    /// `preferred`, `fallback` where others are preferred, or `never` where it is on another node
    /// and the Service is node-local.
    used: &'static str,
    /// Ejected because it kept failing, or because another identity answered there.
    ejected: bool,
    in_flight: u32,
}

impl Store {
    /// The current tables.
    pub fn view(&self) -> View {
        let mut destinations: Vec<_> = self
            .cells
            .values()
            .map(|entry| destination(entry.cell.address, &entry.cell.load()))
            .collect();
        destinations.sort_by_key(|destination| destination.address);
        let mut resources: Vec<_> = self.held.iter().collect();
        resources.sort_by_key(|(name, _)| *name);
        let resources = resources.into_iter().map(|(name, held)| ResourceView {
            name: name.to_string(),
            version: format!("{:016x}", held.version),
            since: held
                .since
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            content: self.content_view(name, held),
        });
        View {
            destinations,
            resources: resources.collect(),
            rejected: self
                .rejected
                .iter()
                .map(|(name, reason)| RejectedView {
                    name: name.clone(),
                    reason: reason.clone(),
                })
                .collect(),
        }
    }

    fn content_view(&self, name: &ResourceName, held: &Held) -> ContentView {
        match &held.content {
            Content::TrustAnchors(anchors) => ContentView::TrustAnchors {
                count: anchors.certificates.len(),
            },
            Content::Inbound(inbound, place) => ContentView::Inbound {
                workload: inbound.workload.to_string(),
                node: place.node.as_deref().unwrap_or_default().to_owned(),
                zone: place.zone.as_deref().unwrap_or_default().to_owned(),
                mtls: if inbound.strict {
                    "strict"
                } else {
                    "permissive"
                },
                ports: inbound
                    .ports
                    .iter()
                    .map(|(port, declared)| (*port, declared.as_str()))
                    .collect(),
            },
            Content::Destination(target) => ContentView::Destination {
                target: match target {
                    Target::Passthrough => "passthrough".to_owned(),
                    Target::Service(name) => name.to_string(),
                    Target::Pod { endpoint, .. } => format!("pod/{}", endpoint.pod),
                },
            },
            Content::Service(service) => ContentView::Service {
                protocol: service.protocol.as_str(),
                http_routes: texts(&service.http_routes),
                opaque_routes: texts(&service.opaque_routes),
                endpoints: service.endpoints.to_string(),
            },
            Content::HttpRoute(route) => ContentView::HttpRoute {
                rules: route.rules.iter().map(rule).collect(),
            },
            Content::OpaqueRoute(route) => {
                let backends = route.backends.iter().map(opaque_backend).collect();
                match name {
                    ResourceName::TlsRoute { .. } => ContentView::TlsRoute {
                        hostnames: texts(&route.hostnames),
                        backends,
                    },
                    _ => ContentView::TcpRoute { backends },
                }
            }
            Content::Endpoints(content) => {
                let live = self.backend_set(name).unwrap_or_default();
                ContentView::Endpoints {
                    protocol: content.protocol.as_str(),
                    endpoints: content
                        .endpoints
                        .values()
                        .map(|listed| endpoint(&listed.spec, &live))
                        .collect(),
                }
            }
        }
    }
}

fn destination(address: SocketAddr, destination: &Destination) -> DestinationView {
    let mut view = DestinationView {
        address,
        kind: "unknown",
        service: None,
        protocol: None,
    };
    match destination {
        Destination::Logical(logical) => {
            view.kind = "logical";
            view.service = Some(format!(
                "{}/{}:{}",
                logical.namespace, logical.service, logical.port
            ));
            view.protocol = Some(logical.protocol.as_str());
        }
        Destination::Passthrough => view.kind = "passthrough",
        Destination::Unknown => {}
    }
    view
}

fn texts(all: &[impl ToString]) -> Vec<String> {
    all.iter().map(ToString::to_string).collect()
}

fn opaque_backend(backend: &OpaqueBackendContent) -> BackendView {
    let (endpoints, invalid) = match &backend.endpoints {
        Ok(name) => (name.to_string(), String::new()),
        Err(invalid) => (String::new(), invalid.to_string()),
    };
    BackendView {
        endpoints,
        weight: backend.weight,
        invalid,
    }
}

fn rule(rule: &naru_contract::HttpRule) -> RuleView {
    RuleView {
        name: rule.name.clone(),
        matches: rule.matches.len(),
        filters: rule.filters.len(),
        backends: rule
            .backends
            .iter()
            .map(|backend| BackendView {
                endpoints: backend.endpoints.clone(),
                weight: backend.weight,
                invalid: backend.invalid.clone(),
            })
            .collect(),
        request_timeout_ms: rule.request_timeout_ms,
        backend_request_timeout_ms: rule.backend_request_timeout_ms,
        retries: rule.retry.as_ref().map_or(0, |retry| retry.attempts),
    }
}

fn endpoint(spec: &EndpointSpec, set: &EndpointSet) -> EndpointView {
    let mut all = set.endpoints.iter().zip(0..);
    let live = all.find(|(endpoint, _)| endpoint.address == spec.address);
    let preferred = set.preferred().len();
    let used = match live {
        Some((_, index)) if preferred == 0 || index < preferred => "preferred",
        Some(_) => "fallback",
        None => "never",
    };
    let live = live.map(|(endpoint, _)| endpoint);
    EndpointView {
        address: spec.address,
        identity: match &spec.peer {
            Peer::Mesh(identity) => identity.to_string(),
            Peer::Plain | Peer::App => String::new(),
        },
        pod: spec.pod.to_string(),
        workload: spec.workload.to_string(),
        zone: spec.zone.to_string(),
        used,
        ejected: live.is_some_and(|live| live.load.is_ejected()),
        in_flight: live.map_or(0, |live| live.load.in_flight()),
    }
}
