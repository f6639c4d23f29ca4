//! One client does not affect the others: every attack runs while other clients are served.
//!
//! The attacker has no identity. Meanwhile two clients, one without an identity and one with an
//! identity, send small requests continuously. None of their requests may fail, the process stays
//! within the default limit of its pod, and releases the attack's memory. Latencies are printed
//! rather than asserted, because they include other load on the machine.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use http::Response;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::apps::{App, try_get};
use crate::memory::held;
use crate::mesh::{Mesh, Sidecar};
use crate::process::eventually;

const MIB: usize = 1024 * 1024;
/// The default memory limit of a sidecar.
const POD_LIMIT: usize = 256 * MIB;
/// Requests of each good client before an attack, and again during it.
const REQUESTS: usize = 150;
/// Memory that a process may keep after an attack: caches of the allocator, and pools.
const KEPT: usize = 24 * MIB;

/// An app for HTTP/1.1 and HTTP/2. `/large` is a MiB, `/drip` one byte after another without end,
/// `/hold` gets no response, and all other responses are small.
struct Target(JoinHandle<()>);

impl Target {
    async fn start(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.expect("bind");
        Self(tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.expect("accept");
                connections.spawn(serve(stream));
                while connections.try_join_next().is_some() {}
            }
        }))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn serve(stream: TcpStream) {
    let mut start = [0; 3];
    // Errors of a connection are ignored.
    let _ended = match stream.peek(&mut start).await {
        Ok(3) if &start == b"PRI" => serve_http2(stream).await.map_err(|_| ()),
        _ => serve_http1(stream).await.map_err(|_| ()),
    };
}

async fn serve_http1(mut stream: TcpStream) -> std::io::Result<()> {
    let mut head = BytesMut::new();
    loop {
        let Some(end) = head.windows(4).position(|four| four == b"\r\n\r\n") else {
            if stream.read_buf(&mut head).await? == 0 {
                return Ok(());
            }
            continue;
        };
        let head = head.split_to(end + 4);
        if head.starts_with(b"GET /large ") {
            let start = format!("HTTP/1.1 200 OK\r\ncontent-length: {MIB}\r\n\r\n");
            stream.write_all(start.as_bytes()).await?;
            stream.write_all(&vec![b'x'; MIB]).await?;
        } else if head.starts_with(b"GET ") {
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nsmall";
            stream.write_all(answer).await?;
        } else {
            // A body that the app never reads.
            std::future::pending::<()>().await;
        }
    }
}

async fn serve_http2(stream: TcpStream) -> Result<(), h2::Error> {
    let mut streams = JoinSet::new();
    let mut connection = h2::server::handshake(stream).await?;
    while let Some(accepted) = connection.accept().await {
        let (request, mut respond) = accepted?;
        streams.spawn(async move {
            let path = request.uri().path();
            if path == "/hold" {
                std::future::pending::<()>().await;
            }
            let mut send = respond.send_response(Response::new(()), false)?;
            match path {
                "/large" => send.send_data(vec![b'x'; MIB].into(), true)?,
                "/drip" => loop {
                    send.send_data(Bytes::from_static(b"x"), false)?;
                    tokio::task::yield_now().await;
                },
                _ => send.send_data(Bytes::from_static(b"small"), true)?,
            }
            Ok::<_, h2::Error>(())
        });
        while streams.try_join_next().is_some() {}
    }
    Ok(())
}

/// Latencies of one client's requests.
struct Latencies(Vec<Duration>);

impl Latencies {
    fn percentile(&mut self, percent: usize) -> f64 {
        self.0.sort_unstable();
        let at = (self.0.len() * percent / 100).min(self.0.len() - 1);
        self.0[at].as_secs_f64() * 1e3
    }

    fn shown(&mut self) -> String {
        format!("{:.1}/{:.1}", self.percentile(50), self.percentile(99))
    }
}

/// Sends small requests, all of which must succeed, and returns their latencies. `highest`: the
/// peak memory of `proxy`.
async fn asks(address: SocketAddr, proxy: &Sidecar, highest: &mut usize) -> Latencies {
    let mut latencies = Vec::new();
    for number in 0..REQUESTS {
        let start = Instant::now();
        let answer = try_get(address, "/small").await;
        latencies.push(start.elapsed());
        match answer {
            Ok(answer) if answer.status == 200 => {}
            other => panic!("request {number} of {address} failed: {other:?}"),
        }
        *highest = held(proxy).max(*highest);
    }
    Latencies(latencies)
}

