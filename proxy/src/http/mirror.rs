//! Copies of requests for mirrors (Gateway API, HTTPRequestMirrorFilter). In: the mirrors of a
//! request, its head as sent to the backend, and its body as it is read. Out: a task for each copy,
//! whose response is dropped.
//!
//! ```text
//! client ──▶ request body ──▶ backend
//!                 │ Copy::push (never waits)
//!                 ▼
//!         bounded queue of each copy ──▶ its task ──▶ mirror
//! ```
//!
//! A copy does not affect its request: it has its own task and stream, no retries, no budget, no
//! entry in the access log, and a shutdown does not wait for it. A copy whose queue is full, or
//! that takes too long, is reset so that the mirror sees an error: an incomplete copy never looks
//! complete.
//!
//! The result of a copy counts for the mirror's endpoint as with any attempt (except when the proxy
//! aborts the copy): an endpoint that fails copies fails other requests too, and an ejected one
//! that gets only copies could otherwise not recover.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::HeaderMap;
use tokio::time::timeout;

use crate::balance::{self, InFlight};
use crate::observe::metrics::MirrorOutcome;
use crate::route::{Mirror, Rule};
use crate::session::mirroring::{Mirroring, Running};
use crate::session::worker::Worker;

/// How much of one body may wait for its mirror, in bytes: as much as a fast client sends while a
/// connection is opened.
const MAX_QUEUED: usize = 256 * 1024;
/// The same for all copies of one worker, in bytes.
const MAX_QUEUED_IN_ALL: usize = 16 * 1024 * 1024;
/// The same in pieces: many small ones cost more in bookkeeping than in bytes.
const MAX_PIECES: usize = 256;
/// How much of a body is copied before the tasks of its copies get a turn, in bytes: otherwise a
/// burst would fill a queue that its mirror was ready to drain.
const TURN: usize = MAX_QUEUED / 4;
/// How much of a mirror's response is read, in bytes, so that the mirror can finish in order.
pub const MAX_DISCARDED: usize = 1024 * 1024;

/// The copies of a request body, fed as it is read. Dropped before [`Self::end`], it aborts the
/// copies.
#[derive(Debug, Default)]
pub struct Copies {
    queues: Vec<Rc<Queue>>,
    /// Bytes since the last turn of other tasks.
    since_turn: usize,
}

/// The body of one copy, as its task reads it.
#[derive(Debug)]
pub struct CopyBody(Rc<Queue>);

/// The next item of a [`CopyBody`].
#[derive(Debug)]
pub enum Piece {
    Data(Bytes),
    /// With the trailers.
    End(Option<HeaderMap>),
}

#[derive(Debug)]
struct Queue {
    mirroring: Rc<Mirroring>,
    state: RefCell<State>,
}

#[derive(Debug, Default)]
struct State {
    pieces: VecDeque<Bytes>,
    bytes: usize,
    end: Option<End>,
    waker: Option<Waker>,
}

#[derive(Debug)]
enum End {
    Whole(Option<HeaderMap>),
    Broken(MirrorOutcome),
}

/// Starts the copies of one request for `backend`. `send` carries one, and returns how it ended.
pub fn start<F>(
    worker: &Rc<Worker>,
    rule: &Rule,
    backend: usize,
    send: impl Fn(InFlight, CopyBody) -> F,
) -> Copies
where
    F: Future<Output = MirrorOutcome> + 'static,
{
    let mut copies = Copies::default();
    let max_time = worker.mirroring.max_time;
    let mut random = worker.random.borrow_mut();
    let chosen: Vec<&Mirror> = rule.mirrors(backend, &mut random).collect();
    for mirror in chosen {
        let Some(running) = Running::new(&worker.mirroring) else {
            mirror.metrics.ended(MirrorOutcome::Skipped);
            continue;
        };
        let Some(in_flight) = balance::pick(&mirror.backend.endpoints(), &[], &mut random) else {
            mirror.metrics.ended(MirrorOutcome::Failed);
            continue;
        };
        let queue = Rc::new(Queue {
            mirroring: worker.mirroring.clone(),
            state: RefCell::default(),
        });
        copies.queues.push(queue.clone());
        let sending = send(in_flight, CopyBody(queue));
        let metrics = mirror.metrics.clone();
        tokio::task::spawn_local(async move {
            let outcome = timeout(max_time, sending).await;
            metrics.ended(outcome.unwrap_or(MirrorOutcome::TimedOut));
            drop(running);
        });
    }
    copies
}

