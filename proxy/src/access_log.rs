//! The access log: one JSON object a line on standard output. Off by default.

use std::time::Duration;

use crate::metrics::{Direction, HttpVersion};
use crate::reason::Reason;

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct AccessLog {}

/// One finished request.
#[derive(Debug)]
pub struct Entry<'a> {
    pub direction: Direction,
    pub version: HttpVersion,
    pub client: &'a str,
    pub method: &'a str,
    pub authority: &'a str,
    /// Path without the query, which may carry secrets.
    pub path: &'a str,
    pub service: &'a str,
    pub route: &'a str,
    pub rule: &'a str,
    /// Address of the endpoint that answered.
    pub endpoint: Option<std::net::SocketAddr>,
    pub status: Option<u16>,
    pub reason: Option<Reason>,
    pub attempts: u32,
    pub elapsed: Duration,
}

impl AccessLog {
    pub fn enabled(&self) -> bool {
        todo!()
    }

    /// Never blocks: lines that can't be written at once are counted and dropped.
    pub fn write(&self, entry: &Entry<'_>) {
        let _ = entry;
        todo!()
    }
}
