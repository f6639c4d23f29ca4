//! Fixtures shared by the tests of several modules.

pub mod mesh;
pub mod sockets;
