//! Apps and clients that send exactly the bytes that a test gives them.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, spawn_local};

use crate::http::http1::serve;
use crate::identity::testing::spiffe_id;
use crate::session::Session;
use crate::session::worker::Worker;
use crate::table::{DestinationCell, Inbound};
pub use crate::testing::mesh::{ANYWHERE, Mesh, Setup, for_the_shop, run, until, unused_address};
use crate::wire::closing::Closing;

/// A listening app.
pub struct App {
    pub address: SocketAddr,
    pub connections: Rc<Cell<usize>>,
}

/// An app that receives the body `hello` each time, and answers the first request with `first` and
/// all others with `then`. Each earlier connection counts as one request.
pub async fn answering_hello(first: &'static str, then: &'static str) -> App {
    app(move |number, mut talk| async move {
        let mut answers = [first, then].into_iter().skip(number - 1);
        while talk.head().await.is_some() {
            assert_eq!(talk.exactly(5).await.expect("a body"), b"hello");
            talk.send(answers.next().unwrap_or(then)).await;
        }
    })
    .await
}

/// Starts an app that runs `handle` on each connection. The number distinguishes the first one.
pub async fn app<F>(handle: impl Fn(usize, Talk<TcpStream>) -> F + 'static) -> App
where
    F: Future<Output = ()> + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a socket");
    let app = App {
        address: listener.local_addr().expect("an address"),
        connections: Rc::default(),
    };
    let connections = app.connections.clone();
    spawn_local(async move {
        while let Ok((socket, _)) = listener.accept().await {
            connections.set(connections.get() + 1);
            spawn_local(handle(connections.get(), Talk::new(socket)));
        }
    });
    app
}

/// An app that answers every request (without body) with `response`.
pub async fn answering(response: &'static str) -> App {
    app(move |_, mut talk| async move {
        while talk.head().await.is_some() {
            talk.send(response).await;
        }
    })
    .await
}

/// One end of a connection.
pub struct Talk<S> {
    pub io: S,
    heard: Vec<u8>,
}

impl<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin> Talk<S> {
    pub fn new(io: S) -> Self {
        Self {
            io,
            heard: Vec::new(),
        }
    }

    pub async fn send(&mut self, text: &str) {
        self.send_bytes(text.as_bytes()).await;
    }

    pub async fn send_bytes(&mut self, bytes: &[u8]) {
        // A closed connection shows when it is read.
        let _ = self.io.write_all(bytes).await;
        let _ = self.io.flush().await;
    }

    /// Reads up to and including `end`. `None`: the peer closed before that.
    pub async fn until(&mut self, end: &str) -> Option<String> {
        let end = end.as_bytes();
        loop {
            let found = self.heard.windows(end.len()).position(|w| w == end);
            if let Some(at) = found {
                let rest = self.heard.split_off(at + end.len());
                let text = std::mem::replace(&mut self.heard, rest);
                return Some(String::from_utf8(text).expect("text"));
            }
            self.more().await?;
        }
    }

    /// A head with its empty line.
    pub async fn head(&mut self) -> Option<String> {
        self.until("\r\n\r\n").await
    }

    pub async fn exactly(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.heard.len() < length {
            self.more().await?;
        }
        let rest = self.heard.split_off(length);
        Some(std::mem::replace(&mut self.heard, rest))
    }

    /// Everything until the peer closes.
    pub async fn rest(&mut self) -> String {
        while self.more().await.is_some() {}
        String::from_utf8(std::mem::take(&mut self.heard)).expect("text")
    }

    async fn more(&mut self) -> Option<()> {
        let mut piece = [0; 4096];
        match self.io.read(&mut piece).await {
            Ok(0) | Err(_) => None,
            Ok(length) => {
                self.heard.extend_from_slice(&piece[..length]);
                Some(())
            }
        }
    }
}

/// A downstream connection. The task ends with what [`serve`] returns.
pub struct Downstream {
    pub talk: Talk<DuplexStream>,
    /// True: the connection must be reset.
    pub served: JoinHandle<bool>,
}

pub fn client(mesh: &Mesh) -> Downstream {
    let session = Session::outbound(mesh.worker.clone(), mesh.cell.clone());
    downstream(session)
}

/// A peer with the identity `id`.
pub fn inbound_client(mesh: &Mesh, id: &str) -> Downstream {
    let id = spiffe_id(id);
    let (worker, cell) = permissive(mesh);
    downstream(Session::peer(worker, cell, id, ANYWHERE))
}

/// A client from outside without an identity.
pub fn stranger(mesh: &Mesh) -> Downstream {
    let (worker, cell) = permissive(mesh);
    downstream(Session::unauthenticated(worker, cell, ANYWHERE))
}

fn permissive(mesh: &Mesh) -> (Rc<Worker>, Arc<DestinationCell>) {
    mesh.worker.tables.set_inbound(Inbound {
        workload: "".into(),
        strict: false,
        ports: Default::default(),
    });
    (mesh.worker.clone(), mesh.cell.clone())
}

fn downstream(session: Session) -> Downstream {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let served =
        spawn_local(async move { matches!(serve(session, theirs).await, Closing::Reset(_)) });
    Downstream {
        talk: Talk::new(ours),
        served,
    }
}

/// The shortest GET.
pub const GET: &str = "GET / HTTP/1.1\r\nHost: web\r\n\r\n";

/// Long enough for everything in progress to happen.
pub async fn a_moment() {
    tokio::time::sleep(Duration::from_millis(30)).await;
}

/// The head of the response to one request, from a proxy with an app that answers `response`; and
/// whether the connection must be reset.
pub async fn ask(response: &'static str, request: &str) -> (String, bool) {
    let app = answering(response).await;
    let mesh = Setup::new(&[app.address]).start();
    let mut client = client(&mesh);
    client.talk.send(request).await;
    client.talk.io.flush().await.expect("open");
    let head = client.talk.head().await.unwrap_or_default();
    drop(client.talk);
    (head, client.served.await.expect("no panic"))
}
