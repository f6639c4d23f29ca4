//! Writes the status of routes while this replica holds the lease.
//!
//! ```text
//! hub's feed ─▶ statuses (a thread for work that blocks) ─▶ waiting ─▶ a few writes at a time
//! ```

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use k8s_openapi::jiff::{Timestamp, Unit};
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::conditions::{self, FIELD_MANAGER};
use crate::compile::{RouteStatus, RouteStatuses};
use crate::metrics::{Metrics, StatusOutcome};
use crate::serve::{Hub, RouteFeed};
use crate::source::{Name, RouteKind, RouteName};

/// Delay after a change, to collect related ones. Progressive delivery tools wait for the status at
/// each step (Flagger), so it is short.
const SETTLE: Duration = Duration::from_millis(20);
/// Delay after a failed write.
const AGAIN: Duration = Duration::from_secs(2);
/// How often all routes are compared with the cluster: another writer may have overwritten our
/// entry.
const COMPARE: Duration = Duration::from_secs(600);
/// Timeout for reading and writing one route.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Concurrent writes.
const MAX_AT_ONCE: usize = 8;
/// Immediate retries of a route after conflicting writes, before it waits for [`AGAIN`].
const MAX_CONFLICTS: usize = 4;

/// Writes for ever.
pub async fn run(client: Client, hub: Arc<Hub>, metrics: Metrics, mut held: watch::Receiver<bool>) {
    let feed = hub.route_feed();
    // Until the initial objects are known, backends would appear to be missing.
    let _ = hub.synced().wait_for(|synced| *synced).await;
    let mut statuses = RouteStatuses::default();
    loop {
        let is_held = *held.borrow();
        let after = if is_held {
            let writer = Writer {
                client: &client,
                metrics: &metrics,
                queue: Queue::default(),
            };
            writer.write_while(&mut held, &feed, statuses).await
        } else {
            // Events are drained all the same: names that come and go would otherwise fill the
            // feed.
            tokio::select! {
                changed = held.changed() => changed.is_ok().then_some(statuses),
                () = feed.changed() => {
                    sleep(SETTLE).await;
                    look(&feed, statuses).await.map(|(statuses, _)| statuses)
                }
            }
        };
        match after {
            Some(after) => statuses = after,
            None => return,
        }
    }
}

type Looked = Vec<(RouteName, Option<RouteStatus>)>;

/// Computes the statuses that the events affect. `None`: the program is shutting down.
async fn look(feed: &RouteFeed, mut statuses: RouteStatuses) -> Option<(RouteStatuses, Looked)> {
    let events = feed.take();
    let looked = tokio::task::spawn_blocking(move || {
        events.into_iter().for_each(|event| statuses.apply(event));
        let taken = statuses.take();
        (statuses, taken)
    });
    looked.await.ok()
}

struct Writer<'a> {
    client: &'a Client,
    metrics: &'a Metrics,
    queue: Queue,
}

/// Pending and written statuses.
#[derive(Default)]
struct Queue {
    desired: HashMap<RouteName, RouteStatus>,
    waiting: BTreeSet<(Turn, RouteName)>,
    /// Routes that are being written.
    busy: HashSet<RouteName>,
    /// Those that have been deleted during the write: the written status does not belong to a route
    /// that is created again under the same name.
    gone: HashSet<RouteName>,
    /// The last written statuses.
    written: HashMap<RouteName, RouteStatus>,
}

/// The priority of a route.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Turn {
    /// The route itself has changed, and its author waits for the verdict.
    First,
    /// One of its dependencies has changed.
    Then,
}

impl Writer<'_> {
    /// Writes until the lease is lost. `None`: the program is shutting down.
    async fn write_while(
        mut self,
        held: &mut watch::Receiver<bool>,
        feed: &RouteFeed,
        mut statuses: RouteStatuses,
    ) -> Option<RouteStatuses> {
        let mut writes = FuturesUnordered::new();
        // Recheck all routes, because other holders have written meanwhile.
        statuses.concern_all();
        let (mut look_at, mut compare_at) = (Some(Instant::now()), Instant::now() + COMPARE);
        let mut again_at = None;
        loop {
            while writes.len() < MAX_AT_ONCE
                && let Some(status) = self.queue.next()
            {
                writes.push(write(self.client.clone(), status));
            }
            tokio::select! {
                () = lost(held) => return Some(statuses),
                Some((status, outcome)) = writes.next() => {
                    if !self.written(status, outcome) {
                        again_at.get_or_insert_with(|| Instant::now() + AGAIN);
                    }
                }
                () = feed.changed(), if look_at.is_none() => {
                    look_at = Some(Instant::now() + SETTLE);
                }
                () = at(look_at) => {
                    look_at = None;
                    let taken;
                    (statuses, taken) = look(feed, statuses).await?;
                    for (route, status) in taken {
                        self.queue.set_desired(route, status);
                    }
                }
                () = at(again_at) => {
                    again_at = None;
                    self.queue.again();
                }
                () = sleep_until(compare_at) => {
                    compare_at = Instant::now() + COMPARE;
                    self.queue.written.clear();
                    statuses.concern_all();
                    look_at = Some(Instant::now());
                }
            }
        }
    }

    /// False: a retry is needed.
    fn written(&mut self, status: RouteStatus, outcome: Result<bool, String>) -> bool {
        let route = &status.route;
        match outcome {
            Ok(wrote) => {
                if wrote {
                    self.metrics.status_written(StatusOutcome::Written);
                }
                self.queue.done(status);
                true
            }
            Err(error) => {
                tracing::warn!(%route, error, "cannot write the status of a route");
                self.metrics.status_written(StatusOutcome::Failed);
                self.queue.failed(route);
                false
            }
        }
    }
}

