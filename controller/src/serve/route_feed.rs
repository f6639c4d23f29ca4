//! Events of the objects that the status of routes depends on, for the task that writes it. In:
//! events, as the hub applies them. Out: the latest event of each object, coalesced until they are
//! taken.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

use crate::compile::concerns_routes;
use crate::source::{Event, Object, ObjectKey};

/// See the module.
#[derive(Default)]
pub struct RouteFeed {
    pending: Mutex<HashMap<ObjectKey, Pending>>,
    notify: Notify,
}

/// The pending events of an object.
#[derive(Default)]
struct Pending {
    /// It was deleted, and may have been created again under the same name.
    deleted: bool,
    latest: Option<Object>,
}

impl RouteFeed {
    /// Records an event. Kinds that no status depends on are ignored.
    pub(super) fn put(&self, event: &Event) {
        let (key, object) = match event {
            Event::Apply(object) => (object.key(), Some(object)),
            Event::Delete(key) => (key.clone(), None),
            Event::Synced => return,
        };
        if !concerns_routes(key.kind) {
            return;
        }
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let pending = pending.entry(key).or_default();
        pending.deleted |= object.is_none();
        pending.latest = object.cloned();
        self.notify.notify_one();
    }

    /// Returns when there are new events since it last returned.
    pub async fn changed(&self) {
        self.notify.notified().await;
    }

    /// All events since the last call.
    pub fn take(&self) -> Vec<Event> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let pending = std::mem::take(&mut *pending);
        let mut events = Vec::with_capacity(pending.len());
        for (key, Pending { deleted, latest }) in pending {
            if deleted {
                events.push(Event::Delete(key));
            }
            events.extend(latest.map(Event::Apply));
        }
        events
    }
}
