//! Bytes of a connection before its protocol is known.
//!
//! # Floors
//!
//! ```text
//! buffered detect     a connection with a buffer; what its first bytes are
//! ```

pub mod buffered;
pub mod detect;
