//! The stream of tables: kept open indefinitely, one attempt after the other.
//!
//! In: misses of the data path, pushes of the controller. Out: tables in force. Misses are accepted
//! in every state of the stream; messages that were not sent when a stream ended are covered by the
//! next stream's hello.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use naru_contract::{
    Answer, CONTRACT_VERSION, FromProxy, HEARTBEAT_INTERVAL, Hello, MAX_SUBSCRIPTIONS, Push,
    Subscribe, ToProxy, Unsubscribe, from_proxy, to_proxy,
};
use rand::RngExt;
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior};
use tracing::{debug, info, warn};

use super::Backoff;
use super::connect::{Controller, SyncError};
use crate::observe::metrics::{Metrics, SWEEP_INTERVAL};
use crate::table::{Miss, Misses, Store};

/// First wait after a stream that failed; doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(200);
/// Longest wait between attempts: a controller that recovers is found within this time.
const RETRY_MAX: Duration = Duration::from_secs(15);
/// A stream that lasted this long was healthy, and the next attempt starts with the shortest wait.
const GOOD_STREAM: Duration = Duration::from_secs(10);
/// How long the stream may be silent: two heartbeats may be missed.
const SILENCE: Duration = HEARTBEAT_INTERVAL.saturating_mul(3);
/// Messages queued for the connection. While the queue is full, no further push is read.
const MAX_QUEUED: usize = 16;
/// Destinations in one message.
const MAX_BATCH: usize = MAX_SUBSCRIPTIONS / 10;
/// Interval between checks for unused destinations.
const TICK: Duration = Duration::from_secs(1);
/// After a renewal, the stream is reopened with the new certificate, at a random point within this
/// time.
const REOPEN_WITHIN: Duration = Duration::from_secs(30);

/// Keeps the tables in step with the controller.
pub struct Sync {
    controller: Controller,
    store: Arc<Mutex<Store>>,
    misses: Misses,
    metrics: Metrics,
    tick: Interval,
    next_sweep: Instant,
    /// [`SILENCE`], except in tests.
    pub(super) silence: Duration,
}

