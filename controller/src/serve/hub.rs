//! State shared by all streams: the catalog, and the streams that each change wakes.
//!
//! ```text
//! source ─ event ─▶ apply ─▶ changed names ─▶ mailboxes of the streams whose closure has them
//! stream ─▶ view ─▶ compile; register what it needs now
//! ```
//!
//! A stream compiles and registers under one read lock. A change is applied and announced under the
//! write lock, so that it never falls in between. Nothing here blocks.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, Weak};
use std::time::{Duration, Instant};

use naru_contract::resource::Body;
use naru_contract::{ResourceName, TrustAnchors};
use prost::Message;
use tokio::sync::{Notify, watch};

use super::route_feed::RouteFeed;
use super::table::{ClosureChange, Compile};
use crate::compile::{Catalog, Changed, Compiled, Viewer};
use crate::source::Event;

/// How long a proxy may take to acknowledge the trust anchors before it counts as behind.
const ANCHORS_TIME: Duration = Duration::from_secs(10);
/// Below this number of shared resources, sweeping unused ones is not worthwhile.
const SWEEP_MIN: usize = 256;

/// Shared by the source and all streams.
pub struct Hub {
    catalog: RwLock<Catalog>,
    interest: Mutex<Interest>,
    shared: Mutex<Shared>,
    anchors: RwLock<Anchors>,
    synced: watch::Sender<bool>,
    /// Gets events that the status of routes depends on, once a replica writes it.
    route_feed: OnceLock<Arc<RouteFeed>>,
}

/// The trust anchors in force, and the time they were set.
struct Anchors {
    compiled: Arc<Compiled>,
    since: Instant,
}

/// Compiled resources that are the same for all clients, while at least one stream uses them.
#[derive(Default)]
struct Shared {
    compiled: HashMap<ResourceName, Weak<Compiled>>,
    /// The size at which unused entries are swept.
    sweep_at: usize,
}

/// The streams to wake for each change.
#[derive(Default)]
struct Interest {
    next: u64,
    members: HashMap<u64, Registered>,
    watchers: HashMap<Changed, HashSet<u64>>,
}

struct Registered {
    mailbox: Arc<Mailbox>,
    joined: Instant,
    /// The version of the trust anchors that the proxy has applied.
    anchors: Option<u64>,
    /// Each key with the number of resources that use it: the ports of one address share one.
    keys: HashMap<Changed, usize>,
}

/// Changes that a stream has not handled yet: at most one entry for each resource in its closure.
#[derive(Default)]
pub struct Mailbox {
    changed: Mutex<HashMap<Changed, Instant>>,
    notify: Notify,
}

/// A stream's registration, removed on drop.
pub struct Member {
    hub: Arc<Hub>,
    id: u64,
    viewer: Viewer,
    mailbox: Arc<Mailbox>,
}

/// See [`Member::view`].
pub struct View<'a> {
    catalog: RwLockReadGuard<'a, Catalog>,
    hub: &'a Hub,
    viewer: &'a Viewer,
}

impl Hub {
    pub fn new(catalog: Catalog, trust_anchors: TrustAnchors) -> Self {
        let synced = watch::Sender::new(catalog.is_synced());
        Self {
            catalog: RwLock::new(catalog),
            interest: Mutex::default(),
            shared: Mutex::default(),
            anchors: RwLock::new(Anchors::new(trust_anchors)),
            synced,
            route_feed: OnceLock::new(),
        }
    }

    /// Applies an event from the source.
    pub fn apply(&self, event: Event) {
        let seen = Instant::now();
        let mut catalog = self.catalog.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(feed) = self.route_feed.get() {
            feed.put(&event);
        }
        let changed = catalog.apply(event);
        if !changed.is_empty() {
            lock(&self.shared).forget(&changed);
            lock(&self.interest).notify(&changed, seen);
        }
        let is_synced = catalog.is_synced();
        drop(catalog);
        self.synced
            .send_if_modified(|synced| std::mem::replace(synced, is_synced) != is_synced);
    }

