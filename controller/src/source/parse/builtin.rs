//! Kubernetes' own kinds, reduced to [objects](crate::source). In: typed objects as served by the
//! API server. Out: the fields that we use, or the invalid field.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use naru_contract::{MtlsMode, Protocol};

use super::problem::Invalid;
use crate::annotations::{is_strict, ports};
use crate::source::objects::*;

/// An object, and its invalid values, which are ignored.
type Read<T> = Result<(T, Vec<Invalid>), Invalid>;

/// Default namespace of a namespaced object.
const DEFAULT_NAMESPACE: &str = "default";
/// Default service account of a pod.
const DEFAULT_SERVICE_ACCOUNT: &str = "default";
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
const POD_TEMPLATE_HASH_LABEL: &str = "pod-template-hash";
const INJECTED_LABEL: &str = "naru.dev/injected";
const MTLS_ANNOTATION: &str = "naru.dev/mtls";
const OPAQUE_PORTS_ANNOTATION: &str = "naru.dev/opaque-ports";
const SKIP_INBOUND_PORTS_ANNOTATION: &str = "naru.dev/skip-inbound-ports";

pub fn namespace(object: core::Namespace) -> Read<Namespace> {
    let mut reader = Reader::of(&object.metadata);
    let namespace = Namespace {
        annotations: reader.annotations(),
        name: required_name(&object.metadata)?,
    };
    Ok((namespace, reader.ignored))
}

pub fn service(object: core::Service) -> Read<Service> {
    let name = name(&object.metadata)?;
    let mut reader = Reader::of(&object.metadata);
    let annotations = reader.annotations();
    let ignored = reader.ignored;
    let spec = object.spec.unwrap_or_default();
    let external_name = spec.type_.as_deref() == Some("ExternalName");
    let mut cluster_ips = Vec::new();
    for (field, text) in spec
        .cluster_ip
        .iter()
        .map(|ip| ("spec.clusterIP".to_owned(), ip))
        .chain(
            (spec.cluster_ips.iter().flatten().enumerate())
                .map(|(i, ip)| (format!("spec.clusterIPs[{i}]"), ip)),
        )
    {
        if text.is_empty() || text == "None" {
            continue;
        }
        let ip = ip(&field, text)?;
        if !cluster_ips.contains(&ip) {
            cluster_ips.push(ip);
        }
    }
    let mut external_ips = Vec::new();
    for (i, text) in spec.external_ips.iter().flatten().enumerate() {
        external_ips.push(ip(&format!("spec.externalIPs[{i}]"), text)?);
    }
    let balancer = object.status.and_then(|status| status.load_balancer);
    let ingress = balancer.and_then(|balancer| balancer.ingress);
    // Only mode VIP: in mode Proxy, connections go to the load balancer, which may modify them.
    let ingress = (ingress.into_iter().flatten()).filter(|i| i.ip_mode.as_deref() != Some("Proxy"));
    external_ips.extend(ingress.filter_map(|ingress| ip("status", &ingress.ip?).ok()));
    let mut ports = Vec::new();
    for (i, given) in spec.ports.into_iter().flatten().enumerate() {
        let field = format!("spec.ports[{i}]");
        let port = port(&format!("{field}.port"), given.port)?;
        let target_port = match given.target_port {
            None => TargetPort::Number(port),
            Some(IntOrString::Int(0)) => TargetPort::Number(port),
            Some(IntOrString::Int(n)) => {
                TargetPort::Number(self::port(&format!("{field}.targetPort"), n)?)
            }
            Some(IntOrString::String(name)) => TargetPort::Name(name),
        };
        if is_tcp(given.protocol.as_deref()) {
            ports.push(ServicePort {
                name: given.name.unwrap_or_default(),
                port,
                target_port,
                node_port: (given.node_port)
                    .and_then(|port| u16::try_from(port).ok())
                    .filter(|port| *port > 0),
                declared: given.app_protocol.as_deref().and_then(declared_protocol),
            });
        }
    }
    let service = Service {
        name,
        cluster_ips,
        external_ips,
        external_name,
        ports,
        selector: spec.selector.unwrap_or_default(),
        publish_not_ready_addresses: spec.publish_not_ready_addresses.unwrap_or(false),
        node_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        annotations,
    };
    Ok((service, ignored))
}

