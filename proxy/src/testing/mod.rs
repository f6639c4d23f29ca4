//! What tests of several modules share.

pub mod mesh;
pub mod sockets;
