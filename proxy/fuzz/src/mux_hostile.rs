//! Any bytes as the frames of a peer: headers keep their meaning, and a connection ends or goes on,
//! but never panics and never delivers more than was sent.

use std::pin::Pin;
use std::task::Poll;

use arbitrary::Arbitrary;
use bytes::BytesMut;
use naru_proxy::upstream::mux::fuzzing::{HEADER, Header, Kind, MAX_AMOUNT};
use naru_proxy::upstream::mux::{Driver, Side};
use tokio::io::AsyncWrite;

use crate::wire::{End, context, poll_read};

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    is_server: bool,
    /// Streams that a client has opened before.
    opened: u8,
    pieces: Vec<Piece<'a>>,
}

#[derive(Arbitrary, Debug)]
enum Piece<'a> {
    Bytes(&'a [u8]),
    /// A frame, of a stream with a low number.
    Frame(u8, u8, u32),
    Data(u8, u16),
    /// What this side does with one of its streams.
    Read(u8, u16),
    Write(u8, u16),
    Shut(u8),
    Drop(u8),
    Leave,
    End,
}

/// At most so many pieces in one execution.
const MAX_PIECES: usize = 64;
const KINDS: [Kind; 7] = [
    Kind::Data,
    Kind::End,
    Kind::Reset,
    Kind::Window,
    Kind::Leave,
    Kind::Ping,
    Kind::Pong,
];

fn frame(kind: Kind, stream: u8, amount: u32) -> BytesMut {
    let mut bytes = BytesMut::new();
    let header = Header {
        kind,
        amount,
        stream: u32::from(stream % 16),
    };
    header.write(&mut bytes);
    assert_eq!(Header::parse(&bytes), Ok(Some(header)));
    bytes
}

/// A header that is read is written as the same bytes.
fn check_header(bytes: &[u8]) {
    if let Ok(Some(header)) = Header::parse(bytes) {
        let mut again = BytesMut::new();
        header.write(&mut again);
        assert_eq!(again, bytes[..HEADER]);
    }
}

pub fn one(bytes: &[u8]) {
    let Some(input) = crate::input::input::<Input>(bytes) else {
        return;
    };
    let side = match input.is_server {
        true => Side::Server,
        false => Side::Client,
    };
    let io = End::new(64 * 1024);
    let mut driver = Driver::new(side, io.clone());
    let connection = driver.connection.clone();
    let mut streams = Vec::new();
    for _ in 0..input.opened % 4 {
        if let Some(mut stream) = connection.open_stream().filter(|_| !input.is_server) {
            let _ = Pin::new(&mut stream).poll_write(&mut context(), b"hello");
            streams.push(stream);
        }
    }
    let (mut sent, mut read) = (0, 0);
    for piece in input.pieces.iter().take(MAX_PIECES) {
        let count = streams.len().max(1);
        let own = |at: &u8| usize::from(*at) % count;
        let arrive = |bytes: &[u8]| io.0.borrow_mut().arrived.extend(bytes);
        match piece {
            Piece::Bytes(bytes) => {
                check_header(bytes);
                sent += bytes.len();
                arrive(bytes);
            }
            Piece::Frame(kind, stream, amount) => {
                let kind = KINDS[usize::from(*kind) % KINDS.len()];
                arrive(&frame(kind, *stream, amount & MAX_AMOUNT));
            }
            Piece::Data(stream, length) => {
                sent += usize::from(*length);
                arrive(&frame(Kind::Data, *stream, u32::from(*length)));
                arrive(&vec![1; usize::from(*length)]);
            }
            Piece::Read(at, room) => {
                if let Some(stream) = streams.get_mut(own(at)) {
                    let room = usize::from(*room) + 1;
                    if let Poll::Ready(Ok(bytes)) = poll_read(stream, room) {
                        read += bytes.len();
                    }
                }
            }
            Piece::Write(at, length) => {
                if let Some(stream) = streams.get_mut(own(at)) {
                    let bytes = vec![2; usize::from(*length)];
                    let _ = Pin::new(stream).poll_write(&mut context(), &bytes);
                }
            }
            Piece::Shut(at) => {
                if let Some(stream) = streams.get_mut(own(at)) {
                    let _ = Pin::new(stream).poll_shutdown(&mut context());
                }
            }
            Piece::Drop(at) => {
                if own(at) < streams.len() {
                    streams.swap_remove(own(at));
                }
            }
            Piece::Leave => connection.leave(),
            Piece::End => io.0.borrow_mut().ended = true,
        }
        io.0.borrow_mut().sent.clear();
        let polled = driver.poll(&mut context(), &mut |stream| streams.push(stream));
        // What a piece carries beyond its own length is read as frames too.
        assert!(read <= sent + MAX_PIECES * HEADER);
        if polled.is_ready() {
            assert!(connection.is_finished());
            break;
        }
    }
    // After the end every stream ends, at the latest behind what it has received.
    for mut stream in streams.drain(..) {
        while let Poll::Ready(Ok(bytes)) = poll_read(&mut stream, 64 * 1024) {
            if bytes.is_empty() {
                break;
            }
        }
    }
}