pub fn pod(object: core::Pod) -> Read<Pod> {
    let name = name(&object.metadata)?;
    let workload = workload(&object.metadata);
    let mut reader = Reader::of(&object.metadata);
    let annotations = reader.annotations();
    let bare_ports = reader.ports(SKIP_INBOUND_PORTS_ANNOTATION);
    let ignored = reader.ignored;
    let labels: BTreeMap<String, String> = object.metadata.labels.unwrap_or_default();
    let spec = object.spec.unwrap_or_default();
    let status = object.status.unwrap_or_default();
    let host_network = spec.host_network.unwrap_or(false);
    let mut ips = Vec::new();
    for (field, text) in status
        .pod_ip
        .iter()
        .map(|ip| ("status.podIP".to_owned(), ip))
        .chain(
            (status.pod_ips.iter().flatten().enumerate())
                .map(|(i, ip)| (format!("status.podIPs[{i}].ip"), &ip.ip)),
        )
    {
        if text.is_empty() {
            continue;
        }
        let ip = ip(&field, text)?;
        if !host_network && !ips.contains(&ip) {
            ips.push(ip);
        }
    }
    let host_ips = status.host_ips.iter().flatten().map(|host| &host.ip);
    let host_ips = (host_ips.chain(&status.host_ip))
        .filter_map(|text| ip("status.hostIP", text).ok())
        .collect();
    let mut named_ports = Vec::new();
    // A native sidecar is among the init containers.
    let containers = (spec.init_containers.into_iter().flatten()).chain(spec.containers);
    for port in containers.flat_map(|container| container.ports.unwrap_or_default()) {
        let number = u16::try_from(port.container_port).ok().filter(|n| *n > 0);
        if let (Some(name), Some(number), true) =
            (port.name, number, is_tcp(port.protocol.as_deref()))
        {
            named_ports.push((name, number));
        }
    }
    let account = spec.service_account_name.or(spec.service_account);
    let pod = Pod {
        meshed: labels.get(INJECTED_LABEL).is_some_and(|v| v == "true"),
        ended: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
        name,
        labels,
        ips,
        service_account: account
            .filter(|account| !account.is_empty())
            .unwrap_or_else(|| DEFAULT_SERVICE_ACCOUNT.to_owned()),
        node: given(spec.node_name),
        host_ips,
        workload,
        named_ports,
        bare_ports: bare_ports.unwrap_or_default(),
        annotations,
    };
    Ok((pod, ignored))
}

pub fn endpoint_slice(object: discovery::EndpointSlice) -> Result<EndpointSlice, Invalid> {
    let name = name(&object.metadata)?;
    let labels = object.metadata.labels.as_ref();
    let service = given(labels.and_then(|labels| labels.get(SERVICE_NAME_LABEL).cloned()));
    let ipv6 = match object.address_type.as_str() {
        "IPv4" => false,
        "IPv6" => true,
        // FQDN slices have no addresses, and therefore no endpoints for us.
        "FQDN" => {
            return Ok(EndpointSlice {
                name,
                service,
                ipv6: false,
                ports: Vec::new(),
                endpoints: Vec::new(),
            });
        }
        other => {
            return Err(Invalid::new(
                "addressType",
                format!("{other:?} is not one of IPv4, IPv6, FQDN"),
            ));
        }
    };
    let mut ports = Vec::new();
    for (i, given) in object.ports.into_iter().flatten().enumerate() {
        let Some(number) = given.port else { continue };
        let number = port(&format!("ports[{i}].port"), number)?;
        if is_tcp(given.protocol.as_deref()) {
            ports.push(SlicePort {
                name: given.name.unwrap_or_default(),
                port: number,
            });
        }
    }
    let mut endpoints = Vec::new();
    for (i, given) in object.endpoints.into_iter().flatten().enumerate() {
        let field = format!("endpoints[{i}].addresses");
        // Additional addresses are the same endpoint: according to Kubernetes only the first is
        // used.
        let Some(text) = given.addresses.first() else {
            return Err(Invalid::new(field, "an endpoint needs an address"));
        };
        let ip = ip(&format!("{field}[0]"), text)?;
        if ip.is_ipv6() != ipv6 {
            return Err(Invalid::new(
                format!("{field}[0]"),
                format!("{ip} is not of the slice's addressType"),
            ));
        }
        let conditions = given.conditions.unwrap_or_default();
        let ready = conditions.ready.unwrap_or(true);
        let hints = given.hints.unwrap_or_default();
        endpoints.push(SliceEndpoint {
            ip,
            ready,
            serving: conditions.serving.unwrap_or(ready),
            terminating: conditions.terminating.unwrap_or(false),
            pod: (given.target_ref)
                .filter(|target| target.kind.as_deref() == Some("Pod"))
                .and_then(|target| {
                    let namespace = target.namespace.unwrap_or_else(|| name.namespace.clone());
                    Some(Name::new(namespace, target.name?))
                }),
            node: self::given(given.node_name),
            zone: self::given(given.zone),
            for_zones: (hints.for_zones.into_iter().flatten())
                .map(|zone| zone.name)
                .collect(),
            for_nodes: (hints.for_nodes.into_iter().flatten())
                .map(|node| node.name)
                .collect(),
        });
    }
    Ok(EndpointSlice {
        name,
        service,
        ipv6,
        ports,
        endpoints,
    })
}

/// Whether a reference's group is the core group. Its name is empty, but some people write `core`,
/// as in the examples of Argo Rollouts and Linkerd.
pub fn is_core(group: &str) -> bool {
    matches!(group, "" | "core")
}

/// Name and namespace of a namespaced object.
pub fn name(metadata: &ObjectMeta) -> Result<Name, Invalid> {
    let namespace = metadata.namespace.as_deref().filter(|n| !n.is_empty());
    let namespace = namespace.unwrap_or(DEFAULT_NAMESPACE);
    if namespace.contains('/') {
        return Err(Invalid::new(
            "metadata.namespace",
            format!("{namespace:?} is not a name: use lower case letters, digits and -"),
        ));
    }
    Ok(Name::new(namespace, required_name(metadata)?))
}

