//! The proxy's TLS stream against rustls' own: the bytes of each side arrive at the other one whole
//! and in order, however they are cut, with key updates between them. Where a bit is changed on the
//! way, what arrives stays a prefix, and the end is never taken for an orderly one.

use std::io;
use std::pin::Pin;
use std::task::Poll;

use arbitrary::Arbitrary;
use naru_proxy::tls::Stream;
use tokio::io::AsyncWrite;

use crate::handshake::{Peer, SUITES, Setup};
use crate::wire::{End, context, pattern, poll_read};

#[derive(Arbitrary, Debug)]
struct Input {
    ours_is_server: bool,
    suite: u8,
    tickets: u8,
    steps: Vec<Step>,
}

/// `true`: of rustls' end, or to it.
#[derive(Arbitrary, Debug)]
enum Step {
    Write(bool, u16),
    Flush,
    Read(bool, u16),
    Shut(bool),
    Deliver(bool, u16),
    /// rustls changes its key, and asks for a new one of the proxy.
    UpdateKey,
    /// Changes a bit of what is under way.
    Change(bool, u16, u8),
    Settle,
}

/// At most so many steps in one execution, and tickets before them: the proxy bounds how many
/// records without data may follow each other.
const MAX_STEPS: usize = 28;
const MAX_TICKETS: usize = 4;
/// More turns than what is under way needs after the last step.
const MAX_TURNS: usize = 1000;
const OURS: usize = 0;
const THEIRS: usize = 1;

/// One direction.
#[derive(Debug, Default)]
struct Way {
    sent: usize,
    received: usize,
    shut: bool,
    /// Its reader has seen an orderly end.
    ended: bool,
    failed: bool,
}

struct Model {
    ours: Stream<End>,
    peer: Peer,
    /// By the side that sends.
    ways: [Way; 2],
    changed: bool,
}

impl Model {
    fn ends(&self) -> [End; 2] {
        [self.ours.get_ref().clone(), self.peer.io.clone()]
    }

    fn write(&mut self, side: usize, length: usize) {
        let way = &mut self.ways[side];
        let bytes = pattern(side, way.sent, length);
        // rustls asserts that its caller asks for nothing more after a failure.
        if way.shut || side == THEIRS && self.peer.failed {
            return;
        }
        if side == THEIRS {
            way.sent += self.peer.write(&bytes);
            return self.peer.turn();
        }
        match Pin::new(&mut self.ours).poll_write(&mut context(), &bytes) {
            Poll::Pending => {}
            Poll::Ready(Ok(written)) => {
                assert!(written <= length && (written > 0 || length == 0));
                way.sent += written;
            }
            Poll::Ready(Err(error)) => assert!(self.changed, "{error}"),
        }
    }

    fn flush(&mut self) {
        let flushed = Pin::new(&mut self.ours).poll_flush(&mut context());
        assert!(!matches!(flushed, Poll::Ready(Err(_))), "{flushed:?}");
    }

    /// Whether something was read.
    fn read(&mut self, side: usize, room: usize) -> bool {
        let read: Poll<io::Result<Vec<u8>>> = match side {
            OURS => poll_read(&mut self.ours, room),
            _ => self.peer.read(room),
        };
        let way = &mut self.ways[1 - side];
        match read {
            Poll::Pending => false,
            Poll::Ready(Ok(bytes)) if bytes.is_empty() => {
                assert!(way.shut, "an end that was not sent");
                assert_eq!(way.received, way.sent, "an end before the last byte");
                way.ended = true;
                false
            }
            Poll::Ready(Ok(bytes)) => {
                assert!(!way.ended && way.received + bytes.len() <= way.sent);
                assert!(bytes == pattern(1 - side, way.received, bytes.len()));
                way.received += bytes.len();
                true
            }
            Poll::Ready(Err(error)) => {
                assert!(self.changed, "{error}");
                way.failed = true;
                false
            }
        }
    }

    fn shut(&mut self, side: usize) {
        let was_shut = std::mem::replace(&mut self.ways[side].shut, true);
        if side == OURS {
            let shut = Pin::new(&mut self.ours).poll_shutdown(&mut context());
            assert!(!matches!(shut, Poll::Ready(Err(_))), "{shut:?}");
        } else if !was_shut && !self.changed {
            self.peer.connection.send_close_notify();
            self.peer.turn();
        }
    }

    fn deliver(&mut self, to: usize, count: usize) {
        let ends = self.ends();
        ends[1 - to].deliver(&ends[to], count);
        self.peer.turn();
    }

    fn change(&mut self, to: usize, at: usize, bit: u8) {
        // rustls asserts that it sends no alert behind its close_notify, and a changed record would
        // make it send one.
        if to == THEIRS && self.ways[THEIRS].shut {
            return;
        }
        let ends = self.ends();
        let sent = &mut ends[1 - to].0.borrow_mut().sent;
        if !sent.is_empty() {
            let at = at % sent.len();
            sent[at] ^= 1 << (bit % 8);
            self.changed = true;
        }
    }

    fn settle(&mut self) {
        for side in [OURS, THEIRS] {
            self.flush();
            self.deliver(1 - side, usize::MAX);
        }
    }

    fn step(&mut self, step: &Step) {
        let side = |theirs: &bool| usize::from(*theirs);
        match step {
            Step::Write(theirs, length) => self.write(side(theirs), usize::from(*length)),
            Step::Flush => self.flush(),
            Step::Read(theirs, room) => {
                self.read(side(theirs), usize::from(*room) + 1);
            }
            Step::Shut(theirs) => self.shut(side(theirs)),
            Step::Deliver(theirs, count) => self.deliver(side(theirs), usize::from(*count)),
            Step::UpdateKey if self.ways[THEIRS].shut || self.peer.failed => {}
            Step::UpdateKey => {
                let updated = self.peer.connection.refresh_traffic_keys();
                assert!(updated.is_ok() || self.changed);
                self.peer.turn();
            }
            Step::Change(theirs, at, bit) => self.change(side(theirs), usize::from(*at), *bit),
            Step::Settle => self.settle(),
        }
    }

    /// Ends both directions, and reads to the end.
    fn finish(&mut self) {
        for _ in 0..MAX_TURNS {
            self.shut(OURS);
            self.shut(THEIRS);
            self.settle();
            let read = [self.read(OURS, 1 << 16), self.read(THEIRS, 1 << 16)];
            if !read.contains(&true) && self.ways.iter().all(|way| way.ended || way.failed) {
                return;
            }
            // Behind a changed length the proxy waits for the rest of the record.
            if !self.peer.connection.wants_write() {
                self.peer.io.0.borrow_mut().shut = true;
            }
        }
        panic!("a connection that does not end: {:?}", self.ways);
    }
}

pub fn one(bytes: &[u8]) {
    let Some(input) = crate::input::input::<Input>(bytes) else {
        return;
    };
    let setup = Setup {
        suite: usize::from(input.suite) % SUITES.len(),
        tickets: usize::from(input.tickets) % (MAX_TICKETS + 1),
    };
    let (ours, peer) = setup.shake_hands(input.ours_is_server);
    let mut model = Model {
        ours,
        peer,
        ways: Default::default(),
        changed: false,
    };
    for step in input.steps.iter().take(MAX_STEPS) {
        model.step(step);
    }
    model.finish();
}
