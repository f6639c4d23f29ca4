//! File descriptors: as many as the machine allows, with a reserve for other uses than connections.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::warn;

/// Most descriptors to request: some machines allow more than a process could ever use.
const MOST: u64 = 1 << 20;
/// Descriptors reserved for files, calls to the API server and the controller, and clients of the
/// admin port.
const RESERVE: u64 = 256;

/// The number of available descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptors {
    limit: u64,
}

impl Descriptors {
    /// Raises the soft limit to the hard one, and returns the number available.
    pub fn raise() -> Self {
        let (soft, hard) = match getrlimit(Resource::RLIMIT_NOFILE) {
            Ok(limits) => limits,
            Err(error) => {
                warn!(%error, "cannot read the limit of open files; assuming {MOST}");
                return Self { limit: MOST };
            }
        };
        let wanted = hard.min(MOST);
        if wanted <= soft {
            return Self { limit: soft };
        }
        match setrlimit(Resource::RLIMIT_NOFILE, wanted, hard) {
            Ok(()) => Self { limit: wanted },
            Err(error) => {
                warn!(%error, limit = soft, "cannot raise the limit of open files");
                Self { limit: soft }
            }
        }
    }

    #[cfg(test)]
    fn of(limit: u64) -> Self {
        Self { limit }
    }

    /// How many of `wanted` connections are possible, if each has up to `each` descriptors. Warns
    /// if there are fewer.
    pub fn connections(self, wanted: usize, each: usize, what: &str) -> usize {
        let room = self.limit.saturating_sub(RESERVE.min(self.limit / 2));
        let room = usize::try_from(room).unwrap_or(usize::MAX) / each.max(1);
        if room < wanted {
            warn!(
                limit = self.limit,
                connections = room,
                wanted,
                "{what}: the limit of open files allows fewer connections; raise the hard limit \
                 (ulimit -Hn)"
            );
        }
        room.clamp(1, wanted.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let raised = Descriptors::raise();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(raised.limit, soft);
        assert!(soft >= hard.min(MOST), "{soft} of {hard}");
    }

    #[test]
    fn connections_leave_a_reserve() {
        assert_eq!(
            Descriptors::of(1 << 20).connections(10_000, 4, "test"),
            10_000
        );
        assert_eq!(Descriptors::of(1_024).connections(25_000, 1, "test"), 768);
        assert_eq!(Descriptors::of(1_024).connections(25_000, 4, "test"), 192);
        assert_eq!(Descriptors::of(16).connections(25_000, 100, "test"), 1);
    }
}
