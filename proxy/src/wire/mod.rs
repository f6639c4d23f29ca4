//! Bytes of a connection before its protocol is known.
//!
//! # Floors
//!
//! ```text
//! client_hello             what a TLS client asks for
//! buffered detect pipe     a connection with a buffer; what its first bytes are; one in the process
//! closing                  how one is closed
//! ```

pub mod buffered;
pub mod client_hello;
pub mod closing;
pub mod detect;
pub mod pipe;
