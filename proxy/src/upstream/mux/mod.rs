//! Many byte streams on one connection between two sidecars: what `naru-http/1.1-streams` is made
//! of.
//!
//! In: a connection with a peer that has proved who it is. Out: streams, each of which carries
//! HTTP/1.1 as a connection of its own would, byte for byte, and one exchange after the other.
//! Sidecars talk in many small pieces, and what a piece costs is the system call, the packet and
//! the wake-up at the other end, far more than its bytes: pieces that are ready at the same time
//! share all three.
//!
//! ```text
//!  stream ──▶ ┐ frames                  frames ┌ ──▶ stream
//!  stream ──▶ ┼──▶ unsent ─▶ driver ═ TLS ═▶ driver ─▶ ┼ ──▶ stream
//!  stream ──▶ ┘                                        └ ──▶ stream
//! ```
//!
//! * The client's side opens streams, with their first bytes. There is nothing to wait for.
//! * Each stream has a window of its own ([`STREAM_WINDOW`]): what is received and not taken yet is
//!   bounded, one that nobody reads stops no other, and the connection itself is always read. So
//!   what the kernel does not get acknowledged in time says that the peer is out of reach, however
//!   slow its app is.
//! * Each direction of a stream ends for itself, and a break is passed on as a break.
//! * Streams that are given up at once are not counted here: many clients share the connection, and
//!   what one of them does costs it a
//!   connection to its own sidecar each time.
//! * A server that ends a stream in order without an answer has taken nothing from it, and one that
//!   ends the connection in order has taken nothing from those that it has not answered: what was
//!   sent there may be sent to somebody else.
//!
//! # Floors
//!
//! ```text
//! driver                      reads and writes the connection
//! stream                      what carries bytes
//! connection                  the streams that there are, and what waits to be written
//! half                        one side of a stream
//! frame                       the bytes of a frame
//! ```

mod connection;
mod driver;
mod frame;
mod half;
mod stream;

#[cfg(test)]
pub(crate) mod tests;

use crate::upstream::count::MAX_STREAMS;

pub use connection::{Connection, Over, Side};
pub use driver::Driver;
pub use stream::Stream;

/// How much of a stream may be under way and not taken by the other side's reader yet, in bytes.
/// Carries 128 MiB/s over a round trip of 2 ms.
const STREAM_WINDOW: u32 = 256 * 1024;
/// Payload of a DATA frame, in bytes: with its header it fits into one TLS record, and streams take
/// turns.
const MAX_DATA: usize = 16 * 1024 - frame::HEADER;
/// Frames that wait to be written, in bytes, beyond which streams wait for their turn.
const MAX_UNSENT: usize = 64 * 1024;
/// The same with what streams do not wait for: windows, ends and resets. A peer that makes us say
/// more without listening is broken.
const MAX_UNHEARD: usize = 1024 * 1024;
/// Streams that a peer may have open at once: more than a client begins, since a stream that it
/// keeps for the next exchange counts here.
pub const MAX_OPEN: usize = 256;
/// What has come for all streams of a connection and nobody has read, in bytes: more than the
/// windows of all that a client uses at once ([`MAX_STREAMS`]).
const MAX_UNREAD: usize = 32 * 1024 * 1024;

const _: () = assert!(MAX_STREAMS * STREAM_WINDOW as usize <= MAX_UNREAD);
