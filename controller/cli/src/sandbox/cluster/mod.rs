//! The controller-manager: compares the manifests with the pods, starts and stops pods, writes
//! objects, and keeps names and forwarding up to date. It runs on the node's own task; every change
//! ends in [`Cluster::reconcile`].

mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use tokio::sync::watch;

use super::files;
use super::network::dns::{Data, Names, ZONE};
use super::network::{Addressing, Family, forward};
use super::objects::{
    ClusterIps, Desired, Existing, Kind, Member, Objects, Pod, PodState, Service, names, next_steps,
};
use super::pod::{self, Event, Kubelet, Status};
use super::process::Namespaces;
use store::Store;

/// Pods at once: each is a few processes on one machine.
pub const MAX_PODS: usize = 250;
/// A namespace's label, and a pod's annotation that overrides it.
const INJECT: &str = "naru.dev/inject";

/// The desired and the actual state of the cluster.
pub struct Cluster {
    kubelet: Kubelet,
    ipv6: bool,
    wanted: Objects,
    pods: BTreeMap<String, Entry>,
    addressing: Addressing,
    ips: ClusterIps,
    store: Store,
    names: watch::Sender<Arc<Names>>,
    forwarding: watch::Sender<Arc<forward::Table>>,
    born: u64,
    /// The pod limit was already reported.
    full: bool,
}

/// A pod and its status.
pub struct Entry {
    pub pod: Arc<Pod>,
    pub status: Status,
    /// Set to true to stop the pod.
    stop: watch::Sender<bool>,
    ending: bool,
}

impl Entry {
    pub fn ready(&self) -> bool {
        matches!(self.status, Status::Running { ready: true, .. })
    }

    pub fn ending(&self) -> bool {
        self.ending
    }

    pub fn restarts(&self) -> u32 {
        match self.status {
            Status::Running { restarts, .. } => restarts,
            _ => 0,
        }
    }

    pub fn namespaces(&self) -> Option<&Namespaces> {
        match &self.status {
            Status::Running { namespaces, .. } => Some(namespaces),
            _ => None,
        }
    }
}

/// How far the cluster is from the state in the manifests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub ready: usize,
    pub wanted: usize,
}

impl Cluster {
    pub fn new(
        kubelet: Kubelet,
        addressing: Addressing,
        names: watch::Sender<Arc<Names>>,
        forwarding: watch::Sender<Arc<forward::Table>>,
    ) -> Self {
        Self {
            kubelet,
            ipv6: addressing.ipv6(),
            wanted: Objects::default(),
            pods: BTreeMap::new(),
            addressing,
            ips: ClusterIps::default(),
            store: Store::new(Path::new(files::OBJECTS)),
            names,
            forwarding,
            born: 0,
            full: false,
        }
    }

    /// Applies new manifests. Problems are returned as text.
    pub fn set_wanted(&mut self, objects: Objects) -> Vec<String> {
        self.wanted = objects;
        self.ips.assign(&self.wanted.services, self.ipv6)
    }

    /// Applies an event of a pod.
    pub fn note(&mut self, event: Event) {
        if let Status::Gone = event.status {
            if let Some(entry) = self.pods.remove(&event.uid) {
                self.addressing.give_back(entry.pod.number);
            }
        } else if let Some(entry) = self.pods.get_mut(&event.uid) {
            entry.status = event.status;
        }
    }

    /// Brings the cluster in line with the manifests and the status of the pods.
    pub fn reconcile(&mut self) -> anyhow::Result<()> {
        let stopping = self.step();
        self.publish()?;
        // Stop the pods only after the objects that withdraw them are written.
        for uid in stopping {
            if let Some(entry) = self.pods.get(&uid) {
                entry.stop.send_replace(true);
            }
        }
        Ok(())
    }

    /// Pods in the order of their names.
    pub fn pods(&self) -> Vec<&Entry> {
        let mut pods: Vec<_> = self.pods.values().collect();
        pods.sort_by(|a, b| (&a.pod.namespace, &a.pod.name).cmp(&(&b.pod.namespace, &b.pod.name)));
        pods
    }

    pub fn services(&self) -> impl Iterator<Item = (&Service, &[std::net::IpAddr], usize)> {
        self.wanted.services.values().map(|service| {
            let ready = self
                .members(service)
                .iter()
                .filter(|member| service.serves(member))
                .count();
            (
                service,
                self.ips.of(&service.namespace, &service.name),
                ready,
            )
        })
    }