    /// Replaces the trust anchors, and wakes all streams if they differ.
    pub fn set_trust_anchors(&self, trust_anchors: TrustAnchors) {
        let new = Anchors::new(trust_anchors);
        let seen = new.since;
        // With this lock, no stream is between compiling and registering.
        let _catalog = self.catalog.write().unwrap_or_else(PoisonError::into_inner);
        let mut anchors = self.anchors.write().unwrap_or_else(PoisonError::into_inner);
        if anchors.compiled.version == new.compiled.version {
            return;
        }
        *anchors = new;
        drop(anchors);
        lock(&self.interest).notify(&[Changed::Resource(ResourceName::TrustAnchors)], seen);
    }

    /// The number of proxies that have had time to apply the trust anchors in force, but have not.
    pub fn behind(&self) -> usize {
        self.behind_after(ANCHORS_TIME)
    }

    fn behind_after(&self, time: Duration) -> usize {
        let anchors = self.anchors.read().unwrap_or_else(PoisonError::into_inner);
        let (version, since) = (anchors.compiled.version, anchors.since);
        drop(anchors);
        let interest = lock(&self.interest);
        let is_behind = |member: &&Registered| {
            member.anchors != Some(version) && since.max(member.joined).elapsed() >= time
        };
        interest.members.values().filter(is_behind).count()
    }

    /// True once the source has been read completely.
    pub fn synced(&self) -> watch::Receiver<bool> {
        self.synced.subscribe()
    }

    /// Events of objects that the status of routes depends on, starting with all existing objects.
    /// For a single consumer.
    pub fn route_feed(&self) -> Arc<RouteFeed> {
        // With this lock, no event falls between the existing objects and the first event.
        let catalog = self.catalog();
        let feed = self.route_feed.get_or_init(|| {
            let feed = RouteFeed::default();
            for object in catalog.route_objects() {
                feed.put(&Event::Apply(object));
            }
            Arc::new(feed)
        });
        feed.clone()
    }

    /// The namespaces that have pods with sidecars.
    pub fn meshed_namespaces(&self) -> BTreeSet<String> {
        self.catalog().meshed_namespaces()
    }

    pub fn object_counts(&self) -> Vec<(&'static str, usize)> {
        self.catalog().object_counts()
    }

    /// Registers a stream.
    pub fn join(self: &Arc<Self>, namespace: &str, pod: &str) -> Member {
        let mailbox = Arc::new(Mailbox::default());
        let mut interest = lock(&self.interest);
        let id = interest.next;
        interest.next += 1;
        let registered = Registered {
            mailbox: mailbox.clone(),
            joined: Instant::now(),
            anchors: None,
            keys: HashMap::new(),
        };
        interest.members.insert(id, registered);
        drop(interest);
        Member {
            hub: self.clone(),
            id,
            viewer: Viewer {
                namespace: namespace.to_owned(),
                pod: pod.to_owned(),
            },
            mailbox,
        }
    }

    fn catalog(&self) -> RwLockReadGuard<'_, Catalog> {
        self.catalog.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Anchors {
    fn new(trust_anchors: TrustAnchors) -> Self {
        Self {
            compiled: Arc::new(Compiled {
                version: version(&trust_anchors.encode_to_vec()),
                body: Body::TrustAnchors(trust_anchors),
                needs: Vec::new(),
            }),
            since: Instant::now(),
        }
    }
}

impl Shared {
    /// Drops compiled resources that a change has outdated.
    fn forget(&mut self, changed: &[Changed]) {
        for changed in changed {
            if let Changed::Resource(name) = changed {
                self.compiled.remove(name);
            }
        }
    }

    fn insert(&mut self, name: &ResourceName, compiled: &Arc<Compiled>) {
        if self.compiled.len() >= self.sweep_at {
            self.compiled
                .retain(|_, compiled| compiled.strong_count() > 0);
            self.sweep_at = (2 * self.compiled.len()).max(SWEEP_MIN);
        }
        self.compiled.insert(name.clone(), Arc::downgrade(compiled));
    }
}

impl Interest {
    fn notify(&mut self, changed: &[Changed], seen: Instant) {
        for changed in changed {
            let Some(watchers) = self.watchers.get(changed) else {
                continue;
            };
            for id in watchers {
                if let Some(member) = self.members.get(id) {
                    member.mailbox.put(changed, seen);
                }
            }
        }
    }