/// An attack: each of its connections repeats this for as long as possible.
#[derive(Clone, Copy, Debug)]
enum Attack {
    /// Streams without a window for their large responses.
    NoWindow,
    /// The same with an unread socket, and maximum windows.
    NoReading,
    /// Heads with very many empty fields, in requests without a response.
    EmptyFields,
    /// Heads that each refer to one long field a hundred times.
    References,
    /// Incomplete heads over HTTP/1.1.
    HalfHeads,
    /// Large responses over HTTP/1.1 that the client does not read.
    UnreadResponses,
    /// Large bodies that the app does not read.
    UnreadRequests,
    /// Messages of one byte without end, and no window for them.
    SmallMessages,
    /// Streams that the client resets as soon as they are open.
    Aborts,
    /// SETTINGS, PING, PRIORITY and WINDOW_UPDATE by one byte, without end.
    Frames,
    /// Heads above the size limit, without end.
    LargeHeads,
    /// Silent connections.
    Silence,
}

impl Attack {
    fn connections(self) -> usize {
        match self {
            Self::HalfHeads | Self::Silence => 2_000,
            Self::UnreadResponses | Self::UnreadRequests => 100,
            _ => 4,
        }
    }

    /// Runs the attack for as long as the connection lasts.
    async fn run(self, from: IpAddr, pod: SocketAddr) -> std::io::Result<()> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((from, 0).into())?;
        if matches!(self, Self::NoReading | Self::UnreadResponses) {
            socket.set_recv_buffer_size(4_096)?;
        }
        let mut stream = socket.connect(pod).await?;
        match self {
            Self::Silence => {}
            Self::HalfHeads => {
                let start = b"GET /small HTTP/1.1\r\nhost: app\r\nx-long: ";
                stream.write_all(start).await?;
                stream.write_all(&[b'x'; 16_000]).await?;
            }
            Self::UnreadResponses => {
                let request = b"GET /large HTTP/1.1\r\nhost: app\r\n\r\n";
                stream.write_all(&request.repeat(20)).await?;
                return std::future::pending().await;
            }
            Self::UnreadRequests => {
                let head = b"PUT /hold HTTP/1.1\r\nhost: app\r\ncontent-length: 100000000\r\n\r\n";
                stream.write_all(head).await?;
                loop {
                    stream.write_all(&[b'x'; 16_000]).await?;
                }
            }
            _ => return self.run_http2(stream).await,
        }
        // Until the peer closes.
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
        Ok(())
    }

    async fn run_http2(self, stream: TcpStream) -> std::io::Result<()> {
        let (mut read, mut write) = stream.into_split();
        let window: u32 = match self {
            Self::NoWindow | Self::SmallMessages => 0,
            _ => (1 << 31) - 1,
        };
        let mut start = BytesMut::from(&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..]);
        let mut settings = BytesMut::new();
        settings.put_u16(4);
        settings.put_u32(window);
        start.put(frame(4, 0, 0, &settings));
        start.put(frame(8, 0, 0, &((1u32 << 31) - 65_536).to_be_bytes()));
        write.write_all(&start).await?;
        let reads = async {
            match self {
                Self::NoReading => std::future::pending().await,
                _ => tokio::io::copy(&mut read, &mut tokio::io::sink()).await,
            }
        };
        let writes = async {
            for number in 0..u32::MAX {
                write.write_all(&self.frames(number)).await?;
                if number >= 999 && !self.is_endless() {
                    std::future::pending::<()>().await;
                }
            }
            Ok(0)
        };
        tokio::select! {
            ended = reads => ended,
            ended = writes => ended,
        }?;
        Ok(())
    }

    fn is_endless(self) -> bool {
        matches!(self, Self::Aborts | Self::Frames | Self::LargeHeads)
    }

    /// The frames of round `number` over HTTP/2.
    fn frames(self, number: u32) -> BytesMut {
        let id = 2 * number + 1;
        // The last flags: END_HEADERS, END_STREAM.
        let get = |path: &str, more: &[u8]| frame(1, 5, id, &[&head(path)[..], more].concat());
        match self {
            Self::NoWindow | Self::NoReading => get("/large", &[]),
            Self::SmallMessages => get("/drip", &[]),
            // `cookie` of the static table, without a value.
            Self::EmptyFields => get("/hold", &b"\x0f\x11\x00".repeat(900)),
            Self::References if number == 0 => {
                let mut field = b"\x40\x01a\x7f\x81\x1e".to_vec();
                field.extend([b'x'; 4_000]);
                get("/hold", &field)
            }
            Self::References => get("/hold", &[0xbe; 15]),
            Self::Aborts => {
                let mut both = get("/hold", &[]);
                both.put(frame(3, 0, id, &8u32.to_be_bytes()));
                both
            }
            Self::LargeHeads => {
                let mut field = b"\x00\x01a\x7f\x81\x76".to_vec();
                field.extend([b'x'; 15_221]);
                let mut head = frame(1, 1, id, &[&head("/small")[..], &field].concat());
                for last in [0, 0, 0, 4] {
                    head.put(frame(9, last, id, &field));
                }
                head
            }
            Self::Frames => {
                let mut frames = frame(4, 0, 0, &[]);
                frames.put(frame(6, 0, 0, &[0; 8]));
                frames.put(frame(2, 0, 1, &[0, 0, 0, 0, 1]));
                frames.put(frame(8, 0, 0, &1u32.to_be_bytes()));
                frames
            }
            Self::HalfHeads | Self::UnreadResponses | Self::UnreadRequests | Self::Silence => {
                BytesMut::new()
            }
        }
    }
}

