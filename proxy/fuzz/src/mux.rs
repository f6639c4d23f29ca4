//! Both ends of a multiplexed connection against a model: the bytes of each stream arrive whole and
//! in order, no more than a window of them is under way, and ends arrive behind the last byte.

use std::pin::Pin;
use std::task::Poll;

use arbitrary::Arbitrary;
use naru_proxy::upstream::mux::fuzzing::STREAM_WINDOW;
use naru_proxy::upstream::mux::{Driver, Side, Stream};
use tokio::io::AsyncWrite;

use crate::wire::{End, context, pattern, poll_read};

#[derive(Arbitrary, Debug)]
struct Input {
    /// Room of the connection, each way.
    room: u16,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Open,
    Write(Which, u16),
    /// More at once than the window, in pieces.
    Fill(Which),
    Read(Which, u16),
    Shut(Which),
    Drop(Which),
    /// Drives one end, or moves bytes to it.
    Drive(bool),
    Deliver(bool, u16),
    Ping(bool),
    /// Everything that is under way arrives.
    Settle,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Which {
    by_server: bool,
    stream: u8,
}

/// At most so many steps in one execution, and streams.
const MAX_STEPS: usize = 100;
const MAX_STREAMS: usize = 8;
/// More than a frame carries, in bytes.
const PIECE: usize = 20_000;
/// The least room of a connection, in bytes.
const MIN_ROOM: usize = 256;
const SERVER: usize = 1;

/// One direction of a stream, as the model has it.
#[derive(Debug, Default)]
struct Way {
    sent: usize,
    received: usize,
    shut: bool,
    ended: bool,
}

/// A stream: its ends at the client and at the server. `None`: not open there yet, or dropped.
struct Pair {
    ends: [Option<Stream>; 2],
    /// By the side that sends.
    ways: [Way; 2],
    /// One side has dropped it.
    dropped: bool,
}

struct Model {
    io: [End; 2],
    drivers: [Driver<End>; 2],
    pairs: Vec<Pair>,
    /// The streams in the order in which the server accepts them.
    order: Vec<usize>,
    accepted: usize,
}

impl Model {
    fn new(room: usize) -> Self {
        let io = [End::new(room), End::new(room)];
        Self {
            drivers: [
                Driver::new(Side::Client, io[0].clone()),
                Driver::new(Side::Server, io[1].clone()),
            ],
            io,
            pairs: Vec::new(),
            order: Vec::new(),
            accepted: 0,
        }
    }

    fn drive(&mut self, side: usize) {
        let mut opened = Vec::new();
        let polled = self.drivers[side].poll(&mut context(), &mut |stream| opened.push(stream));
        assert!(polled.is_pending(), "{polled:?}");
        for stream in opened {
            let pair = &mut self.pairs[self.order[self.accepted]];
            self.accepted += 1;
            pair.ends[SERVER] = Some(stream);
        }
    }

    /// Returns how many bytes arrive.
    fn deliver(&self, to: usize, count: usize) -> usize {
        self.io[1 - to].deliver(&self.io[to], count)
    }

    fn write(&mut self, side: usize, index: usize, length: usize) -> usize {
        let pair = &mut self.pairs[index];
        let Some(stream) = &mut pair.ends[side] else {
            return 0;
        };
        let way = &mut pair.ways[side];
        let bytes = pattern(index * 2 + side, way.sent, length);
        match Pin::new(stream).poll_write(&mut context(), &bytes) {
            Poll::Pending => 0,
            Poll::Ready(Ok(written)) => {
                assert!(!way.shut && written <= length);
                assert!(written > 0 || length == 0);
                way.sent += written;
                if side != SERVER && !self.order.contains(&index) {
                    self.order.push(index);
                }
                let under_way = way.sent - way.received;
                assert!(pair.dropped || under_way <= STREAM_WINDOW, "{under_way}");
                written
            }
            Poll::Ready(Err(error)) => {
                assert!(way.shut || pair.dropped, "{error}");
                0
            }
        }
    }

