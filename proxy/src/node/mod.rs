//! How connections get to the proxy: the rules of a pod, and what sets them on a node.

pub mod cni;
pub mod redirect;
