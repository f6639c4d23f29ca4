//! What the node says of its pods and Services, as the objects that an API server would have:
//! one file each, replaced by rename, for the controller to read.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::node;
use super::pod::Pod;

/// The label that says that a pod has a sidecar.
const INJECTED: &str = "naru.dev/injected";

/// The files, so that only what changed is written.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    written: BTreeMap<String, String>,
}

impl Store {
    pub fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            written: BTreeMap::new(),
        }
    }

    /// Makes the directory hold exactly these objects.
    pub fn replace(&mut self, objects: &[Value]) -> io::Result<()> {
        let wanted: BTreeMap<String, String> = objects
            .iter()
            .map(|object| (file_name(object), object.to_string()))
            .collect();
        for (name, text) in &wanted {
            if self.written.get(name) == Some(text) {
                continue;
            }
            // Hidden, so that it is no manifest before it is whole.
            let fresh = self.directory.join(format!(".{name}"));
            fs::write(&fresh, text)?;
            fs::rename(&fresh, self.directory.join(name))?;
        }
        for name in self
            .written
            .keys()
            .filter(|name| !wanted.contains_key(*name))
        {
            fs::remove_file(self.directory.join(name))?;
        }
        self.written = wanted;
        Ok(())
    }
}

fn file_name(object: &Value) -> String {
    let part = |value: &Value| value.as_str().unwrap_or_default().to_lowercase();
    format!(
        "{}_{}_{}.json",
        part(&object["kind"]),
        part(&object["metadata"]["namespace"]),
        part(&object["metadata"]["name"])
    )
}

/// A pod as the API server shows it.
pub fn pod(pod: &Pod, running: bool, ready: bool, ending: bool) -> Value {
    let mut labels = pod.template.labels.clone();
    if pod.meshed {
        labels.insert(INJECTED.to_owned(), "true".to_owned());
    }
    let containers = pod.template.containers.iter().map(|container| {
        let ports = container.ports.iter().map(|port| {
            let mut object = json!({ "containerPort": port.number, "protocol": port.protocol });
            if let Some(name) = &port.name {
                object["name"] = json!(name);
            }
            object
        });
        json!({ "name": container.name, "ports": ports.collect::<Vec<_>>() })
    });
    let mut addresses = vec![json!({ "ip": pod.addresses.v4.to_string() })];
    addresses.extend(pod.addresses.v6.map(|v6| json!({ "ip": v6.to_string() })));
    let condition = |kind: &str, holds: bool| json!({ "type": kind, "status": if holds { "True" } else { "False" } });
    let owner = match pod.kind {
        super::workload::Kind::Deployment { .. } => {
            json!({ "apiVersion": "apps/v1", "kind": "ReplicaSet",
                "name": format!("{}-{}", pod.workload, pod.hash), "controller": true })
        }
        super::workload::Kind::StatefulSet => {
            json!({ "apiVersion": "apps/v1", "kind": "StatefulSet",
                "name": pod.workload, "controller": true })
        }
    };
    let mut owner = owner;
    owner["uid"] = json!(format!("{}-{}", pod.namespace, pod.workload));
    if matches!(pod.kind, super::workload::Kind::Deployment { .. }) {
        labels.insert("pod-template-hash".to_owned(), pod.hash.clone());
    }
    let mut object = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod.name,
            "namespace": pod.namespace,
            "uid": pod.uid,
            "labels": labels,
            "annotations": pod.template.annotations,
            "ownerReferences": [owner],
        },
        "spec": {
            "serviceAccountName": pod.template.service_account,
            "nodeName": node::NAME,
            "containers": containers.collect::<Vec<_>>(),
        },
        "status": {
            // The sidecar runs, and is called, before the containers do.
            "phase": if running { "Running" } else { "Pending" },
            "podIP": pod.addresses.v4.to_string(),
            "podIPs": addresses,
            "hostIP": super::network::NODE_V4.to_string(),
            "conditions": [condition("Ready", ready), condition("ContainersReady", ready)],
        },
    });
    if ending {
        object["metadata"]["deletionGracePeriodSeconds"] = json!(pod.template.grace.as_secs());
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::pod::tests;

    #[test]
    fn the_directory_holds_exactly_the_objects() {
        let directory = std::env::temp_dir().join(format!("naru-objects-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let mut store = Store::new(&directory);
        let object = |name: &str, x: u32| json!({ "kind": "Pod", "metadata": { "namespace": "shop", "name": name }, "x": x });
        let names = || {
            let mut names: Vec<_> = fs::read_dir(&directory)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        store.replace(&[object("a", 1), object("b", 1)]).unwrap();
        assert_eq!(names(), ["pod_shop_a.json", "pod_shop_b.json"]);
        store.replace(&[object("b", 2)]).unwrap();
        assert_eq!(names(), ["pod_shop_b.json"]);
        let text = fs::read_to_string(directory.join("pod_shop_b.json")).unwrap();
        assert!(text.contains("\"x\":2"), "{text}");
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_pod_with_a_sidecar_says_so_and_where_it_is() {
        let object = pod(&tests::pod("web-1", 2, 8080), true, false, false);
        assert_eq!(object["metadata"]["labels"][INJECTED], "true");
        assert_eq!(object["status"]["podIPs"][1]["ip"], "fd00:10:244::2");
        assert_eq!(object["status"]["conditions"][0]["status"], "False");
        assert_eq!(object["spec"]["containers"][0]["ports"][0]["name"], "web");
    }
}
