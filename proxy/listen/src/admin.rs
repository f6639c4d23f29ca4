//! Common settings of all admin ports: metrics and probes, for a few clients.

use std::time::Duration;

use crate::http::Times;
use crate::places::Bounds;

/// Bounds on concurrent connections: a few scrapers and probes. A kubelet sends as many probes at
/// once as a pod has, so a source may have that many.
pub const BOUNDS: Bounds = Bounds {
    waiting: 256,
    waiting_of_source: 64,
    taken: 256,
    taken_of_source: 64,
    spare: 64,
    all: 256,
    of_source: 64,
};

pub const TIMES: Times = Times {
    head: Duration::from_secs(5),
    // Longer than the interval of any scraper that keeps its connection open.
    idle: Duration::from_secs(300),
    answer: Duration::from_secs(60),
    // Longer than scrapers wait for a response (10 s by default).
    write: Duration::from_secs(30),
    max_head: 16 * 1024,
};
