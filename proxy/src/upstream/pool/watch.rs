//! Watches an HTTP/1.1 connection to an endpoint without a sidecar, to learn the endpoint's
//! [habits](crate::balance::Habits).
//!
//! While it is idle its socket wakes the watch, so that the time of a close is recorded to the
//! microsecond.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use crate::balance::Endpoint;
use crate::observe::metrics::{AppConnection, Metrics};
use crate::upstream::Caller;

/// A watched connection. Dropped with it.
pub struct Watched(Arc<Watch>);

struct Watch {
    endpoint: Arc<Endpoint>,
    caller: Caller,
    metrics: Metrics,
    /// Counts up as connections to the endpoint are opened.
    number: u64,
    opened: Instant,
    /// [`IN_USE`], [`OVER`], or the start of the connection's idle time: microseconds after it was
    /// opened.
    idle_since: AtomicU64,
    /// Bytes that the kernel had seen acknowledged before a request that cannot be sent twice; 0:
    /// the kernel does not count.
    acknowledged: AtomicU64,
}

const IN_USE: u64 = u64::MAX;
const OVER: u64 = u64::MAX - 1;

impl Watched {
    /// For a connection that is about to be opened.
    pub fn new(endpoint: &Arc<Endpoint>, caller: Caller, metrics: &Metrics) -> Self {
        Self(Arc::new(Watch {
            number: endpoint.load.habits.opened(),
            endpoint: endpoint.clone(),
            caller,
            metrics: metrics.clone(),
            opened: Instant::now(),
            idle_since: AtomicU64::new(IN_USE),
            acknowledged: AtomicU64::new(0),
        }))
    }

    /// The caller whose requests it carries.
    pub fn caller(&self) -> &Caller {
        &self.0.caller
    }

    /// Records the first response on it.
    pub fn answered(&self) {
        self.0.endpoint.load.habits.answered(self.0.number);
    }

    /// Records that the first response is late. True: idle connections may be the cause.
    pub fn waits(&self) -> bool {
        let habits = &self.0.endpoint.load.habits;
        habits.waits(self.0.number);
        habits.is_starving()
    }

    /// Whether it should be closed while other connections wait.
    pub fn is_starving_others(&self) -> bool {
        self.0.endpoint.load.habits.is_starving()
    }

    /// Marks it as idle. From now on [`Self::waker`] must be woken by bytes or the end.
    pub fn set_idle(&self, since: Instant) {
        let since = since.duration_since(self.0.opened).as_micros() as u64;
        self.0.idle_since.store(since, Relaxed);
    }

    /// It was closed while idle, or received bytes then.
    pub fn is_over(&self) -> bool {
        self.0.idle_since.load(Relaxed) == OVER
    }

    /// Marks it as in use. False: it was closed while idle.
    pub fn set_in_use(&self) -> bool {
        let since = self.0.idle_since.load(Relaxed);
        let found = &self.0.idle_since;
        since != OVER && (found.compare_exchange(since, IN_USE, Relaxed, Relaxed)).is_ok()
    }

    /// Records how many bytes had been acknowledged before the next request.
    pub fn set_acknowledged(&self, bytes: Option<NonZeroU64>) {
        let bytes = bytes.map_or(0, NonZeroU64::get);
        self.0.acknowledged.store(bytes, Relaxed);
    }

    pub fn acknowledged(&self) -> Option<NonZeroU64> {
        NonZeroU64::new(self.0.acknowledged.load(Relaxed))
    }

    pub fn waker(&self) -> Waker {
        self.0.clone().into()
    }
}

impl Wake for Watch {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    /// Woken by the end, or by unexpected bytes: an idle connection receives nothing else.
    fn wake_by_ref(self: &Arc<Self>) {
        let since = self.idle_since.load(Relaxed);
        if since == IN_USE || since == OVER {
            return;
        }
        let found = &self.idle_since;
        if (found.compare_exchange(since, OVER, Relaxed, Relaxed)).is_ok() {
            let idle = self
                .opened
                .elapsed()
                .saturating_sub(Duration::from_micros(since));
            self.endpoint.load.habits.saw_close(idle);
            self.endpoint.load.habits.ended();
            self.metrics.app_connection(AppConnection::Closed);
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if self.0.idle_since.swap(OVER, Relaxed) != OVER {
            self.0.endpoint.load.habits.ended();
        }
    }
}
