//! A downstream connection: one request after the other, until the client disconnects, the proxy
//! shuts down, or the connection has been idle for too long.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep, timeout};

use super::client::After;
use super::framing::{self, RequestFraming};
use super::head::{self, HeadError, Request, Response};
use super::request;
use crate::drain::Drain;
use crate::http::login::Login;
use crate::memory::{Charge, Use};
use crate::observe::reason::Reason;
use crate::opaque;
use crate::session::Session;
use crate::socket::Direction;
use crate::wire::buffered::Buffered;
use crate::wire::closing::Closing;

/// How long a client outside the mesh may still send a request on a connection that is about to be
/// closed. By then, clients with other endpoints have learned of them.
pub const LEAVING: Duration = Duration::from_secs(2);
/// Unread responses of the proxy, in bytes, beyond which a client gets no more of them.
const MAX_UNSENT: usize = 16 * 1024;
/// The part of a head, in bytes, that a connection's base charge covers. A larger head is charged
/// twice: while it is read, and while it is parsed.
const SMALL_HEAD: usize = 4 * 1024;

/// How long a client may take to read a refusal.
const REFUSAL: Duration = Duration::from_secs(1);

/// Why there is no other request.
enum NoRequest {
    /// The connection has ended, or is idle and must be closed.
    Over,
    /// The client gets this error.
    Refused(Reason),
}

/// What a connection waits for in addition to bytes.
struct Patience<'a> {
    timer: Pin<&'a mut Sleep>,
    leaving: Pin<&'a mut (dyn Future<Output = ()> + 'a)>,
    idle: Duration,
    head: Duration,
    max_head: usize,
}

/// Serves the requests of one downstream connection until it ends.
pub async fn serve<S>(session: Session, downstream: S) -> Closing<S>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let mut connection = Buffered::new(downstream);
    let worker = session.worker.clone();
    let limits = &worker.config.limits;
    let mut memory = worker.memory.nothing();
    let mut request = Request::default();
    let mut response = Response::default();
    let mut login = Login::default();
    let timer = pin!(sleep(limits.keep_alive_idle));
    let leaving = pin!(leaving(&session, &worker.drain));
    let mut patience = Patience {
        timer,
        leaving,
        idle: limits.keep_alive_idle,
        head: limits.header_timeout,
        max_head: limits.max_header_bytes,
    };
    loop {
        let framing = match next_request(
            &mut connection,
            &mut request,
            &mut memory,
            &mut patience,
            &mut login,
        )
        .await
        {
            Ok(framing) => framing,
            Err(NoRequest::Over) => break,
            Err(NoRequest::Refused(reason)) => {
                request::refuse(&session, &mut connection, reason);
                break;
            }
        };
        if session.is_unwelcome() {
            request::turn_away(&session);
            return Closing::Reset(connection.io);
        }
        let _busy = session.worker.drain.busy();
        let done = request::run(
            &session,
            &mut connection,
            &mut request,
            &mut response,
            framing,
            &mut login,
            &mut memory,
        );
        let after = done.await;
        request.forget_large();
        response.fields.shrink();
        match after {
            After::Next => {}
            After::Close => break,
            After::Cut => return Closing::Reset(connection.io),
            After::Tunnel(mut upstream) => {
                memory.shrink(0);
                let copied = opaque::copy(
                    &mut connection,
                    &mut upstream.connection,
                    None,
                    &worker.memory,
                )
                .await;
                let Err(broken) = copied else {
                    return Closing::Done;
                };
                tracing::debug!(?broken, "a tunnel broke");
                upstream.connection.io.reset();
                return Closing::Reset(connection.io);
            }
        }
    }
    connection.close().await;
    Closing::Done
}

/// Refuses the first request of a client and closes its connection, within the time that the client
/// has to read the error.
pub async fn refuse<S>(session: &Session, mut connection: Buffered<S>, reason: Reason)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    request::refuse(session, &mut connection, reason);
    let _in_time = timeout(REFUSAL, connection.close()).await;
}

/// Ready when an idle connection must be closed for a shutdown. The app's own connections are
/// exempt: it may need them to finish.
async fn leaving(session: &Session, drain: &Drain) {
    if session.direction() == Direction::Outbound {
        return std::future::pending().await;
    }
    drain.started().await;
    if session.is_stranger() {
        sleep(LEAVING).await;
    }
}

