//! The state that the streams of one downstream connection share: their owner, their limits, and
//! how fast the connection is read.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use http::HeaderMap;
use http::header::{AUTHORIZATION, PROXY_AUTHORIZATION};
use tokio::time::Instant;

use super::meter::Meter;
use crate::http::login;
use crate::memory::{self, Charge, Use};
use crate::observe::reason::Reason;
use crate::session::Session;
use crate::upstream::Caller;
use crate::upstream::http2::paced::Turn;
use crate::upstream::share::{DownstreamId, Holder};

/// Streams that a client may reset within [`RAPID`] and before their response, in each
/// [`CALM_WINDOW`]. A client that opens streams only to reset them causes useless work
/// (CVE-2023-44487): beyond this its connection is served more slowly. A sidecar's connection is
/// exempt: it carries the requests of many clients, and that sidecar counts for each of them.
const MAX_RAPID_RESETS: u32 = 2_000;
/// Resets of requests older than this do not count as abuse: they are missed deadlines, which are
/// common when a server is slow.
const RAPID: Duration = Duration::from_millis(10);
const CALM_WINDOW: Duration = Duration::from_secs(10);
/// Pause of a connection for each such stream beyond the limit: a hundred times its cost to the
/// proxy.
const PAUSE: Duration = Duration::from_millis(1);
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// The state that the streams of one downstream connection share.
pub(super) struct Downstream {
    pub session: Session,
    /// The share of the streams to endpoints that they count against.
    pub holder: Rc<Holder>,
    /// Whether the client reads what it is sent.
    pub turn: Turn,
    /// Running stream tasks.
    pub live: Cell<u32>,
    /// When a stream last ended.
    pub active: Cell<Instant>,
    rapid_resets: Cell<u32>,
    /// Resets beyond the limit for which the connection has not been slowed down yet.
    excess: Cell<u32>,
    window_began: Cell<Instant>,
    /// Assigned when its client has logged in on it: see [`Caller`].
    login: Cell<Option<DownstreamId>>,
    pub meter: Rc<Meter>,
}

impl Downstream {
    pub fn new(session: Session, turn: Turn, meter: Rc<Meter>) -> Self {
        let now = Instant::now();
        Self {
            holder: session.worker.clients.connection(session.client_key()),
            session,
            turn,
            live: Cell::new(0),
            active: Cell::new(now),
            rapid_resets: Cell::new(0),
            excess: Cell::new(0),
            window_began: Cell::new(now),
            login: Cell::new(None),
            meter,
        }
    }

    /// The caller of this connection's upstream connections.
    pub fn caller(&self) -> Caller {
        Caller {
            login: self.login.get(),
            ..self.session.caller()
        }
    }

    /// Excludes it from shared upstream connections: its client logs in on its own.
    pub fn bind(&self) {
        let id = self.login.get().unwrap_or_else(DownstreamId::next);
        self.login.set(Some(id));
    }

    /// Charges a stream, or returns why it is refused.
    pub fn admit(&self, head: &HeaderMap) -> Result<Charge, Reason> {
        let memory = &self.session.worker.memory;
        let charge = memory.charge(Use::Stream, memory::of_stream(head));
        charge.ok_or(Reason::Overload)
    }

    /// The client has reset a stream before its response.
    pub fn given_up(&self, began: Instant) {
        let now = Instant::now();
        if now.duration_since(began) >= RAPID || self.session.is_shared() {
            return;
        }
        if now.duration_since(self.window_began.get()) >= CALM_WINDOW {
            self.window_began.set(now);
            self.rapid_resets.set(0);
        }
        self.rapid_resets
            .set(self.rapid_resets.get().saturating_add(1));
        if self.rapid_resets.get() > MAX_RAPID_RESETS {
            self.excess.set(self.excess.get() + 1);
        }
    }

    /// How long to wait before the connection is read again.
    pub fn take_pause(&self) -> Option<Duration> {
        let excess = self.excess.take();
        if excess == 0 {
            return None;
        }
        tracing::debug!(excess, "a client opens streams only to reset them");
        self.session.worker.metrics.http2_slowed();
        Some((PAUSE * excess).min(MAX_PAUSE))
    }
}

/// Whether a request carries credentials that apply to its connection.
pub(super) fn logs_in(headers: &HeaderMap) -> bool {
    [AUTHORIZATION, PROXY_AUTHORIZATION].iter().any(|name| {
        let mut values = headers.get_all(name).iter();
        values.any(|value| login::is_of_connection(value.as_bytes()))
    })
}
