//! A data worker: one thread, one current-thread runtime, its own pools.

use std::cell::RefCell;
use std::sync::Arc;

use rand::rngs::SmallRng;

use crate::access_log::AccessLog;
use crate::config::Config;
use crate::drain::Drain;
use crate::identity::Identity;
use crate::metrics::Metrics;
use crate::table::Tables;
use crate::{http1, http2};

/// What every worker shares: handed to each of them at start.
#[derive(Clone)]
pub struct Shared {
    pub config: Arc<Config>,
    pub tables: Tables,
    pub identity: Identity,
    pub metrics: Metrics,
    pub access_log: AccessLog,
    pub drain: Drain,
}

/// What the connections of one worker have in common. Lives in an `Rc` on the worker's thread.
pub struct Worker {
    pub config: Arc<Config>,
    pub tables: Tables,
    pub identity: Identity,
    pub metrics: Metrics,
    pub access_log: AccessLog,
    pub drain: Drain,
    pub http1_pool: http1::Pool,
    pub http2_pool: http2::Pool,
    pub random: RefCell<SmallRng>,
}

/// The running workers.
#[derive(Debug)]
pub struct Workers {}

/// Starts the data workers.
pub fn start(shared: Shared, listeners: crate::socket::Listeners) -> std::io::Result<Workers> {
    let _ = (shared, listeners);
    todo!()
}

impl Workers {
    /// Returns when a worker has ended that should not have.
    pub async fn lost(&self) {
        todo!()
    }
}
