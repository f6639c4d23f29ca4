//! The memory budget of the process: memory that clients and servers can make it hold is charged
//! here, and refused beyond a bound, so that no peer can get the pod killed.
//!
//! In: a request for bytes, with their use. Out: a [`Charge`], which returns them when it is
//! dropped, or a refusal, which is counted. Units are coarse: a connection, the head of a stream,
//! the data that waits for a reader that has stopped. Memory that is not charged (code, tables,
//! metrics, the allocator) is left out of the budget's size.
//!
//! Each use has its own ceiling. The larger and less urgent a use, the lower its ceiling: a
//! flood of large heads or unread bodies is refused while small requests and new connections of
//! others still find room.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// Memory of an open connection: its task, its TLS state, its buffers while small.
pub const CONNECTION: usize = 8 * 1024;
/// Memory of an HTTP/2 stream in addition to its head: its task and h2's records of both its sides.
const STREAM: usize = 4 * 1024;
/// Memory of one field of a decoded head in addition to its bytes, for the client's side and the
/// copy that an attempt sends.
const FIELD: usize = 256;

/// Up to this many waiting or kept bytes stay uncharged: small messages wait for a moment all the
/// time.
pub const UNCHARGED: usize = 4 * 1024;

/// The memory limit that is assumed if the cgroup has none: the default of injected sidecars.
const DEFAULT_LIMIT: usize = 256 * 1024 * 1024;
/// A cgroup's limit beyond this belongs to a machine rather than a sidecar, and is ignored.
const LARGEST_LIMIT: usize = 4 * 1024 * 1024 * 1024;
/// The part of a limit that is reserved for code, tables, metrics and the first buffers.
const RESERVED: usize = 16 * 1024 * 1024;
/// The smallest budget: below it not even idle connections would fit.
pub const SMALLEST: usize = 4 * 1024 * 1024;
/// Ceilings are multiples of this fraction of the budget: one part in so many.
const PARTS: usize = 8;

/// What memory is charged for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Use {
    /// A head that is larger than most.
    Head,
    /// A request body that is kept for another attempt.
    Replay,
    /// Data that waits for a reader that has stopped.
    Body,
    /// As [`Self::Body`], for a small amount.
    SmallBody,
    /// An HTTP/2 stream with its head.
    Stream,
    /// A downstream connection.
    Connection,
}

impl Use {
    pub const ALL: [Self; 6] = [
        Self::Head,
        Self::Replay,
        Self::Body,
        Self::SmallBody,
        Self::Stream,
        Self::Connection,
    ];

    /// The label in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::Replay => "replay",
            Self::Body => "body",
            Self::SmallBody => "small-body",
            Self::Stream => "stream",
            Self::Connection => "connection",
        }
    }

    /// The ceiling of this use, in parts of the budget: it is refused once all uses together would
    /// charge more.
    const fn parts(self) -> usize {
        match self {
            Self::Head => 3,
            Self::Replay => 4,
            Self::Body => 5,
            Self::SmallBody => 6,
            Self::Stream => 7,
            Self::Connection => 8,
        }
    }
}

/// Shared by all threads of the process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    size: usize,
    charged: AtomicUsize,
    refused: [AtomicU64; Use::ALL.len()],
}

/// Bytes of the budget that are in use. Returned when dropped.
#[derive(Debug)]
pub struct Charge {
    budget: Budget,
    bytes: usize,
}

impl Budget {
    pub fn new(size: usize) -> Self {
        Self(Arc::new(Inner {
            size,
            charged: AtomicUsize::new(0),
            refused: Default::default(),
        }))
    }

    /// The size in bytes.
    pub fn size(&self) -> usize {
        self.0.size
    }

    /// Bytes that are charged now.
    pub fn charged(&self) -> usize {
        self.0.charged.load(Relaxed)
    }

    /// How often bytes were refused.
    pub fn refused(&self, what: Use) -> u64 {
        self.0.refused[what as usize].load(Relaxed)
    }

    /// More than a quarter is in use: flow-control windows should be small.
    pub fn is_tight(&self) -> bool {
        self.charged() > self.size() / 4
    }

