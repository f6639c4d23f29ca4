//! Probes of the app on behalf of the kubelet.
//!
//! ```text
//! kubelet ─ GET /probe/app/readiness ─▶ admin port ─▶ here ─▶ the app's own port
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
//! app                 how it is reached, and why a probe of it fails
//! ```

mod app;
mod grpc;
pub(crate) mod http;
mod tls;

use std::collections::HashMap;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;

use app::connect;
pub use app::{Failure, ProbeContext};

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

#[cfg(test)]
mod tests;
