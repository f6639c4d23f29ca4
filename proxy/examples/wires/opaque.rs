//! An app's connection, and what passes its bytes on to the wire.
//!
//! The app is at the other end of a pipe, at either side; in a sidecar it would be a socket.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;

use bytes::Buf;
use naru_proxy::memory::Budget;
use naru_proxy::opaque::copy::copy;
use naru_proxy::opaque::frame::{HEADER, Kind};
use naru_proxy::opaque::framed::Framed;
use naru_proxy::wire::buffered::Buffered;
use tokio::io::duplex;
use tokio::task::spawn_local;

use crate::carriers::answer;
use crate::lanes::Lane;
use crate::rows::Row;

/// Bytes that wait in a pipe at most.
const PIPE: usize = 128 * 1024;
/// More than is ever charged.
const MEMORY: usize = 256 * 1024 * 1024;

/// Connections to the server that carry no app's connection.
pub type Pool = Rc<RefCell<Vec<Buffered<Lane>>>>;

/// An app's connection whose bytes are copied to `wire`.
pub fn copied(wire: Lane) -> Lane {
    let (app, sidecar) = duplex(PIPE);
    spawn_local(async move {
        let (mut app, mut wire) = (Buffered::new(sidecar), Buffered::new(wire));
        copy(&mut app, &mut wire, None, &Budget::new(MEMORY)).await
    });
    Box::pin(app)
}

/// An app's connection that is carried to `peer` in frames. Afterwards `peer` is in the pool.
pub fn framed(mut peer: Buffered<Lane>, reused: bool, pool: &Pool) -> Lane {
    let (app, sidecar) = duplex(PIPE);
    let pool = pool.clone();
    spawn_local(async move {
        let (mut app, mut framed) = (Buffered::new(sidecar), Framed::opening(reused));
        if poll_fn(|cx| framed.poll(cx, &mut app, &mut peer))
            .await
            .is_ok()
        {
            pool.borrow_mut().push(peer);
        }
    });
    Box::pin(app)
}

/// The server's end of [`framed`].
pub async fn serve_framed(row: &'static Row, stream: Lane) {
    let mut peer = Buffered::new(stream);
    loop {
        while peer.read.len() < HEADER {
            if !matches!(poll_fn(|cx| peer.poll_fill(cx)).await, Ok(1..)) {
                return;
            }
        }
        assert_eq!(peer.read[..HEADER], Kind::Open.header());
        peer.read.advance(HEADER);
        let (app, sidecar) = duplex(PIPE);
        spawn_local(answer(row, Box::pin(app)));
        let (mut app, mut framed) = (Buffered::new(sidecar), Framed::opened());
        if poll_fn(|cx| framed.poll(cx, &mut app, &mut peer))
            .await
            .is_err()
        {
            return;
        }
        peer.shrink();
    }
}
