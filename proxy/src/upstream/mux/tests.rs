use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use proptest::prelude::*;
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex,
};
use tokio::task::{JoinHandle, spawn_local};

use super::connection::{Closed, Side};
use super::driver::Driver;
use super::frame::{HEADER, Header, Kind};
use super::*;
use crate::identity::testing::spiffe_id;
use crate::inbound::streams;
use crate::session::Session;
use crate::testing::mesh::{ANYWHERE, CLIENT, Setup, run};

/// Buffer that the operating system would have between both ends, in bytes.
const PIPE: usize = 64 * 1024;

/// One end with its driver running.
pub(crate) struct End {
    pub connection: Rc<MuxConnection>,
    accepted: Rc<RefCell<Vec<Stream>>>,
    over: JoinHandle<Closed>,
}

/// The client's end of a connection.
pub(crate) fn client(io: impl AsyncRead + AsyncWrite + Unpin + 'static) -> End {
    End::new(Side::Client, io)
}

impl End {
    fn new(side: Side, io: impl AsyncRead + AsyncWrite + Unpin + 'static) -> Self {
        let mut driver = Driver::new(side, io);
        let connection = driver.connection.clone();
        let accepted = Rc::new(RefCell::new(Vec::new()));
        let streams = accepted.clone();
        let over = spawn_local(async move {
            std::future::poll_fn(|cx| driver.poll(cx, &mut |s| streams.borrow_mut().push(s))).await
        });
        Self {
            connection,
            accepted,
            over,
        }
    }

    /// The oldest stream opened by the peer that has not been returned yet.
    async fn next(&self) -> Stream {
        loop {
            if !self.accepted.borrow().is_empty() {
                return self.accepted.borrow_mut().remove(0);
            }
            tokio::task::yield_now().await;
        }
    }
}

fn ends() -> (End, End) {
    let (client_io, server_io) = duplex(PIPE);
    (client(client_io), End::new(Side::Server, server_io))
}

/// A client's end, and the raw bytes of the other one.
fn server_and_bytes() -> (End, DuplexStream) {
    let (bytes, server_io) = duplex(PIPE);
    (End::new(Side::Server, server_io), bytes)
}

fn frame(kind: Kind, stream: u32, amount: u32, payload: &[u8]) -> BytesMut {
    let mut out = BytesMut::new();
    let header = Header {
        kind,
        amount,
        stream,
    };
    header.write(&mut out);
    out.extend_from_slice(payload);
    out
}

fn data(stream: u32, payload: &[u8]) -> BytesMut {
    frame(Kind::Data, stream, payload.len() as u32, payload)
}

async fn read(stream: &mut (impl AsyncRead + Unpin), length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await.unwrap();
    bytes
}

/// Returns when no more frames move.
async fn settled() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[test]
fn streams_are_carried_concurrently_and_one_after_the_other() {
    run(async {
        let (client, server) = ends();
        let mut one = client.connection.open_stream().unwrap();
        let mut two = client.connection.open_stream().unwrap();
        two.write_all(b"two").await.unwrap();
        one.write_all(b"one").await.unwrap();
        let (mut served_two, mut served_one) = (server.next().await, server.next().await);
        assert_eq!(read(&mut served_two, 3).await, b"two");
        assert_eq!(read(&mut served_one, 3).await, b"one");
        served_one.write_all(b"first").await.unwrap();
        assert_eq!(read(&mut one, 5).await, b"first");
        // The same stream for a second exchange.
        one.write_all(b"again").await.unwrap();
        assert_eq!(read(&mut served_one, 5).await, b"again");
    });
}

#[test]
fn each_direction_ends_separately() {
    run(async {
        let (client, server) = ends();
        let mut asking = client.connection.open_stream().unwrap();
        asking.write_all(b"question").await.unwrap();
        asking.shutdown().await.unwrap();
        let mut answering = server.next().await;
        let mut asked = Vec::new();
        answering.read_to_end(&mut asked).await.unwrap();
        assert_eq!(asked, b"question");
        answering.write_all(b"answer").await.unwrap();
        answering.shutdown().await.unwrap();
        let mut answer = Vec::new();
        asking.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"answer");
        let error = answering.write_all(b"more").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        settled().await;
        assert!(client.connection.is_unused() && server.connection.is_unused());
    });
}

