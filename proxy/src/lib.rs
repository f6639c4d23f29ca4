//! Naru's sidecar proxy.
#![forbid(unsafe_code)]

pub mod access_log;
pub mod admin;
pub mod balance;
pub mod budget;
pub mod buffered;
pub mod config;
pub mod connection;
pub mod control;
pub mod deadlines;
pub mod detect;
pub mod drain;
pub mod http1;
pub mod http2;
pub mod identity;
pub mod inbound;
pub mod init;
pub mod logging;
pub mod metrics;
pub mod outbound;
pub mod prefixed;
pub mod reason;
pub mod retry;
pub mod route;
pub mod session;
pub mod socket;
pub mod table;
pub mod tcp;
pub mod upstream;
pub mod worker;

#[cfg(test)]
mod testing;
