//! The node's network. In: the cluster's DNS records and the endpoints of ClusterIPs. Out: pods
//! that reach each other by address, by name and by ClusterIP.
//!
//! # Floors
//!
//! ```text
//! dns forward links
//! address
//! ```

mod address;
pub mod dns;
pub mod forward;
mod links;

pub use address::{Addresses, Addressing, Family, NODE_NAME, NODE_V4, SERVICES_V4, SERVICES_V6};
pub use links::{connect_pod, disconnect_pod, has_ipv6, set_up};