#[test]
fn a_dropped_stream_is_reset_and_the_others_go_on() {
    run(async {
        let (client, server) = ends();
        let mut one = client.connection.open_stream().unwrap();
        let mut two = client.connection.open_stream().unwrap();
        one.write_all(b"one").await.unwrap();
        two.write_all(b"two").await.unwrap();
        let (mut served_one, mut served_two) = (server.next().await, server.next().await);
        drop(one);
        assert_eq!(read(&mut served_one, 3).await, b"one");
        let error = served_one.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        drop(served_two);
        let error = two.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(two.write_all(b"more").await.is_err());
        let mut three = client.connection.open_stream().unwrap();
        three.write_all(b"three").await.unwrap();
        served_two = server.next().await;
        assert_eq!(read(&mut served_two, 5).await, b"three");
    });
}

#[test]
fn data_complete_before_a_reset_is_complete() {
    run(async {
        let (client, server) = ends();
        let mut asking = client.connection.open_stream().unwrap();
        asking.write_all(b"?").await.unwrap();
        let mut answering = server.next().await;
        answering.write_all(b"answer").await.unwrap();
        answering.shutdown().await.unwrap();
        drop(answering);
        let mut answer = Vec::new();
        asking.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"answer");
    });
}

#[test]
fn an_unread_stream_stops_its_own_writer_only() {
    run(async {
        let (client, server) = ends();
        let mut stuck = client.connection.open_stream().unwrap();
        let length = 3 * STREAM_WINDOW as usize;
        let writing = spawn_local(async move {
            stuck.write_all(&vec![7; length]).await.unwrap();
            stuck
        });
        let mut slow = server.next().await;
        settled().await;
        assert!(!writing.is_finished());
        assert!(client.connection.state.borrow().unsent.is_empty());
        let mut quick = client.connection.open_stream().unwrap();
        quick.write_all(b"quick").await.unwrap();
        assert_eq!(read(&mut server.next().await, 5).await, b"quick");
        assert_eq!(read(&mut slow, length).await, vec![7; length]);
        writing.await.unwrap();
    });
}

#[test]
fn a_blocked_connection_bounds_unsent_frames() {
    run(async {
        let (bytes, server_io) = duplex(1);
        let server = End::new(Side::Server, server_io);
        let (mut listening, mut speaking) = tokio::io::split(bytes);
        let count = 40;
        let opening = async {
            for stream in 1..=count {
                speaking.write_all(&data(stream, b"?")).await.unwrap();
            }
        };
        opening.await;
        let mut writers = Vec::new();
        for _ in 0..count {
            let mut stream = server.next().await;
            writers.push(spawn_local(async move {
                stream.write_all(&vec![1; MAX_DATA]).await.unwrap();
                stream.shutdown().await.unwrap();
            }));
        }
        settled().await;
        let unsent = server.connection.state.borrow().unsent.len();
        assert!(unsent <= MAX_UNSENT + MAX_DATA + HEADER, "{unsent}");
        let mut all = vec![0; count as usize * (HEADER + MAX_DATA + HEADER)];
        listening.read_exact(&mut all).await.unwrap();
        for writer in writers {
            writer.await.unwrap();
        }
    });
}

#[test]
fn a_peer_that_violates_the_protocol_is_disconnected() {
    let large = vec![0; MAX_DATA + 1];
    let full = vec![0; MAX_DATA];
    let mut beyond = BytesMut::new();
    for _ in 0..=STREAM_WINDOW as usize / MAX_DATA {
        beyond.extend_from_slice(&data(1, &full));
    }
    let opened = data(1, b"x");
    for said in [
        frame(Kind::End, 1, 0, b""),
        frame(Kind::Window, 9, 1, b""),
        frame(Kind::Reset, 9, 0, b""),
        data(1, &large),
        beyond,
        [&opened[..], &frame(Kind::Window, 1, 1, b"")].concat()[..].into(),
        [&opened[..], &frame(Kind::End, 1, 0, b""), &data(1, b"y")].concat()[..].into(),
        BytesMut::from(&[9, 0, 0, 0, 0, 0, 0, 1][..]),
    ] {
        run(async move {
            let (server, mut bytes) = server_and_bytes();
            // The end is noticed before all of it is written.
            let _ = bytes.write_all(&said).await;
            let over = server.over.await.unwrap();
            assert_eq!(
                over,
                Closed::Broken(io::ErrorKind::InvalidData),
                "{:?}",
                &said[..HEADER]
            );
        });
    }
    run(async {
        let (mut bytes, client_io) = duplex(PIPE);
        let client = client(client_io);
        bytes.write_all(&data(1, b"unasked")).await.unwrap();
        assert_eq!(
            client.over.await.unwrap(),
            Closed::Broken(io::ErrorKind::InvalidData)
        );
    });
}

