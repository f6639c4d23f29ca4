//! The shutdown signal, and the work that the shutdown waits for.
//!
//! A shutdown waits for every busy connection: an inbound connection is busy for as long as it
//! lives; outbound, a request or a connection that is not HTTP is busy. The app's idle outbound
//! connections do not count: the app may need them to finish its work, and keeps them to the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Notify, watch};

/// Starts the shutdown and waits for its end.
#[derive(Debug)]
pub struct DrainSignal {
    shared: Arc<Shared>,
}

/// Reports the shutdown. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Drain {
    shared: Arc<Shared>,
}

/// Work that a shutdown waits for, until it is dropped.
#[derive(Debug)]
pub struct Busy {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    started: watch::Sender<bool>,
    busy: AtomicUsize,
    idle: Notify,
}

/// A shutdown signal that has not been sent yet.
pub fn drain() -> (DrainSignal, Drain) {
    let shared = Arc::new(Shared {
        started: watch::Sender::new(false),
        busy: AtomicUsize::new(0),
        idle: Notify::new(),
    });
    let drain = Drain {
        shared: shared.clone(),
    };
    (DrainSignal { shared }, drain)
}

impl DrainSignal {
    pub fn start(&self) {
        self.shared.started.send_replace(true);
    }

    /// Returns when nothing is busy.
    pub async fn finished(&self) {
        loop {
            let idle = self.shared.idle.notified();
            tokio::pin!(idle);
            // Registers before it looks at the count, so that an end in between is not missed.
            idle.as_mut().enable();
            if self.shared.busy.load(Ordering::Acquire) == 0 {
                return;
            }
            idle.await;
        }
    }
}

impl Drain {
    pub fn is_draining(&self) -> bool {
        *self.shared.started.borrow()
    }

    /// Returns when the shutdown has started.
    pub async fn started(&self) {
        let mut started = self.shared.started.subscribe();
        // An error would mean that the sender is gone, but it is a field of `self`.
        let _ = started.wait_for(|started| *started).await;
    }

    /// Makes the shutdown wait.
    pub fn busy(&self) -> Busy {
        self.shared.busy.fetch_add(1, Ordering::AcqRel);
        Busy {
            shared: self.shared.clone(),
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if self.shared.busy.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.idle.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn a_shutdown_waits_for_all_work_in_progress() {
        let (signal, drain) = drain();
        let (first, second) = (drain.busy(), drain.clone().busy());
        signal.start();
        drain.started().await;
        assert!(drain.is_draining());
        let finished = signal.finished();
        tokio::pin!(finished);
        drop(first);
        let early = tokio::time::timeout(Duration::from_millis(20), finished.as_mut()).await;
        assert!(early.is_err());
        drop(second);
        finished.await;
    }
}
