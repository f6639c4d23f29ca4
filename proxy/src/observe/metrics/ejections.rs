//! How often endpoints were ejected, and why.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why an endpoint was ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EjectionReason {
    ConsecutiveFailures,
    IdentityMismatch,
}

impl EjectionReason {
    /// The label value in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ConsecutiveFailures => "consecutive-failures",
            Self::IdentityMismatch => "identity-mismatch",
        }
    }
}

/// How often endpoints of one backend were ejected. Read by the metrics.
#[derive(Debug, Default)]
pub struct EjectionCounter {
    consecutive_failures: AtomicU64,
    identity_mismatch: AtomicU64,
}

impl EjectionCounter {
    pub fn get(&self, reason: EjectionReason) -> u64 {
        self.of(reason).load(Ordering::Relaxed)
    }

    pub(crate) fn count(&self, reason: EjectionReason) {
        self.of(reason).fetch_add(1, Ordering::Relaxed);
    }

    fn of(&self, reason: EjectionReason) -> &AtomicU64 {
        match reason {
            EjectionReason::ConsecutiveFailures => &self.consecutive_failures,
            EjectionReason::IdentityMismatch => &self.identity_mismatch,
        }
    }
}