    /// Less than an eighth is in use: flow-control windows may be large again.
    pub fn is_calm(&self) -> bool {
        self.charged() <= self.size() / 8
    }

    /// `None`: the budget has no room for this use.
    pub fn charge(&self, what: Use, bytes: usize) -> Option<Charge> {
        self.take(what, bytes).then(|| Charge {
            budget: self.clone(),
            bytes,
        })
    }

    /// An empty charge.
    pub fn nothing(&self) -> Charge {
        Charge {
            budget: self.clone(),
            bytes: 0,
        }
    }

    fn take(&self, what: Use, bytes: usize) -> bool {
        // Charged before the check, so that two threads cannot both take the last bytes.
        let before = self.0.charged.fetch_add(bytes, Relaxed);
        if before.saturating_add(bytes) <= self.0.size / PARTS * what.parts() {
            return true;
        }
        self.0.charged.fetch_sub(bytes, Relaxed);
        self.0.refused[what as usize].fetch_add(1, Relaxed);
        false
    }
}

impl Charge {
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Grows the charge to at least `to` bytes. False: there is no room, and it stays unchanged.
    pub fn grow(&mut self, what: Use, to: usize) -> bool {
        let more = to.saturating_sub(self.bytes);
        if more == 0 {
            return true;
        }
        let taken = self.budget.take(what, more);
        if taken {
            self.bytes += more;
        }
        taken
    }

    /// Sets the charge to `base` plus the bytes that wait now. False: there is no room for that.
    pub fn follow(&mut self, what: Use, base: usize, waiting: usize) -> bool {
        let to = base + if waiting < UNCHARGED { 0 } else { waiting };
        self.shrink(to);
        self.grow(what, to)
    }

    /// Returns the bytes beyond `to`.
    pub fn shrink(&mut self, to: usize) {
        let less = self.bytes.saturating_sub(to);
        if less > 0 {
            self.budget.0.charged.fetch_sub(less, Relaxed);
            self.bytes -= less;
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.shrink(0);
    }
}

/// Memory of an HTTP/2 stream with this head.
pub fn of_stream(head: &http::HeaderMap) -> usize {
    STREAM + of_head(head)
}

/// Memory of a decoded head.
pub fn of_head(head: &http::HeaderMap) -> usize {
    let bytes: usize = head
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum();
    head.len() * FIELD + bytes
}

/// The budget within a memory limit: the limit less [`RESERVED`] and less a quarter for uncharged
/// memory (the allocator, data between two charges), but at least a quarter of the limit.
pub fn within(limit: usize) -> usize {
    (limit / 4 * 3).saturating_sub(RESERVED).max(limit / 4)
}

/// The budget if no flag sets it: derived from the limit of this process' cgroup, else from
/// [`DEFAULT_LIMIT`].
pub fn from_cgroup() -> usize {
    let memberships = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    within(limit(&memberships, Path::new("/sys/fs/cgroup")).unwrap_or(DEFAULT_LIMIT))
}

/// The smallest limit of the cgroups that `memberships` (`/proc/self/cgroup`) names, or of their
/// ancestors, version 2 or 1. `None`: there is no limit small enough for a sidecar.
fn limit(memberships: &str, mounted: &Path) -> Option<usize> {
    let files = memberships.lines().flat_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next().unwrap_or(""), parts.next().unwrap_or("/"));
        let (root, file) = match controllers {
            "" => (mounted.to_owned(), "memory.max"),
            list if list.split(',').any(|name| name == "memory") => {
                (mounted.join("memory"), "memory.limit_in_bytes")
            }
            _ => return Vec::new(),
        };
        files_of(&root, path, file)
    });
    files
        .filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok())
        .filter(|limit| (1..=LARGEST_LIMIT).contains(limit))
        .min()
}

