//! How connections reach the proxy: the redirect rules of a pod, installed from inside it or by its
//! node. None of this is on the path of a connection.
//!
//! # Floors
//!
//! ```text
//! cni                         the agent of a node, and the plugin that it installs
//! redirect                    the redirect rules, and their verification
//! ```

pub mod cni;
pub mod redirect;
