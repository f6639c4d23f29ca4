//! Connections with their buffers, and the detection of their protocol.
//!
//! # Floors
//!
//! ```text
//! client_hello             the ClientHello of a TLS client
//! buffered detect pipe     connections with buffers; detection; in-process connections
//! closing                  the end of a connection, drained
//! ```

pub mod buffered;
pub mod client_hello;
pub mod closing;
pub mod detect;
pub mod pipe;
