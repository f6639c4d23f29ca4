//! Services: their addresses, and the EndpointSlices of their pods. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, bail, ensure};
use k8s_openapi::api::core::v1 as k8s;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};

use super::pod::Pod;
use crate::sandbox::network::{Family, NODE_NAME, SERVICES_V4, SERVICES_V6};

/// Addresses of Services start here: by convention the first ones are reserved for the cluster
/// itself.
const FIRST_NUMBER: u16 = 16;

/// A Service of a manifest.
#[derive(Clone, Debug)]
pub struct Service {
    pub namespace: String,
    pub name: String,
    /// `None`: the manifests contain its EndpointSlices.
    pub selector: Option<BTreeMap<String, String>>,
    pub headless: bool,
    /// The target name (`type: ExternalName`).
    pub external_name: Option<String>,
    /// Addresses that the manifest requests.
    given: Vec<IpAddr>,
    /// Families that the manifest requests, in its order.
    families: Vec<Family>,
    single: bool,
    publish_not_ready: bool,
    pub ports: Vec<ServicePort>,
    /// The manifest itself.
    manifest: Value,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    pub name: Option<String>,
    pub port: u16,
    pub target: Target,
    pub protocol: String,
    pub app_protocol: Option<String>,
}

/// The target port of a Service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Number(u16),
    Name(String),
}

/// A pod that the Service selects.
pub struct Member<'a> {
    pub pod: &'a Pod,
    pub ready: bool,
    pub ending: bool,
}

impl Service {
    pub fn parse(service: &k8s::Service, manifest: &Value) -> anyhow::Result<Self> {
        let spec = service.spec.clone().unwrap_or_default();
        let external = spec.type_.as_deref() == Some("ExternalName");
        let mut given: Vec<&str> = spec
            .cluster_ips
            .iter()
            .flatten()
            .chain(spec.cluster_ip.as_ref())
            .map(String::as_str)
            .filter(|text| !text.is_empty())
            .collect();
        given.dedup();
        let headless = given.contains(&"None");
        let mut addresses = Vec::new();
        for text in given.into_iter().filter(|_| !headless) {
            let address: IpAddr = text
                .parse()
                .ok()
                .with_context(|| format!("spec.clusterIP: {text:?} is not an address"))?;
            ensure!(
                number_of(address).is_some(),
                "spec.clusterIP: {address} is not within {}/{} or {}/{}",
                SERVICES_V4.0,
                SERVICES_V4.1,
                SERVICES_V6.0,
                SERVICES_V6.1
            );
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        let mut families = Vec::new();
        for family in spec.ip_families.iter().flatten() {
            families.push(match family.as_str() {
                "IPv4" => Family::V4,
                "IPv6" => Family::V6,
                other => bail!("spec.ipFamilies: {other:?} is neither IPv4 nor IPv6"),
            });
        }
        let single = match spec.ip_family_policy.as_deref() {
            Some("SingleStack") => true,
            Some("PreferDualStack" | "RequireDualStack") => false,
            // One family in `ipFamilies` means SingleStack; otherwise the sandbox is dual-stack.
            None => families.len() == 1,
            Some(other) => bail!("spec.ipFamilyPolicy: {other:?} is not known"),
        };
        let mut ports = Vec::new();
        for (index, port) in spec.ports.iter().flatten().enumerate() {
            ports.push(ServicePort::parse(port).with_context(|| format!("spec.ports[{index}]"))?);
        }
        ensure!(
            ports.len() < 2 || ports.iter().all(|port| port.name.is_some()),
            "spec.ports[].name: a Service with several ports names each"
        );
        ensure!(
            headless || external || !ports.is_empty(),
            "spec.ports: the list is empty"
        );
        let metadata = &service.metadata;
        Ok(Self {
            namespace: metadata
                .namespace
                .clone()
                .unwrap_or_else(|| "default".to_owned()),
            name: metadata.name.clone().unwrap_or_default(),
            selector: spec
                .selector
                .filter(|selector| !selector.is_empty() && !external),
            headless,
            external_name: spec.external_name.filter(|_| external),
            given: addresses,
            families,
            single,
            publish_not_ready: spec.publish_not_ready_addresses == Some(true),
            ports,
            manifest: manifest.clone(),
        })
    }

    /// The Service's families, in order of preference.
    pub fn families(&self, ipv6: bool) -> Vec<Family> {
        let mut families = self.families.clone();
        families.extend(self.given.iter().map(|address| Family::of(*address)));
        families.extend([Family::V4, Family::V6]);
        let mut seen = BTreeSet::new();
        families.retain(|family| seen.insert(*family) && (ipv6 || *family == Family::V4));
        if self.single {
            families.truncate(1);
        }
        families
    }

    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        self.selector.as_ref().is_some_and(|selector| {
            selector
                .iter()
                .all(|(key, value)| labels.get(key) == Some(value))
        })
    }

