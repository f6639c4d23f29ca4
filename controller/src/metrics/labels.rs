//! What the labels of the controller's metrics can be.

/// In which form a resource was pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Full,
    Delta,
}

/// How writing the status of a route ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusOutcome {
    Written,
    Failed,
}

/// How it stands with the mesh's certificate authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthorityState {
    /// There is one.
    Steady,
    /// The next one is trusted, and not issued with yet.
    Trusting,
    /// The last one is trusted still.
    Retiring,
    /// What is given cannot be used.
    Invalid,
    /// It is gone from where it was kept.
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

/// What became of the review of a new pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InjectionOutcome {
    Injected,
    /// The pod had a sidecar already, and was given what was missing beside it.
    Completed,
    /// The pod has a sidecar already, or is to have none.
    Unchanged,
    /// The pod was to have one, and by its nature cannot.
    Skipped,
    Refused,
    /// What came was no review.
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
