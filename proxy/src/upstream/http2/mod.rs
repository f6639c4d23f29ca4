//! Connections that carry HTTP/2: the client's end, and the limits that both ends share.
//!
//! # Floors
//!
//! ```text
//! connection          a connection from its opening to its end
//! paced               bounds the bytes that one turn reads
//! ```

mod connection;
pub mod paced;

use std::time::Duration;

use super::count::MAX_STREAMS;

pub use connection::Http2Connection;

/// How much of a stream's body may be in flight to the proxy or unread by the other side, in bytes.
/// Carries 128 MiB/s over a round trip of 2 ms.
pub const STREAM_WINDOW: u32 = 256 * 1024;
/// The same while memory is short ([`crate::memory`]).
pub const SMALL_WINDOW: u32 = 16 * 1024;
/// The same for all streams of a connection. So large that stalled streams do not stop the others:
/// it takes more than 128 of them on a downstream connection, and is never reached on an upstream
/// one, where the window fits a full stream window for each possible stream ([`MAX_STREAMS`]), so
/// that a client that does not read its responses does not affect the others on the connection.
/// Memory is used only for data in flight.
pub const CONNECTION_WINDOW: u32 = 32 * 1024 * 1024;
/// Largest payload of a DATA frame that the proxy accepts, in bytes. Larger than the minimum, for
/// fewer frames of large bodies; small enough that streams take turns.
pub const MAX_FRAME: u32 = 32 * 1024;
/// How much h2 queues for one stream in addition to what is sent, in bytes.
pub const MAX_SEND_BUFFER: usize = 64 * 1024;
/// Streams reset by the proxy that h2 remembers, so that late frames for them are not an error.
pub const MAX_RESET_STREAMS: usize = 256;
pub const RESET_STREAM_MEMORY: Duration = Duration::from_secs(5);
/// How much h2 may count for small DATA frames in its buffers, if the connection is shared: up to
/// 255 bytes for each. A stream's task consumes them at once (`http2/inflow.rs`), so this is for
/// the frames of one read.
pub const SMALL_FRAMES: usize = 64 * 1024 * 1024;

const _: () = assert!(MAX_STREAMS * STREAM_WINDOW as usize <= CONNECTION_WINDOW as usize);