    /// The manifest with the fields that an API server fills in.
    pub fn object(&self, addresses: &[IpAddr], ipv6: bool) -> Value {
        let mut object = self.manifest.clone();
        let families: Vec<_> = self.families(ipv6).into_iter().map(Family::name).collect();
        let ips: Vec<String> = match self.headless {
            true => vec!["None".to_owned()],
            false => addresses.iter().map(ToString::to_string).collect(),
        };
        if self.external_name.is_none() {
            let spec = &mut object["spec"];
            spec["clusterIP"] = json!(ips.first());
            spec["clusterIPs"] = json!(ips);
            spec["ipFamilyPolicy"] = match families.len() {
                1 => json!("SingleStack"),
                _ => json!("PreferDualStack"),
            };
            spec["ipFamilies"] = json!(families);
        }
        object["metadata"]["namespace"] = json!(self.namespace);
        object
    }

    /// Whether new connections may go to a pod.
    pub fn serves(&self, member: &Member<'_>) -> bool {
        (member.ready || self.publish_not_ready) && !member.ending
    }

    /// Its EndpointSlices: one for each family and set of port numbers.
    pub fn slices(&self, members: &[Member<'_>], ipv6: bool) -> Vec<(String, Value)> {
        let mut slices = Vec::new();
        for family in self.families(ipv6) {
            let mut groups: BTreeMap<Vec<Option<u16>>, Vec<&Member<'_>>> = BTreeMap::new();
            for member in members {
                groups
                    .entry(self.ports.iter().map(|port| port.of(member.pod)).collect())
                    .or_default()
                    .push(member);
            }
            // A Service without pods still has a slice, as in a cluster.
            if groups.is_empty() {
                groups.insert(
                    self.ports.iter().map(ServicePort::number).collect(),
                    Vec::new(),
                );
            }
            for (index, (numbers, group)) in groups.into_iter().enumerate() {
                let name = format!("{}-{}-{index}", self.name, family.name().to_lowercase());
                let slice = self.slice(&name, family, &numbers, &group);
                slices.push((name, slice));
            }
        }
        slices
    }

    fn slice(
        &self,
        name: &str,
        family: Family,
        numbers: &[Option<u16>],
        members: &[&Member<'_>],
    ) -> Value {
        let ports = self.ports.iter().zip(numbers).filter_map(|(port, number)| {
            let mut object = json!({
                "name": port.name.clone().unwrap_or_default(),
                "port": (*number)?,
                "protocol": port.protocol,
            });
            if let Some(protocol) = &port.app_protocol {
                object["appProtocol"] = json!(protocol);
            }
            Some(object)
        });
        let endpoints = members.iter().filter_map(|member| {
            let address = member.pod.address(family)?;
            Some(json!({
                "addresses": [address.to_string()],
                "conditions": {
                    "ready": self.serves(member),
                    "serving": member.ready || self.publish_not_ready,
                    "terminating": member.ending,
                },
                "nodeName": NODE_NAME,
                "targetRef": {
                    "kind": "Pod",
                    "namespace": member.pod.namespace,
                    "name": member.pod.name,
                    "uid": member.pod.uid,
                },
            }))
        });
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": name,
                "namespace": self.namespace,
                "labels": {
                    "kubernetes.io/service-name": self.name,
                    "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                },
            },
            "addressType": family.name(),
            "ports": ports.collect::<Vec<_>>(),
            "endpoints": endpoints.collect::<Vec<_>>(),
        })
    }
}

impl ServicePort {
    fn parse(port: &k8s::ServicePort) -> anyhow::Result<Self> {
        let number = |field: &str, number: i32| {
            u16::try_from(number)
                .ok()
                .filter(|number| *number > 0)
                .with_context(|| format!("{field}: {number} is not a port"))
        };
        let own = number("port", port.port)?;
        Ok(Self {
            name: port.name.clone(),
            port: own,
            target: match &port.target_port {
                None => Target::Number(own),
                Some(IntOrString::Int(target)) => Target::Number(number("targetPort", *target)?),
                Some(IntOrString::String(name)) => Target::Name(name.clone()),
            },
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            app_protocol: port.app_protocol.clone(),
        })
    }

