//! Watches a Kubernetes API server.
//!
//! ```text
//! list, watch (one for each kind) ─▶ parse ─┬─▶ events
//!                                           └─▶ report (can't be used: the last good state stays)
//! ```
//!
//! Objects are reduced on arrival and only their names are kept, so that the next list reveals
//! deletions without a watch event. While the API server is unreachable, the last state stays in
//! force. A kind whose CRD is not installed is retried until it is.
//!
//! # Floors
//!
//! ```text
//! report              invalid objects, logged and counted
//! served              kinds that the API server serves
//! ```

mod report;
mod served;

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::DynamicObject;
use kube::core::Status;
use kube::runtime::watcher;
use kube::runtime::watcher::{Config, Event as Watched};
use kube::{Api, Client};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::parse::problem::Invalid;
use super::{Event, Name, ObjectKey, parse};
use crate::metrics::Metrics;
use report::{Report, Until};
use served::{SERVED, Served};

/// Duration of one watch before it is resumed, in seconds. Also the time until a silently dead
/// connection is detected, give or take kube's margin of 5 s.
const WATCH_SECONDS: u32 = 60;
const PACE: Pace = Pace {
    first_pause: Duration::from_millis(200),
    longest_pause: Duration::from_secs(5),
    missing_every: Duration::from_secs(10),
    missing_for_good: Duration::from_secs(30),
};

/// Delays and intervals.
struct Pace {
    /// Delay after the first failure, and the maximum after many: an API server that recovers is
    /// reached again within this.
    first_pause: Duration,
    longest_pause: Duration,
    /// How often a kind that the API server does not serve is retried. A CRD is installed once.
    missing_every: Duration,
    /// How long a kind has to be missing before its objects count as deleted. An API server that is
    /// starting may not serve its CRDs yet.
    missing_for_good: Duration,
}

/// Watches for ever; sends every change, and [`Event::Synced`] once every installed kind has been
/// listed. Ends when the receiver of the events is dropped.
pub async fn cluster(client: Client, events: mpsc::Sender<Event>, metrics: Metrics) {
    watch_all(client, events, metrics, &PACE).await;
}

async fn watch_all(
    client: Client,
    events: mpsc::Sender<Event>,
    metrics: Metrics,
    pace: &'static Pace,
) {
    let (report, publish) = report::start(client.clone());
    let unlisted = Arc::new(AtomicUsize::new(SERVED.len()));
    let watches = join_all(SERVED.iter().map(|served| {
        let watch = Watch {
            served,
            pace,
            client: client.clone(),
            events: events.clone(),
            metrics: metrics.clone(),
            report: report.clone(),
            unlisted: Some(unlisted.clone()),
            known: HashSet::new(),
            listing: HashSet::new(),
            invalid: HashMap::new(),
            failures: 0,
            failing: String::new(),
        };
        watch.run()
    }));
    tokio::select! {
        () = events.closed() => {}
        _ = watches => {}
        () = publish => {}
    }
}

/// The receiver of the events was dropped.
struct Closed;

/// The reaction to an error of the API server.
#[derive(Debug, PartialEq, Eq)]
enum Remedy {
    /// Retry after a delay.
    Wait,
    /// The kind is not served.
    Missing,
    /// Streaming lists are not supported.
    ListByPage,
    /// The resourceVersion has expired.
    ListAgain,
}

/// The watch of one kind.
struct Watch {
    served: &'static Served,
    pace: &'static Pace,
    client: Client,
    events: mpsc::Sender<Event>,
    metrics: Metrics,
    report: Report,
    /// The number of kinds that have not been listed yet; `None`: this one has been.
    unlisted: Option<Arc<AtomicUsize>>,
    /// Objects that were sent and not deleted since.
    known: HashSet<Name>,
    /// Objects of the list in progress.
    listing: HashSet<Name>,
    /// Unusable objects, and why.
    invalid: HashMap<Name, Vec<Invalid>>,
    /// Failures since the last success.
    failures: u32,
    /// The last failure, if there was no success since.
    failing: String,
}

