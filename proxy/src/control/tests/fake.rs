//! A scripted controller for tests: real TLS, real HTTP/2, gRPC's framing by hand.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use naru_contract::{
    Answer, CERTIFY_PATH, CertifyRequest, CertifyResponse, FromProxy, Heartbeat, Hello, Push,
    Resource, SYNC_PATH, ToProxy, from_proxy, to_proxy,
};
use prost::Message;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::identity::testing::{Authority, Leaf, in_seconds};

pub const CONTROLLER: &str = "spiffe://cluster.local/ns/naru-system/sa/naru-controller";
pub const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

/// A running controller. It stops when this is dropped.
pub struct Fake {
    pub address: SocketAddr,
    pub authority: Arc<Authority>,
    pub settings: Arc<Mutex<Settings>>,
    streams: mpsc::UnboundedReceiver<Stream>,
    task: JoinHandle<()>,
}

/// How requests for certificates are answered.
pub struct Settings {
    /// The name of the authority that is announced with the next certificate.
    pub issuer: String,
    /// The claims of the next certificate.
    pub leaf: Leaf,
    /// In addition to the authority's own.
    pub more_anchors: Vec<CertificateDer<'static>>,
    /// Answer with PERMISSION_DENIED instead.
    pub refuse: bool,
    pub tokens: Vec<String>,
}

/// The controller's end of a Sync stream.
pub struct Stream {
    received: RecvStream,
    buffer: BytesMut,
    to_proxy: SendStream<Bytes>,
    sequence: u64,
    /// How many certificates the proxy has presented.
    pub certificates: usize,
}

impl Fake {
    pub async fn start() -> Self {
        Self::start_as(
            Arc::new(Authority::new("a")),
            Leaf::new(CONTROLLER),
            "127.0.0.1:0",
        )
        .await
    }

    /// Presents `leaf`, issued by `authority`.
    pub async fn start_as(authority: Arc<Authority>, leaf: Leaf, listen: &str) -> Self {
        let listener = TcpListener::bind(listen).await.unwrap();
        let address = listener.local_addr().unwrap();
        let settings = Arc::new(Mutex::new(Settings {
            issuer: String::new(),
            leaf: Leaf::new(WEB),
            more_anchors: Vec::new(),
            refuse: false,
            tokens: Vec::new(),
        }));
        #[expect(clippy::disallowed_methods, reason = "a test opens a handful")]
        let (sender, streams) = mpsc::unbounded_channel();
        let server = Server {
            tls: TlsAcceptor::from(tls(&authority, &leaf)),
            authority: authority.clone(),
            settings: settings.clone(),
            streams: sender,
        };
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(server.clone().connection(stream));
            }
        });
        Self {
            address,
            authority,
            settings,
            streams,
            task,
        }
    }

    /// The next stream that a proxy opens.
    pub async fn stream(&mut self) -> Stream {
        self.streams.recv().await.unwrap()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn tls(authority: &Authority, leaf: &Leaf) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.anchor()).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .unwrap();
    let (chain, key) = authority.issue(leaf);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

#[derive(Clone)]
struct Server {
    tls: TlsAcceptor,
    authority: Arc<Authority>,
    settings: Arc<Mutex<Settings>>,
    streams: mpsc::UnboundedSender<Stream>,
}