    fn number(&self) -> Option<u16> {
        match self.target {
            Target::Number(number) => Some(number),
            Target::Name(_) => None,
        }
    }

    /// The number of this port in a pod.
    pub fn of(&self, pod: &Pod) -> Option<u16> {
        match &self.target {
            Target::Number(number) => Some(*number),
            Target::Name(name) => pod.template.port(name, &self.protocol),
        }
    }
}

/// The addresses of each Service, kept while the Service exists.
#[derive(Debug, Default)]
pub struct ClusterIps {
    held: BTreeMap<(String, String), Vec<IpAddr>>,
    next: u16,
}

impl ClusterIps {
    /// Assigns addresses to the Services. Problems are returned as text.
    pub fn assign(
        &mut self,
        services: &BTreeMap<(String, String), Service>,
        ipv6: bool,
    ) -> Vec<String> {
        let mut errors = Vec::new();
        let addressed = |service: &Service| !service.headless && service.external_name.is_none();
        self.held
            .retain(|key, _| services.get(key).is_some_and(addressed));
        // Services with requested addresses come before those without.
        let asking = services
            .iter()
            .filter(|(_, s)| addressed(s) && !s.given.is_empty());
        for (key, service) in asking {
            let taken = self.held.iter().find(|(other, addresses)| {
                *other != key && service.given.iter().any(|given| addresses.contains(given))
            });
            if let Some((other, _)) = taken {
                errors.push(format!(
                    "Service {}/{}: spec.clusterIP: {} is that of {}/{}",
                    key.0, key.1, service.given[0], other.0, other.1
                ));
                continue;
            }
            let mut addresses = service.given.clone();
            let number = self.number(addresses[0]);
            for family in service.families(ipv6) {
                if !addresses
                    .iter()
                    .any(|address| Family::of(*address) == family)
                {
                    addresses.push(address_of(number, family));
                }
            }
            self.held.insert(key.clone(), addresses);
        }
        for (key, service) in services.iter().filter(|(_, s)| addressed(s)) {
            let families = service.families(ipv6);
            if self.held.get(key).is_some_and(|held| {
                held.iter()
                    .map(|a| Family::of(*a))
                    .eq(families.iter().copied())
                    || !service.given.is_empty()
            }) {
                continue;
            }
            let number = self.number(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
            let addresses = families
                .into_iter()
                .map(|family| address_of(number, family))
                .collect();
            self.held.insert(key.clone(), addresses);
        }
        errors
    }

    pub fn of(&self, namespace: &str, name: &str) -> &[IpAddr] {
        self.held
            .get(&(namespace.to_owned(), name.to_owned()))
            .map_or(&[], Vec::as_slice)
    }

    /// A number that is free in both families; that of `like` if possible.
    fn number(&mut self, like: IpAddr) -> u16 {
        let used: BTreeSet<u16> = self
            .held
            .values()
            .flatten()
            .filter_map(|address| number_of(*address))
            .collect();
        if let Some(number) = number_of(like).filter(|number| !used.contains(number)) {
            return number;
        }
        loop {
            self.next = self.next.wrapping_add(1).max(FIRST_NUMBER);
            if !used.contains(&self.next) {
                return self.next;
            }
        }
    }
}

fn address_of(number: u16, family: Family) -> IpAddr {
    match family {
        Family::V4 => (SERVICES_V4.0.to_bits() | u32::from(number))
            .to_be_bytes()
            .into(),
        Family::V6 => Ipv6Addr::from_bits(SERVICES_V6.0.to_bits() | u128::from(number)).into(),
    }
}

/// The number of a Service's address within its network. `None`: it is in neither network.
fn number_of(address: IpAddr) -> Option<u16> {
    let number = match address {
        IpAddr::V4(v4) => v4.to_bits() ^ SERVICES_V4.0.to_bits(),
        IpAddr::V6(v6) => (v6.to_bits() ^ SERVICES_V6.0.to_bits()).try_into().ok()?,
    };
    u16::try_from(number).ok().filter(|number| *number > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::objects::pod::tests::pod;

    fn service(spec: Value) -> anyhow::Result<Service> {
        let manifest = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": "web", "namespace": "shop" }, "spec": spec,
        });
        Service::parse(
            &serde_json::from_value(manifest.clone()).unwrap(),
            &manifest,
        )
    }

    fn named(name: &str, spec: Value) -> ((String, String), Service) {
        let mut service = service(spec).unwrap();
        service.name = name.to_owned();
        (("shop".to_owned(), name.to_owned()), service)
    }

