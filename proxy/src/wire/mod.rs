//! Bytes of a connection before its protocol is known.
//!
//! # Floors
//!
//! ```text
//! buffered detect pipe     a connection with a buffer; what its first bytes are; one in the process
//! ```

pub mod buffered;
pub mod detect;
pub mod pipe;
