//! What the proxy shows of its work: metrics, the access log, its own log, and the words for what went wrong.

pub mod access_log;
pub mod logging;
pub mod metrics;
pub mod reason;