    pub fn workload_names(&self) -> Vec<String> {
        self.wanted
            .workloads
            .keys()
            .map(|(namespace, name)| format!("{namespace}/{name}"))
            .collect()
    }

    /// The first ready pod of a workload.
    pub fn ready_pod(&self, namespace: &str, name: &str) -> Option<&Entry> {
        self.pods().into_iter().find(|entry| {
            entry.pod.namespace == namespace
                && entry.pod.workload == name
                && entry.ready()
                && !entry.ending
        })
    }

    pub fn progress(&self) -> Progress {
        let mut progress = Progress {
            ready: 0,
            wanted: 0,
        };
        for desired in self.wanted.workloads.values() {
            let (hash, _) = self.hash(desired);
            let ready = self
                .of(desired)
                .filter(|entry| entry.ready() && !entry.ending && entry.pod.hash == hash)
                .count();
            progress.ready += ready.min(desired.replicas as usize);
            progress.wanted += desired.replicas as usize;
        }
        progress
    }

    /// Starts pods, and returns the uids of those that have to stop.
    fn step(&mut self) -> Vec<String> {
        let mut stopping = Vec::new();
        for entry in self.pods.values_mut() {
            let key = (entry.pod.namespace.clone(), entry.pod.workload.clone());
            let wanted = self.wanted.workloads.get(&key);
            if !entry.ending
                && wanted.is_none_or(|wanted| wanted.kind.name() != entry.pod.kind.name())
            {
                entry.ending = true;
                stopping.push(entry.pod.uid.clone());
            }
        }
        let workloads: Vec<Desired> = self.wanted.workloads.values().cloned().collect();
        for mut desired in workloads {
            let (hash, meshed) = self.hash(&desired);
            desired.hash = hash;
            let existing: Vec<Existing> = self
                .of(&desired)
                .map(|entry| Existing {
                    uid: entry.pod.uid.clone(),
                    hash: entry.pod.hash.clone(),
                    ordinal: entry.pod.ordinal,
                    ready: entry.ready(),
                    ending: entry.ending,
                    age: entry.pod.age,
                })
                .collect();
            let steps = next_steps(&desired, &existing);
            for uid in steps.stop {
                if let Some(entry) = self.pods.get_mut(&uid) {
                    entry.ending = true;
                    stopping.push(uid);
                }
            }
            for ordinal in steps.start {
                self.start(&desired, ordinal, meshed);
            }
        }
        stopping
    }

    fn start(&mut self, desired: &Desired, ordinal: Option<u32>, meshed: bool) {
        if self.pods.len() >= MAX_PODS {
            if !self.full {
                self.full = true;
                self.kubelet.report.line(&format!(
                    "{MAX_PODS} pods are as many as the sandbox runs: no more are started"
                ));
            }
            return;
        }
        self.full = false;
        self.born += 1;
        let (number, addresses) = self.addressing.take();
        let pod = Arc::new(Pod {
            namespace: desired.namespace.clone(),
            name: match ordinal {
                Some(ordinal) => format!("{}-{ordinal}", desired.name),
                None => names::pod_name(&desired.name, &desired.hash),
            },
            uid: names::uid(),
            workload: desired.name.clone(),
            kind: desired.kind,
            ordinal,
            hash: desired.hash.clone(),
            template: desired.template.clone(),
            number,
            addresses,
            meshed,
            age: self.born,
        });
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(pod::live(self.kubelet.clone(), pod.clone(), stopped));
        self.pods.insert(
            pod.uid.clone(),
            Entry {
                pod,
                status: Status::Starting("waiting"),
                stop,
                ending: false,
            },
        );
    }

    /// The hash that the workload's pods should have, and whether they get a sidecar: pods with and
    /// without a sidecar differ.
    fn hash(&self, desired: &Desired) -> (String, bool) {
        let own = desired.template.annotations.get(INJECT);
        let inherited = self
            .wanted
            .namespaces
            .get(&desired.namespace)
            .and_then(|labels| labels.get(INJECT));
        match own.or(inherited).is_some_and(|value| value == "enabled") {
            true => (desired.hash.clone(), true),
            false => (names::template_hash(&(&desired.hash, "no sidecar")), false),
        }
    }

    fn of(&self, desired: &Desired) -> impl Iterator<Item = &Entry> {
        self.pods.values().filter(|entry| {
            entry.pod.namespace == desired.namespace && entry.pod.workload == desired.name
        })
    }

