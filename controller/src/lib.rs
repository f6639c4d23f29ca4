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
//! config                  flags and environment
//! admin status uninstall  the admin port; routes' statuses; the removal of Naru
//! serve                   streams to the proxies: connections, identities, tables
//! compile                 tables from the index
//! authority               the certificate authority and its rotation
//! install kubernetes      objects that the controller writes; the API server's client
//! index inject            objects by name; sidecars for new pods
//! source                  objects from manifests or the API server
//! metrics                 counters and gauges
//! issuer                  certificates for tokens
//! annotations logging     names of annotations; the program's log
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
