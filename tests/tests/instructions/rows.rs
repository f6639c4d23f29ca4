//! The workload: requests of four kinds, one after the other, through two sidecars.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use naru_tests::apps::App;
use naru_tests::mesh::{Mesh, Programs};
use naru_tests::process::SOON;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::callgrind::{self, Counted, Counts};

/// Requests before the count starts: by then connections are open, tables filled, and buffers at
/// their final size.
const WARM_UP: u32 = 100;
/// Requests in one count.
const REQUESTS: u32 = 200;
/// Number of counts. The smallest one is used, because periodic work only adds to it.
const ROUNDS: usize = 3;
/// Body of a response to GET, in bytes.
const PAGE: usize = 1024;
/// Body of a POST and of its response, and each direction of an opaque connection, in bytes.
const MESSAGE: [u8; 128] = [b'm'; 128];

/// Under valgrind on a busy machine everything is slow.
const PATIENT: [&str; 3] = [
    "--connect-timeout=60s",
    "--handshake-timeout=60s",
    "--discovery-timeout=60s",
];

/// A kind of request.
#[derive(Clone, Copy, Debug)]
pub enum Row {
    /// GET with a response of 1 KiB, on a persistent connection.
    Http1,
    /// POST of 128 bytes with a response of the same size, on one connection.
    Http2,
    /// An opaque connection, with 128 bytes each way.
    TcpNew,
    /// The GET on a connection of its own.
    Http1New,
}

/// Counts by the name of the side: `outbound` and `inbound`.
pub type Sides = BTreeMap<String, Counts>;

impl Row {
    pub const ALL: [Self; 4] = [Self::Http1, Self::Http2, Self::TcpNew, Self::Http1New];

    pub fn name(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::TcpNew => "tcp-new",
            Self::Http1New => "http1-new",
        }
    }

    /// The `appProtocol` of the app's port.
    fn protocol(self) -> &'static str {
        match self {
            Self::Http1 | Self::Http1New => "http",
            Self::Http2 => "kubernetes.io/h2c",
            Self::TcpNew => "tcp",
        }
    }
}

/// The counts of a row for each request. The last profile of each side goes to `profiles`.
pub async fn count(row: Row, programs: &Path, profiles: &Path) -> Sides {
    let scratch = profiles.join(format!("{}.scratch", row.name()));
    std::fs::create_dir_all(&scratch).expect("a scratch directory");
    let programs = Programs {
        folder: programs.to_owned(),
        sidecars_under: callgrind::command(&scratch),
    };
    let mesh = Mesh::start_of(programs, &[]).await;
    mesh.service("app", Some(row.protocol()), &[1]);
    let _app = Server::start(row, mesh.app(1)).await;
    mesh.put_pod("app", 1, json!({}));
    mesh.put_pod("client", 2, json!({}));
    let inbound = mesh.proxy("app", 1, &[], &PATIENT).await;
    let outbound = mesh.proxy("client", 2, &["app"], &PATIENT).await;
    let mut client = Client::new(row, outbound.calls("app")).await;
    client.ask(WARM_UP).await;

    let profile = |side: &str| profiles.join(format!("{}-{side}", row.name()));
    let sides = [("outbound", &outbound), ("inbound", &inbound)].map(|(side, sidecar)| {
        let counted = Counted {
            sidecar,
            directory: &scratch,
        };
        (side, counted)
    });
    for (name, side) in &sides {
        let _warm_up = side.counts(&profile(name)).await;
    }
    let mut least = Sides::new();
    for _ in 0..ROUNDS {
        client.ask(REQUESTS).await;
        for (name, side) in &sides {
            let counts = side.counts(&profile(name)).await;
            let counts = counts.each(REQUESTS);
            println!("{} {name}: {counts:?}", row.name());
            let least = least.entry((*name).to_owned()).or_insert(counts);
            *least = least.min(counts);
        }
    }
    drop((inbound, outbound));
    std::fs::remove_dir_all(&scratch).expect("remove");
    least
}

impl Counts {
    /// A request's share: whole instructions, and tenths of all other counts.
    fn each(self, requests: u32) -> Self {
        let requests = f64::from(requests);
        let tenths = |count: f64| (count / requests * 10.0).round() / 10.0;
        Self {
            instructions: (self.instructions / requests).round(),
            allocations: tenths(self.allocations),
            system_calls: tenths(self.system_calls),
            clock_readings: tenths(self.clock_readings),
        }
    }

    fn min(self, other: Self) -> Self {
        Self {
            instructions: self.instructions.min(other.instructions),
            allocations: self.allocations.min(other.allocations),
            system_calls: self.system_calls.min(other.system_calls),
            clock_readings: self.clock_readings.min(other.clock_readings),
        }
    }
}

