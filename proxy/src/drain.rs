//! The shutdown signal, and who is still busy.

use std::sync::Arc;

use tokio::sync::watch;

/// Starts the shutdown and waits for its end.
#[derive(Debug)]
pub struct DrainSignal {
    sender: watch::Sender<bool>,
}

/// Held by everything that has work which a shutdown waits for. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Drain {
    receiver: watch::Receiver<bool>,
    _alive: Arc<()>,
}

/// A shutdown signal that has not been given yet.
pub fn drain() -> (DrainSignal, Drain) {
    let (sender, receiver) = watch::channel(false);
    let drain = Drain {
        receiver,
        _alive: Arc::new(()),
    };
    (DrainSignal { sender }, drain)
}

impl DrainSignal {
    pub fn start(&self) {
        self.sender.send_replace(true);
    }

    /// Returns when every [`Drain`] has been dropped.
    pub async fn finished(&self) {
        self.sender.closed().await;
    }
}

impl Drain {
    pub fn is_draining(&self) -> bool {
        *self.receiver.borrow()
    }

    /// Returns when the shutdown has started.
    pub async fn started(&self) {
        let mut receiver = self.receiver.clone();
        // An error means that the signal is gone, which only happens at the process's end.
        let _ = receiver.wait_for(|draining| *draining).await;
    }
}