/// Reads the head of the next request.
async fn next_request<S>(
    connection: &mut Buffered<S>,
    request: &mut Request,
    memory: &mut Charge,
    patience: &mut Patience<'_>,
    login: &mut Login,
) -> Result<RequestFraming, NoRequest>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // Responses of endpoints have been flushed to their end. Those of the proxy have not been, and
    // must not accumulate.
    if connection.unsent.len() > MAX_UNSENT {
        let flushed = timeout(patience.head, connection.flush()).await;
        if !matches!(flushed, Ok(Ok(()))) {
            return Err(NoRequest::Over);
        }
    }
    skip_empty_line(&mut connection.read);
    let mut scanned = 0;
    let mut due = None;
    let end = loop {
        match head::find_end(&connection.read, scanned, true) {
            Ok(Some(end)) if end <= patience.max_head => break end,
            Ok(None) if connection.read.len() < patience.max_head => {}
            Ok(_) => return Err(NoRequest::Refused(Reason::HeaderTooLarge)),
            Err(error) => return Err(refusal(&error)),
        }
        scanned = connection.read.len();
        let begun = !connection.read.is_empty();
        if !begun {
            connection.shrink();
            memory.shrink(0);
        } else if scanned > SMALL_HEAD && !memory.grow(Use::Head, 2 * scanned) {
            return Err(NoRequest::Refused(Reason::Overload));
        }
        let due = match (begun, due) {
            // The timeout of a head starts with its first byte.
            (true, Some((true, due))) => due,
            _ => {
                let time = if begun { patience.head } else { patience.idle };
                due.insert((begun, Instant::now() + time)).1
            }
        };
        poll_fn(|cx| {
            let more = patience.poll_more(cx, connection, begun, due);
            // As without proxies: when the server closes its connection, the client's is closed.
            match more.is_pending() && !begun && login.poll_lost(cx).is_ready() {
                true => Poll::Ready(Err(NoRequest::Over)),
                false => more,
            }
        })
        .await?;
        if !begun {
            skip_empty_line(&mut connection.read);
        }
    };
    // A head that came in one piece is charged like one that arrived in several.
    if end > SMALL_HEAD && !memory.grow(Use::Head, 2 * end) {
        return Err(NoRequest::Refused(Reason::Overload));
    }
    let parsed = request.parse(&connection.read[..end]);
    connection.read.advance(end);
    parsed.map_err(|error| refusal(&error))?;
    framing::request(request).map_err(|error| {
        tracing::debug!(%error, "a request is refused");
        NoRequest::Refused(error.reason())
    })
}

/// Old clients sent one too many (RFC 9112 section 2.2).
fn skip_empty_line(read: &mut BytesMut) {
    match read.as_ref() {
        [b'\r', b'\n', ..] => read.advance(2),
        [b'\n', ..] => read.advance(1),
        _ => {}
    }
}

fn refusal(error: &HeadError) -> NoRequest {
    tracing::debug!(%error, "a request is refused");
    NoRequest::Refused(match error {
        HeadError::Version => Reason::VersionNotSupported,
        HeadError::TooManyFields => Reason::HeaderTooLarge,
        HeadError::LineEnds | HeadError::Syntax(_) => Reason::BadRequest,
    })
}

impl Patience<'_> {
    /// Ready when more has been read.
    fn poll_more<S>(
        &mut self,
        cx: &mut Context<'_>,
        connection: &mut Buffered<S>,
        begun: bool,
        due: Instant,
    ) -> Poll<Result<(), NoRequest>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        // Flush a buffered response before waiting for the next request.
        if let Poll::Ready(Err(_)) = connection.poll_flush(cx) {
            return Poll::Ready(Err(NoRequest::Over));
        }
        if let Poll::Ready(filled) = connection.poll_fill(cx) {
            return Poll::Ready(match filled {
                Ok(0) | Err(_) => Err(NoRequest::Over),
                Ok(_) => Ok(()),
            });
        }
        if !begun && self.leaving.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(NoRequest::Over));
        }
        // The timer stays unchanged if it is early enough: resetting it costs more than one more
        // check.
        if self.timer.deadline() > due || self.timer.is_elapsed() {
            self.timer.as_mut().reset(due);
        }
        loop {
            ready!(self.timer.as_mut().poll(cx));
            if Instant::now() >= due {
                return Poll::Ready(Err(match begun {
                    true => NoRequest::Refused(Reason::HeaderTimeout),
                    false => NoRequest::Over,
                }));
            }
            self.timer.as_mut().reset(due);
        }
    }
}
