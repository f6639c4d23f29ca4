//! Naru's controller: it watches the cluster and pushes routing tables to the proxies.
//!
//! ```text
//! source ─▶ index ─▶ compile ─▶ serve ═══ one stream per proxy ═══▶
//!                    │          issuer ── certificates ───────────▶
//!                    └─▶ status ─▶ conditions of routes
//! inject ── sidecars for new pods ──▶ API server
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
mod reply;
pub mod serve;
pub mod source;
pub mod status;
pub mod uninstall;
