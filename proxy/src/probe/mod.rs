//! Probes of the app on behalf of the kubelet.
//!
//! ```text
//! kubelet ─ GET /probe/app/readiness ─▶ admin port ─▶ here ─▶ the app's own port, as the probe was meant
//! ```
//!
//! The kubelet has no identity of the mesh, so strict mode would refuse its probes of the app.
//! Injection redirects these probes to the admin port instead, and configures with `--probes` what
//! each stands for. In: the name of a probe, and the address on which it arrived. Out: an HTTP
//! status that the kubelet interprets like the app's. Clients of the admin port can do no more than
//! the kubelet: nothing in a request chooses the target, and only the status of the app's response
//! is returned.
//!
//! # Floors
//!
//! ```text
//! grpc http
//! tls
//! ```

mod grpc;
pub(crate) mod http;
mod tls;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;

use crate::socket;

/// The target of each probe, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probes(HashMap<String, Target>);

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Target {
    /// Timeout of the app, in seconds.
    seconds: u32,
    #[serde(flatten)]
    action: Action,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Action {
    Http(http::Get),
    Tcp {
        port: u16,
    },
    Grpc {
        port: u16,
        service: String,
        #[serde(default)]
        tls: bool,
    },
}

/// The client of a probe, and its User-Agent.
#[derive(Clone, Copy, Debug)]
pub struct ProbeContext<'a> {
    /// The pod's address on which the probe arrived.
    pub here: IpAddr,
    pub user_agent: &'a str,
    /// The source address shown to the app: the kubelet's where that is possible.
    pub source: Option<IpAddr>,
    pub socket_mark: Option<u32>,
}

/// Why the probe failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("connecting to the app: {0}")]
    Connect(#[source] io::Error),
    #[error("TLS with the app: {0}")]
    Tls(#[source] io::Error),
    #[error("talking with the app: {0}")]
    Talk(#[source] io::Error),
    #[error("the app's answer is not HTTP/1: {0}")]
    Answer(#[from] httparse::Error),
    #[error("the probe's {0} cannot be sent")]
    Request(&'static str),
    #[error("talking HTTP/2 with the app: {0}")]
    Http2(#[from] h2::Error),
    #[error("the app reports that it is not serving: {0}")]
    NotServing(String),
    #[error("the app took longer than {0} s")]
    Slow(u32),
}

impl FromStr for Probes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        serde_json::from_str(text)
            .map(Self)
            .map_err(|error| error.to_string())
    }
}

impl Probes {
    /// The HTTP status of the app's response, or for a failure. `None`: there is no probe of this
    /// name.
    pub async fn run(&self, name: &str, context: ProbeContext<'_>) -> Option<Result<u16, Failure>> {
        let target = self.0.get(name)?;
        let limit = Duration::from_secs(target.seconds.into());
        let made = tokio::time::timeout(limit, target.action.run(context)).await;
        Some(made.unwrap_or(Err(Failure::Slow(target.seconds))))
    }
}

impl Action {
    async fn run(&self, context: ProbeContext<'_>) -> Result<u16, Failure> {
        /// The status of a passed probe.
        const WELL: u16 = 200;
        match self {
            Self::Http(get) => get.status(context).await,
            Self::Tcp { port } => connect(context, *port).await.map(|_| WELL),
            Self::Grpc { port, service, tls } => {
                let app = connect(context, *port).await?;
                if *tls {
                    let app = tls::connect(app, context.here, Some("h2")).await?;
                    grpc::check(app, service, context.user_agent).await?;
                } else {
                    grpc::check(app, service, context.user_agent).await?;
                }
                Ok(WELL)
            }
        }
    }
}

/// Connects to the address that the kubelet would have called, bypassing the redirect rules.
async fn connect(context: ProbeContext<'_>, port: u16) -> Result<tokio::net::TcpStream, Failure> {
    let address = SocketAddr::new(context.here, port);
    socket::dial_app(address, context.source, None, context.socket_mark)
        .await
        .map_err(Failure::Connect)
}

#[cfg(test)]
mod tests;
