//! All of HTTP/2 serving, between h2's own client and server, over real sockets upstream.

mod heads;
mod limits;
mod memory;
mod mirroring;
mod pooling;
mod replies;
mod retrying;
mod sharing;
mod streams;
