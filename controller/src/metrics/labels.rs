//! Values of labels in the controller's metrics.

/// The form of a pushed resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Full,
    Delta,
}

/// The result of writing a route's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusOutcome {
    Written,
    Failed,
}

/// The state of the mesh's certificate authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthorityState {
    /// A single authority.
    Steady,
    /// The next authority is trusted, and does not issue yet.
    Trusting,
    /// The last authority is still trusted.
    Retiring,
    /// The given authority is invalid.
    Invalid,
    /// The authority is missing from its store.
    Missing,
}

impl AuthorityState {
    pub(super) const ALL: [Self; 5] = [
        Self::Steady,
        Self::Trusting,
        Self::Retiring,
        Self::Invalid,
        Self::Missing,
    ];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Trusting => "trusting",
            Self::Retiring => "retiring",
            Self::Invalid => "invalid",
            Self::Missing => "missing",
        }
    }
}

/// The result of reviewing a new pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InjectionOutcome {
    Injected,
    /// The pod already had a sidecar, and got the missing parts.
    Completed,
    /// The pod already has a sidecar, or should have none.
    Unchanged,
    /// The pod should have a sidecar, but cannot.
    Skipped,
    Refused,
    /// The request was not a valid review.
    Malformed,
}

impl InjectionOutcome {
    pub const ALL: [Self; 6] = [
        Self::Injected,
        Self::Completed,
        Self::Unchanged,
        Self::Skipped,
        Self::Refused,
        Self::Malformed,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Injected => "injected",
            Self::Completed => "completed",
            Self::Unchanged => "unchanged",
            Self::Skipped => "skipped",
            Self::Refused => "refused",
            Self::Malformed => "malformed",
        }
    }
}
