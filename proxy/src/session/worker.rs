//! What the connections of one data worker have in common, whichever way they go.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use naru_listen::Places;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use crate::config::Config;
use crate::drain::Drain;
use crate::http::http2;
use crate::http::mirror::Mirroring;
use crate::identity::Identity;
use crate::memory::Budget;
use crate::observe::access_log::AccessLog;
use crate::observe::metrics::{Metrics, PoolProtocol};
use crate::socket::listening::Listening;
use crate::table::Tables;
use crate::upstream::client_address::ClientAddresses;
use crate::upstream::pool::Pool;
use crate::upstream::{mux, share, streams};

/// What every worker shares: handed to each of them at start.
#[derive(Clone)]
pub struct Shared {
    pub config: Arc<Config>,
    pub tables: Tables,
    pub identity: Identity,
    pub metrics: Metrics,
    pub access_log: AccessLog,
    pub drain: Drain,
    /// For connections from outside.
    pub inbound: Places,
    pub memory: Budget,
    pub client_addresses: ClientAddresses,
}

/// What the connections of one worker have in common. Lives in an `Rc` on the worker's thread.
pub struct Worker {
    pub config: Arc<Config>,
    pub tables: Tables,
    pub identity: Identity,
    pub metrics: Metrics,
    pub access_log: AccessLog,
    pub drain: Drain,
    pub memory: Budget,
    pub client_addresses: ClientAddresses,
    pub http1_pool: Pool,
    pub http1_streams: streams::Pool<mux::Connection>,
    pub http2_pool: streams::Pool<http2::Connection>,
    pub tcp_pool: Pool,
    /// Whose connections are carried: streams to endpoints are shared out among them.
    pub clients: share::Clients,
    pub mirroring: Rc<Mirroring>,
    pub random: RefCell<SmallRng>,
    pub listening: Listening,
}

impl Worker {
    pub fn new(shared: Shared) -> Self {
        Self {
            config: shared.config,
            tables: shared.tables,
            identity: shared.identity,
            metrics: shared.metrics,
            access_log: shared.access_log,
            drain: shared.drain,
            memory: shared.memory,
            client_addresses: shared.client_addresses,
            http1_pool: Pool::new(PoolProtocol::Http1, |worker| &worker.http1_pool),
            http1_streams: streams::Pool::default(),
            http2_pool: streams::Pool::default(),
            tcp_pool: Pool::new(PoolProtocol::Tcp, |worker| &worker.tcp_pool),
            clients: share::Clients::default(),
            mirroring: Rc::default(),
            random: RefCell::new(SmallRng::from_rng(&mut rand::rng())),
            listening: Listening::default(),
        }
    }
}
