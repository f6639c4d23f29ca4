//! What the pods need from the node, and what the node is told of them.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use crate::sandbox::network::{NODE_NAME, NODE_V4};
use crate::sandbox::objects::{Container, Facts, Pod};
use crate::sandbox::plan::Plan;
use crate::sandbox::process::mounts::PROGRAMS;
use crate::sandbox::process::{Exec, Namespaces, Reaper, Terminal, User};
use crate::sandbox::report::Report;
use crate::sandbox::token::TokenIssuer;

/// What pods need from the node. Cheap to clone.
#[derive(Clone)]
pub struct Kubelet {
    pub plan: Arc<Plan>,
    pub reaper: Reaper,
    pub tokens: Arc<TokenIssuer>,
    /// PEM of the mesh's trust anchors.
    pub anchors: watch::Receiver<Arc<Vec<u8>>>,
    pub events: mpsc::Sender<Event>,
    pub report: Report,
}

/// Something happened to a pod.
#[derive(Debug)]
pub struct Event {
    pub uid: String,
    pub status: Status,
}

/// How a pod is.
#[derive(Clone, Debug)]
pub enum Status {
    /// It is being set up; what is done right now.
    Starting(&'static str),
    /// Its containers run.
    Running {
        ready: bool,
        restarts: u32,
        namespaces: Namespaces,
    },
    /// Nothing is left of it.
    Gone,
}

impl Kubelet {
    pub(super) async fn tell(&self, pod: &Pod, status: Status) {
        let event = Event {
            uid: pod.uid.clone(),
            status,
        };
        // The node reads them for as long as there is one.
        let _node_ends = self.events.send(event).await;
    }

    /// The variables that every container has.
    pub fn base_environment(&self, pod: &Pod) -> Vec<(String, String)> {
        vec![
            ("PATH".to_owned(), format!("{PROGRAMS}:{}", self.plan.path)),
            ("HOSTNAME".to_owned(), pod.name.clone()),
            ("HOME".to_owned(), self.plan.home.clone()),
        ]
    }

    /// What one of a pod's containers runs as, and with which variables.
    pub fn exec(&self, pod: &Pod, container: &Container) -> Exec {
        let facts = Facts {
            namespace: &pod.namespace,
            name: &pod.name,
            uid: &pod.uid,
            node: NODE_NAME,
            node_ip: NODE_V4.to_string(),
            addresses: pod.addresses,
            template: &pod.template,
        };
        let own = container.environment(&facts);
        let argv = container.command(&own);
        let mut env = self.base_environment(pod);
        if container.user.is_some() {
            // The caller's home is another user's. Container runtimes say this of one that they do
            // not know.
            env.push(("HOME".to_owned(), "/".to_owned()));
        }
        env.extend(own);
        Exec {
            name: format!("{}/{}", pod.full_name(), container.name),
            argv,
            env,
            directory: container
                .directory
                .clone()
                .unwrap_or_else(|| PathBuf::from("/")),
            or_root: false,
            user: match container.user {
                None => User::Same,
                Some((uid, gid)) if self.plan.root => User::Switch { uid, gid },
                Some((0, _)) => User::Same,
                Some((uid, gid)) => User::Mapped { uid, gid },
            },
            no_new_privileges: container.no_new_privileges,
            terminal: Terminal::Detached,
        }
    }
}