impl Server {
    async fn connection(self, stream: TcpStream) {
        // A proxy that rejects the certificate closes the connection.
        let Ok(stream) = self.tls.accept(stream).await else {
            return;
        };
        let certificates = stream.get_ref().1.peer_certificates().map_or(0, <[_]>::len);
        let mut connection = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((request, response))) = connection.accept().await {
            let path = request.uri().path().to_owned();
            let body = request.into_body();
            match path.as_str() {
                CERTIFY_PATH => {
                    let server = self.clone();
                    tokio::spawn(async move { server.certify(body, response).await });
                }
                SYNC_PATH => self.sync(body, response, certificates),
                other => panic!("{other}"),
            }
        }
    }

    async fn certify(self, mut body: RecvStream, mut response: SendResponse<Bytes>) {
        let mut buffer = BytesMut::new();
        let request: CertifyRequest = loop {
            if let Some(message) = take(&mut buffer) {
                break message;
            }
            read(&mut body, &mut buffer).await.unwrap();
        };
        let answer = {
            let mut settings = self.settings.lock().unwrap();
            settings.tokens.push(request.token);
            if settings.refuse {
                None
            } else {
                let leaf = self.authority.certify(&request.csr_der, &settings.leaf);
                let mut anchors = vec![self.authority.anchor()];
                anchors.extend(settings.more_anchors.clone());
                Some(CertifyResponse {
                    chain_der: vec![leaf.to_vec().into()],
                    trust_anchors_der: anchors.iter().map(|a| a.to_vec().into()).collect(),
                    now_unix_seconds: in_seconds(0),
                    issuer: settings.issuer.clone(),
                })
            }
        };
        let head = || http::Response::builder().header("content-type", "application/grpc");
        match answer {
            None => {
                let head = head()
                    .header("grpc-status", "7")
                    .header("grpc-message", "no such pod");
                response
                    .send_response(head.body(()).unwrap(), true)
                    .unwrap();
            }
            Some(answer) => {
                let head = head().body(()).unwrap();
                let mut stream = response.send_response(head, false).unwrap();
                stream.send_data(frame(&answer), false).unwrap();
                let mut trailers = http::HeaderMap::new();
                trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
                stream.send_trailers(trailers).unwrap();
            }
        }
    }

    fn sync(&self, received: RecvStream, mut response: SendResponse<Bytes>, certificates: usize) {
        let head = http::Response::builder().header("content-type", "application/grpc");
        let to_proxy = response
            .send_response(head.body(()).unwrap(), false)
            .unwrap();
        let _ = self.streams.send(Stream {
            received,
            buffer: BytesMut::new(),
            to_proxy,
            sequence: 0,
            certificates,
        });
    }
}

impl Stream {
    /// The next message. `None`: the proxy has ended the stream.
    pub async fn next(&mut self) -> Option<from_proxy::Message> {
        loop {
            if let Some(message) = take::<FromProxy>(&mut self.buffer) {
                return message.message;
            }
            read(&mut self.received, &mut self.buffer).await?;
        }
    }

    pub async fn hello(&mut self) -> Hello {
        match self.next().await {
            Some(from_proxy::Message::Hello(hello)) => hello,
            other => panic!("{other:?}"),
        }
    }

    pub async fn subscribed(&mut self) -> Vec<String> {
        match self.next().await {
            Some(from_proxy::Message::Subscribe(subscribe)) => subscribe.destinations,
            other => panic!("{other:?}"),
        }
    }

    pub async fn unsubscribed(&mut self) -> Vec<String> {
        match self.next().await {
            Some(from_proxy::Message::Unsubscribe(unsubscribe)) => unsubscribe.destinations,
            other => panic!("{other:?}"),
        }
    }

    /// Sends a push and awaits the answer.
    pub async fn push(&mut self, updates: Vec<Resource>) -> Answer {
        self.sequence += 1;
        self.send(to_proxy::Message::Push(Push {
            sequence: self.sequence,
            updates,
            removed: Vec::new(),
        }));
        match self.next().await {
            Some(from_proxy::Message::Answer(answer)) => {
                assert_eq!(answer.sequence, self.sequence);
                answer
            }
            other => panic!("{other:?}"),
        }
    }

    pub fn heartbeat(&mut self) {
        self.send(to_proxy::Message::Heartbeat(Heartbeat {}));
    }

    fn send(&mut self, message: to_proxy::Message) {
        let message = ToProxy {
            message: Some(message),
        };
        self.to_proxy.send_data(frame(&message), false).unwrap();
    }
}

/// A message with gRPC's prefix: the compression flag (off), and its length.
fn frame(message: &impl Message) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(message.encoded_len() as u32);
    message.encode(&mut frame).unwrap();
    frame.freeze()
}

fn take<M: Message + Default>(buffer: &mut BytesMut) -> Option<M> {
    let length = u32::from_be_bytes(buffer.get(1..5)?.try_into().unwrap()) as usize;
    if buffer.len() < 5 + length {
        return None;
    }
    buffer.advance(5);
    Some(M::decode(buffer.split_to(length)).unwrap())
}

async fn read(stream: &mut RecvStream, buffer: &mut BytesMut) -> Option<()> {
    let data = stream.data().await?.ok()?;
    stream.flow_control().release_capacity(data.len()).unwrap();
    buffer.extend_from_slice(&data);
    Some(())
}