/// A text that is given and not empty.
fn given(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

pub fn created(metadata: &ObjectMeta) -> Created {
    match &metadata.creation_timestamp {
        Some(time) => Created::At(time.0.as_second()),
        None => Created::Unknown,
    }
}

fn required_name(metadata: &ObjectMeta) -> Result<String, Invalid> {
    match &metadata.name {
        // A slash would make the resource's name ambiguous.
        Some(name) if !name.is_empty() && !name.contains('/') => Ok(name.clone()),
        Some(name) if !name.is_empty() => Err(Invalid::new(
            "metadata.name",
            format!("{name:?} is not a name: use lower case letters, digits, - and ."),
        )),
        _ => Err(Invalid::new("metadata.name", "an object needs a name")),
    }
}

/// Reads the annotations of an object, and collects invalid ones.
struct Reader<'a> {
    metadata: &'a ObjectMeta,
    ignored: Vec<Invalid>,
}

impl<'a> Reader<'a> {
    fn of(metadata: &'a ObjectMeta) -> Self {
        Self {
            metadata,
            ignored: Vec::new(),
        }
    }

    fn annotations(&mut self) -> Annotations {
        // A typo must not admit clients that the user wanted to reject.
        let unread = "clients without an identity of the mesh are refused until it is right";
        let mtls = self.read(MTLS_ANNOTATION, is_strict, unread);
        Annotations {
            mtls: mtls.map(|is_strict| match is_strict {
                Ok(false) => MtlsMode::Permissive,
                Ok(true) | Err(()) => MtlsMode::Strict,
            }),
            opaque_ports: self.ports(OPAQUE_PORTS_ANNOTATION),
        }
    }

    /// The ports in an annotation.
    fn ports(&mut self, key: &str) -> Option<Vec<u16>> {
        let unread = "this annotation is left out until it is right";
        self.read(key, ports, unread)?.ok()
    }

    /// `unread`: the consequence of an invalid value.
    fn read<T>(
        &mut self,
        key: &str,
        read: fn(&str) -> Result<T, String>,
        unread: &str,
    ) -> Option<Result<T, ()>> {
        let text = self.metadata.annotations.as_ref()?.get(key)?;
        Some(read(text).map_err(|problem| {
            self.ignored.push(Invalid::new(
                format!("metadata.annotations[{key:?}]"),
                format!("{text:?}: {problem}; {unread}"),
            ));
        }))
    }
}

/// The pod's owner, as `deployment/web`.
fn workload(metadata: &ObjectMeta) -> String {
    let owners = metadata.owner_references.as_deref().unwrap_or_default();
    let owner = (owners.iter())
        .find(|owner| owner.controller == Some(true))
        .or_else(|| owners.first());
    let Some(owner) = owner else {
        return format!("pod/{}", metadata.name.as_deref().unwrap_or_default());
    };
    if owner.kind == "ReplicaSet" {
        let hash = (metadata.labels.as_ref()).and_then(|l| l.get(POD_TEMPLATE_HASH_LABEL));
        let deployment = match hash {
            Some(hash) => {
                (owner.name.strip_suffix(hash.as_str())).and_then(|name| name.strip_suffix('-'))
            }
            None => owner.name.rsplit_once('-').map(|(name, _)| name),
        };
        if let Some(deployment) = deployment.filter(|name| !name.is_empty()) {
            return format!("deployment/{deployment}");
        }
    }
    format!("{}/{}", owner.kind.to_lowercase(), owner.name)
}

/// The protocol of an `appProtocol`; `None`: unknown, so the proxy detects it from the first bytes.
fn declared_protocol(text: &str) -> Option<Protocol> {
    match text.to_ascii_lowercase().as_str() {
        "http" | "kubernetes.io/ws" => Some(Protocol::Http1),
        "kubernetes.io/h2c" | "grpc" | "h2c" | "http2" => Some(Protocol::Http2),
        "tcp" | "https" | "tls" | "kubernetes.io/wss" | "redis" | "mysql" | "postgres"
        | "postgresql" | "mongo" | "mongodb" | "amqp" | "amqps" | "kafka" | "smtp" | "imap"
        | "ldap" | "ldaps" | "ssh" | "nats" | "mqtt" | "memcached" | "cassandra" => {
            Some(Protocol::Tcp)
        }
        _ => None,
    }
}

fn is_tcp(protocol: Option<&str>) -> bool {
    matches!(protocol, None | Some("TCP" | ""))
}

fn port(field: &str, number: i32) -> Result<u16, Invalid> {
    (u16::try_from(number).ok().filter(|port| *port > 0))
        .ok_or_else(|| Invalid::new(field, format!("{number} is not a port, 1 to 65535")))
}

fn ip(field: &str, text: &str) -> Result<IpAddr, Invalid> {
    (text.parse().map(|ip: IpAddr| ip.to_canonical()))
        .map_err(|_| Invalid::new(field, format!("{text:?} is not an IP address")))
}