    fn members(&self, service: &Service) -> Vec<Member<'_>> {
        let mut members: Vec<_> = self
            .pods
            .values()
            .filter(|entry| {
                entry.pod.namespace == service.namespace
                    && service.selects(&entry.pod.template.labels)
            })
            .map(|entry| Member {
                pod: &entry.pod,
                ready: entry.ready(),
                ending: entry.ending,
            })
            .collect();
        members.sort_by_key(|member| member.pod.age);
        members
    }

    /// Writes the objects, and updates names and forwarding.
    pub fn publish(&mut self) -> anyhow::Result<()> {
        let mut objects = Vec::new();
        let mut names = Names::default();
        let mut table = forward::Table::new();
        names.exists(&format!("svc.{ZONE}"));
        for namespace in self.wanted.namespaces.keys() {
            names.exists(&format!("{namespace}.svc.{ZONE}"));
        }
        for service in self.wanted.services.values() {
            let ips = self.ips.of(&service.namespace, &service.name);
            let members = self.members(service);
            objects.push(service.object(ips, self.ipv6));
            if service.selector.is_some() {
                let slices = service.slices(&members, self.ipv6);
                objects.extend(slices.into_iter().map(|(_, slice)| slice));
            }
            add_names(&mut names, service, ips, &members, self.ipv6);
            add_forwarding(&mut table, service, ips, &members);
        }
        for entry in self.pods.values() {
            let state = PodState {
                running: !matches!(entry.status, Status::Starting("waiting" | "network")),
                ready: entry.ready(),
                ending: entry.ending,
            };
            objects.push(entry.pod.object(state));
        }
        self.store
            .replace(&objects)
            .context("writing what the controller reads")?;
        self.names.send_if_modified(|held| {
            let changed = **held != names;
            *held = Arc::new(names);
            changed
        });
        self.forwarding.send_replace(Arc::new(table));
        Ok(())
    }
}

fn add_names(
    names: &mut Names,
    service: &Service,
    ips: &[std::net::IpAddr],
    members: &[Member<'_>],
    ipv6: bool,
) {
    let name = format!("{}.{}.svc.{ZONE}", service.name, service.namespace);
    names.exists(&name);
    if let Some(target) = &service.external_name {
        names.add(&name, Data::Alias(target.clone()));
        return;
    }
    let ports = || {
        service.ports.iter().filter_map(|port| {
            let label = port.name.as_ref()?;
            let protocol = port.protocol.to_lowercase();
            Some((port, format!("_{label}._{protocol}.{name}")))
        })
    };
    for ip in ips {
        names.add(&name, Data::Address(*ip));
        names.reverse(*ip, &name);
    }
    if !service.headless {
        for (port, label) in ports() {
            let port = port.port;
            let target = name.clone();
            names.add(&label, Data::Service { port, target });
        }
        return;
    }
    let families: BTreeSet<Family> = service.families(ipv6).into_iter().collect();
    for member in members.iter().filter(|member| service.serves(member)) {
        let pod = member.pod;
        // A StatefulSet's pod keeps its name as host name, other pods get one from their address.
        let host = match pod.kind {
            Kind::StatefulSet if pod.template.subdomain.as_ref() == Some(&service.name) => {
                format!("{}.{name}", pod.name)
            }
            _ => format!("{}.{name}", pod.addresses.v4.to_string().replace('.', "-")),
        };
        for address in families.iter().filter_map(|family| pod.address(*family)) {
            names.add(&name, Data::Address(address));
            names.add(&host, Data::Address(address));
            names.reverse(address, &host);
        }
        for (port, label) in ports() {
            if let Some(port) = port.of(pod) {
                let target = host.clone();
                names.add(&label, Data::Service { port, target });
            }
        }
    }
}

fn add_forwarding(
    table: &mut forward::Table,
    service: &Service,
    ips: &[std::net::IpAddr],
    members: &[Member<'_>],
) {
    for ip in ips {
        for port in service.ports.iter().filter(|port| port.protocol == "TCP") {
            let endpoints = members
                .iter()
                .filter(|member| service.serves(member))
                .filter_map(|member| {
                    let address = member.pod.address(Family::of(*ip))?;
                    Some(SocketAddr::new(address, port.of(member.pod)?))
                });
            table.insert(SocketAddr::new(*ip, port.port), endpoints.collect());
        }
    }
}
