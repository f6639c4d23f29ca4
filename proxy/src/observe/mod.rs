//! Observability of the proxy.
//!
//! # Floors
//!
//! ```text
//! access_log                  a line for each request
//! metrics                     counters, and their text for Prometheus
//! logging                     the program's own log
//! reason                      the closed list of reasons
//! ```

pub mod access_log;
pub mod logging;
pub mod metrics;
pub mod reason;
