//! The state that the streams of a connection share with its driver.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::task::{Context, Waker};

use bytes::BytesMut;
use foldhash::fast::RandomState;

use super::frame::{Header, Kind};
use super::half::{Half, Violation};
use super::{MAX_BACKLOG, MAX_OPEN, MAX_UNREAD, MAX_UNSENT};
use crate::upstream::count::Streams;

/// Which side of the connection this is: only the client opens streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

/// One connection, as its streams see it.
#[derive(Debug)]
pub struct MuxConnection {
    pub(super) side: Side,
    pub(super) state: RefCell<State>,
    /// The peer or this side accepts no new streams.
    leaving: Cell<bool>,
    /// Exchanges in progress.
    pub exchanges: Streams,
}

#[derive(Debug)]
pub(super) struct State {
    /// Frames that wait to be written.
    pub unsent: BytesMut,
    /// Streams that are still open in at least one direction, by ID. IDs ascend: a cheap hash
    /// suffices.
    streams: HashMap<u32, Rc<RefCell<Half>>, RandomState>,
    /// The stream that was opened last.
    last: u32,
    /// Streams that wait for `unsent` to drain, each once.
    waiting_writers: Vec<Rc<RefCell<Half>>>,
    /// Data received for all streams and not read yet, in bytes.
    unread: usize,
    /// Waker of the driver, which writes.
    driver: Option<Waker>,
    /// How the connection ended.
    over: Option<Closed>,
}

/// The number of a stream that the peer has opened, and its half.
type Opened = (u32, Rc<RefCell<Half>>);

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    InOrder,
    Broken(io::ErrorKind),
}

impl MuxConnection {
    pub(super) fn new(side: Side) -> Rc<Self> {
        Rc::new(Self {
            side,
            state: RefCell::new(State {
                unsent: BytesMut::new(),
                streams: HashMap::default(),
                last: 0,
                waiting_writers: Vec::new(),
                unread: 0,
                driver: None,
                over: None,
            }),
            leaving: Cell::new(false),
            exchanges: Streams::default(),
        })
    }

    /// No new streams.
    pub fn leave(&self) {
        if self.leaving.replace(true) {
            return;
        }
        let mut state = self.state.borrow_mut();
        match self.side {
            Side::Server => state.send(Kind::Leave, 0, 0),
            Side::Client => state.wake_driver(),
        }
    }

    pub fn is_leaving(&self) -> bool {
        self.leaving.get()
    }

    /// Sends a ping.
    pub fn ping(&self) {
        self.state.borrow_mut().send(Kind::Ping, 0, 0);
    }

    /// Whether a stream has ever been opened.
    pub fn was_used(&self) -> bool {
        self.state.borrow().last > 0
    }

    /// Whether another stream may be opened.
    pub(super) fn accepts_streams(&self) -> bool {
        !self.is_leaving() && self.state.borrow().streams.len() < MAX_OPEN
    }

    /// Whether no stream is open.
    pub fn is_unused(&self) -> bool {
        self.state.borrow().streams.is_empty()
    }

    /// Processes a frame of the peer. Returns the number and half of a stream that it has opened.
    pub(super) fn receive(
        &self,
        header: Header,
        payload: &[u8],
    ) -> Result<Option<Opened>, Violation> {
        let mut state = self.state.borrow_mut();
        let id = header.stream;
        match header.kind {
            Kind::Leave => {
                self.leaving.set(true);
                return Ok(None);
            }
            Kind::Ping => {
                state.send(Kind::Pong, 0, 0);
                return Ok(None);
            }
            // It only shows that the peer is alive.
            Kind::Pong => return Ok(None),
            Kind::Data | Kind::End | Kind::Reset | Kind::Window => {}
        }
        let known = state.streams.get(&id).cloned();
        let Some(half) = known else {
            // Late frames of streams that have ended are ignored.
            if id <= state.last {
                return Ok(None);
            }
            if self.side == Side::Client || header.kind != Kind::Data {
                return Err(Violation::Stream);
            }
            state.last = id;
            if state.streams.len() >= MAX_OPEN {
                // An end without a response: the stream was refused.
                state.send(Kind::End, id, 0);
                return Ok(None);
            }
            let half = Rc::new(RefCell::new(Half::default()));
            half.borrow_mut().receive(payload)?;
            state.streams.insert(id, half.clone());
            state.received(payload.len())?;
            return Ok(Some((id, half)));
        };
        let mut half = half.borrow_mut();
        match header.kind {
            Kind::Data => {
                half.receive(payload)?;
                state.received(payload.len())?;
            }
            Kind::End => half.end(),
            Kind::Reset => {
                half.reset(io::ErrorKind::ConnectionReset);
                state.streams.remove(&id);
            }
            Kind::Window => half.widen(header.amount)?,
            Kind::Leave | Kind::Ping | Kind::Pong => {}
        }
        if half.is_over() {
            state.streams.remove(&id);
        }
        Ok(None)
    }

