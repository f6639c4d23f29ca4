//! Naru's controller: it watches the cluster and pushes routing tables to the proxies.
//!
//! ```text
//! source ─▶ index ─▶ compile ─▶ serve ═══ one stream per proxy ═══▶
//!                    │          issuer ── certificates ───────────▶
//!                    └─▶ status ─▶ conditions of routes
//! inject ── sidecars for new pods ──▶ API server
//! ```
//!
//! # Floors
//!
//! ```text
//! config                  flags and environment, for all the rest
//! admin status uninstall  what people ask, what routes are told, how Naru goes
//! serve                   the proxies: connections, streams, tables
//! compile                 routing tables out of the index
//! authority               the certificate authority, and its rotation
//! install kubernetes      what is kept in the cluster, and the way to it
//! index inject            objects by name; sidecars for new pods
//! source                  objects out of manifests or of the API server
//! metrics                 what is counted
//! issuer                  certificates for tokens
//! annotations logging     ground
//! ```
#![forbid(unsafe_code)]

pub mod admin;
mod annotations;
pub mod authority;
pub mod compile;
pub mod config;
pub mod index;
pub mod inject;
pub mod install;
pub mod issuer;
pub mod kubernetes;
pub mod logging;
pub mod metrics;
pub mod serve;
pub mod source;
pub mod status;
pub mod uninstall;
