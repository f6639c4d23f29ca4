//! Counters of mirrored requests: copies, which are counted nowhere else.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::OVERFLOW;
use super::series::Handle;

/// Labels of a series of mirrored requests. Empty where they do not apply.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MirrorLabels {
    /// Namespace of the Service that was called.
    pub namespace: Arc<str>,
    pub service: Arc<str>,
    pub port: Option<u16>,
    /// `namespace/name`
    pub route: Arc<str>,
    pub rule: Arc<str>,
    /// The receiver of the copies: `namespace/service:port`
    pub mirror: Arc<str>,
}

/// The outcome of a mirrored copy of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MirrorOutcome {
    /// A response came.
    Answered,
    /// There was no endpoint, or no connection, or it broke before a response.
    Failed,
    /// It took too long.
    TimedOut,
    /// It was not sent, since too many were under way.
    Skipped,
    /// It was broken off, since the mirror took the body more slowly than the backend.
    TooSlow,
    /// It was broken off, since the original request was.
    BrokenOff,
}

impl MirrorOutcome {
    pub const ALL: [Self; 6] = [
        Self::Answered,
        Self::Failed,
        Self::TimedOut,
        Self::Skipped,
        Self::TooSlow,
        Self::BrokenOff,
    ];

    /// The label value in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
            Self::Skipped => "skipped",
            Self::TooSlow => "too_slow",
            Self::BrokenOff => "broken_off",
        }
    }
}

/// Mirrored requests under one label set.
#[derive(Debug, Default)]
pub struct MirrorMetrics {
    outcomes: [AtomicU64; MirrorOutcome::ALL.len()],
}

impl MirrorMetrics {
    /// Counts a copy that has ended.
    pub fn ended(&self, outcome: MirrorOutcome) {
        self.outcomes[outcome as usize].fetch_add(1, Relaxed);
    }

    pub(super) fn count(&self, outcome: MirrorOutcome) -> u64 {
        self.outcomes[outcome as usize].load(Relaxed)
    }
}

impl Handle for MirrorMetrics {
    fn uses(&self) -> u64 {
        self.outcomes.iter().map(|count| count.load(Relaxed)).sum()
    }
}

impl MirrorLabels {
    pub(super) fn overflow() -> Self {
        let overflow: Arc<str> = OVERFLOW.into();
        Self {
            namespace: overflow.clone(),
            service: overflow.clone(),
            port: None,
            route: overflow.clone(),
            rule: overflow.clone(),
            mirror: overflow,
        }
    }
}
