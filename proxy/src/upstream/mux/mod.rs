//! Many byte streams on one connection between two sidecars: the protocol `naru-http/1.1-streams`.
//!
//! In: a connection with a peer that has proved its identity. Out: streams, each of which carries
//! HTTP/1.1 as a separate connection would, byte for byte, one exchange after the other. Sidecars
//! exchange many small pieces, and the cost of a piece is the system call, the packet and the
//! wake-up at the other end, far more than its bytes: pieces that are ready at the same time share
//! all three.
//!
//! ```text
//!  stream ──▶ ┐ frames                  frames ┌ ──▶ stream
//!  stream ──▶ ┼──▶ unsent ─▶ driver ═ TLS ═▶ driver ─▶ ┼ ──▶ stream
//!  stream ──▶ ┘                                        └ ──▶ stream
//! ```
//!
//! * The client's side opens streams, with their first bytes. This takes no round trip.
//! * Each stream has its own window ([`STREAM_WINDOW`]): received but unread data is bounded, an
//!   unread stream does not stop the others, and the connection itself is always read. So data that
//!   the peer's kernel does not acknowledge in time means that the peer is out of reach, however
//!   slow its app is.
//! * Each direction of a stream ends separately, and a reset is passed on as a reset.
//! * Streams that are reset at once do not count as abuse here: many clients share the connection,
//!   and each such reset costs the client a connection to its own sidecar.
//! * A server that ends a stream in order without a response has processed nothing of it, and one
//!   that ends the connection in order has processed nothing of the unanswered streams: their
//!   requests may be sent to another endpoint.
//!
//! # Floors
//!
//! ```text
//! driver                      reads and writes the connection
//! stream                      one stream, as a connection of its own
//! connection                  the open streams, and the frames that wait to be written
//! half                        this side's half of a stream
//! frame                       the encoding of frames
//! ```

mod connection;
mod driver;
mod frame;
mod half;
mod stream;

#[cfg(test)]
pub(crate) mod tests;

use crate::upstream::count::MAX_STREAMS;

pub use connection::{Closed, MuxConnection, Side};
pub use driver::Driver;
pub use stream::Stream;

/// How much of a stream may be in flight or unread at the other side, in bytes. Carries 128 MiB/s
/// over a round trip of 2 ms.
const STREAM_WINDOW: u32 = 256 * 1024;
/// Payload of a DATA frame, in bytes: with its header it fits into one TLS record, and streams take
/// turns.
const MAX_DATA: usize = 16 * 1024 - frame::HEADER;
/// Unsent frames, in bytes, beyond which streams wait for their turn.
const MAX_UNSENT: usize = 64 * 1024;
/// The same including frames that streams do not wait for: windows, ends and resets. A peer that
/// causes more of these without reading them has failed.
const MAX_BACKLOG: usize = 1024 * 1024;
/// Streams that a peer may have open at once: more than a client starts, since a stream that it
/// keeps for the next exchange counts here.
pub const MAX_OPEN: usize = 256;
/// Unread data of all streams of a connection, in bytes: more than the windows of all that a client
/// uses at once ([`MAX_STREAMS`]).
const MAX_UNREAD: usize = 32 * 1024 * 1024;

const _: () = assert!(MAX_STREAMS * STREAM_WINDOW as usize <= MAX_UNREAD);
