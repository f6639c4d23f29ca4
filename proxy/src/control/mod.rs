//! The proxy's side of the contract with the controller.
//!
//! ```text
//! misses of the data path ─▶ ┌──────┐ ── Hello, Subscribe, Unsubscribe, Answer ─▶
//! tables in force ◀───────── │ sync │                                             controller
//! trust anchors ◀─────────── └──────┘ ◀─ Push, Heartbeat ──────────────────────
//! certificate ◀─────────────── renew ◀── Certify ──────────────────────────────
//! ```
//!
//! Everything here runs on the control thread. While the controller is unreachable, the tables stay
//! in force indefinitely.
//!
//! # Floors
//!
//! ```text
//! sync                the stream of tables and trust anchors
//! renew               renewal of the certificate
//! connect             the connection to one of the controllers
//! backoff refusal
//! ```

mod backoff;
mod connect;
mod refusal;
mod renew;
mod sync;

#[cfg(test)]
mod tests;

pub use backoff::Backoff;
pub use connect::{ConnectError, Controller};
pub use renew::{Certify, RenewError, Renewal};
pub use sync::Sync;
