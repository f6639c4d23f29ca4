//! Bytes of a connection, before it is known what they are.
//!
//! # Floors
//!
//! ```text
//! buffered detect pipe     a connection with a buffer; what its first bytes are; one in the process
//! ```

pub mod buffered;
pub mod detect;
pub mod pipe;