/// A frame of HTTP/2 (RFC 9113, 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> BytesMut {
    let mut frame = BytesMut::new();
    frame.put_uint(payload.len() as u64, 3);
    frame.put_u8(kind);
    frame.put_u8(flags);
    frame.put_u32(stream);
    frame.put(payload);
    frame
}

/// The fields of a GET, in HPACK (RFC 7541).
fn head(path: &str) -> Vec<u8> {
    let mut head = b"\x82\x86\x01\x03app\x04".to_vec();
    head.push(path.len() as u8);
    head.extend(path.as_bytes());
    head
}

/// Runs one attack against a pod, while a client without an identity and one with an identity are
/// served.
async fn withstands(attack: Attack) {
    naru_listen::descriptors::Descriptors::raise();
    let mesh = Mesh::start().await;
    mesh.service("web", Some("http"), &[1]);
    mesh.put_pod("web", 1, serde_json::json!({}));
    let _app = Target::start(mesh.app(1)).await;
    let budget = format!("--memory-budget={}", naru_proxy::memory::within(POD_LIMIT));
    let proxy = mesh.proxy("web", 1, &[], &[&budget]).await;
    let client = mesh.sidecar("client", 2, &["web"]).await;
    let (pod, peer) = (mesh.pod(1), client.calls("web"));
    // An address of its own: limits are per source address.
    let from = mesh.pod(3).ip();
    let mut highest = 0;
    let mut before = [
        asks(pod, &proxy, &mut highest).await,
        asks(peer, &proxy, &mut highest).await,
    ];
    let idle = held(&proxy);

    let mut attackers = JoinSet::new();
    for _ in 0..attack.connections() {
        attackers.spawn(async move {
            // Retry rejected connections.
            loop {
                let _refused = attack.run(from, pod).await;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
    }
    let mut during = [
        asks(pod, &proxy, &mut highest).await,
        asks(peer, &proxy, &mut highest).await,
    ];
    assert!(highest < POD_LIMIT, "{attack:?}: {highest} bytes");
    attackers.abort_all();
    while attackers.join_next().await.is_some() {}
    let ended = Instant::now();
    let mut at_last = 0;
    eventually(
        "what the attack made the proxy hold is given back",
        async || {
            at_last = held(&proxy);
            at_last <= idle + KEPT
        },
    )
    .await;
    println!(
        "{attack:?}: p50/p99 {} → {} ms, with identity {} → {} ms; \
         {} MiB → at most {}, {} after {:.1} s",
        before[0].shown(),
        during[0].shown(),
        before[1].shown(),
        during[1].shown(),
        idle / MIB,
        highest / MIB,
        at_last / MIB,
        ended.elapsed().as_secs_f64(),
    );
    eventually("the budget is free again", async || {
        proxy.metric("naru_memory_charged_bytes", &[]).await < MIB as f64
    })
    .await;
}

macro_rules! attacks {
    ($($name:ident: $attack:ident;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                withstands(Attack::$attack).await;
            }
        )*
    };
}

attacks! {
    clients_are_served_beside_streams_without_window: NoWindow;
    clients_are_served_beside_sockets_that_are_not_read: NoReading;
    clients_are_served_beside_heads_of_empty_fields: EmptyFields;
    clients_are_served_beside_heads_of_references: References;
    clients_are_served_beside_half_heads: HalfHeads;
    clients_are_served_beside_unread_responses: UnreadResponses;
    clients_are_served_beside_unread_requests: UnreadRequests;
    clients_are_served_beside_unread_small_messages: SmallMessages;
    clients_are_served_beside_aborted_streams: Aborts;
    clients_are_served_beside_floods_of_frames: Frames;
    clients_are_served_beside_floods_of_large_heads: LargeHeads;
    clients_are_served_beside_silent_connections: Silence;
}

/// A server that sends interim responses without end.
async fn interim_flood(address: SocketAddr) -> JoinHandle<()> {
    let listener = TcpListener::bind(address).await.expect("bind");
    tokio::spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (mut stream, _) = listener.accept().await.expect("accept");
            connections.spawn(async move {
                stream.write_all(&frame(4, 0, 0, &[])).await?;
                stream.write_all(&frame(4, 1, 0, &[])).await?;
                let mut read = [0; 4_096];
                let _first = stream.read(&mut read).await?;
                // `:status: 103` and a field, on the first stream of the client.
                let mut hints = b"\x08\x03103\x00\x04link\x7f\x69".to_vec();
                hints.extend([b'x'; 232]);
                let hints = frame(1, 4, 1, &hints).repeat(50);
                loop {
                    stream.write_all(&hints).await?;
                }
                #[expect(unreachable_code)]
                Ok::<_, std::io::Error>(())
            });
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_interim_responses_does_not_fill_the_callers_sidecar() {
    let mesh = Mesh::start().await;
    mesh.service("hostile", Some("kubernetes.io/h2c"), &[1]);
    mesh.service("web", Some("http"), &[2]);
    // Pods without a sidecar.
    for (name, number) in [("hostile-1", 1), ("web-2", 2)] {
        let ip = mesh.pod(number).ip().to_string();
        mesh.put(&serde_json::json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name, "namespace": crate::mesh::NAMESPACE },
            "status": { "podIP": ip, "podIPs": [{ "ip": ip }] },
        }));
    }
    let _hostile = interim_flood(mesh.pod(1)).await;
    let _app = App::named(mesh.pod(2), "small").await;
    mesh.put_pod("client", 3, serde_json::json!({}));
    let budget = format!("--memory-budget={}", naru_proxy::memory::within(POD_LIMIT));
    let client = mesh
        .proxy("client", 3, &["hostile", "web"], &[&budget])
        .await;
    let (hostile, web) = (client.calls("hostile"), client.calls("web"));
    eventually("the client has heard of the Services", async || {
        let answer = try_get(web, "/").await;
        answer.is_ok_and(|answer| answer.status == 200)
    })
    .await;
    let mut highest = 0;
    let mut before = asks(web, &client, &mut highest).await;
    let mut victims = JoinSet::new();
    for _ in 0..4 {
        victims.spawn(async move {
            loop {
                let mut stream = TcpStream::connect(hostile).await.expect("connect");
                let mut request = BytesMut::from(&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..]);
                request.put(frame(4, 0, 0, &[]));
                request.put(frame(1, 5, 1, &head("/")));
                stream.write_all(&request).await.expect("write");
                let mut answer = [0; 64 * 1_024];
                let _ended = stream.read(&mut answer).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
    }
    let mut during = asks(web, &client, &mut highest).await;
    eventually("a flood is broken off", async || {
        let labels = ["service=\"hostile\"", "reason=\"upstream-protocol-error\""];
        client.metric("naru_responses_total", &labels).await > 0.0
    })
    .await;
    victims.abort_all();
    assert!(highest < POD_LIMIT / 2, "{highest} bytes");
    println!(
        "interim responses: p50/p99 {} → {} ms; at most {} MiB",
        before.shown(),
        during.shown(),
        highest / MIB
    );
}
