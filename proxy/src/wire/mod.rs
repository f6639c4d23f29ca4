//! Bytes of a connection before its protocol is known.
//!
//! # Floors
//!
//! ```text
//! buffered detect pipe     connections with buffers; detection; in-process connections
//! ```

pub mod buffered;
pub mod detect;
pub mod pipe;
