//! Bytes of a connection, before it is known what they are.
//!
//! # Floors
//!
//! ```text
//! buffered detect     a connection with a buffer; what its first bytes are
//! ```

pub mod buffered;
pub mod detect;
