//! Sockets on loopback, for tests.

use std::io::ErrorKind;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub async fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.expect("a socket")
}

/// Two ends of a connection: who made it and who accepted it.
pub async fn pair() -> (TcpStream, TcpStream) {
    let listener = listener().await;
    let address = listener.local_addr().expect("an address");
    let (made, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    (
        made.expect("a connection"),
        accepted.expect("a connection").0,
    )
}

pub async fn accept(listener: &TcpListener) -> TcpStream {
    listener.accept().await.expect("a connection").0
}

/// Something goes all the way: both connections stand.
pub async fn greet(client: &mut TcpStream, app: &mut TcpStream) {
    client.write_all(b"!").await.expect("a connection");
    app.read_exact(&mut [0]).await.expect("a connection");
}

/// Everything up to the other side's end.
pub async fn heard(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("an end");
    text
}

/// Whether the other side ends by a break.
pub async fn is_reset(stream: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    let ended = stream.read_to_end(&mut rest).await;
    ended.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
}