impl Watch {
    async fn run(mut self) {
        let (mut version, mut streaming) = (0, true);
        let mut missing_since = None;
        loop {
            let remedy = match self.watch(version, streaming, &mut missing_since).await {
                Ok(remedy) => remedy,
                Err(Closed) => return,
            };
            match remedy {
                Remedy::Wait => self.pause().await,
                Remedy::ListByPage => streaming = false,
                Remedy::ListAgain => {
                    // A paged list is never older than the last known state.
                    streaming = false;
                    self.pause().await;
                }
                Remedy::Missing => {
                    version = (version + 1) % self.served.versions.len();
                    if version == 0 && self.missing(&mut missing_since).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Watches until another action is needed.
    async fn watch(
        &mut self,
        version: usize,
        streaming: bool,
        missing_since: &mut Option<Instant>,
    ) -> Result<Remedy, Closed> {
        let resource = self.served.resource(version);
        let config = Config::default().timeout(WATCH_SECONDS);
        let config = match streaming {
            true => config.streaming_lists(),
            false => config,
        };
        let api = Api::<DynamicObject>::all_with(self.client.clone(), &resource);
        let mut stream = pin!(watcher(api, config));
        loop {
            match stream.next().await {
                Some(Ok(event)) => {
                    *missing_since = None;
                    self.take(&resource.api_version, event).await?;
                }
                Some(Err(error)) => match self.remedy(&error, streaming) {
                    Remedy::Wait => {
                        self.failed(&error);
                        self.pause().await;
                    }
                    remedy => return Ok(remedy),
                },
                None => return Ok(Remedy::Wait),
            }
        }
    }

    fn remedy(&self, error: &watcher::Error, streaming: bool) -> Remedy {
        let Some(status) = status(error) else {
            return Remedy::Wait;
        };
        let too_new = || {
            let causes = status.details.iter().flat_map(|details| &details.causes);
            causes
                .into_iter()
                .any(|cause| cause.reason == "ResourceVersionTooLarge")
        };
        match status.code {
            404 if self.served.optional => Remedy::Missing,
            400 | 422 if streaming => Remedy::ListByPage,
            410 => Remedy::ListAgain,
            _ if too_new() => Remedy::ListAgain,
            _ => Remedy::Wait,
        }
    }

    async fn take(
        &mut self,
        api_version: &str,
        event: Watched<DynamicObject>,
    ) -> Result<(), Closed> {
        match event {
            Watched::Init => self.listing.clear(),
            Watched::InitApply(object) => {
                self.listing.insert(name(&object));
                self.apply(api_version, object).await?;
            }
            Watched::InitDone => {
                self.succeeded();
                let listing = std::mem::take(&mut self.listing);
                let is_gone = |name: &Name| !listing.contains(name);
                let gone: Vec<Name> = (self.known.iter())
                    .chain(self.invalid.keys())
                    .cloned()
                    .collect();
                for name in gone.into_iter().filter(is_gone) {
                    self.delete(name).await?;
                }
                self.count_invalid();
                self.listed().await?;
            }
            Watched::Apply(object) => {
                self.succeeded();
                self.apply(api_version, object).await?;
            }
            Watched::Delete(object) => {
                self.succeeded();
                self.delete(name(&object)).await?;
            }
        }
        Ok(())
    }

    async fn apply(&mut self, api_version: &str, mut object: DynamicObject) -> Result<(), Closed> {
        let name = name(&object);
        object.metadata.managed_fields = None;
        let reference = report::reference(self.served, api_version, &object.metadata);
        match parse::object(api_version, self.served.kind.as_str(), whole(object)) {
            Ok(Some(parse::Parsed { object, ignored })) => {
                if !ignored.is_empty() {
                    self.is_invalid(&name, reference, ignored, Until::RestUsed);
                } else if self.invalid.remove(&name).is_some() {
                    tracing::info!(object = %object.key(), "object is right again");
                    self.count_invalid();
                }
                self.known.insert(name);
                self.send(Event::Apply(object)).await
            }
            Ok(None) => Ok(()),
            Err(invalid) => {
                let until = match self.known.contains(&name) {
                    true => Until::LastGood,
                    false => Until::LeftOut,
                };
                self.is_invalid(&name, reference, vec![invalid], until);
                Ok(())
            }
        }
    }

    /// Reports a problem with an object, once.
    fn is_invalid(
        &mut self,
        name: &Name,
        reference: ObjectReference,
        invalid: Vec<Invalid>,
        until: Until,
    ) {
        // Every heartbeat in an object's status is a new version of it: only a different problem is
        // reported.
        if self.invalid.get(name) == Some(&invalid) {
            return;
        }
        for invalid in &invalid {
            self.report.invalid(reference.clone(), invalid, until);
        }
        self.invalid.insert(name.clone(), invalid);
        self.count_invalid();
    }

    async fn delete(&mut self, name: Name) -> Result<(), Closed> {
        if self.invalid.remove(&name).is_some() {
            self.count_invalid();
        }
        if !self.known.remove(&name) {
            return Ok(());
        }
        let kind = self.served.kind;
        self.send(Event::Delete(ObjectKey { kind, name })).await
    }

    /// The kind has been listed, or is known to be missing.
    async fn listed(&mut self) -> Result<(), Closed> {
        match self.unlisted.take() {
            // The last one: the other kinds have sent all of their objects before they decremented
            // it.
            Some(unlisted) if unlisted.fetch_sub(1, Ordering::AcqRel) == 1 => {
                self.send(Event::Synced).await
            }
            _ => Ok(()),
        }
    }

    /// No version of the kind is served.
    async fn missing(&mut self, since: &mut Option<Instant>) -> Result<(), Closed> {
        let now = Instant::now();
        let since = *since.get_or_insert_with(|| {
            tracing::info!(
                kind = self.served.kind.as_str(),
                every_seconds = self.pace.missing_every.as_secs(),
                "kind is not installed in the cluster; it is used as soon as it is"
            );
            now
        });
        self.listed().await?;
        if now - since >= self.pace.missing_for_good {
            let known: Vec<Name> = (self.known.iter())
                .chain(self.invalid.keys())
                .cloned()
                .collect();
            for name in known {
                self.delete(name).await?;
            }
        }
        tokio::time::sleep(self.pace.missing_every).await;
        Ok(())
    }

    fn failed(&mut self, error: &watcher::Error) {
        let kind = self.served.kind.as_str();
        self.metrics.watch_failed(kind);
        let text = text(error);
        if text != self.failing {
            tracing::warn!(
                kind,
                error = text,
                "objects can't be watched; those known stay in force: check that the API server is \
                 there and that this service account may list and watch {kind}"
            );
            self.failing = text;
        }
    }

    fn succeeded(&mut self) {
        self.failures = 0;
        if !std::mem::take(&mut self.failing).is_empty() {
            let kind = self.served.kind.as_str();
            tracing::info!(kind, "objects are watched again");
        }
    }

    /// Doubles the delay after each failure, with jitter so that replicas and kinds do not retry at
    /// the same moment.
    async fn pause(&mut self) {
        let Pace {
            first_pause,
            longest_pause,
            ..
        } = self.pace;
        let longest = first_pause
            .saturating_mul(1 << self.failures.min(16))
            .min(*longest_pause);
        self.failures = self.failures.saturating_add(1);
        tokio::time::sleep(longest.mul_f64(rand::random_range(0.5..=1.0))).await;
    }

    fn count_invalid(&self) {
        let kind = self.served.kind.as_str();
        self.metrics.invalid_objects(kind, self.invalid.len());
    }

    async fn send(&self, event: Event) -> Result<(), Closed> {
        self.events.send(event).await.map_err(|_| Closed)
    }
}

fn name(object: &DynamicObject) -> Name {
    let metadata = &object.metadata;
    Name::new(
        metadata.namespace.clone().unwrap_or_default(),
        metadata.name.clone().unwrap_or_default(),
    )
}

/// The object as the API server wrote it, plus apiVersion and kind, which list items lack.
fn whole(object: DynamicObject) -> serde_json::Value {
    let mut value = object.data;
    if let Ok(metadata) = serde_json::to_value(&object.metadata) {
        value["metadata"] = metadata;
    }
    value
}

/// The Status of the API server, if it sent one.
fn status(error: &watcher::Error) -> Option<&Status> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => Some(status),
        _ => None,
    }
}

fn text(error: &watcher::Error) -> String {
    match status(error) {
        Some(status) if !status.message.is_empty() => status.message.clone(),
        Some(status) => format!("status {} {}", status.code, status.reason),
        None => error.to_string(),
    }
}