impl Queue {
    /// Sets the desired status of a route. `None`: the route is gone.
    fn set_desired(&mut self, route: RouteName, status: Option<RouteStatus>) {
        for turn in [Turn::First, Turn::Then] {
            self.waiting.remove(&(turn, route.clone()));
        }
        self.desired.remove(&route);
        let Some(status) = status else {
            self.written.remove(&route);
            if self.busy.contains(&route) {
                self.gone.insert(route);
            }
            return;
        };
        let written = self.written.get(&route);
        if written == Some(&status) && !self.busy.contains(&route) {
            return;
        }
        let turn = match written {
            Some(written) if written.generation == status.generation => Turn::Then,
            _ => Turn::First,
        };
        self.waiting.insert((turn, route.clone()));
        self.desired.insert(route, status);
    }

    /// The next status to write. Concurrent writes of one route would conflict, so there is one at
    /// a time.
    fn next(&mut self) -> Option<RouteStatus> {
        loop {
            let free = |(_, route): &&(Turn, RouteName)| !self.busy.contains(route);
            let next = self.waiting.iter().find(free)?.clone();
            self.waiting.remove(&next);
            let (_, route) = next;
            if let Some(status) = self.desired.get(&route) {
                self.busy.insert(route);
                return Some(status.clone());
            }
        }
    }

    fn done(&mut self, status: RouteStatus) {
        self.busy.remove(&status.route);
        if self.gone.remove(&status.route) {
            return;
        }
        if self.desired.get(&status.route) == Some(&status) {
            self.desired.remove(&status.route);
        }
        self.written.insert(status.route.clone(), status);
    }

    /// The status in the cluster is unknown.
    fn failed(&mut self, route: &RouteName) {
        self.busy.remove(route);
        self.gone.remove(route);
        self.written.remove(route);
    }

    /// Queues all desired statuses again.
    fn again(&mut self) {
        let turns = self.desired.keys().map(|route| (Turn::Then, route.clone()));
        self.waiting.extend(turns);
    }
}

/// Returns once the lease is lost.
async fn lost(held: &mut watch::Receiver<bool>) {
    let _ = held.wait_for(|held| !*held).await;
}

/// Returns at that time; never, if `None`.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Reads and writes one route. False: it was up to date, or the route is gone.
async fn write(client: Client, status: RouteStatus) -> (RouteStatus, Result<bool, String>) {
    let written = async {
        let mut conflicts = 0;
        loop {
            match write_once(&client, &status).await {
                Err(kube::Error::Api(error)) if error.code == 409 && conflicts < MAX_CONFLICTS => {
                    conflicts += 1;
                }
                other => return other.map_err(|error| error.to_string()),
            }
        }
    };
    let written = timeout(WRITE_TIMEOUT, written).await;
    let outcome = written.unwrap_or_else(|_| Err("no answer in time".to_owned()));
    (status, outcome)
}

async fn write_once(client: &Client, status: &RouteStatus) -> kube::Result<bool> {
    let Name { namespace, name } = &status.route.name;
    let resource = resource(status.route.kind);
    let routes: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
    let Some(route) = routes.get_opt(name).await? else {
        return Ok(false);
    };
    let now = Timestamp::now().round(Unit::Second).unwrap_or_default();
    let Some(parents) = conditions::parents(&route.data, status, &now.to_string()) else {
        return Ok(false);
    };
    let patch: Value = json!({
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": {
            "name": name,
            "namespace": namespace,
            // Conditional on the version that was read, which includes the entries of other
            // controllers.
            "resourceVersion": route.metadata.resource_version,
        },
        "status": {"parents": parents},
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let patched = routes
        .patch_status(name, &params, &Patch::Apply(&patch))
        .await;
    match patched {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
        Err(error) => Err(error),
    }
}

fn resource(route: RouteKind) -> ApiResource {
    let kind = GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", route.as_str());
    let plural = match route {
        RouteKind::Http => "httproutes",
        RouteKind::Grpc => "grpcroutes",
        RouteKind::Tls => "tlsroutes",
        RouteKind::Tcp => "tcproutes",
    };
    ApiResource::from_gvk_with_plural(&kind, plural)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> RouteStatus {
        let route = RouteName {
            kind: RouteKind::Http,
            name: Name::new("shop", "web"),
        };
        RouteStatus {
            route,
            generation: 1,
            parents: Vec::new(),
        }
    }

    #[test]
    fn a_route_that_is_created_again_during_its_write_is_written_again() {
        for made_again_before_the_end in [true, false] {
            let mut queue = Queue::default();
            let route = || status().route;
            queue.set_desired(route(), Some(status()));
            let under_way = queue.next().expect("a write");
            queue.set_desired(route(), None);
            if made_again_before_the_end {
                queue.set_desired(route(), Some(status()));
                assert_eq!(queue.next(), None);
            }
            queue.done(under_way);
            if !made_again_before_the_end {
                queue.set_desired(route(), Some(status()));
            }
            let again = queue.next().expect("another write");
            queue.done(again);
            queue.set_desired(route(), Some(status()));
            assert_eq!(queue.next(), None);
        }
    }
}
