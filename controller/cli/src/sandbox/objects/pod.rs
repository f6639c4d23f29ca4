//! The immutable part of a pod, and its representation in the API. Pure.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::template::Template;
use super::workload::Kind;
use crate::sandbox::network::{Addresses, Family, NODE_NAME, NODE_V4};

/// The label that marks a pod as injected.
const INJECTED: &str = "naru.dev/injected";

/// The immutable part of a pod.
#[derive(Clone, Debug)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub workload: String,
    pub kind: Kind,
    pub ordinal: Option<u32>,
    pub hash: String,
    pub template: Template,
    /// The number that determines its addresses.
    pub number: u16,
    pub addresses: Addresses,
    /// Whether it gets a sidecar.
    pub meshed: bool,
    /// The age order: older pods have smaller numbers.
    pub age: u64,
}

/// How far a pod's life has come.
#[derive(Clone, Copy, Debug)]
pub struct PodState {
    pub running: bool,
    pub ready: bool,
    pub ending: bool,
}

impl Pod {
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => Some(self.addresses.v4.into()),
            Family::V6 => self.addresses.v6.map(IpAddr::from),
        }
    }

    /// As `shop/web-6d4cf56db6-x7vbk`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The pod's representation in the API.
    pub fn object(&self, state: PodState) -> Value {
        let mut labels = self.template.labels.clone();
        if self.meshed {
            labels.insert(INJECTED.to_owned(), "true".to_owned());
        }
        let containers = self.template.containers.iter().map(|container| {
            let ports = container.ports.iter().map(|port| {
                let mut object = json!({ "containerPort": port.number, "protocol": port.protocol });
                if let Some(name) = &port.name {
                    object["name"] = json!(name);
                }
                object
            });
            json!({ "name": container.name, "ports": ports.collect::<Vec<_>>() })
        });
        let mut addresses = vec![json!({ "ip": self.addresses.v4.to_string() })];
        addresses.extend(self.addresses.v6.map(|v6| json!({ "ip": v6.to_string() })));
        let condition = |kind: &str, holds: bool| {
            let status = if holds { "True" } else { "False" };
            json!({ "type": kind, "status": status })
        };
        let owner = match self.kind {
            Kind::Deployment { .. } => {
                json!({ "apiVersion": "apps/v1", "kind": "ReplicaSet",
                    "name": format!("{}-{}", self.workload, self.hash), "controller": true })
            }
            Kind::StatefulSet => {
                json!({ "apiVersion": "apps/v1", "kind": "StatefulSet",
                    "name": self.workload, "controller": true })
            }
        };
        let mut owner = owner;
        owner["uid"] = json!(format!("{}-{}", self.namespace, self.workload));
        if matches!(self.kind, Kind::Deployment { .. }) {
            labels.insert("pod-template-hash".to_owned(), self.hash.clone());
        }
        let mut object = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": self.name,
                "namespace": self.namespace,
                "uid": self.uid,
                "labels": labels,
                "annotations": self.template.annotations,
                "ownerReferences": [owner],
            },
            "spec": {
                "serviceAccountName": self.template.service_account,
                "nodeName": NODE_NAME,
                "containers": containers.collect::<Vec<_>>(),
            },
            "status": {
                // The sidecar is running and reachable before the containers are.
                "phase": if state.running { "Running" } else { "Pending" },
                "podIP": self.addresses.v4.to_string(),
                "podIPs": addresses,
                "hostIP": NODE_V4.to_string(),
                "conditions": [
                    condition("Ready", state.ready),
                    condition("ContainersReady", state.ready),
                ],
            },
        });
        if state.ending {
            object["metadata"]["deletionGracePeriodSeconds"] = json!(self.template.grace.as_secs());
        }
        object
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A pod of `shop`, with `number` in its addresses and a port `web`.
    pub fn pod(name: &str, number: u16, port: u16) -> Pod {
        let template = json!({
            "metadata": { "labels": { "app": "web" } },
            "spec": { "containers": [{
                "name": "a", "command": ["x"],
                "ports": [{ "name": "web", "containerPort": port }],
            }] },
        });
        let template = Template::parse(&serde_json::from_value(template).unwrap()).unwrap();
        Pod {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            workload: "web".to_owned(),
            kind: Kind::Deployment { recreate: false },
            ordinal: None,
            hash: "hash".to_owned(),
            template,
            number,
            addresses: Addresses {
                v4: [10, 244, 0, number as u8].into(),
                v6: Some(format!("fd00:10:244::{number:x}").parse().unwrap()),
            },
            meshed: true,
            age: u64::from(number),
        }
    }

    #[test]
    fn a_pod_with_a_sidecar_has_the_label_and_its_addresses() {
        let state = PodState {
            running: true,
            ready: false,
            ending: false,
        };
        let object = pod("web-1", 2, 8080).object(state);
        assert_eq!(object["metadata"]["labels"][INJECTED], "true");
        assert_eq!(object["status"]["podIPs"][1]["ip"], "fd00:10:244::2");
        assert_eq!(object["status"]["conditions"][0]["status"], "False");
        assert_eq!(object["spec"]["containers"][0]["ports"][0]["name"], "web");
    }
}
