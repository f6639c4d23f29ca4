//! A downstream connection: one request after the other, until the client goes, the proxy shuts
//! down, or nothing has happened for too long.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep, timeout};

use super::client::After;
use super::exchange;
use super::framing::{self, RequestFraming};
use super::head::{self, HeadError, Request, Response};
use crate::drain::Drain;
use crate::http::login::Login;
use crate::memory::{Charge, Use};
use crate::observe::reason::Reason;
use crate::opaque;
use crate::session::{Session, UNAUTHENTICATED};
use crate::socket::Direction;
use crate::wire::buffered::Buffered;

/// How long a client that knows nothing of the mesh may still send a request on a connection that
/// would be ended. Whoever has other endpoints has been told of them by then.
pub const LEAVING: Duration = Duration::from_secs(2);
/// Responses of the proxy's own that a client has not taken yet, in bytes, beyond which it gets no
/// others.
const MAX_UNSENT: usize = 16 * 1024;
/// The part of a head, in bytes, that a connection is charged for from its start. A larger one is
/// charged twice: as it is read, and as it is taken apart.
const SMALL_HEAD: usize = 4 * 1024;

/// How long a client may take to read that it is not served.
const REFUSAL: Duration = Duration::from_secs(1);

/// Why there is no other request.
enum NoRequest {
    /// The connection is over, or idle and not wanted any more.
    Over,
    /// The client is told so.
    Refused(Reason),
}

/// What a connection waits for beside bytes.
struct Patience<'a> {
    timer: Pin<&'a mut Sleep>,
    leaving: Pin<&'a mut (dyn Future<Output = ()> + 'a)>,
    idle: Duration,
    head: Duration,
    max_head: usize,
}

/// Serves the requests of one downstream connection until it ends. Returns the connection if it
/// must be reset, so that the client does not take what it got for a whole response.
pub async fn serve<S>(session: Session, downstream: S) -> Option<S>
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
                exchange::refuse(&session, &mut connection, reason);
                break;
            }
        };
        if session.is_unwelcome() {
            exchange::turn_away(&session);
            return Some(connection.io);
        }
        let _busy = session.worker.drain.busy();
        let done = exchange::run(
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
            After::Cut => return Some(connection.io),
            After::Tunnel(mut upstream) => {
                memory.shrink(0);
                let broken = opaque::copy(
                    &mut connection,
                    &mut upstream.connection,
                    None,
                    &worker.memory,
                )
                .await?;
                tracing::debug!(?broken, "a tunnel broke");
                upstream.connection.io.reset();
                return Some(connection.io);
            }
        }
    }
    connection.close().await;
    None
}

/// Answers the first request of a client that is not served, and ends its connection: as far as the
/// client reads that in time.
pub async fn refuse<S>(session: &Session, mut connection: Buffered<S>, reason: Reason)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    exchange::refuse(session, &mut connection, reason);
    let _in_time = timeout(REFUSAL, connection.close()).await;
}

/// Ready when an idle connection is to be ended because the proxy shuts down. The connections of
/// the own app are left alone: it may need them to finish.
async fn leaving(session: &Session, drain: &Drain) {
    if session.direction == Direction::Outbound {
        return std::future::pending().await;
    }
    drain.started().await;
    if &*session.client == UNAUTHENTICATED {
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
    // The responses of others are flushed to their end. Those of the proxy itself are not, and must
    // not pile up.
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
            // The head is given its time from its first byte on.
            (true, Some((true, due))) => due,
            _ => {
                let time = if begun { patience.head } else { patience.idle };
                due.insert((begun, Instant::now() + time)).1
            }
        };
        poll_fn(|cx| {
            let more = patience.poll_more(cx, connection, begun, due);
            // As it would be without proxies: the server's end is the client's.
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
    // A head that came in one piece is charged as one that is waited for.
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

/// Clients of old sent one too many (RFC 9112 section 2.2).
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
        // A response that is still in the buffer goes out before the next request is waited for.
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
        // The timer is left where it is as long as that is early enough: moving it costs more than
        // looking at it once more.
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
