//! Connections that carry HTTP/2: the client's end, and the bounds that both ends have.
//!
//! # Floors
//!
//! ```text
//! connection          opened, kept alive, aged and ended
//! paced               read a bounded number of bytes a turn
//! ```

mod connection;
pub mod paced;

use std::time::Duration;

use super::count::MAX_STREAMS;

pub use connection::Connection;

/// How much of a stream's body may be under way to us and not taken by the other side yet, in
/// bytes. Carries 128 MiB/s over a round trip of 2 ms.
pub const STREAM_WINDOW: u32 = 256 * 1024;
/// The same while memory is short ([`crate::memory`]).
pub const SMALL_WINDOW: u32 = 16 * 1024;
/// The same for all streams of a connection. So large that streams at a standstill do not stop the
/// others: it takes more than 128 of them on a downstream connection, and is never reached on an
/// upstream one: as many full stream windows fit into it as there may be streams ([`MAX_STREAMS`]),
/// so that one client that does not read its responses takes nothing from the others who share the
/// connection. Memory is used only for what is under way.
pub const CONNECTION_WINDOW: u32 = 32 * 1024 * 1024;
/// Payload of a DATA frame that we take, in bytes. Larger than the least allowed, for fewer frames
/// of large bodies; small enough that streams take turns.
pub const MAX_FRAME: u32 = 32 * 1024;
/// What h2 queues for one stream beyond what is sent, in bytes.
pub const MAX_SEND_BUFFER: usize = 64 * 1024;
/// Streams that we have reset and still remember, so that late frames for them are no error.
pub const MAX_RESET_STREAMS: usize = 256;
pub const RESET_STREAM_MEMORY: Duration = Duration::from_secs(5);
/// What h2 may count for small DATA frames that lie in it, where the connection is shared: up to
/// 255 bytes for each. A stream's task takes them out at once (`http2/inflow.rs`), so this is for
/// what comes in one breath.
pub const SMALL_FRAMES: usize = 64 * 1024 * 1024;

const _: () = assert!(MAX_STREAMS * STREAM_WINDOW as usize <= CONNECTION_WINDOW as usize);
