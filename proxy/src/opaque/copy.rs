//! Copies bytes in both directions between two connections, unchanged.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite};

use crate::memory::{Budget, Use};
use crate::observe::metrics::TcpMetrics;
use crate::observe::reason::Reason;
use crate::wire::buffered::{Buffered, Side};

/// Which side failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyError {
    Client,
    Upstream,
    /// The memory budget has no room for the bytes that a side does not read.
    NoMemory,
}

impl CopyError {
    pub(super) fn reason(self) -> Reason {
        match self {
            Self::Client => Reason::ClientGone,
            Self::Upstream => Reason::UpstreamReset,
            Self::NoMemory => Reason::MemoryExhausted,
        }
    }
}

/// Copies bytes in both directions until both sides have ended in order.
pub async fn copy<A, B>(
    client: &mut Buffered<A>,
    upstream: &mut Buffered<B>,
    metrics: Option<&TcpMetrics>,
    memory: &Budget,
) -> Result<(), CopyError>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let mut up = Way::default();
    let mut down = Way::default();
    let mut held = memory.nothing();
    poll_fn(|cx| {
        let sent = up.poll(cx, client, upstream);
        let received = down.poll(cx, upstream, client);
        if let Some(metrics) = metrics {
            metrics.sent(std::mem::take(&mut up.bytes));
            metrics.received(std::mem::take(&mut down.bytes));
        }
        match (sent, received) {
            (Poll::Ready(Err(Side::From)), _) | (_, Poll::Ready(Err(Side::To))) => {
                Poll::Ready(Err(CopyError::Client))
            }
            (Poll::Ready(Err(Side::To)), _) | (_, Poll::Ready(Err(Side::From))) => {
                Poll::Ready(Err(CopyError::Upstream))
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(Ok(())),
            _ => {
                client.shrink();
                upstream.shrink();
                let waiting = client.unsent.len() + upstream.unsent.len();
                match held.follow(Use::Body, 0, waiting) {
                    true => Poll::Pending,
                    false => Poll::Ready(Err(CopyError::NoMemory)),
                }
            }
        }
    })
    .await
}

/// One direction.
#[derive(Debug, Default)]
struct Way {
    /// Passed on, but not counted yet.
    bytes: u64,
    /// The source has ended.
    ended: bool,
    /// The end has been passed on as well.
    shut: bool,
}

impl Way {
    fn poll<A, B>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Buffered<A>,
        to: &mut Buffered<B>,
    ) -> Poll<Result<(), Side>>
    where
        A: AsyncRead + AsyncWrite + Unpin,
        B: AsyncRead + AsyncWrite + Unpin,
    {
        while !self.shut {
            ready!(to.poll_send(cx)).map_err(|_| Side::To)?;
            if !from.read.is_empty() {
                // Bytes that were read before the destination was known.
                self.bytes += from.read.len() as u64;
                to.unsent = from.read.split();
            } else if self.ended {
                ready!(to.poll_shutdown(cx)).map_err(|_| Side::To)?;
                self.shut = true;
            } else {
                match from.poll_pass(cx, to) {
                    Poll::Ready(Ok(0)) => self.ended = true,
                    Poll::Ready(Ok(length)) => self.bytes += length as u64,
                    Poll::Ready(Err(side)) => return Poll::Ready(Err(side)),
                    Poll::Pending => {
                        // Flush everything before waiting for more.
                        ready!(to.poll_flush(cx)).map_err(|_| Side::To)?;
                        return Poll::Pending;
                    }
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}
