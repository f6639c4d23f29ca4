//! The server's end of a connection between sidecars: serves its streams.

use std::cell::Cell;
use std::future::poll_fn;
use std::io::ErrorKind;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep};

use crate::http::http1;
use crate::session::Session;
use crate::session::validity::Validity;
use crate::upstream::mux::{Closed, Driver, MAX_OPEN, Side, Stopped, Stream};

/// How long a shutdown waits for the first stream of a connection that came late.
const FIRST_REQUEST: Duration = Duration::from_secs(1);

/// Serves the streams of a peer's connection until it ends: HTTP/1.1 on each of them.
pub async fn serve<S>(session: Session, downstream: S)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let worker = session.worker.clone();
    let mut driver = Driver::new(Side::Server, downstream);
    let connection = driver.connection.clone();
    let live = Rc::new(Cell::new(0));
    let leaving = connection.clone();
    let mut accept = |stream: Stream| {
        // A task may outlive its stream if its app reads nothing.
        if live.get() >= 2 * MAX_OPEN {
            leaving.leave();
            return stream.refuse();
        }
        let (session, live) = (session.clone(), Live::new(&live));
        tokio::task::spawn_local(async move {
            // The rest of a stream is reset as it is dropped.
            drop(http1::serve(session, stream).await);
            drop(live);
        });
    };
    // A connection that has just been accepted has its first request on the way.
    let mut draining = pin!(async {
        worker.drain.started().await;
        sleep(FIRST_REQUEST).await;
    });
    let idle = worker.config.limits.keep_alive_idle;
    let mut timer = pin!(sleep(idle));
    let mut was_used = false;
    let stopped = poll_fn(|cx| {
        if driver.poll(cx, &mut accept).is_ready() {
            return Poll::Ready(Stopped::Ended);
        }
        let validity = session.poll_validity(cx);
        if !connection.is_leaving() {
            let drained = draining.as_mut().poll(cx).is_ready();
            if drained
                || validity != Validity::Valid
                || worker.drain.is_draining() && connection.was_used()
            {
                connection.leave();
            }
        }
        if !connection.is_unused() {
            was_used = true;
        } else if std::mem::take(&mut was_used) {
            timer.as_mut().reset(Instant::now() + idle);
        }
        if connection.is_unused() && timer.as_mut().poll(cx).is_ready() {
            connection.leave();
        }
        if validity == Validity::Overdue {
            if connection.is_unused() {
                return Poll::Ready(Stopped::Unused);
            }
            // Requests in progress may have reached the app: a clean end would claim the opposite,
            // and cause them to be sent again.
            connection.finish(Closed::Broken(ErrorKind::TimedOut));
            return Poll::Ready(Stopped::Ended);
        }
        match connection.is_finished() {
            true => Poll::Ready(Stopped::Unused),
            false => Poll::Pending,
        }
    });
    match stopped.await {
        Stopped::Ended => {}
        Stopped::Unused => driver.end().await,
    }
}

/// Counts a stream's task.
struct Live(Rc<Cell<usize>>);

impl Live {
    fn new(live: &Rc<Cell<usize>>) -> Self {
        live.set(live.get() + 1);
        Self(live.clone())
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