/// `file` of the cgroup `path` and of all its ancestors. In a container the path may be the host's,
/// with only the root visible.
fn files_of(root: &Path, path: &str, file: &str) -> Vec<PathBuf> {
    let inner: PathBuf = path
        .split('/')
        .filter(|part| !part.is_empty() && *part != "..")
        .fold(root.to_owned(), |folder, part| folder.join(part));
    inner
        .ancestors()
        .take_while(|folder| folder.starts_with(root))
        .map(|folder| folder.join(file))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn dropping_a_charge_returns_its_bytes() {
        let budget = Budget::new(800);
        let mut charge = budget.charge(Use::Connection, 300).unwrap();
        assert!(charge.grow(Use::Connection, 700));
        assert!(!charge.grow(Use::Connection, 900));
        assert_eq!((charge.bytes(), budget.charged()), (700, 700));
        assert_eq!(budget.refused(Use::Connection), 1);
        charge.shrink(100);
        assert_eq!(budget.charged(), 100);
        drop(charge);
        assert_eq!(budget.charged(), 0);
    }

    #[test]
    fn large_uses_are_refused_while_small_ones_find_room() {
        let budget = Budget::new(800);
        let mut heads = Vec::new();
        while let Some(charge) = budget.charge(Use::Head, 100) {
            heads.push(charge);
        }
        assert_eq!(budget.charged(), 300);
        assert!(budget.is_tight());
        for (what, most) in [
            (Use::Replay, 100),
            (Use::Body, 200),
            (Use::SmallBody, 300),
            (Use::Stream, 400),
            (Use::Connection, 500),
        ] {
            assert!(budget.charge(what, most).is_some());
            assert!(budget.charge(what, most + 1).is_none());
        }
        heads.truncate(1);
        assert!(budget.is_calm());
    }

    #[test]
    fn a_budget_leaves_uncharged_room_within_every_limit() {
        assert_eq!(within(256 << 20), 176 << 20);
        for limit in [16 << 20, 32 << 20, 64 << 20, 1 << 30, LARGEST_LIMIT] {
            assert!((limit / 4..=limit / 4 * 3).contains(&within(limit)));
        }
    }

    fn folder(name: &str, files: &[(&str, &str)]) -> PathBuf {
        let root = std::env::temp_dir().join(format!("naru-memory-{}-{name}", std::process::id()));
        for (path, content) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        root
    }

    #[test]
    fn the_smallest_limit_of_a_cgroup_and_its_ancestors_counts() {
        let files = [
            ("pods/memory.max", "268435456\n"),
            ("pods/a/memory.max", "max\n"),
            ("pods/b/memory.max", "134217728\n"),
        ];
        let root = folder("v2", &files);
        assert_eq!(limit("0::/pods/a\n", &root), Some(256 << 20));
        assert_eq!(limit("0::/pods/b\n", &root), Some(128 << 20));
        // The host's path, as seen from inside a container.
        assert_eq!(limit("0::/../../pods/b\n", &root), Some(128 << 20));
        assert_eq!(limit("0::/elsewhere\n", &root), None);
        let files = [
            ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory/kubepods/memory.limit_in_bytes", "67108864\n"),
        ];
        let root = folder("v1", &files);
        let memberships = "12:cpu,cpuacct:/x\n9:memory:/kubepods\n";
        assert_eq!(limit(memberships, &root), Some(64 << 20));
        assert_eq!(limit("9:memory:/elsewhere\n", &root), None);
        assert_eq!(limit("", &root), None);
        for name in ["v2", "v1"] {
            fs::remove_dir_all(folder(name, &[])).unwrap();
        }
    }

    proptest! {
        #[test]
        fn charges_never_exceed_the_budget(
            steps in prop::collection::vec((0..Use::ALL.len(), 0..500_usize, any::<bool>()), 0..60),
        ) {
            let budget = Budget::new(4_000);
            let mut held = Vec::new();
            for (what, bytes, give_back) in steps {
                held.extend(budget.charge(Use::ALL[what], bytes));
                if give_back {
                    held.pop();
                }
                prop_assert!(budget.charged() <= budget.size());
            }
            drop(held);
            prop_assert_eq!(budget.charged(), 0);
        }

        #[test]
        fn any_membership_text_is_handled(text in "\\PC{0,80}") {
            let _ = limit(&text, Path::new("/nonexistent"));
        }
    }
}
