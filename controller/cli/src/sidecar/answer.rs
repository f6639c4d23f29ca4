//! A sidecar's answer. The sidecar may be older or newer than this command: missing fields are
//! empty, and unknown ones are ignored.

use anyhow::Context;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Answer {
    pub client_namespace: String,
    /// `service`, `pod`, `passthrough` or `unknown`.
    pub target: String,
    #[serde(default)]
    pub service: Option<Service>,
    #[serde(default)]
    pub routes: Vec<Route>,
    #[serde(default)]
    pub rejected: Vec<Rejected>,
    #[serde(default)]
    pub rules: Vec<Rule>,
    #[serde(default)]
    pub matches: Vec<Match>,
    #[serde(default)]
    pub matches_left_out: usize,
    #[serde(default)]
    pub outcome: Option<Outcome>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Service {
    pub namespace: String,
    pub name: String,
    pub port: u16,
    pub protocol: String,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Route {
    pub kind: String,
    /// `namespace/name`
    pub name: String,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Rejected {
    /// As `http-route/shop/web`.
    pub name: String,
    pub reason: String,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Rule {
    #[serde(default)]
    pub kind: String,
    #[serde(default)]
    pub route: String,
    #[serde(default)]
    pub rule: String,
    #[serde(default)]
    pub filters: Vec<String>,
    #[serde(default)]
    pub backends: Vec<Backend>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_timeout_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_request_timeout_ms: Option<u64>,
    #[serde(default)]
    pub retries: u32,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Backend {
    #[serde(default)]
    pub service: String,
    pub weight: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invalid: Option<String>,
    #[serde(default)]
    pub filters: Vec<String>,
    #[serde(default)]
    pub endpoints: usize,
    #[serde(default)]
    pub ejected: usize,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Match {
    pub rule: usize,
    pub matches: String,
    #[serde(flatten)]
    pub verdict: Option<Verdict>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub enum Verdict {
    Takes,
    Outranked {
        by: String,
    },
    Unmet {
        part: String,
        wanted: String,
        has: Option<String>,
    },
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Outcome {
    pub forwarded: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc_status: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
    #[serde(default)]
    pub backends: Vec<Prospect>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Prospect {
    pub backend: usize,
    pub share: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc_status: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Seen>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Seen {
    pub path: String,
    pub authority: String,
}

impl Answer {
    pub fn parse(body: &str) -> anyhow::Result<Self> {
        serde_json::from_str(body)
            .context("the sidecar sent an answer that this command cannot parse")
    }

    /// The rule of a match.
    pub fn rule(&self, of: &Match) -> Option<&Rule> {
        self.rules.get(of.rule)
    }

    /// The kind of the TLSRoutes or TCPRoutes in force. The port is then opaque, whatever its
    /// declared protocol.
    pub fn stream_kind(&self) -> Option<&str> {
        let kinds = self.routes.iter().map(|route| &*route.kind);
        let mut of_connections = kinds.filter(|kind| ["TLSRoute", "TCPRoute"].contains(kind));
        of_connections.next()
    }

    /// The match that takes the request or connection.
    pub fn taken(&self) -> Option<&Match> {
        let takes = |one: &&Match| matches!(one.verdict, Some(Verdict::Takes));
        self.matches.iter().find(takes)
    }
}

impl Rule {
    /// The display name, if the rule belongs to a route.
    pub fn title(&self) -> String {
        match self.rule.is_empty() {
            true => format!("{} {}", self.kind, self.route),
            false => format!("{} {}, rule {}", self.kind, self.route, self.rule),
        }
    }
}

impl Backend {
    /// A short description.
    pub fn words(&self) -> String {
        if let Some(why) = &self.invalid {
            return format!("can't be used: {why}");
        }
        let ejected = match self.ejected {
            0 => String::new(),
            ejected => format!(", {ejected} of them ejected"),
        };
        let endpoints = match self.endpoints {
            1 => "1 endpoint".to_owned(),
            many => format!("{many} endpoints"),
        };
        format!("{}, {endpoints}{ejected}", self.service)
    }
}
