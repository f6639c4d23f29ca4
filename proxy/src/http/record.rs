//! What HTTP/1 and HTTP/2 have in common about one request: how it ended, and what its access-log entry tells.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::observe::access_log::Entry;
use crate::observe::metrics::HttpVersion;
use crate::observe::reason::Reason;
use crate::route::{Logical, Rule};
use crate::session::Session;

/// How a request ended.
#[derive(Clone, Copy, Debug)]
pub struct End {
    pub status: Option<u16>,
    pub reason: Option<Reason>,
}

/// What has been found out about a request, for its access-log entry.
#[derive(Default)]
pub struct Told {
    pub logical: Option<Arc<Logical>>,
    pub rule: Option<Arc<Rule>>,
    pub endpoint: Option<SocketAddr>,
    pub attempts: u32,
}

/// What a request said before filters changed it.
pub struct Asked<'a> {
    pub version: HttpVersion,
    pub method: &'a str,
    pub authority: &'a str,
    /// Path without the query, which may carry secrets.
    pub path: &'a str,
}

impl Told {
    /// Writes the access-log entry of a request that has ended.
    pub fn log(&self, session: &Session, asked: &Asked<'_>, end: End, elapsed: Duration) {
        session.worker.access_log.write(&Entry {
            direction: session.direction,
            version: asked.version,
            client: &session.client,
            method: asked.method,
            authority: asked.authority,
            path: asked.path,
            service: self.logical.as_ref().map_or("", |l| &l.service),
            route: self.rule.as_ref().map_or("", |rule| &rule.route),
            rule: self.rule.as_ref().map_or("", |rule| &rule.name),
            endpoint: self.endpoint,
            status: end.status,
            reason: end.reason,
            attempts: self.attempts,
            elapsed,
        });
    }
}
