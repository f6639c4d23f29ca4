//! Counters with a fixed set of label values, which need no table.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::Direction;
use super::request::{ByReason, by_reason, reason_index};
use crate::observe::reason::Reason;

/// The protocol of a pooled upstream connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PoolProtocol {
    Http1,
    Http2,
    /// Opaque connections between sidecars.
    Tcp,
}

impl PoolProtocol {
    pub const ALL: [Self; 3] = [Self::Http1, Self::Http2, Self::Tcp];

    /// The label value in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http1 => "http/1.1",
            Self::Http2 => "http/2",
            Self::Tcp => "tcp",
        }
    }
}

/// Whether a pooled upstream connection is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PoolState {
    Idle,
    Active,
}

impl PoolState {
    pub const ALL: [Self; 2] = [Self::Idle, Self::Active];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Active => "active",
        }
    }
}

/// An event of a connection to an endpoint without a sidecar, including the proxy's own app.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AppConnection {
    /// The endpoint closed it while it was idle.
    Closed,
    /// It was not kept, since a newer connection waits for its first answer.
    Starved,
    /// It was closed as a request arrived, which was sent again: none of it was acknowledged.
    Resent,
    /// It violated HTTP/2: downstream connections stop sharing connections to the endpoint for a
    /// while.
    Offended,
}

impl AppConnection {
    pub const ALL: [Self; 4] = [Self::Closed, Self::Starved, Self::Resent, Self::Offended];

    /// The label value in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed-idle",
            Self::Starved => "starved",
            Self::Resent => "resent",
            Self::Offended => "offended",
        }
    }
}

/// A limit of the streams to an endpoint, at which a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StreamLimit {
    /// Too many requests are waiting for a stream, or too many of the same client.
    Queue,
    /// No stream became free in time.
    Wait,
}

impl StreamLimit {
    pub const ALL: [Self; 2] = [Self::Queue, Self::Wait];

    /// The label value in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Wait => "wait",
        }
    }
}

/// The client address that the app sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// The client's own.
    Client,
    /// A stand-in, which no machine has.
    Hidden,
    /// The pod's own: the kernel allows no other.
    Own,
}

impl Shown {
    pub const ALL: [Self; 3] = [Self::Client, Self::Hidden, Self::Own];

    /// The label value in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Hidden => "hidden",
            Self::Own => "own",
        }
    }
}

/// The outcome of a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PushOutcome {
    /// All of it is in force.
    Accepted,
    /// Some of it was rejected; the rest is in force.
    Rejected,
}

impl PushOutcome {
    pub const ALL: [Self; 2] = [Self::Accepted, Self::Rejected];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Rejected => "rejected",
        }
    }
}

/// The outcome of a request for a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RenewalOutcome {
    Renewed,
    Failed,
}

impl RenewalOutcome {
    pub const ALL: [Self; 2] = [Self::Renewed, Self::Failed];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Renewed => "renewed",
            Self::Failed => "failed",
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Totals {
    upstream_connects: ByReason,
    app_connects: [AtomicU64; Shown::ALL.len()],
    handshakes: [ByReason; Direction::ALL.len()],
    pool: [[AtomicI64; PoolState::ALL.len()]; PoolProtocol::ALL.len()],
    bypassing: AtomicI64,
    app_connections: [AtomicU64; AppConnection::ALL.len()],
    streams_refused: [[AtomicU64; StreamLimit::ALL.len()]; PoolProtocol::ALL.len()],
    connections_expired: AtomicU64,
    access_log_dropped: AtomicU64,
    http2_slowed: AtomicU64,
    renewals: [AtomicU64; RenewalOutcome::ALL.len()],
    certificate_expiry: AtomicI64,
    certificate_issuer: Mutex<Option<String>>,
    connected: AtomicI64,
    last_message: Mutex<Option<Instant>>,
    pushes: [AtomicU64; PushOutcome::ALL.len()],
    received_resources: AtomicU64,
    held_resources: AtomicU64,
    last_change: AtomicI64,
}

impl Totals {
    pub fn upstream_connect(&self, reason: Option<Reason>) {
        self.upstream_connects[reason_index(reason)].fetch_add(1, Relaxed);
    }

    pub fn upstream_connects(&self) -> impl Iterator<Item = (Option<Reason>, u64)> + '_ {
        by_reason(&self.upstream_connects)
    }

    pub fn app_connect(&self, shown: Shown) {
        self.app_connects[shown as usize].fetch_add(1, Relaxed);
    }

