//! How attempts end.

use crate::observe::reason::Reason;

/// How an attempt on an endpoint ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptOutcome {
    /// A response came (502, 503 and 504 count as a failure of the endpoint).
    Response { status: u16 },
    /// Connection refused, timed out, reset.
    ConnectFailed,
    /// Another identity answered at the address: ejected at once.
    IdentityMismatch,
    /// The connection or stream broke before a response.
    Reset,
    /// The proxy gave up the attempt (timeout).
    TimedOut,
    /// The client gave up: not counted for or against the endpoint.
    Cancelled,
}

impl AttemptOutcome {
    /// The outcome when no connection to the endpoint was established, for this reason.
    pub const fn no_connection(reason: Reason) -> Self {
        match reason {
            Reason::IdentityMismatch => Self::IdentityMismatch,
            // A failure of this proxy, not of the endpoint.
            Reason::NoCertificate | Reason::Overload | Reason::ShuttingDown => Self::Cancelled,
            _ => Self::ConnectFailed,
        }
    }
}
