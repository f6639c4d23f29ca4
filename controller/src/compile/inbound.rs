//! `inbound`: the settings for connections to a pod.

use std::collections::BTreeMap;

use naru_contract as contract;
use naru_contract::Protocol;
use naru_contract::resource::Body;

use super::{Catalog, Compiled};
use crate::source::{Name, Pod, Service, TargetPort};

impl Catalog {
    pub(super) fn inbound(&self, name: &Name) -> Option<Compiled> {
        let pod = self.index.pods.get(name)?;
        let mut ports: BTreeMap<u16, Protocol> = BTreeMap::new();
        for service in self.services_of(pod) {
            for port in &service.ports {
                let target = match &port.target_port {
                    TargetPort::Number(number) => Some(*number),
                    TargetPort::Name(name) => {
                        let named = pod.named_ports.iter().find(|(named, _)| named == name);
                        named.map(|(_, number)| *number)
                    }
                };
                if let (Some(target), Some(protocol)) =
                    (target, self.declared_of_service(service, port))
                {
                    // Contradicting declarations of Services cancel each other.
                    ports
                        .entry(target)
                        .and_modify(|other| {
                            if *other != protocol {
                                *other = Protocol::Detect;
                            }
                        })
                        .or_insert(protocol);
                }
            }
        }
        for port in self.opaque_ports(&name.namespace, &pod.annotations) {
            ports.entry(*port).or_insert(Protocol::Tcp);
        }
        ports.retain(|_, protocol| *protocol != Protocol::Detect);
        let body = Body::Inbound(contract::Inbound {
            workload: pod.workload.clone(),
            ports: (ports.into_iter())
                .map(|(port, protocol)| contract::InboundPort {
                    port: u32::from(port),
                    protocol: protocol as i32,
                })
                .collect(),
            mtls: self.mtls(pod) as i32,
            node: pod.node.clone().unwrap_or_default(),
            zone: self.index.zone_of(pod).unwrap_or_default().to_owned(),
        });
        Some(Compiled::new(body, Vec::new()))
    }

    /// The Services that select the pod.
    fn services_of<'a>(&'a self, pod: &'a Pod) -> impl Iterator<Item = &'a Service> {
        (self.index.services_by_namespace.get(&pod.name.namespace))
            .filter_map(|name| self.index.services.get(name))
            .filter(|service| selects(service, pod))
    }
}

pub fn selects(service: &Service, pod: &Pod) -> bool {
    !service.selector.is_empty()
        && (service.selector.iter()).all(|(key, value)| pod.labels.get(key) == Some(value))
}