impl Sync {
    /// Must be called on the runtime that it will run on.
    pub fn new(
        controller: Controller,
        store: Arc<Mutex<Store>>,
        misses: Misses,
        metrics: Metrics,
    ) -> Self {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            controller,
            store,
            misses,
            metrics,
            tick,
            next_sweep: Instant::now() + SWEEP_INTERVAL,
            silence: SILENCE,
        }
    }

    /// Never returns.
    pub async fn run(mut self) {
        let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
        loop {
            let identity = self.controller.identity.clone();
            self.meanwhile(async move {
                let mut changes = identity.changes();
                while !identity.is_valid() && changes.changed().await.is_ok() {}
            })
            .await;
            let began = Instant::now();
            let error = self.stream().await;
            self.metrics.controller_connected(false);
            self.store().disconnected();
            if began.elapsed() >= GOOD_STREAM || matches!(error, SyncError::Renewed) {
                backoff.reset();
            }
            let wait = backoff.wait();
            let identity = &self.controller.identity;
            let mut changes = identity.changes();
            let refused = matches!(error, SyncError::CertificateRefused);
            if refused {
                identity.certificate_refused();
            }
            if let SyncError::Renewed = error {
                debug!("reopening the stream with the new certificate");
            } else {
                warn!(
                    %error,
                    retry_in = ?wait,
                    "lost the stream from the controller; keeping the tables in force"
                );
            }
            self.meanwhile(async move {
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    Ok(()) = changes.changed(), if refused => {}
                }
            })
            .await;
        }
    }

    /// One stream, until it ends.
    async fn stream(&mut self) -> SyncError {
        let (messages, receiver) = mpsc::channel(MAX_QUEUED);
        let mut changes = self.controller.identity.changes();
        let validity = self.controller.identity.validity();
        // The hello is queued before the call is made: a server may answer only once it has read
        // it.
        let hello = self.hello();
        if messages.try_send(hello).is_err() {
            return SyncError::Ended;
        }
        let controller = self.controller.clone();
        let opened = self.meanwhile(async move { controller.sync(receiver).await });
        let mut stream = match opened.await {
            Ok(stream) => stream,
            Err(error) => return error,
        };
        info!("the stream from the controller is open");
        self.metrics.controller_connected(true);
        self.note_message();
        let mut answers: Option<Answer> = None;
        let mut silent = Box::pin(tokio::time::sleep(self.silence));
        let mut reopen = Box::pin(tokio::time::sleep(Duration::MAX));
        loop {
            let has_news = answers.is_some() || !self.store().outbox().is_empty();
            tokio::select! {
                permit = messages.reserve(), if has_news => {
                    let Ok(permit) = permit else { return SyncError::Ended };
                    if let Some(message) = self.next_message(&mut answers) {
                        permit.send(message);
                    }
                }
                // An answer that waits for space delays the next push, and in the end the
                // controller.
                message = stream.message(), if answers.is_none() => {
                    silent.as_mut().reset(tokio::time::Instant::now() + self.silence);
                    match message {
                        Ok(Some(message)) => match self.receive(message) {
                            Ok(answer) => answers = answer,
                            Err(error) => return error,
                        },
                        Ok(None) => return SyncError::Ended,
                        Err(status) => return SyncError::Refused(status),
                    }
                }
                Some(miss) = self.misses.recv() => self.miss(miss),
                _ = self.tick.tick() => self.sweep(),
                () = &mut silent => return SyncError::Silent(self.silence),
                Ok(()) = changes.changed() => {
                    // New anchors do not affect this connection; a new certificate does.
                    if self.controller.identity.validity() != validity {
                        let within = rand::rng().random_range(Duration::ZERO..REOPEN_WITHIN);
                        reopen.as_mut().reset(tokio::time::Instant::now() + within);
                    }
                }
                () = &mut reopen => return SyncError::Renewed,
            }
        }
    }

    fn hello(&mut self) -> FromProxy {
        let (destinations, held) = self.store().hello();
        let config = &self.controller.config;
        message(from_proxy::Message::Hello(Hello {
            contract_version: CONTRACT_VERSION,
            proxy_version: env!("CARGO_PKG_VERSION").to_owned(),
            namespace: config.namespace.clone(),
            pod: config.pod.clone(),
            destinations,
            held,
        }))
    }

    fn receive(&mut self, message: ToProxy) -> Result<Option<Answer>, SyncError> {
        self.note_message();
        match message.message {
            Some(to_proxy::Message::Push(push)) => Ok(Some(self.apply(push))),
            Some(to_proxy::Message::Heartbeat(_)) => Ok(None),
            None => Err(SyncError::UnknownMessage),
        }
    }

    fn apply(&mut self, push: Push) -> Answer {
        debug!(
            sequence = push.sequence,
            updates = push.updates.len(),
            removed = push.removed.len(),
            "push"
        );
        self.store().apply(push)
    }

    /// The next message to the controller. Answers go first: the controller measures their delay.
    fn next_message(&mut self, answer: &mut Option<Answer>) -> Option<FromProxy> {
        if let Some(answer) = answer.take() {
            return Some(message(from_proxy::Message::Answer(answer)));
        }
        let mut store = self.store();
        let outbox = store.outbox();
        if let Some(destinations) = batch(&mut outbox.unsubscribe) {
            let unsubscribe = Unsubscribe { destinations };
            return Some(message(from_proxy::Message::Unsubscribe(unsubscribe)));
        }
        let destinations = batch(&mut outbox.subscribe)?;
        let subscribe = Subscribe { destinations };
        Some(message(from_proxy::Message::Subscribe(subscribe)))
    }

    fn miss(&mut self, miss: Miss) {
        if let Some(cell) = self.store().subscribe(miss.address) {
            // The caller may have given up.
            let _ = miss.reply.send(cell);
        }
    }

    fn sweep(&mut self) {
        self.store().sweep(tokio::time::Instant::now());
        let now = Instant::now();
        if now >= self.next_sweep {
            self.next_sweep = now + SWEEP_INTERVAL;
            self.metrics.sweep(now);
        }
    }

    fn note_message(&self) {
        self.metrics.controller_message(Instant::now());
    }

    /// Waits for `future` and handles misses in the meantime.
    async fn meanwhile<T>(&mut self, future: impl Future<Output = T>) -> T {
        tokio::pin!(future);
        loop {
            tokio::select! {
                done = &mut future => return done,
                Some(miss) = self.misses.recv() => self.miss(miss),
                _ = self.tick.tick() => self.sweep(),
            }
        }
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn message(message: from_proxy::Message) -> FromProxy {
    FromProxy {
        message: Some(message),
    }
}

/// Removes up to [`MAX_BATCH`] addresses from `addresses`.
fn batch(addresses: &mut std::collections::BTreeSet<std::net::SocketAddr>) -> Option<Vec<String>> {
    if addresses.is_empty() {
        return None;
    }
    let batch = std::iter::from_fn(|| addresses.pop_first()).take(MAX_BATCH);
    Some(batch.map(|address| address.to_string()).collect())
}