    /// Releases a stream's key for one resource. True: it was the last.
    fn drop_key(&mut self, key: &Changed, id: u64) -> bool {
        let Some(member) = self.members.get_mut(&id) else {
            return true;
        };
        match member.keys.get_mut(key) {
            Some(count) if *count > 1 => {
                *count -= 1;
                false
            }
            _ => {
                member.keys.remove(key);
                true
            }
        }
    }

    fn remove_watcher(&mut self, key: &Changed, id: u64) {
        if let Some(watchers) = self.watchers.get_mut(key) {
            watchers.remove(&id);
            if watchers.is_empty() {
                self.watchers.remove(key);
            }
        }
    }
}

impl Mailbox {
    fn put(&self, changed: &Changed, seen: Instant) {
        lock(&self.changed).entry(changed.clone()).or_insert(seen);
        self.notify.notify_one();
    }
}

impl Member {
    /// The catalog as seen by this stream. It does not change while the view is held.
    pub fn view(&self) -> View<'_> {
        View {
            catalog: self.hub.catalog(),
            hub: &self.hub,
            viewer: &self.viewer,
        }
    }

    /// Returns when the mailbox has entries.
    pub async fn changed(&self) {
        self.mailbox.notify.notified().await;
    }

    /// Records the version of the proxy's trust anchors.
    pub fn has_anchors(&self, version: Option<u64>) {
        if let Some(member) = lock(&self.hub.interest).members.get_mut(&self.id) {
            member.anchors = version;
        }
    }

    /// Empties the mailbox.
    pub fn take_changed(&self) -> HashMap<ResourceName, Instant> {
        let changed = std::mem::take(&mut *lock(&self.mailbox.changed));
        let mut names = HashMap::new();
        let mut several = Vec::new();
        for (changed, seen) in changed {
            match changed {
                Changed::Resource(name) => drop(names.insert(name, seen)),
                changed => several.push((changed, seen)),
            }
        }
        for (changed, seen) in several {
            for name in self.names(changed) {
                names.entry(name).or_insert(seen);
            }
        }
        names
    }

    /// The resources of this stream that a change affects.
    fn names(&self, changed: Changed) -> Vec<ResourceName> {
        match changed {
            Changed::Resource(name) => vec![name],
            Changed::Inbound { .. } => vec![ResourceName::Inbound],
            Changed::Service {
                namespace,
                name,
                port,
            } => vec![ResourceName::Service {
                client_namespace: self.viewer.namespace.clone(),
                namespace,
                name,
                port,
            }],
            Changed::Address(ip) => {
                let interest = lock(&self.hub.interest);
                let keys = interest.members.get(&self.id).into_iter();
                keys.flat_map(|member| member.keys.keys())
                    .filter_map(|key| match key {
                        Changed::Resource(name @ ResourceName::Destination(address))
                            if address.ip() == ip =>
                        {
                            Some(name.clone())
                        }
                        _ => None,
                    })
                    .collect()
            }
        }
    }

    /// Registers the changed closure. The view must be the one that the change was computed with.
    pub fn watch(&self, _view: &View<'_>, change: &ClosureChange) {
        let mut interest = lock(&self.hub.interest);
        for key in change.left.iter().flat_map(|name| self.keys(name)) {
            if interest.drop_key(&key, self.id) {
                interest.remove_watcher(&key, self.id);
            }
        }
        for key in change.entered.iter().flat_map(|name| self.keys(name)) {
            if let Some(member) = interest.members.get_mut(&self.id) {
                *member.keys.entry(key.clone()).or_default() += 1;
            }
            interest.watchers.entry(key).or_default().insert(self.id);
        }
    }