/// The client of a row.
enum Client {
    Http1(hyper::client::conn::http1::SendRequest<Full<Bytes>>),
    Http2(h2::client::SendRequest<Bytes>),
    TcpNew(SocketAddr),
    Http1New(SocketAddr),
}

impl Client {
    async fn new(row: Row, address: SocketAddr) -> Self {
        match row {
            Row::Http1 => {
                let stream = TcpStream::connect(address).await.expect("connect");
                let (client, connection) =
                    hyper::client::conn::http1::handshake(TokioIo::new(stream))
                        .await
                        .expect("HTTP/1.1");
                tokio::spawn(connection);
                Self::Http1(client)
            }
            Row::Http2 => {
                let stream = TcpStream::connect(address).await.expect("connect");
                let (client, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
                tokio::spawn(connection);
                Self::Http2(client)
            }
            Row::TcpNew => Self::TcpNew(address),
            Row::Http1New => Self::Http1New(address),
        }
    }

    /// Sends this many requests, each after the response to the last.
    async fn ask(&mut self, requests: u32) {
        for _ in 0..requests {
            timeout(SOON, self.once()).await.expect("no answer");
        }
    }

    async fn once(&mut self) {
        match self {
            Self::Http1(client) => {
                let request = Request::get("/page").header("host", "app");
                let request = request.body(Full::default()).expect("a request");
                let answer = client.send_request(request).await.expect("an answer");
                assert_eq!(answer.status(), 200);
                let body = answer.into_body().collect().await.expect("a body");
                assert_eq!(body.to_bytes().len(), PAGE);
            }
            Self::Http2(client) => post(client).await,
            Self::TcpNew(address) => {
                let mut stream = TcpStream::connect(*address).await.expect("connect");
                stream.write_all(&MESSAGE).await.expect("write");
                let mut back = [0; MESSAGE.len()];
                stream.read_exact(&mut back).await.expect("read");
                stream.shutdown().await.expect("shutdown");
                let end = stream.read(&mut back).await.expect("read");
                assert_eq!((end, back), (0, MESSAGE));
            }
            Self::Http1New(address) => {
                let mut stream = TcpStream::connect(*address).await.expect("connect");
                let request = b"GET /page HTTP/1.1\r\nhost: app\r\nconnection: close\r\n\r\n";
                stream.write_all(request).await.expect("write");
                let mut answer = Vec::new();
                stream.read_to_end(&mut answer).await.expect("read");
                assert!(answer.starts_with(b"HTTP/1.1 200 ") && answer.len() > PAGE);
            }
        }
    }
}

async fn post(client: &mut h2::client::SendRequest<Bytes>) {
    let request = Request::post("http://app/message")
        .body(())
        .expect("a request");
    let (answer, mut send) = client.send_request(request, false).expect("a stream");
    send.send_data(Bytes::from_static(&MESSAGE), true)
        .expect("send");
    let answer = answer.await.expect("an answer");
    assert_eq!(answer.status(), 200);
    assert_eq!(whole(answer.into_body()).await, MESSAGE.as_slice());
}

async fn whole(mut body: h2::RecvStream) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.expect("data");
        body.flow_control()
            .release_capacity(data.len())
            .expect("capacity");
        all.extend_from_slice(&data);
    }
    all
}

/// The app of a row. It stops on drop.
enum Server {
    Http1 { _app: App },
    Other(JoinHandle<()>),
}

impl Server {
    async fn start(row: Row, address: SocketAddr) -> Self {
        match row {
            Row::Http1 | Row::Http1New => Self::Http1 {
                _app: App::named(address, &"p".repeat(PAGE)).await,
            },
            Row::Http2 => Self::listen(address, answer_http2).await,
            Row::TcpNew => Self::listen(address, echo).await,
        }
    }

    async fn listen<F>(address: SocketAddr, serve: impl Fn(TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind(address).await.expect("bind");
        Self::Other(tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.expect("accept");
                tokio::spawn(serve(stream));
            }
        }))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Self::Other(task) = self {
            task.abort();
        }
    }
}

/// Echoes each complete message in one piece.
async fn answer_http2(stream: TcpStream) {
    let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        tokio::spawn(async move {
            let message = whole(request.into_body()).await;
            let mut send = respond
                .send_response(Response::new(()), false)
                .expect("send");
            send.send_data(Bytes::from(message), true).expect("send");
        });
    }
}

async fn echo(mut stream: TcpStream) {
    let mut message = MESSAGE;
    while let Ok(read @ 1..) = stream.read(&mut message).await {
        stream.write_all(&message[..read]).await.expect("write");
    }
}
