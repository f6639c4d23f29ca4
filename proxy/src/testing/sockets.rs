//! Loopback sockets for tests, and the data sent over them.

use std::io::ErrorKind;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::identity::Alpn;
use crate::identity::testing::{Authority, spiffe_id};

pub async fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.expect("a socket")
}

/// Both ends of a connection: the connecting and the accepting one.
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

/// Sends data all the way, so that both connections are established.
pub async fn greet(client: &mut TcpStream, app: &mut TcpStream) {
    client.write_all(b"!").await.expect("a connection");
    app.read_exact(&mut [0]).await.expect("a connection");
}

/// Reads until the other side closes.
pub async fn received_text(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("an end");
    text
}

/// Whether the other side resets the connection.
pub async fn is_reset(stream: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    let ended = stream.read_to_end(&mut rest).await;
    ended.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
}

/// The ClientHello of an app's own TLS client for `name`; without a server name if that is an
/// address.
pub fn client_hello(name: &str) -> Vec<u8> {
    const OWN_ID: &str = "spiffe://cluster.local/ns/shop/sa/anybody";
    let identity = Authority::new("the app's own").identity(OWN_ID);
    let config = identity.client_config(&spiffe_id(OWN_ID), Alpn::Tcp);
    let mut config = Arc::unwrap_or_clone(config.expect("a certificate"));
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.enable_sni = true;
    let name = name.to_owned().try_into().expect("a name");
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut said = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut said).expect("memory");
    }
    said
}
