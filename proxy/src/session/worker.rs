//! What the connections of one data worker have in common, in either direction.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use naru_listen::Places;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::mirroring::Mirroring;
use crate::config::Config;
use crate::drain::Drain;
use crate::identity::Identity;
use crate::memory::Budget;
use crate::observe::access_log::AccessLog;
use crate::observe::metrics::{Metrics, PoolProtocol};
use crate::socket::listening::Listening;
use crate::table::Tables;
use crate::upstream::client_address::ClientAddresses;
use crate::upstream::pool::Pool;
use crate::upstream::{Dialer, http2, mux, share, streams};

/// What every worker shares: handed to each of them at start.
#[derive(Clone)]
pub struct Shared {
    pub config: Arc<Config>,
    pub tables: Tables,
    pub identity: Identity,
    pub metrics: Metrics,
    pub access_log: AccessLog,
    pub drain: Drain,
    /// Limits inbound connections.
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
    pub dialer: Rc<Dialer>,
    pub http1_pool: Rc<Pool>,
    pub http1_streams: Rc<streams::Pool<mux::MuxConnection>>,
    pub http2_pool: Rc<streams::Pool<http2::Http2Connection>>,
    pub tcp_pool: Rc<Pool>,
    /// The clients of this worker, which share the streams to each endpoint.
    pub clients: share::Clients,
    pub mirroring: Rc<Mirroring>,
    pub random: RefCell<SmallRng>,
    pub listening: Listening,
}

impl Worker {
    pub fn new(shared: Shared) -> Self {
        let dialer = Rc::new(Dialer {
            limits: shared.config.limits.clone(),
            identity: shared.identity.clone(),
            metrics: shared.metrics.clone(),
            memory: shared.memory.clone(),
            mark: shared.config.socket_mark,
        });
        Self {
            config: shared.config,
            tables: shared.tables,
            identity: shared.identity,
            metrics: shared.metrics,
            access_log: shared.access_log,
            drain: shared.drain,
            memory: shared.memory,
            client_addresses: shared.client_addresses,
            http1_pool: Pool::new(PoolProtocol::Http1, &dialer),
            http1_streams: streams::Pool::new(&dialer),
            http2_pool: streams::Pool::new(&dialer),
            tcp_pool: Pool::new(PoolProtocol::Tcp, &dialer),
            dialer,
            clients: share::Clients::default(),
            mirroring: Rc::default(),
            random: RefCell::new(SmallRng::from_rng(&mut rand::rng())),
            listening: Listening::default(),
        }
    }
}
