//! What comes after `101 Switching Protocols`, or a CONNECT that was granted: bytes both ways, each end passed on for itself.

use std::future::poll_fn;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite};

use super::body::Body;
use super::framing::Framing;
use super::io::Buffered;
use super::pool::Upstream;

/// One direction.
struct Way {
    body: Body,
    /// The end has been passed on as well.
    ended: bool,
}

/// Carries bytes until both sides have ended. Returns the client's connection if it must be reset.
pub async fn run<S>(mut client: Buffered<S>, mut upstream: Upstream) -> Option<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut up = Way::new();
    let mut down = Way::new();
    let broken = poll_fn(|cx| {
        let other = &mut upstream.connection;
        if up.poll(cx, &mut client, other).is_err() || down.poll(cx, other, &mut client).is_err() {
            return Poll::Ready(true);
        }
        if up.ended && down.ended {
            return Poll::Ready(false);
        }
        client.shrink();
        other.shrink();
        Poll::Pending
    })
    .await;
    broken.then_some(client.io)
}

impl Way {
    fn new() -> Self {
        Self {
            body: Body::new(Framing::UntilClose),
            ended: false,
        }
    }

    fn poll<A, B>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Buffered<A>,
        to: &mut Buffered<B>,
    ) -> Result<(), ()>
    where
        A: AsyncRead + AsyncWrite + Unpin,
        B: AsyncRead + AsyncWrite + Unpin,
    {
        if self.ended {
            return Ok(());
        }
        match self.body.poll(cx, from, to) {
            Poll::Pending => Ok(()),
            Poll::Ready(Err(_)) => Err(()),
            Poll::Ready(Ok(())) => match to.poll_shutdown(cx) {
                Poll::Pending => Ok(()),
                Poll::Ready(shut) => {
                    self.ended = true;
                    shut.map_err(|_| ())
                }
            },
        }
    }
}
