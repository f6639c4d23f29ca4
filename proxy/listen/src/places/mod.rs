//! Places for the connections of a listener, shared fairly by source.
//!
//! ```text
//! enter ─▶ waiting ──take──▶ taken ──prove──▶ proven
//!            │  ▲───wait──────┘
//!            └─▶ evicted, when others need the room
//! ```
//!
//! A waiting connection (for its first bytes, for its next request) costs a descriptor and little
//! else, and may be evicted: the oldest of the source with the most. One that is being served is
//! never evicted. A source is an IP address.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::AbortHandle;

/// How long a machine counts as exhausted after a connection that could not be accepted.
const EXHAUSTED: Duration = Duration::from_secs(5);

/// Bounds on the connections of a listener, by kind.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Waiting connections.
    pub waiting: usize,
    /// Waiting connections of one source.
    pub waiting_of_source: usize,
    /// Served connections without a proven identity.
    pub taken: usize,
    /// Served connections of one source without a proven identity.
    pub taken_of_source: usize,
    /// Number of places in addition to `taken` for sources without any other place.
    pub spare: usize,
    /// Served connections, including those with a proven identity.
    pub all: usize,
    /// Served connections of one source.
    pub of_source: usize,
}

/// Which bound a connection met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// It was evicted while it waited.
    Waiting,
    /// Its source has reached its share.
    Source,
    /// It has no proven identity, and the rest is reserved for those that do.
    Unproven,
    /// The listener is full.
    All,
    /// It waited too long for its turn at work that exceeds the machine's capacity.
    Turn,
}

impl Limit {
    pub const ALL: [Self; 5] = [
        Self::Waiting,
        Self::Source,
        Self::Unproven,
        Self::All,
        Self::Turn,
    ];

    /// The label value in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Source => "source",
            Self::Unproven => "unproven",
            Self::All => "all",
            Self::Turn => "turn",
        }
    }
}

/// The places of one listener. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Places {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    bounds: Bounds,
    table: Mutex<Table>,
    refused: [AtomicU64; Limit::ALL.len()],
    /// When a connection last could not be accepted for lack of descriptors or memory.
    exhausted: Mutex<Option<Instant>>,
}

#[derive(Debug, Default)]
struct Table {
    sources: HashMap<IpAddr, SourcePlaces>,
    waiting: usize,
    taken: usize,
    proven: usize,
    /// The number of the next waiting connection.
    number: u64,
}

#[derive(Debug, Default)]
struct SourcePlaces {
    /// In order of the beginning of their wait.
    waiting: BTreeMap<u64, Arc<Entry>>,
    taken: usize,
    proven: usize,
}

#[derive(Debug)]
struct Entry {
    /// Changed under the table's lock only.
    standing: Mutex<Standing>,
    evicted: Notify,
    /// Aborted when the connection is evicted.
    task: Mutex<Option<AbortHandle>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// With its number.
    Waiting(u64),
    Taken,
    Proven,
    Evicted,
}

/// Evicts a connection by aborting its task.
#[derive(Debug)]
pub struct Eviction(Arc<Entry>);

impl Eviction {
    /// `task` serves the connection.
    pub fn ends(self, task: AbortHandle) {
        // Stored before the standing is read: a later eviction finds it.
        *self.0.task() = Some(task.clone());
        if self.0.standing() == Standing::Evicted {
            task.abort();
        }
    }
}

/// The place of one connection, released when this is dropped.
#[derive(Debug)]
pub struct Place {
    inner: Arc<Inner>,
    source: IpAddr,
    entry: Arc<Entry>,
}

impl Places {
    pub fn new(bounds: Bounds) -> Self {
        Self {
            inner: Arc::new(Inner {
                bounds,
                table: Mutex::default(),
                refused: Default::default(),
                exhausted: Mutex::default(),
            }),
        }
    }

    /// Adds a new connection as waiting. Beyond the bound, another waiting connection is evicted.
    pub fn enter(&self, source: IpAddr) -> Place {
        let source = source.to_canonical();
        let entry = Arc::new(Entry {
            standing: Mutex::new(Standing::Evicted),
            evicted: Notify::new(),
            task: Mutex::default(),
        });
        self.inner.let_wait(&mut self.inner.table(), source, &entry);
        Place {
            inner: self.inner.clone(),
            source,
            entry,
        }
    }

    /// Records that a connection could not be accepted for lack of resources. Evicts a waiting one,
    /// if any.
    pub fn exhausted(&self) {
        *self.inner.last_exhausted() = Some(Instant::now());
        let mut table = self.inner.table();
        let source = table.source_with_most_waiting();
        self.inner.evict(&mut table, source);
    }

    /// Whether no further connection can be served, from any source.
    pub fn is_full(&self) -> bool {
        let last = *self.inner.last_exhausted();
        if last.is_some_and(|at| at.elapsed() < EXHAUSTED) {
            return true;
        }
        let table = self.inner.table();
        table.taken + table.proven >= self.inner.bounds.all
    }

    /// How many connections met a limit.
    pub fn refused(&self, limit: Limit) -> u64 {
        self.inner.refused[limit as usize].load(Relaxed)
    }
}

