//! The node's services for pods, and the events that pods report.

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

/// The node's services for pods. Cheap to clone.
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

/// An event of a pod.
#[derive(Debug)]
pub struct Event {
    pub uid: String,
    pub status: Status,
}

/// The status of a pod.
#[derive(Clone, Debug)]
pub enum Status {
    /// Being set up, with the current step.
    Starting(&'static str),
    /// Its containers run.
    Running {
        ready: bool,
        restarts: u32,
        namespaces: Namespaces,
    },
    /// All of it has been removed.
    Gone,
}

impl Kubelet {
    pub(super) async fn report(&self, pod: &Pod, status: Status) {
        let event = Event {
            uid: pod.uid.clone(),
            status,
        };
        // The node receives events until it ends.
        let _node_ends = self.events.send(event).await;
    }

    /// The variables of every container.
    pub fn base_environment(&self, pod: &Pod) -> Vec<(String, String)> {
        vec![
            ("PATH".to_owned(), format!("{PROGRAMS}:{}", self.plan.path)),
            ("HOSTNAME".to_owned(), pod.name.clone()),
            ("HOME".to_owned(), self.plan.home.clone()),
        ]
    }

    /// The user, environment and program of a container.
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
            // The caller's home belongs to another user. Container runtimes use `/` for unknown
            // users.
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
