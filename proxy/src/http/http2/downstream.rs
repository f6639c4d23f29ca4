//! What the streams of one downstream connection share: whose they are, what they are counted
//! against, and how fast the connection is read.

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
use crate::upstream::share::{self, Holder};

/// Streams that a client may give up within [`RAPID`] and before their response, in each
/// [`CALM_WINDOW`]. A client that opens streams to reset them makes us work for nothing
/// (CVE-2023-44487): beyond this its connection is served more slowly. A sidecar's is not: it
/// carries the requests of many, and that sidecar counts for each.
const MAX_RAPID_RESETS: u32 = 2_000;
/// Longer deadlines than this are missed in numbers when a server is slow.
const RAPID: Duration = Duration::from_millis(10);
const CALM_WINDOW: Duration = Duration::from_secs(10);
/// What each such stream beyond the limit costs its connection: a hundred times what it costs us.
const PAUSE: Duration = Duration::from_millis(1);
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// What the streams of one downstream connection share.
pub(super) struct Downstream {
    pub session: Session,
    /// Whose share the streams to endpoints count against.
    pub holder: Rc<Holder>,
    /// Whether the client takes what it is sent.
    pub turn: Turn,
    /// Stream tasks that run.
    pub live: Cell<u32>,
    /// When a stream last ended.
    pub active: Cell<Instant>,
    rapid_resets: Cell<u32>,
    /// Those beyond the limit that the connection has not been slowed down for.
    excess: Cell<u32>,
    window_began: Cell<Instant>,
    /// Its own, once its client has logged in on it: see [`Caller`].
    login: Cell<u64>,
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
            login: Cell::new(0),
            meter,
        }
    }

    /// For whom the upstream connections of this one are.
    pub fn caller(&self) -> Caller {
        Caller {
            login: self.login.get(),
            ..self.session.caller()
        }
    }

    /// From now on it shares no upstream connection: its client logs in on its own.
    pub fn bind(&self) {
        if self.login.get() == 0 {
            self.login.set(share::next_id());
        }
    }

    /// Charges a stream, or says why it is refused.
    pub fn admit(&self, head: &HeaderMap) -> Result<Charge, Reason> {
        let memory = &self.session.worker.memory;
        let charge = memory.charge(Use::Stream, memory::of_stream(head));
        charge.ok_or(Reason::Overload)
    }

    /// The client has given up a stream before its response.
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

    /// How long the connection is to wait before anything more is read from it.
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

/// Whether a request carries credentials that hold for its connection.
pub(super) fn logs_in(headers: &HeaderMap) -> bool {
    [AUTHORIZATION, PROXY_AUTHORIZATION].iter().any(|name| {
        let mut values = headers.get_all(name).iter();
        values.any(|value| login::is_of_connection(value.as_bytes()))
    })
}