    pub fn app_connects(&self) -> impl Iterator<Item = (Shown, u64)> + '_ {
        Shown::ALL
            .into_iter()
            .map(|shown| (shown, self.app_connects[shown as usize].load(Relaxed)))
    }

    pub fn handshake(&self, direction: Direction, reason: Option<Reason>) {
        self.handshakes[direction as usize][reason_index(reason)].fetch_add(1, Relaxed);
    }

    pub fn handshakes(
        &self,
        direction: Direction,
    ) -> impl Iterator<Item = (Option<Reason>, u64)> + '_ {
        by_reason(&self.handshakes[direction as usize])
    }

    pub fn pool_connections(&self, protocol: PoolProtocol, state: PoolState, change: i64) {
        self.pool[protocol as usize][state as usize].fetch_add(change, Relaxed);
    }

    pub fn pooled(&self, protocol: PoolProtocol, state: PoolState) -> i64 {
        self.pool[protocol as usize][state as usize].load(Relaxed)
    }

    pub fn set_bypassing(&self, sockets: usize) {
        self.bypassing.store(sockets as i64, Relaxed);
    }

    pub fn bypassing(&self) -> i64 {
        self.bypassing.load(Relaxed)
    }

    pub fn app_connection(&self, event: AppConnection) {
        self.app_connections[event as usize].fetch_add(1, Relaxed);
    }

    pub fn app_connections(&self, event: AppConnection) -> u64 {
        self.app_connections[event as usize].load(Relaxed)
    }

    pub fn http2_slowed(&self) {
        self.http2_slowed.fetch_add(1, Relaxed);
    }

    pub fn http2_connections_slowed(&self) -> u64 {
        self.http2_slowed.load(Relaxed)
    }

    pub fn stream_refused(&self, protocol: PoolProtocol, limit: StreamLimit) {
        self.streams_refused[protocol as usize][limit as usize].fetch_add(1, Relaxed);
    }

    pub fn streams_refused(&self, protocol: PoolProtocol, limit: StreamLimit) -> u64 {
        self.streams_refused[protocol as usize][limit as usize].load(Relaxed)
    }

    pub fn connection_expired(&self) {
        self.connections_expired.fetch_add(1, Relaxed);
    }

    pub fn connections_expired(&self) -> u64 {
        self.connections_expired.load(Relaxed)
    }

    pub fn access_log_dropped(&self) {
        self.access_log_dropped.fetch_add(1, Relaxed);
    }

    pub fn access_log_lines_dropped(&self) -> u64 {
        self.access_log_dropped.load(Relaxed)
    }

    pub fn certificate_renewal(&self, outcome: RenewalOutcome) {
        self.renewals[outcome as usize].fetch_add(1, Relaxed);
    }

    pub fn certificate_renewals(&self, outcome: RenewalOutcome) -> u64 {
        self.renewals[outcome as usize].load(Relaxed)
    }

    pub fn certificate(&self, expires: i64, issuer: Option<&str>) {
        self.certificate_expiry.store(expires, Relaxed);
        let mut name = (self.certificate_issuer.lock()).unwrap_or_else(PoisonError::into_inner);
        *name = issuer.map(str::to_owned);
    }

    /// `None`: there is no certificate yet, or its issuer is not announced.
    pub fn certificate_issuer(&self) -> Option<String> {
        let name = self.certificate_issuer.lock();
        name.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// `None`: there is no certificate yet.
    pub fn certificate_expires(&self) -> Option<i64> {
        Some(self.certificate_expiry.load(Relaxed)).filter(|at| *at != 0)
    }

    pub fn controller_connected(&self, connected: bool) {
        self.connected.store(i64::from(connected), Relaxed);
    }

    pub fn is_controller_connected(&self) -> i64 {
        self.connected.load(Relaxed)
    }

    pub fn controller_message(&self, now: Instant) {
        *self
            .last_message
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(now);
    }

    pub fn controller_silence(&self, now: Instant) -> Option<Duration> {
        let last_message = *self
            .last_message
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        last_message.map(|last| now.saturating_duration_since(last))
    }

    pub fn push(&self, outcome: PushOutcome, resources: usize, held: usize) {
        self.pushes[outcome as usize].fetch_add(1, Relaxed);
        self.received_resources.fetch_add(resources as u64, Relaxed);
        self.held_resources.store(held as u64, Relaxed);
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |now| now.as_secs() as i64);
        self.last_change.store(now, Relaxed);
    }

    pub fn pushes(&self, outcome: PushOutcome) -> u64 {
        self.pushes[outcome as usize].load(Relaxed)
    }

    pub fn received_resources(&self) -> u64 {
        self.received_resources.load(Relaxed)
    }

    pub fn held_resources(&self) -> u64 {
        self.held_resources.load(Relaxed)
    }

    /// `None`: nothing has been received yet.
    pub fn last_change(&self) -> Option<i64> {
        Some(self.last_change.load(Relaxed)).filter(|at| *at != 0)
    }
}
