//! Bytes of a connection, before it is known what they are.

pub mod buffered;
pub mod detect;
