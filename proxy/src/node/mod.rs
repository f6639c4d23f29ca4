//! How connections get to the proxy: the redirect rules of a pod, set from inside it or from its
//! node. Nothing of this is on the path of a connection.
//!
//! # Floors
//!
//! ```text
//! cni                         the agent of a node, and the plugin that it installs
//! redirect                    the rules, and the proof that they are there
//! ```

pub mod cni;
pub mod redirect;
