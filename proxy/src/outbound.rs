//! A connection that the app has opened.
//!
//! In: the connection, and its destination before it was redirected. The controller's table gives
//! the meaning of that destination: a Service, a pod, or an address outside the mesh. Nothing that
//! the app sends influences this.

use std::net::SocketAddr;
use std::rc::Rc;

use tokio::net::TcpStream;

use crate::connection;
use crate::session::Session;
use crate::session::worker::Worker;
use crate::wire::buffered::Buffered;

/// Carries one connection to its end.
pub async fn serve(worker: Rc<Worker>, client: TcpStream, destination: SocketAddr) {
    let destination = worker.tables.destination(destination).await;
    let session = Session::outbound(worker, destination);
    connection::serve(session, Buffered::new(client)).await;
}