    /// Whether something was read.
    fn read(&mut self, side: usize, index: usize, room: usize) -> bool {
        let pair = &mut self.pairs[index];
        let Some(stream) = &mut pair.ends[side] else {
            return false;
        };
        let way = &mut pair.ways[1 - side];
        match poll_read(stream, room) {
            Poll::Pending => false,
            Poll::Ready(Ok(bytes)) if bytes.is_empty() => {
                // A drop after the end of both directions is an end in order.
                assert!(way.shut, "an end that was not sent");
                assert!(way.received == way.sent, "an end before the last byte");
                way.ended = true;
                false
            }
            Poll::Ready(Ok(bytes)) => {
                assert!(!way.ended);
                assert!(bytes == pattern(index * 2 + 1 - side, way.received, bytes.len()));
                way.received += bytes.len();
                assert!(way.received <= way.sent);
                true
            }
            Poll::Ready(Err(error)) => {
                assert!(pair.dropped, "{error}");
                false
            }
        }
    }

    fn shut(&mut self, side: usize, index: usize) {
        let pair = &mut self.pairs[index];
        let Some(stream) = &mut pair.ends[side] else {
            return;
        };
        let shut = Pin::new(stream).poll_shutdown(&mut context());
        assert!(matches!(shut, Poll::Ready(Ok(()))) || pair.dropped);
        // The end of a stream that was never opened stays with this side.
        pair.ways[side].shut = true;
    }

    fn settle(&mut self) {
        loop {
            let mut moved = 0;
            for side in [0, 1] {
                self.drive(side);
                moved += self.deliver(1 - side, usize::MAX);
                self.drive(1 - side);
            }
            if moved == 0 {
                return;
            }
        }
    }

    fn step(&mut self, step: &Step) {
        let count = self.pairs.len().max(1);
        let index = |which: &Which| usize::from(which.stream) % count;
        let side = |which: &Which| usize::from(which.by_server);
        match step {
            Step::Open if self.pairs.len() < MAX_STREAMS => {
                let client = self.drivers[0].connection.open_stream();
                assert!(client.is_some());
                self.pairs.push(Pair {
                    ends: [client, None],
                    ways: Default::default(),
                    dropped: false,
                });
            }
            _ if self.pairs.is_empty() => {}
            Step::Open => {}
            Step::Write(which, length) => {
                self.write(side(which), index(which), usize::from(*length));
            }
            Step::Fill(which) => {
                while self.write(side(which), index(which), PIECE) > 0 {
                    self.drive(side(which));
                    self.deliver(1 - side(which), usize::MAX);
                    self.drive(1 - side(which));
                }
            }
            Step::Read(which, room) => {
                self.read(side(which), index(which), usize::from(*room) + 1);
            }
            Step::Shut(which) => self.shut(side(which), index(which)),
            Step::Drop(which) => {
                let pair = &mut self.pairs[index(which)];
                pair.dropped |= pair.ends[side(which)].take().is_some();
            }
            Step::Drive(server) => self.drive(usize::from(*server)),
            Step::Deliver(server, count) => {
                self.deliver(usize::from(*server), (*count).into());
            }
            Step::Ping(server) => self.drivers[usize::from(*server)].connection.ping(),
            Step::Settle => self.settle(),
        }
    }

    /// Reads every stream to its end, after both sides have ended it.
    fn finish(&mut self) {
        for index in 0..self.pairs.len() {
            self.shut(0, index);
        }
        self.settle();
        for index in 0..self.pairs.len() {
            self.shut(SERVER, index);
        }
        let mut more = true;
        while more {
            self.settle();
            more = false;
            for index in 0..self.pairs.len() {
                for side in [0, 1] {
                    more |= self.read(side, index, STREAM_WINDOW);
                }
            }
        }
        for (index, pair) in self.pairs.iter().enumerate() {
            if pair.dropped || !self.order.contains(&index) {
                continue;
            }
            for way in &pair.ways {
                assert!(way.ended && way.received == way.sent, "{index}: {way:?}");
            }
        }
        self.pairs.clear();
        self.settle();
        for driver in &self.drivers {
            assert!(driver.connection.is_unused());
        }
    }
}

pub fn one(bytes: &[u8]) {
    let Some(input) = crate::input::input::<Input>(bytes) else {
        return;
    };
    let mut model = Model::new(usize::from(input.room) + MIN_ROOM);
    for step in input.steps.iter().take(MAX_STEPS) {
        model.step(step);
    }
    model.finish();
}