    /// Ends the connection and all its streams.
    pub fn finish(&self, over: Closed) {
        self.leaving.set(true);
        let mut state = self.state.borrow_mut();
        state.over = Some(over);
        state.unsent = BytesMut::new();
        state.wake_writers();
        for (_, half) in state.streams.drain() {
            match over {
                Closed::InOrder => half.borrow_mut().finish(),
                Closed::Broken(kind) => half.borrow_mut().reset(kind),
            }
        }
    }
}

impl State {
    /// Appends a frame without payload.
    pub fn send(&mut self, kind: Kind, stream: u32, amount: u32) {
        if self.over.is_none() {
            Header {
                kind,
                amount,
                stream,
            }
            .write(&mut self.unsent);
            self.wake_driver();
        }
    }

    /// Appends a DATA frame.
    pub fn send_data(&mut self, stream: u32, bytes: &[u8]) {
        let header = Header {
            kind: Kind::Data,
            amount: bytes.len() as u32,
            stream,
        };
        self.unsent.reserve(super::frame::HEADER + bytes.len());
        header.write(&mut self.unsent);
        self.unsent.extend_from_slice(bytes);
        self.wake_driver();
    }

    /// Assigns a number to a new stream. The peer requires rising numbers, so this is done as the
    /// first frame is appended. `None`: the numbers are used up.
    pub fn open(&mut self, half: &Rc<RefCell<Half>>) -> Option<u32> {
        self.last = self.last.checked_add(1)?;
        self.streams.insert(self.last, half.clone());
        Some(self.last)
    }

    fn received(&mut self, length: usize) -> Result<(), Violation> {
        self.unread += length;
        match self.unread > MAX_UNREAD {
            true => Err(Violation::Unread),
            false => Ok(()),
        }
    }

    /// Subtracts bytes that were read, or dropped with their stream.
    pub fn consume(&mut self, length: usize) {
        self.unread -= length;
    }

    /// Whether `unsent` is too long for another DATA frame.
    pub fn is_full(&self) -> bool {
        self.unsent.len() >= MAX_UNSENT
    }

    /// Registers the stream's writer to be woken when `unsent` has drained.
    pub fn wait_for_room(&mut self, half: &Rc<RefCell<Half>>) {
        if !self
            .waiting_writers
            .iter()
            .any(|other| Rc::ptr_eq(other, half))
        {
            self.waiting_writers.push(half.clone());
        }
    }

    /// Removes the stream from those that wait for `unsent` to drain.
    pub fn stop_waiting(&mut self, half: &Rc<RefCell<Half>>) {
        self.waiting_writers
            .retain(|other| !Rc::ptr_eq(other, half));
    }

    pub fn exceeds_backlog(&self) -> bool {
        self.unsent.len() > MAX_BACKLOG
    }

    #[cfg(test)]
    pub fn has_waiting_writers(&self) -> bool {
        !self.waiting_writers.is_empty()
    }

    /// Wakes the writers that waited for `unsent` to drain.
    pub fn wake_writers(&mut self) {
        for half in self.waiting_writers.drain(..) {
            half.borrow_mut().wake_writer();
        }
    }

    pub fn closed(&self) -> Option<Closed> {
        self.over
    }

    /// Drops the state of a stream that this side no longer needs.
    pub fn forget(&mut self, stream: u32) {
        self.streams.remove(&stream);
        self.wake_driver();
    }

    pub fn driven_by(&mut self, cx: &Context<'_>) {
        match &mut self.driver {
            Some(waker) => waker.clone_from(cx.waker()),
            None => self.driver = Some(cx.waker().clone()),
        }
    }

    fn wake_driver(&self) {
        if let Some(driver) = &self.driver {
            driver.wake_by_ref();
        }
    }
}
