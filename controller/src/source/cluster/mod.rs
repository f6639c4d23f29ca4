//! Watches a Kubernetes API server for ever.
//!
//! ```text
//! list, watch (one for each kind) ─▶ parse ─┬─▶ events
//!                                           └─▶ report (can't be used: the last good state stays)
//! ```
//!
//! Objects are reduced as they come and kept by name alone, so that one which vanished while nobody
//! watched is noticed at the next list. While the API server is away nothing happens: what is known
//! stays in force. A kind whose CRD is not installed is asked for again until it is.
//!
//! # Floors
//!
//! ```text
//! report              what can't be used
//! served              kinds that the API server has
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

/// How long one watch lasts before it is begun again where it ended, in seconds. Also how long a
/// connection that died without a word goes unnoticed, give or take kube's margin of 5 s.
const WATCH_SECONDS: u32 = 60;
const PACE: Pace = Pace {
    first_pause: Duration::from_millis(200),
    longest_pause: Duration::from_secs(5),
    missing_every: Duration::from_secs(10),
    missing_for_good: Duration::from_secs(30),
};

/// When something is tried again.
struct Pace {
    /// Pause after a first failure, and the longest after many: an API server that is back is heard
    /// again this soon.
    first_pause: Duration,
    longest_pause: Duration,
    /// How often a kind that the API server does not know is asked for. A CRD is installed once.
    missing_every: Duration,
    /// For how long a kind has to be unknown before its objects are taken for gone. An API server
    /// that starts may not know its CRDs yet.
    missing_for_good: Duration,
}

/// Watches for ever; sends every change, and [`Event::Synced`] once every kind that there is has
/// been listed. Ends when nobody takes the events any more.
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

/// Nobody takes the events any more.
struct Closed;

/// What an error of the API server asks for.
#[derive(Debug, PartialEq, Eq)]
enum Remedy {
    /// The same again, a little later.
    Wait,
    /// There is no such kind.
    Missing,
    /// It does not stream lists.
    ListByPage,
    /// What happened since is no longer known there.
    ListAgain,
}

/// One kind.
struct Watch {
    served: &'static Served,
    pace: &'static Pace,
    client: Client,
    events: mpsc::Sender<Event>,
    metrics: Metrics,
    report: Report,
    /// How many kinds have not been listed yet; `None`: this one has been.
    unlisted: Option<Arc<AtomicUsize>>,
    /// Objects that were sent and not deleted since.
    known: HashSet<Name>,
    /// Objects of the list that is being read.
    listing: HashSet<Name>,
    /// Objects that can't be used as they are, and why.
    invalid: HashMap<Name, Vec<Invalid>>,
    /// Since the last success.
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
                    // A list by pages is never older than what was known before.
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

    /// Watches until something else has to be done.
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

    /// Tells of what is wrong with an object, once.
    fn is_invalid(
        &mut self,
        name: &Name,
        reference: ObjectReference,
        invalid: Vec<Invalid>,
        until: Until,
    ) {
        // Every heartbeat of an object's status is a new version of it: only another problem is
        // news.
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

    /// The kind has been listed, or is known not to be there.
    async fn listed(&mut self) -> Result<(), Closed> {
        match self.unlisted.take() {
            // The last one: everything that the others found has been sent before they said so.
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

    /// Waits twice as long after each failure. Not all replicas and kinds at the same moment.
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

/// The object as the API server wrote it, but for the fields of its type: objects in a list have
/// none.
fn whole(object: DynamicObject) -> serde_json::Value {
    let mut value = object.data;
    if let Ok(metadata) = serde_json::to_value(&object.metadata) {
        value["metadata"] = metadata;
    }
    value
}

/// The API server's own words, if it said any.
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