impl Inner {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn last_exhausted(&self) -> MutexGuard<'_, Option<Instant>> {
        self.exhausted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, limit: Limit) {
        self.refused[limit as usize].fetch_add(1, Relaxed);
    }

    fn let_wait(&self, table: &mut Table, source: IpAddr, entry: &Arc<Entry>) {
        let of_source = table.sources.get(&source).map_or(0, |s| s.waiting.len());
        if of_source >= self.bounds.waiting_of_source {
            self.evict(table, Some(source));
        } else if table.waiting >= self.bounds.waiting {
            let most = table.source_with_most_waiting();
            self.evict(table, most);
        }
        let number = table.number;
        table.number += 1;
        table.waiting += 1;
        let waiting = &mut table.sources.entry(source).or_default().waiting;
        waiting.insert(number, entry.clone());
        entry.set(Standing::Waiting(number));
    }

    /// Evicts the longest-waiting connection of `source`, if there is one.
    fn evict(&self, table: &mut Table, source: Option<IpAddr>) {
        let Some(address) = source else { return };
        let Some(source) = table.sources.get_mut(&address) else {
            return;
        };
        if let Some((_, oldest)) = source.waiting.pop_first() {
            table.waiting -= 1;
            oldest.set(Standing::Evicted);
            oldest.evicted.notify_one();
            if let Some(task) = &*oldest.task() {
                task.abort();
            }
            self.count(Limit::Waiting);
        }
        table.forget_if_empty(address);
    }

    /// The bound that prevents serving another connection of a source, if any.
    fn bound(&self, table: &Table, source: IpAddr, proven: bool) -> Option<Limit> {
        let bounds = &self.bounds;
        let source = table.sources.get(&source);
        let (taken, of_proven) = source.map_or((0, 0), |source| (source.taken, source.proven));
        let served = taken + of_proven;
        let spare = if served == 0 { bounds.spare } else { 0 };
        if served >= bounds.of_source || !proven && taken >= bounds.taken_of_source {
            Some(Limit::Source)
        } else if !proven && table.taken >= bounds.taken + spare {
            Some(Limit::Unproven)
        } else if table.taken + table.proven >= bounds.all + spare {
            Some(Limit::All)
        } else {
            None
        }
    }
}

impl Table {
    fn source_with_most_waiting(&self) -> Option<IpAddr> {
        let sources = self.sources.iter();
        let most = sources.max_by_key(|(_, source)| source.waiting.len());
        most.map(|(address, _)| *address)
    }

    fn forget_if_empty(&mut self, address: IpAddr) {
        let is_empty =
            |source: &SourcePlaces| source.waiting.is_empty() && source.taken + source.proven == 0;
        if self.sources.get(&address).is_some_and(is_empty) {
            self.sources.remove(&address);
        }
    }

    /// Removes a connection from the counts of its standing.
    fn remove(&mut self, address: IpAddr, standing: Standing) {
        let source = self.sources.entry(address).or_default();
        match standing {
            Standing::Waiting(number) => {
                source.waiting.remove(&number);
                self.waiting -= 1;
            }
            Standing::Taken => {
                source.taken -= 1;
                self.taken -= 1;
            }
            Standing::Proven => {
                source.proven -= 1;
                self.proven -= 1;
            }
            Standing::Evicted => {}
        }
    }
}

impl Entry {
    fn standing(&self) -> Standing {
        *self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn task(&self) -> MutexGuard<'_, Option<AbortHandle>> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, standing: Standing) {
        *self.standing.lock().unwrap_or_else(PoisonError::into_inner) = standing;
    }
}

impl Place {
    /// The connection is served from now on and cannot be evicted. Fails at a bound.
    pub fn take(&self) -> Result<(), Limit> {
        self.serve(Standing::Taken)
    }

    /// The connection has proven an identity. Its place among those without one is released.
    pub fn prove(&self) -> Result<(), Limit> {
        self.serve(Standing::Proven)
    }

    fn serve(&self, becomes: Standing) -> Result<(), Limit> {
        let mut table = self.inner.table();
        let standing = self.entry.standing();
        match standing {
            Standing::Evicted => return Err(Limit::Waiting),
            Standing::Taken if becomes == Standing::Taken => return Ok(()),
            Standing::Proven => return Ok(()),
            Standing::Taken | Standing::Waiting(_) => {}
        }
        table.remove(self.source, standing);
        let bound = (self.inner).bound(&table, self.source, becomes == Standing::Proven);
        if let Some(limit) = bound {
            self.inner.count(limit);
            self.entry.set(Standing::Evicted);
            table.forget_if_empty(self.source);
            return Err(limit);
        }
        let source = table.sources.entry(self.source).or_default();
        match becomes {
            Standing::Proven => {
                source.proven += 1;
                table.proven += 1;
            }
            _ => {
                source.taken += 1;
                table.taken += 1;
            }
        }
        self.entry.set(becomes);
        Ok(())
    }

    /// The connection waits for its next request and may be evicted.
    pub fn wait(&self) {
        let mut table = self.inner.table();
        let standing = self.entry.standing();
        if standing == Standing::Taken {
            table.remove(self.source, standing);
            (self.inner).let_wait(&mut table, self.source, &self.entry);
        }
    }

    /// Completes when the connection has been evicted. For one caller.
    pub fn evicted(&self) -> impl Future<Output = ()> + Send + 'static {
        let entry = self.entry.clone();
        async move { entry.evicted.notified().await }
    }

    /// For a connection whose task may be aborted at any point while it waits.
    pub fn eviction(&self) -> Eviction {
        Eviction(self.entry.clone())
    }

    /// Counts a refusal of the connection for a bound outside of the listener.
    pub fn refuse(&self, limit: Limit) {
        self.inner.count(limit);
    }

    /// The source address of the connection.
    pub fn source(&self) -> IpAddr {
        self.source
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.inner.table();
        table.remove(self.source, self.entry.standing());
        table.forget_if_empty(self.source);
    }
}

#[cfg(test)]
mod tests;
