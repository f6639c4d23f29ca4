//! The result of `naru why`.

use serde::Serialize;

use super::request::Scheme;
use crate::sidecar::Answer;

/// The result of the command.
#[derive(Serialize)]
pub struct Report {
    /// The sidecar that answered.
    pub from: String,
    /// `None`: the query is about a connection, in which the sidecar does not see requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    pub url: String,
    /// The server name of a TLS client (SNI).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    #[serde(skip)]
    pub scheme: Scheme,
    /// The destination of the query, as `IP:PORT`.
    pub destination: String,
    /// Remarks in addition to the answer.
    pub notes: Vec<String>,
    pub answer: Answer,
}

impl Report {
    /// Whether a backend would get the request or connection.
    pub fn is_forwarded(&self) -> bool {
        let outcome = self.answer.outcome.as_ref();
        outcome.is_some_and(|outcome| outcome.forwarded)
    }
}