#[test]
fn late_frames_of_an_ended_stream_are_ignored() {
    run(async {
        let (server, mut bytes) = server_and_bytes();
        bytes.write_all(&data(5, b"a")).await.unwrap();
        drop(server.next().await);
        for late in [
            data(5, b"b"),
            frame(Kind::Window, 5, 1, b""),
            frame(Kind::End, 5, 0, b""),
            data(3, b"c"),
        ] {
            bytes.write_all(&late).await.unwrap();
        }
        bytes.write_all(&data(6, b"next")).await.unwrap();
        assert_eq!(read(&mut server.next().await, 4).await, b"next");
        assert!(!server.over.is_finished());
    });
}

#[test]
fn more_streams_than_may_be_open_are_refused() {
    run(async {
        let (server, mut bytes) = server_and_bytes();
        let count = MAX_OPEN as u32;
        for stream in 1..=count + 1 {
            bytes.write_all(&data(stream, b"x")).await.unwrap();
        }
        let mut refused = [0; HEADER];
        bytes.read_exact(&mut refused).await.unwrap();
        assert_eq!(refused[..], frame(Kind::End, count + 1, 0, b"")[..]);
        assert_eq!(server.accepted.borrow().len(), MAX_OPEN);
    });
}

#[test]
fn dropped_writers_leave_no_waiting_entry_behind() {
    run(async {
        let (bytes, server_io) = duplex(1);
        let server = End::new(Side::Server, server_io);
        let (_listening, mut speaking) = tokio::io::split(bytes);
        for stream in 1..=20 {
            speaking.write_all(&data(stream, b"?")).await.unwrap();
            let mut served = server.next().await;
            let writing = spawn_local(async move { served.write_all(&vec![1; MAX_DATA]).await });
            settled().await;
            speaking
                .write_all(&frame(Kind::Reset, stream, 0, b""))
                .await
                .unwrap();
            settled().await;
            assert!(writing.is_finished());
        }
        let state = server.connection.state.borrow();
        assert!(state.is_full() && !state.has_waiting_writers());
    });
}

#[test]
fn streams_that_are_reset_at_once_do_not_affect_the_others() {
    run(async {
        let (server, mut bytes) = server_and_bytes();
        bytes.write_all(&data(1, b"slow")).await.unwrap();
        let mut slow = server.next().await;
        for stream in 2..=5_000 {
            let both = [&data(stream, b"x")[..], &frame(Kind::Reset, stream, 0, b"")].concat();
            bytes.write_all(&both).await.unwrap();
            drop(server.next().await);
        }
        assert_eq!(read(&mut slow, 4).await, b"slow");
        assert!(!server.over.is_finished());
    });
}

#[test]
fn a_refused_stream_was_not_processed() {
    run(async {
        let (client, server) = ends();
        let mut stream = client.connection.open_stream().unwrap();
        stream.write_all(b"?").await.unwrap();
        server.next().await.refuse();
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
        drop(stream);
        settled().await;
        assert!(client.connection.is_unused() && server.connection.is_unused());
        assert!(!client.over.is_finished() && !server.over.is_finished());
    });
}

#[test]
fn a_leaving_side_gets_no_new_streams_and_keeps_open_ones() {
    run(async {
        let (client, server) = ends();
        let mut stream = client.connection.open_stream().unwrap();
        stream.write_all(b"?").await.unwrap();
        let mut served = server.next().await;
        server.connection.leave();
        settled().await;
        assert!(client.connection.open_stream().is_none());
        served.write_all(b"!").await.unwrap();
        assert_eq!(read(&mut stream, 2 - 1).await, b"!");
        assert!(!server.connection.is_finished());
        drop((stream, served));
        settled().await;
        assert!(server.connection.is_finished() && client.connection.is_finished());
    });
}

#[test]
fn a_ping_is_answered() {
    run(async {
        let (server, mut bytes) = server_and_bytes();
        bytes
            .write_all(&frame(Kind::Ping, 0, 0, b""))
            .await
            .unwrap();
        let answer = read(&mut bytes, HEADER).await;
        assert_eq!(answer, frame(Kind::Pong, 0, 0, b""));
        assert!(!server.over.is_finished());
    });
}

