//! HTTP/2 with prior knowledge (RFC 9113), gRPC on top of it.

use tokio::io::{AsyncRead, AsyncWrite};

use crate::session::Session;

/// Upstream connections of one worker.
#[derive(Default)]
pub struct Pool {}

/// Serves the streams of one downstream connection until it ends.
pub async fn serve<S>(session: Session, downstream: S)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let _ = (session, downstream);
    todo!()
}
