//! Writes the status of routes while this replica holds the lease.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::{Timestamp, Unit};
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::{FIELD_MANAGER, conditions};
use crate::compile::RouteStatus;
use crate::metrics::{Metrics, StatusOutcome};
use crate::serve::Hub;
use crate::source::{Name, RouteKind, RouteName};

/// How long to wait after a change: whoever makes several at once is likely done, and a route's backends are known.
const SETTLE: Duration = Duration::from_millis(100);
/// How long after a write that failed it is tried again.
const AGAIN: Duration = Duration::from_secs(2);
/// How often all routes are compared with what the cluster has: somebody else may have written over ours.
const COMPARE: Duration = Duration::from_secs(600);
/// How long reading and writing one route may take.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Writes for ever.
pub async fn run(client: Client, hub: Arc<Hub>, metrics: Metrics, mut held: watch::Receiver<bool>) {
    // Before everything is known, backends would be missed that are there.
    let _ = hub.synced().wait_for(|synced| *synced).await;
    let mut changes = hub.route_changes();
    loop {
        if held.wait_for(|held| *held).await.is_err() {
            return;
        }
        let mut writer = Writer {
            client: &client,
            metrics: &metrics,
            written: HashMap::new(),
        };
        while *held.borrow() {
            changes.mark_unchanged();
            let failed = writer.write(hub.route_statuses(), &held).await;
            let pause = if failed { AGAIN } else { COMPARE };
            tokio::select! {
                () = lost(&mut held) => {}
                changed = changes.changed() => match changed {
                    Ok(()) => sleep(SETTLE).await,
                    Err(_) => return,
                },
                () = sleep(pause) => if !failed { writer.written.clear() },
            }
        }
    }
}

/// Returns once the lease is not held any more.
async fn lost(held: &mut watch::Receiver<bool>) {
    let _ = held.wait_for(|held| !*held).await;
}

struct Writer<'a> {
    client: &'a Client,
    metrics: &'a Metrics,
    /// What the cluster has of us.
    written: HashMap<RouteName, RouteStatus>,
}

impl Writer<'_> {
    /// Writes what is not there yet. True: not everything could be.
    async fn write(&mut self, statuses: Vec<RouteStatus>, held: &watch::Receiver<bool>) -> bool {
        let mut before = std::mem::take(&mut self.written);
        let mut failed = false;
        for status in statuses {
            if before.remove(&status.route).as_ref() == Some(&status) {
                self.written.insert(status.route.clone(), status);
                continue;
            }
            if !*held.borrow() {
                return true;
            }
            let route = &status.route;
            match timeout(WRITE_TIMEOUT, self.write_one(&status)).await {
                Ok(Ok(wrote)) => {
                    if wrote {
                        self.metrics.status_written(StatusOutcome::Written);
                    }
                    self.written.insert(route.clone(), status);
                }
                Ok(Err(error)) => {
                    tracing::warn!(%route, %error, "the status of a route could not be written");
                    self.metrics.status_written(StatusOutcome::Failed);
                    failed = true;
                }
                Err(_) => {
                    tracing::warn!(%route, "the status of a route could not be written in time");
                    self.metrics.status_written(StatusOutcome::Failed);
                    failed = true;
                }
            }
        }
        failed
    }

    /// False: it was as it should be, or the route is gone.
    async fn write_one(&self, status: &RouteStatus) -> kube::Result<bool> {
        let Name { namespace, name } = &status.route.name;
        let resource = resource(status.route.kind);
        let routes: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), namespace, &resource);
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
                // Only on what was read: the entries of others in it are theirs.
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