#[test]
fn overdue_certificates_reset_the_exchanges_in_progress() {
    run(async {
        // An app that reads requests and never answers.
        let app = crate::testing::sockets::listener().await;
        let mut setup = Setup::new(&[app.local_addr().expect("an address")]);
        setup.limits.drain_timeout = Duration::from_millis(100);
        let mesh = setup.start();
        let session = |left: Duration| {
            let (worker, cell) = (mesh.worker.clone(), mesh.cell.clone());
            Session::peer(worker, cell, spiffe_id(CLIENT), ANYWHERE).expiring(left)
        };
        for (left, uses, in_order) in [(50, false, true), (2_000, true, false)] {
            let (ours, theirs) = duplex(PIPE);
            let shut = Rc::<Cell<bool>>::default();
            let theirs = Watched(theirs, shut.clone());
            spawn_local(streams::serve(session(Duration::from_millis(left)), theirs));
            let client = client(ours);
            let stream = client.connection.open_stream().filter(|_| uses);
            if let Some(mut stream) = stream {
                let request = b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 0\r\n\r\n";
                stream.write_all(request).await.expect("written");
                let _ended = stream.read_to_end(&mut Vec::new()).await;
            }
            client.over.await.expect("a task");
            assert_eq!(shut.get(), in_order, "{left}");
        }
    });
}

/// Records whether it was shut down: over TLS, that the end was in order.
struct Watched(DuplexStream, Rc<Cell<bool>>);

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.1.set(true);
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[test]
fn an_orderly_end_is_distinguished_from_a_reset() {
    run(async {
        let (mut bytes, client_io) = duplex(PIPE);
        let client = client(client_io);
        let mut stream = client.connection.open_stream().unwrap();
        stream.write_all(b"?").await.unwrap();
        bytes.shutdown().await.unwrap();
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
        assert!(stream.write_all(b"more").await.is_err());
        assert!(client.connection.open_stream().is_none());
        assert_eq!(client.over.await.unwrap(), Closed::InOrder);
    });
    run(async {
        let (mut bytes, client_io) = duplex(PIPE);
        let client = client(client_io);
        let mut stream = client.connection.open_stream().unwrap();
        stream.write_all(b"?").await.unwrap();
        // Half of a frame.
        bytes
            .write_all(&data(1, b"answer")[..HEADER + 2])
            .await
            .unwrap();
        bytes.shutdown().await.unwrap();
        let error = stream.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    });
}

proptest! {
    #[test]
    fn a_header_is_read_as_it_was_written(kind in 0usize..7, amount in 0u32..1 << 24, stream: u32) {
        let kind = [Kind::Data, Kind::End, Kind::Reset, Kind::Window, Kind::Leave,
            Kind::Ping,
            Kind::Pong,
        ][kind];
        let header = Header { kind, amount, stream };
        let mut out = BytesMut::new();
        header.write(&mut out);
        prop_assert_eq!(out.len(), HEADER);
        prop_assert_eq!(Header::parse(&out), Ok(Some(header)));
        prop_assert_eq!(Header::parse(&out[..HEADER - 1]), Ok(None));
    }

    /// Wherever the network cuts them, and whatever the streams send at the same time.
    #[test]
    fn bytes_arrive_whole_and_in_order(
        lengths in proptest::collection::vec(0usize..40_000, 1..5), pipe in 1usize..5_000,
    ) {
        run(async move {
            let (client_io, server_io) = duplex(pipe);
            let (client, server) = (client(client_io), End::new(Side::Server, server_io));
            let mut writers = Vec::new();
            for (number, length) in lengths.iter().enumerate() {
                let mut stream = client.connection.open_stream().unwrap();
                let bytes: Vec<u8> = (0..*length).map(|at| (at * (number + 3)) as u8).collect();
                writers.push(spawn_local(async move {
                    // The first byte opens the stream and identifies it.
                    stream.write_all(&[number as u8]).await.unwrap();
                    stream.write_all(&bytes).await.unwrap();
                    stream.shutdown().await.unwrap();
                    let mut echoed = Vec::new();
                    stream.read_to_end(&mut echoed).await.unwrap();
                    assert_eq!(echoed[1..], bytes);
                }));
            }
            for _ in &lengths {
                let mut stream = server.next().await;
                spawn_local(async move {
                    let mut all = Vec::new();
                    stream.read_to_end(&mut all).await.unwrap();
                    stream.write_all(&all).await.unwrap();
                    stream.shutdown().await.unwrap();
                });
            }
            for writer in writers {
                writer.await.unwrap();
            }
        });
    }
}
