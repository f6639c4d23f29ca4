//! HTTP/1.0 and HTTP/1.1 (RFC 9112).

use tokio::io::{AsyncRead, AsyncWrite};

use crate::session::Session;

/// Idle upstream connections of one worker.
#[derive(Default)]
pub struct Pool {}

/// Serves the requests of one downstream connection until it ends.
pub async fn serve<S>(session: Session, downstream: S)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let _ = (session, downstream);
    todo!()
}
