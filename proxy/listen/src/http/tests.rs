//! Servers over real sockets. One path responds at once, one with more than a socket buffers, one
//! only when triggered.

use super::*;
use crate::accept::bind;
use crate::places::Bounds;
use std::net::Ipv4Addr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

/// Longer than any successful step takes.
const PATIENCE: Duration = Duration::from_secs(20);
const PER_SOURCE: usize = 8;
const BOUNDS: Bounds = Bounds {
    waiting: 12,
    waiting_of_source: PER_SOURCE,
    taken: 12,
    taken_of_source: PER_SOURCE,
    spare: 1,
    all: 12,
    of_source: PER_SOURCE,
};
const TIMES: Times = Times {
    head: PATIENCE,
    idle: PATIENCE,
    answer: PATIENCE,
    write: PATIENCE,
    max_head: 16 * 1024,
};

struct Server {
    address: SocketAddr,
    places: Places,
    may_answer: Arc<Notify>,
}

impl Server {
    async fn start(times: Times) -> Self {
        let listener = bind(([0, 0, 0, 0], 0).into()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let places = Places::new(BOUNDS);
        let may_answer = Arc::new(Notify::new());
        let told = may_answer.clone();
        let answer = move |request: Request<Incoming>, _| {
            let told = told.clone();
            async move {
                Response::new(Full::from(match request.uri().path() {
                    "/slow" => {
                        told.notified().await;
                        Bytes::from("slow")
                    }
                    "/large" => Bytes::from(vec![b'x'; 16 << 20]),
                    _ => Bytes::from("fine"),
                }))
            }
        };
        tokio::spawn(serve(listener, places.clone(), times, plain, answer));
        Self {
            address: (Ipv4Addr::LOCALHOST, port).into(),
            places,
            may_answer,
        }
    }

    /// A connection from one of the addresses of this machine.
    async fn connect(&self, source: u8) -> TcpStream {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 7, source], 0).into()).unwrap();
        socket.connect(self.address).await.unwrap()
    }

    async fn ask(&self, source: u8, path: &str) -> TcpStream {
        let mut stream = self.connect(source).await;
        let head = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    }

    async fn get(&self, source: u8) -> String {
        read(self.ask(source, "/").await).await
    }
}

async fn read(mut stream: TcpStream) -> String {
    let mut answer = String::new();
    let reading = stream.read_to_string(&mut answer);
    let _ended = tokio::time::timeout(PATIENCE, reading).await.unwrap();
    answer
}

#[tokio::test]
async fn silent_connections_do_not_block_other_clients() {
    let server = Server::start(TIMES).await;
    let mut silent = Vec::new();
    for number in 0..100 {
        silent.push(server.connect(1 + number % 2).await);
    }
    for source in [1, 3] {
        assert!(server.get(source).await.ends_with("fine"));
    }
    assert!(server.places.refused(Limit::Waiting) > 0);
}

#[tokio::test]
async fn a_request_in_progress_survives_a_flood_of_connections() {
    let server = Server::start(TIMES).await;
    let asked = server.ask(1, "/slow").await;
    let mut flood = Vec::new();
    for _ in 0..200 {
        flood.push(server.connect(1).await);
        assert!(server.get(1).await.ends_with("fine"));
    }
    server.may_answer.notify_one();
    assert!(read(asked).await.ends_with("slow"));
}

#[tokio::test]
async fn unread_responses_do_not_block_other_clients() {
    let server = Server::start(TIMES).await;
    let mut unread = Vec::new();
    for _ in 0..PER_SOURCE {
        unread.push(server.ask(1, "/large").await);
    }
    // The source uses up its share until its connections count as stalled. Another source has its
    // own.
    assert!(server.get(2).await.ends_with("fine"));
    while !server.get(1).await.ends_with("fine") {}
}

#[tokio::test]
async fn each_step_is_bounded_in_time() {
    let short = Duration::from_millis(50);
    for (times, sent) in [
        (
            Times {
                head: short,
                ..TIMES
            },
            "",
        ),
        (
            Times {
                head: short,
                ..TIMES
            },
            "GET / HT",
        ),
        (
            Times {
                idle: short,
                ..TIMES
            },
            "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        ),
        (
            Times {
                answer: short,
                ..TIMES
            },
            "GET /slow HTTP/1.1\r\nhost: a\r\n\r\n",
        ),
    ] {
        let server = Server::start(times).await;
        let mut stream = server.connect(1).await;
        stream.write_all(sent.as_bytes()).await.unwrap();
        read(stream).await;
    }
    let server = Server::start(Times {
        head: short,
        ..TIMES
    })
    .await;
    let mut stream = server.connect(1).await;
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"fine") {
        stream.read_buf(&mut answer).await.unwrap();
    }
    stream.write_all(b"GET / HT").await.unwrap();
    read(stream).await;
    let server = Server::start(Times {
        write: short,
        ..TIMES
    })
    .await;
    let stream = server.ask(1, "/large").await;
    // The response exceeds any buffer of the kernel.
    tokio::time::sleep(4 * short).await;
    assert!(read(stream).await.len() < 16 << 20);
}
