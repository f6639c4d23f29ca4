//! Bytes of a connection before its protocol is known.
//!
//! # Floors
//!
//! ```text
//! buffered detect pipe     a connection with a buffer; what its first bytes are; one in the process
//! closing                  how one is closed
//! ```

pub mod buffered;
pub mod closing;
pub mod detect;
pub mod pipe;