    #[test]
    fn a_service_gets_an_address_of_each_family_and_keeps_it() {
        let mut ips = ClusterIps::default();
        let mut services = BTreeMap::from([named("web", json!({ "ports": [{ "port": 80 }] }))]);
        assert_eq!(ips.assign(&services, true), Vec::<String>::new());
        let first = ips.of("shop", "web").to_vec();
        assert_eq!(
            first,
            [
                "10.96.0.16".parse::<IpAddr>().unwrap(),
                "fd00:10:96::10".parse().unwrap()
            ]
        );
        services.extend([named("api", json!({ "ports": [{ "port": 80 }] }))]);
        ips.assign(&services, true);
        assert_eq!(ips.of("shop", "web"), first);
        assert_ne!(ips.of("shop", "api"), first);
    }

    #[test]
    fn requested_addresses_and_families_are_respected() {
        let mut ips = ClusterIps::default();
        let services = BTreeMap::from([
            named(
                "a",
                json!({ "clusterIP": "10.96.0.16", "ports": [{ "port": 80 }] }),
            ),
            named(
                "b",
                json!({ "ipFamilies": ["IPv6"], "ports": [{ "port": 80 }] }),
            ),
            named(
                "c",
                json!({ "ipFamilies": ["IPv6", "IPv4"], "ports": [{ "port": 80 }] }),
            ),
            named("d", json!({ "clusterIP": "None" })),
            named(
                "e",
                json!({ "clusterIP": "10.96.0.16", "ports": [{ "port": 80 }] }),
            ),
        ]);
        let errors = ips.assign(&services, true);
        assert_eq!(
            errors,
            ["Service shop/e: spec.clusterIP: 10.96.0.16 is that of shop/a"]
        );
        assert_eq!(ips.of("shop", "a")[0].to_string(), "10.96.0.16");
        assert_eq!(ips.of("shop", "a")[1].to_string(), "fd00:10:96::10");
        assert!(matches!(ips.of("shop", "b"), [IpAddr::V6(_)]));
        assert!(matches!(
            ips.of("shop", "c"),
            [IpAddr::V6(_), IpAddr::V4(_)]
        ));
        assert!(ips.of("shop", "d").is_empty());
        let outside = service(json!({ "clusterIP": "10.0.0.1", "ports": [{ "port": 80 }] }));
        assert!(
            outside
                .unwrap_err()
                .to_string()
                .starts_with("spec.clusterIP: 10.0.0.1")
        );
    }

    #[test]
    fn slices_have_the_addresses_and_conditions_of_pods() {
        let service = service(json!({
            "selector": { "app": "web" },
            "ports": [{ "name": "http", "port": 80, "targetPort": "web", "appProtocol": "http" }],
        }))
        .unwrap();
        let (ready, ending, other) = (pod("a", 2, 8080), pod("b", 3, 8080), pod("c", 4, 9090));
        let member = |pod, ready, ending| Member { pod, ready, ending };
        let members = [
            member(&ready, true, false),
            member(&ending, true, true),
            member(&other, false, false),
        ];
        let slices = service.slices(&members, true);
        assert_eq!(
            slices.len(),
            4,
            "two families, two numbers of the named port"
        );
        let (name, slice) = &slices[0];
        assert_eq!(name, "web-ipv4-0");
        assert_eq!(slice["ports"][0]["port"], 8080);
        assert_eq!(slice["ports"][0]["appProtocol"], "http");
        assert_eq!(slice["endpoints"][0]["addresses"][0], "10.244.0.2");
        assert_eq!(slice["endpoints"][0]["conditions"]["ready"], true);
        let conditions = &slice["endpoints"][1]["conditions"];
        assert_eq!(
            (
                &conditions["ready"],
                &conditions["serving"],
                &conditions["terminating"]
            ),
            (&json!(false), &json!(true), &json!(true))
        );
        assert_eq!(slices[1].1["endpoints"][0]["conditions"]["ready"], false);
        assert_eq!(
            slices[2].1["endpoints"][0]["addresses"][0],
            "fd00:10:244::2"
        );
    }

    #[test]
    fn the_object_keeps_its_fields_and_gets_those_that_an_api_server_fills_in() {
        let service = service(json!({ "ports": [{ "port": 80, "appProtocol": "grpc" }] })).unwrap();
        let object = service.object(&["10.96.0.9".parse().unwrap()], false);
        assert_eq!(object["spec"]["clusterIPs"], json!(["10.96.0.9"]));
        assert_eq!(object["spec"]["ipFamilies"], json!(["IPv4"]));
        assert_eq!(object["spec"]["ports"][0]["appProtocol"], "grpc");
    }
}
