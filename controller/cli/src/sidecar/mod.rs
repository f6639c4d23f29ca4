//! Queries a sidecar about its tables in force.
//!
//! ```text
//! --from ─▶ a pod ────────────▶ the API server ══ port-forward ══▶ its sidecar's admin port
//!      └──▶ http://127.0.0.1:15020 ──────────────────────────────▶ one that is reached from here
//! ```
//!
//! In: the sidecar to query, and a [`Question`]. Out: its [`Answer`]. A sidecar answers requests
//! from its own machine only. Forwarded ports come from there, so that the user needs the right to
//! forward ports to the pod.
//!
//! # Floors
//!
//! ```text
//! forward                a forwarded port of a pod
//! answer from websocket  the answer's format; the choice of a pod; the transport
//! ```

mod answer;
mod forward;
mod from;
#[cfg(test)]
mod tests;
mod websocket;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use kube::Client;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::quiet_http;

pub use answer::{Answer, Match, Outcome, Rule, Verdict};
pub use from::{From, Pod};

/// Timeout of a query: the time that a sidecar waits for the controller to resolve a destination,
/// and a margin.
const PATIENCE: Duration = Duration::from_secs(15);

/// Flags of every command that asks a sidecar.
#[derive(clap::Args, Clone, Debug)]
pub struct Flags {
    /// The client whose sidecar is queried: POD, KIND/NAME (as deployment/web), NAMESPACE (any pod
    /// in it), NAMESPACE/KIND/NAME, or http://ADDRESS of an admin port.
    #[arg(long, value_name = "CLIENT")]
    pub from: Option<From>,
    /// Namespace of the client, and of names without one. Without: the kubeconfig's.
    #[arg(long, short, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Path of the kubeconfig. Without: the one that kubectl uses.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig. Without: the current one.
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
}

impl Flags {
    /// A client of the API server. `None`: `--from` is an address, and no API server is needed.
    pub async fn client(&self) -> anyhow::Result<Option<Client>> {
        if matches!(self.from, Some(From::Address(_))) {
            return Ok(None);
        }
        let client =
            crate::kubernetes::client(self.kubeconfig.as_deref(), self.context.as_deref()).await;
        Ok(Some(client?.0))
    }

    /// The default namespace; empty: the sidecar's own, which is unknown.
    pub fn namespace(&self, client: Option<&Client>) -> String {
        let of_kubeconfig = || client.map(Client::default_namespace).unwrap_or_default();
        let named = self.namespace.as_deref();
        named.unwrap_or_else(of_kubeconfig).to_owned()
    }
}

/// A query to a sidecar.
#[derive(Clone, Debug)]
pub struct Question {
    /// `IP:PORT`, or `NAME.NAMESPACE:PORT`.
    pub destination: String,
    /// `None`: the query is only about the routes.
    pub sample: Option<Sample>,
}

/// The client's request or connection, in a sidecar's format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sample {
    Request(Value),
    Connection(Value),
}

/// A sidecar that can be queried.
pub enum Sidecar {
    Pod { client: Client, pod: Pod },
    Address(SocketAddr),
}

impl Sidecar {
    /// The display name.
    pub fn name(&self) -> String {
        match self {
            Self::Pod { pod, .. } => format!("{}/{}", pod.namespace, pod.name),
            Self::Address(address) => address.to_string(),
        }
    }

    /// Annotations that exclude some of the pod's traffic from the mesh.
    pub fn skips(&self) -> &[String] {
        match self {
            Self::Pod { pod, .. } => &pod.skips,
            Self::Address(_) => &[],
        }
    }

    /// The namespace of its pod, if known.
    pub fn namespace(&self) -> Option<&str> {
        match self {
            Self::Pod { pod, .. } => Some(&pod.namespace),
            Self::Address(_) => None,
        }
    }

    /// The sidecar's answer, unmodified.
    pub async fn why(&self, question: &Question) -> anyhow::Result<Answer> {
        let mut body = json!({ "destination": question.destination });
        match &question.sample {
            None => {}
            Some(Sample::Request(request)) => body["request"] = request.clone(),
            Some(Sample::Connection(connection)) => body["connection"] = connection.clone(),
        }
        let body = body.to_string();
        let answer = self.post("/why", &body).await;
        let answer = answer.with_context(|| format!("asking the sidecar of {}", self.name()))?;
        match answer.status {
            200 => Answer::parse(&answer.body),
            status => bail!(
                "the sidecar of {} answers {status}: {}",
                self.name(),
                answer.body.trim()
            ),
        }
    }

    async fn post(&self, path: &str, body: &str) -> anyhow::Result<quiet_http::Answer> {
        match self {
            Self::Pod { client, pod } => forward::post(client, pod, path, body, PATIENCE).await,
            Self::Address(address) => {
                let connecting = tokio::time::timeout(PATIENCE, TcpStream::connect(address));
                let stream = connecting.await.context("no connection in time")??;
                Ok(quiet_http::post(stream, path, body, PATIENCE).await?)
            }
        }
    }
}