impl Copies {
    /// Adds the next part of the body, without waiting.
    pub fn push(&mut self, data: &Bytes) {
        self.since_turn += data.len();
        self.queues.retain(|queue| queue.push(data));
    }

    /// Pending from time to time, so that other tasks get a turn: the caller is woken again at
    /// once.
    pub fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.since_turn < TURN || self.queues.is_empty() {
            return Poll::Ready(());
        }
        self.since_turn = 0;
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// [`Self::push`] of borrowed bytes: they are copied once for all mirrors, if any copies are
    /// left.
    pub fn push_slice(&mut self, data: &[u8]) {
        if !self.queues.is_empty() {
            self.push(&Bytes::copy_from_slice(data));
        }
    }

    /// The body is complete. Only the first end counts.
    pub fn end(&mut self, trailers: Option<&HeaderMap>) {
        for queue in self.queues.drain(..) {
            queue.end(End::Whole(trailers.cloned()));
        }
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        for queue in &self.queues {
            queue.end(End::Broken(MirrorOutcome::BrokenOff));
        }
    }
}

impl CopyBody {
    /// Ready with the outcome once the copy must be aborted. Wakes the task that polled last.
    pub fn poll_broken(&self, cx: &mut Context<'_>) -> Poll<MirrorOutcome> {
        let mut state = self.0.state.borrow_mut();
        if let Some(End::Broken(outcome)) = state.end {
            return Poll::Ready(outcome);
        }
        state.wait(cx);
        Poll::Pending
    }

    /// The next item to send.
    pub fn poll_piece(&self, cx: &mut Context<'_>) -> Poll<Result<Piece, MirrorOutcome>> {
        let mut state = self.0.state.borrow_mut();
        if let Some(End::Broken(outcome)) = state.end {
            return Poll::Ready(Err(outcome));
        }
        if let Some(data) = state.pieces.pop_front() {
            state.bytes -= data.len();
            self.0.mirroring.dequeued(data.len());
            return Poll::Ready(Ok(Piece::Data(data)));
        }
        match &mut state.end {
            Some(End::Whole(trailers)) => Poll::Ready(Ok(Piece::End(trailers.take()))),
            _ => {
                state.wait(cx);
                Poll::Pending
            }
        }
    }

    /// The body is complete: the next item is the end, without trailers.
    pub fn is_at_end(&self) -> bool {
        let state = self.0.state.borrow();
        state.pieces.is_empty() && matches!(state.end, Some(End::Whole(None)))
    }
}

impl Queue {
    /// False: the copy has ended.
    fn push(self: &Rc<Self>, data: &Bytes) -> bool {
        // Its task has ended.
        if Rc::strong_count(self) == 1 {
            return false;
        }
        let mirroring = &self.mirroring;
        let mut state = self.state.borrow_mut();
        let fits = state.bytes + data.len() <= MAX_QUEUED
            && state.pieces.len() < MAX_PIECES
            && mirroring.queued.get() + data.len() <= MAX_QUEUED_IN_ALL;
        if !fits {
            drop(state);
            self.end(End::Broken(MirrorOutcome::TooSlow));
            return false;
        }
        mirroring.queued.set(mirroring.queued.get() + data.len());
        state.bytes += data.len();
        state.pieces.push_back(data.clone());
        state.wake();
        true
    }

    fn end(&self, end: End) {
        let mut state = self.state.borrow_mut();
        if matches!(end, End::Broken(_)) {
            self.mirroring.dequeued(state.bytes);
            state.pieces = VecDeque::new();
            state.bytes = 0;
        }
        state.end.get_or_insert(end);
        state.wake();
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let left = self.state.get_mut().bytes;
        self.mirroring.dequeued(left);
    }
}

impl State {
    fn wait(&mut self, cx: &Context<'_>) {
        self.waker = Some(cx.waker().clone());
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}
