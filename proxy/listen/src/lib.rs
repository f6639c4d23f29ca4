//! The listeners of Naru's programs, built so that no client can lock out others.
//!
//! ```text
//! bind ─▶ accept ─▶ places (bounded by source) ─┬─▶ http: small servers, each step bounded in time
//!                                               └─▶ the caller's own protocol
//! descriptors: how many connections are possible at all
//! turns:       work of bounded concurrency, shared fairly by key
//! scrapes:     one rendering of the metrics for all concurrent scrapes
//! ```
//!
//! # Floors
//!
//! ```text
//! admin                  what the admin ports share
//! http
//! accept
//! places reply
//! descriptors turns scrapes
//! ```
#![forbid(unsafe_code)]

pub mod accept;
pub mod admin;
pub mod descriptors;
pub mod http;
pub mod places;
pub mod reply;
pub mod scrapes;
pub mod turns;

pub use accept::{accept, bind};
pub use places::{Bounds, Limit, Place, Places};
