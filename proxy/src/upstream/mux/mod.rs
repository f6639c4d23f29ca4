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
//! # Why not h2
//!
//! h2 flushes after each DATA frame of 256 bytes or more, so the pieces of many exchanges hardly
//! share a write; and a stream for each request has a head to encode and decode. In place of mux
//! (user and system CPU time of both ends for a response of 1 KiB, see `tests/bench/README.md`):
//!
//! * A stream of h2 for each request takes 3.5 times as much with 1 exchange at a time, and 9 times
//!   as much with 64.
//! * A stream of h2 for each client's connection, whose bytes it carries, takes 1.5 times as much
//!   with 1, and 6 times as much with 64.
//! * A TLS connection for each client's takes 7 % less with 1, and 5 times as much with 64.
//!
//! Large bodies are the price, since streams copy them: for responses of 1 MiB h2 takes 15 % less,
//! and separate TLS connections 42 % less.
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

/// Entry points for the fuzz targets: only the frames. A release has no use for them.
#[cfg(debug_assertions)]
pub mod fuzzing {
    pub use super::frame::{HEADER, Header, Kind, MAX_AMOUNT};
    /// The window of a stream, in bytes.
    pub const STREAM_WINDOW: usize = super::STREAM_WINDOW as usize;
}

use crate::upstream::count::MAX_STREAMS;

pub use connection::{Closed, MuxConnection, Side};
pub use driver::{Driver, Stopped};
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