    /// The changes to a resource that wake the stream.
    fn keys(&self, name: &ResourceName) -> Vec<Changed> {
        match name {
            ResourceName::Inbound => vec![Changed::Inbound {
                namespace: self.viewer.namespace.clone(),
                pod: self.viewer.pod.clone(),
            }],
            ResourceName::Service {
                namespace,
                name: service,
                port,
                ..
            } => {
                let of_all = Changed::Service {
                    namespace: namespace.clone(),
                    name: service.clone(),
                    port: *port,
                };
                vec![Changed::Resource(name.clone()), of_all]
            }
            ResourceName::Destination(address) => {
                let of_all = Changed::Address(address.ip());
                vec![Changed::Resource(name.clone()), of_all]
            }
            _ => vec![Changed::Resource(name.clone())],
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut interest = lock(&self.hub.interest);
        let member = interest.members.remove(&self.id);
        for key in member.iter().flat_map(|member| member.keys.keys()) {
            interest.remove_watcher(key, self.id);
        }
    }
}

impl View<'_> {
    /// The service account of the stream's pod. `None`: the pod is not known (yet).
    pub fn service_account(&self) -> Option<&str> {
        let Viewer { namespace, pod } = self.viewer;
        self.catalog.service_account(namespace, pod)
    }
}

impl Compile for View<'_> {
    fn compile(&self, name: &ResourceName) -> Option<Arc<Compiled>> {
        match name {
            ResourceName::TrustAnchors => {
                let anchors = self.hub.anchors.read();
                let anchors = anchors.unwrap_or_else(PoisonError::into_inner);
                Some(anchors.compiled.clone())
            }
            // These are the same for every viewer, and large: they are compiled once for all
            // streams.
            ResourceName::Endpoints { .. }
            | ResourceName::HttpRoute { .. }
            | ResourceName::GrpcRoute { .. }
            | ResourceName::TlsRoute { .. }
            | ResourceName::TcpRoute { .. } => {
                let mut shared = lock(&self.hub.shared);
                if let Some(compiled) = shared.compiled.get(name).and_then(Weak::upgrade) {
                    return Some(compiled);
                }
                let compiled = Arc::new(self.catalog.compile(self.viewer, name)?);
                shared.insert(name, &compiled);
                Some(compiled)
            }
            _ => self.catalog.compile(self.viewer, name).map(Arc::new),
        }
    }
}

/// FNV-1a: the same in every release and on every replica. Never 0.
fn version(content: &[u8]) -> u64 {
    let hash = content.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    std::cmp::max(hash, 1)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use naru_contract::MtlsMode;

    use super::*;
    use crate::compile::CatalogOptions;

    fn anchors(issuer: &str) -> TrustAnchors {
        TrustAnchors {
            issuer: issuer.to_owned(),
            ..TrustAnchors::default()
        }
    }

    #[test]
    fn a_proxy_is_behind_until_it_has_the_anchors_in_force_and_new_ones_wake_it() {
        let catalog = Catalog::new(CatalogOptions {
            trust_domain: "cluster.local".to_owned(),
            mtls: MtlsMode::Permissive,
        });
        let hub = Arc::new(Hub::new(catalog, anchors("old")));
        let member = hub.join("shop", "web-1");
        let name = ResourceName::TrustAnchors;
        let change = ClosureChange {
            entered: vec![name.clone()],
            left: Vec::new(),
        };
        member.watch(&member.view(), &change);
        let in_force = || member.view().compile(&name).map(|anchors| anchors.version);
        // A new stream still has time.
        assert_eq!((hub.behind(), hub.behind_after(Duration::ZERO)), (0, 1));
        member.has_anchors(in_force());
        assert_eq!(hub.behind_after(Duration::ZERO), 0);
        // Equal anchors are not a change.
        hub.set_trust_anchors(anchors("old"));
        assert_eq!(member.changed().now_or_never(), None);
        assert_eq!(hub.behind_after(Duration::ZERO), 0);
        hub.set_trust_anchors(anchors("new"));
        assert_eq!(member.changed().now_or_never(), Some(()));
        assert!(member.take_changed().contains_key(&name));
        assert_eq!(hub.behind_after(Duration::ZERO), 1);
        member.has_anchors(in_force());
        assert_eq!(hub.behind_after(Duration::ZERO), 0);
        drop(member);
        assert_eq!(hub.behind_after(Duration::ZERO), 0);
    }
}
