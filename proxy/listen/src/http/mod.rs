//! Small HTTP/1.1 servers (metrics, probes, webhooks): every step of a connection is bounded in
//! time, and only a connection that waits for its client is ever evicted in favour of another.
//!
//! ```text
//!           head ─▶ answering ─▶ writing ─▶ idle ─▶ head …
//! place:   waiting    taken       taken   waiting
//!                              (waiting, once the client reads nothing)
//! ```

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use crate::accept::accept;
use crate::places::{Limit, Place, Places};

/// How long a client may leave its response unread before its connection may be evicted in favour
/// of another.
const STALLED: Duration = Duration::from_secs(1);

/// Timeouts for the steps of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// From the start of a connection (a TLS handshake included), or from the first byte of a
    /// further request, to the end of the request's head.
    pub head: Duration,
    /// Between requests.
    pub idle: Duration,
    /// From the head to the response, if the handler has no bound of its own.
    pub answer: Duration,
    /// From the start of the response until the client has received its last byte.
    pub write: Duration,
    /// Bytes in a request's head.
    pub max_head: usize,
}

/// The client of a request, and the local address that it called.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    pub peer: SocketAddr,
    pub here: SocketAddr,
}

/// Serves until the process ends. `open` turns a TCP connection into the stream for HTTP; `answer`
/// handles a request.
pub async fn serve<O, OF, IO, A, AF>(
    listener: TcpListener,
    places: Places,
    times: Times,
    open: O,
    answer: A,
) where
    O: Fn(TcpStream, SocketAddr) -> OF,
    OF: Future<Output = Option<IO>> + Send + 'static,
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    A: Fn(Request<Incoming>, Caller) -> AF + Clone + Send + Sync + 'static,
    AF: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let start = |stream: TcpStream, peer: SocketAddr, place: Place| {
        // A connection without a local address is closed already.
        let here = stream.local_addr().unwrap_or(peer);
        let caller = Caller { peer, here };
        let watch = Arc::new(Watch::new(place, times));
        let opening = open(stream, peer);
        let answer = answer.clone();
        tokio::spawn(async move {
            let serving = async {
                let Some(stream) = opening.await else { return };
                if let Err(error) = connection(stream, caller, &watch, answer).await {
                    debug!(%peer, %error, "a connection");
                }
            };
            tokio::select! {
                in_time = watch.in_time(serving) => if !in_time {
                    debug!(%peer, "a connection took too long");
                },
                () = watch.place.evicted() => debug!(%peer, "a connection that waited is evicted"),
            }
        });
    };
    accept(listener, places, start).await;
}

/// `open` for servers without TLS.
pub async fn plain(stream: TcpStream, _: SocketAddr) -> Option<TcpStream> {
    Some(stream)
}

async fn connection<IO, A, AF>(
    stream: IO,
    caller: Caller,
    watch: &Arc<Watch>,
    answer: A,
) -> hyper::Result<()>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    A: Fn(Request<Incoming>, Caller) -> AF,
    AF: Future<Output = Response<Full<Bytes>>>,
{
    let stream = Watched {
        stream,
        watch: watch.clone(),
    };
    let service = service_fn(|request| {
        let answer = match watch.answering() {
            Ok(()) => Ok(answer(request, caller)),
            Err(limit) => Err(limit),
        };
        async {
            let response = match answer {
                Ok(answer) => answer.await,
                Err(limit) => too_many(limit),
            };
            watch.writing();
            Ok::<_, Infallible>(response)
        }
    });
    http1::Builder::new()
        .header_read_timeout(None)
        .max_buf_size(watch.times.max_head)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

fn too_many(limit: Limit) -> Response<Full<Bytes>> {
    let text = match limit {
        Limit::Source => "this address has too many requests under way here\n",
        _ => "there are too many requests under way here\n",
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(CONNECTION, close);
    response
}

/// The step of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Head,
    Idle,
    Answering,
    Writing,
    /// Writing, while the client reads nothing.
    Stalled,
}

/// The step of a connection, and when it began.
struct Watch {
    place: Place,
    times: Times,
    now: Mutex<Now>,
}

#[derive(Clone, Copy)]
struct Now {
    step: Step,
    since: Instant,
    /// When the client last read part of the response.
    taken: Instant,
}

impl Watch {
    fn new(place: Place, times: Times) -> Self {
        let since = Instant::now();
        let now = Mutex::new(Now {
            step: Step::Head,
            since,
            taken: since,
        });
        Self { place, times, now }
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn step(&self, step: Step) {
        let since = Instant::now();
        *self.now() = Now {
            step,
            since,
            taken: since,
        };
    }

    fn answering(&self) -> Result<(), Limit> {
        self.place.take()?;
        self.step(Step::Answering);
        Ok(())
    }

    fn writing(&self) {
        self.step(Step::Writing);
    }

    /// Data has arrived from the client.
    fn read(&self) {
        if self.now().step == Step::Idle {
            self.step(Step::Head);
        }
    }

    /// The client, or the kernel on its behalf, has accepted data.
    fn wrote(&self) {
        self.now().taken = Instant::now();
    }

    /// All data has been written.
    fn flushed(&self) {
        let step = self.now().step;
        if matches!(step, Step::Writing | Step::Stalled) {
            self.step(Step::Idle);
            self.place.wait();
        }
    }

    /// When the current step times out or counts as stalled.
    fn due(&self) -> Instant {
        let now = *self.now();
        match now.step {
            Step::Head => now.since + self.times.head,
            Step::Idle => now.since + self.times.idle,
            Step::Answering => now.since + self.times.answer,
            Step::Stalled => now.since + self.times.write,
            Step::Writing => (now.since + self.times.write).min(now.taken + STALLED),
        }
    }

    /// Handles the end of the current step. Returns whether the connection continues.
    fn goes_on(&self) -> bool {
        let mut now = self.now();
        let stalled = now.step == Step::Writing && now.since.elapsed() < self.times.write;
        if stalled {
            now.step = Step::Stalled;
            drop(now);
            self.place.wait();
        }
        stalled
    }

    /// Whether `serving` has completed, rather than timed out.
    async fn in_time(&self, serving: impl Future<Output = ()>) -> bool {
        let mut serving = pin!(serving);
        let mut timer = pin!(sleep_until(self.due()));
        std::future::poll_fn(|cx| {
            loop {
                if serving.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(true);
                }
                let due = self.due();
                if timer.deadline() != due {
                    timer.as_mut().reset(due);
                }
                if timer.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                if !self.goes_on() {
                    return Poll::Ready(false);
                }
            }
        })
        .await
    }
}

/// A stream that reports its progress.
struct Watched<IO> {
    stream: IO,
    watch: Arc<Watch>,
}

impl<IO: AsyncRead + Unpin> AsyncRead for Watched<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.watch.read();
        }
        read
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Watched<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if written.is_ready() {
            self.watch.wrote();
        }
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        if written.is_ready() {
            self.watch.wrote();
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        if flushed.is_ready() {
            self.watch.flushed();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
