//! The validity of the certificate that a peer has presented, over the life of its connection.
//!
//! A separate task sleeps until the validity changes. A connection asks whenever it has work to do,
//! and polling a timer as often took 3 % of the instructions of a request.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::sleep;

/// What a connection may still do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    Valid,
    /// The certificate has expired: no new request or stream is accepted.
    Expired,
    /// The grace period of requests in progress is over as well: the connection must end.
    Overdue,
}

/// Wakes a connection's task when the certificate expires, and again when the connection must end.
#[derive(Debug)]
pub struct Expiry {
    state: Rc<State>,
    timer: AbortHandle,
}

#[derive(Debug)]
struct State {
    validity: Cell<Validity>,
    waker: RefCell<Option<Waker>>,
}

impl Expiry {
    /// The certificate expires `left` from now, and requests in progress then get `grace` more.
    /// `overdue` is called if the connection is still open after that.
    pub fn start(left: Duration, grace: Duration, overdue: impl FnOnce() + 'static) -> Self {
        let state = Rc::new(State {
            validity: Cell::new(Validity::Valid),
            waker: RefCell::default(),
        });
        let timed = state.clone();
        let task = tokio::task::spawn_local(async move {
            sleep(left).await;
            timed.becomes(Validity::Expired);
            sleep(grace).await;
            overdue();
            timed.becomes(Validity::Overdue);
        });
        Self {
            state,
            timer: task.abort_handle(),
        }
    }

    /// The task of `cx` is woken when the answer changes. Only one task may poll.
    pub fn poll(&self, cx: &Context<'_>) -> Validity {
        let mut waker = self.state.waker.borrow_mut();
        match &mut *waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *waker = Some(cx.waker().clone()),
        }
        self.state.validity.get()
    }
}

impl State {
    fn becomes(&self, validity: Validity) {
        self.validity.set(validity);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Drop for Expiry {
    fn drop(&mut self) {
        self.timer.abort();
    }
}
