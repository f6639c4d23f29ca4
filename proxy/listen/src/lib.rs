//! What the listeners of Naru's programs have in common, so that no client keeps others out.
//!
//! ```text
//! bind ─▶ accept ─▶ places (bounded by source) ─┬─▶ http: small servers, each step bounded in time
//!                                               └─▶ the caller's own protocol
//! descriptors: how many connections there can be at all
//! turns:       work that only so many may do at once, shared out by key
//! scrapes:     one rendering of the metrics for all who ask at the same time
//! ```
//!
//! # Floors
//!
//! ```text
//! admin                  what all admin ports have in common
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
