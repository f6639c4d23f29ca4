//! The carriers: what takes the bytes of all lanes from one thread to the other.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::{self, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use naru_proxy::identity::{Alpn, Identity};
use naru_proxy::tls;
use naru_proxy::upstream::mux::{Driver, MuxConnection, Side, Stream};
use naru_proxy::wire::buffered::Buffered;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::lanes::{End, Lane};
use crate::rows::Row;
use crate::{h2_streams, opaque};

const TRUST_DOMAIN: &str = "cluster.local";
const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";
const SERVER: &str = "spiffe://cluster.local/ns/shop/sa/server";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// A TLS connection for each lane, with Naru's records.
    Naru,
    /// The same by tokio-rustls.
    TokioRustls,
    /// A stream of one connection for each lane.
    Mux,
    /// A stream of HTTP/2 for each request, whose head becomes HPACK and HTTP/1 again.
    H2,
    /// A stream of HTTP/2 for each lane, which carries its bytes.
    H2Raw,
    /// An app's connection in frames, on a connection of its own while it lasts.
    Frames,
    /// An app's connection copied to a stream of one connection.
    MuxCopied,
    /// An app's connection copied to a TLS connection of its own.
    NaruCopied,
}

impl Carrier {
    const ALL: [Self; 8] = [
        Self::Naru,
        Self::TokioRustls,
        Self::Mux,
        Self::H2,
        Self::H2Raw,
        Self::Frames,
        Self::MuxCopied,
        Self::NaruCopied,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Naru => "tls",
            Self::TokioRustls => "tokio-rustls",
            Self::Mux => "mux",
            Self::H2 => "h2",
            Self::H2Raw => "h2-bytes",
            Self::Frames => "frames",
            Self::MuxCopied => "mux-copied",
            Self::NaruCopied => "tls-copied",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|carrier| carrier.name() == name)
    }
}

/// Both ends' certificates of one authority, as sidecars have them.
pub struct Identities {
    client: Identity,
    server: Identity,
}

impl Identities {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "wires");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("a certificate");
        let identity = |id: &str| {
            let mut params = CertificateParams::default();
            let name = id.try_into().expect("a name");
            params.subject_alt_names.push(SanType::URI(name));
            let key = KeyPair::generate().expect("a key");
            let leaf = params.signed_by(&key, &issuer).expect("a certificate");
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
            let (anchors, chain) = (vec![issuer.der().clone()], vec![leaf.der().clone()]);
            Identity::from_parts(TRUST_DOMAIN, anchors, chain, key).expect("an identity")
        };
        Self {
            client: identity(CLIENT),
            server: identity(SERVER),
        }
    }

    pub fn server(&self) -> Arc<ServerConfig> {
        self.server.server_config().expect("a certificate")
    }

    fn client(&self) -> Arc<ClientConfig> {
        let config = self.client.client_config(&SERVER.into(), Alpn::Tcp);
        config.expect("a certificate")
    }
}

/// The client's end of a carrier.
pub struct Client {
    carrier: Carrier,
    address: SocketAddr,
    config: Arc<ClientConfig>,
    shared: Shared,
}

/// What lanes share.
enum Shared {
    Nothing,
    Mux(Rc<MuxConnection>),
    H2(h2::client::SendRequest<bytes::Bytes>),
    Pool(opaque::Pool),
}

/// The client's end of a lane.
pub enum Asking {
    Bytes(Box<End>, Option<Lane>),
    H2(Box<h2_streams::Asking>),
}

impl Client {
    pub async fn new(carrier: Carrier, address: SocketAddr, identities: &Identities) -> Self {
        let mut client = Self {
            carrier,
            address,
            config: identities.client(),
            shared: Shared::Nothing,
        };
        client.shared = match carrier {
            Carrier::Naru | Carrier::TokioRustls | Carrier::NaruCopied => Shared::Nothing,
            Carrier::Frames => Shared::Pool(Rc::new(RefCell::default())),
            Carrier::Mux | Carrier::MuxCopied => {
                let mut driver = Driver::new(Side::Client, client.connect().await);
                let connection = driver.connection.clone();
                spawn_local(async move {
                    poll_fn(|cx| driver.poll(cx, &mut drop)).await;
                });
                Shared::Mux(connection)
            }
            Carrier::H2 | Carrier::H2Raw => {
                Shared::H2(h2_streams::connect(client.connect().await).await)
            }
        };
        client
    }

    /// A TLS connection.
    async fn connect(&self) -> Lane {
        let socket = TcpStream::connect(self.address).await.expect("connect");
        socket.set_nodelay(true).expect("a socket");
        let name = ServerName::IpAddress(self.address.ip().into());
        let config = self.config.clone();
        match self.carrier {
            Carrier::TokioRustls => {
                let connected = TlsConnector::from(config).connect(name, socket).await;
                Box::pin(connected.expect("TLS"))
            }
            _ => Box::pin(tls::connect(config, name, socket).await.expect("TLS")),
        }
    }

    /// A lane for the bytes of an app.
    pub async fn open(&self) -> Lane {
        match &self.shared {
            Shared::Nothing if self.carrier == Carrier::NaruCopied => {
                opaque::copied(self.connect().await)
            }
            Shared::Nothing => self.connect().await,
            Shared::Mux(connection) => {
                let stream = connection.open_stream().expect("a stream");
                match self.carrier {
                    Carrier::MuxCopied => opaque::copied(Box::pin(stream)),
                    _ => Box::pin(stream),
                }
            }
            Shared::H2(sender) => h2_streams::open(sender.clone()).await,
            Shared::Pool(pool) => {
                let idle = pool.borrow_mut().pop();
                let reused = idle.is_some();
                let peer = match idle {
                    Some(peer) => peer,
                    None => Buffered::new(self.connect().await),
                };
                opaque::framed(peer, reused, pool)
            }
        }
    }

    pub fn lane(&self, row: &Row) -> Asking {
        match (&self.shared, self.carrier) {
            (Shared::H2(sender), Carrier::H2) => {
                Asking::H2(Box::new(h2_streams::Asking::new(sender.clone(), row)))
            }
            _ => Asking::Bytes(Box::new(End::new(row)), None),
        }
    }
}

impl Asking {
    /// One operation.
    pub async fn ask(&mut self, row: &Row, client: &Client) -> io::Result<()> {
        let (end, kept) = match self {
            Self::Bytes(end, kept) => (end, kept),
            Self::H2(asking) => return asking.ask(row).await,
        };
        let mut lane = match kept.take() {
            Some(lane) => lane,
            None => client.open().await,
        };
        end.ask(row, &mut lane).await?;
        if row.is_new {
            lane.shutdown().await?;
            assert_eq!(lane.read(&mut [0]).await?, 0);
        } else {
            *kept = Some(lane);
        }
        Ok(())
    }
}

/// The server's end: accepts connections, and answers on their lanes.
pub async fn serve(
    row: &'static Row,
    carrier: Carrier,
    listener: net::TcpListener,
    config: Arc<ServerConfig>,
) {
    listener.set_nonblocking(true).expect("a listener");
    let listener = TcpListener::from_std(listener).expect("a listener");
    loop {
        let Ok((socket, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        socket.set_nodelay(true).expect("a socket");
        let config = config.clone();
        spawn_local(async move {
            let stream: Lane = match carrier {
                Carrier::TokioRustls => {
                    let accepted = TlsAcceptor::from(config).accept(socket).await;
                    Box::pin(accepted.expect("TLS"))
                }
                _ => {
                    let accepted = tls::accept(config, BytesMut::new(), socket).await;
                    Box::pin(accepted.expect("TLS").stream)
                }
            };
            serve_connection(row, carrier, stream).await;
        });
    }
}

async fn serve_connection(row: &'static Row, carrier: Carrier, stream: Lane) {
    match carrier {
        Carrier::Naru | Carrier::TokioRustls => answer(row, stream).await,
        Carrier::NaruCopied => answer(row, opaque::copied(stream)).await,
        Carrier::Frames => opaque::serve_framed(row, stream).await,
        Carrier::H2 => h2_streams::serve(row, stream).await,
        Carrier::H2Raw => h2_streams::serve_bytes(row, stream).await,
        Carrier::Mux | Carrier::MuxCopied => {
            let mut driver = Driver::new(Side::Server, stream);
            let mut accept = |stream: Stream| {
                spawn_local(answer(
                    row,
                    match carrier {
                        Carrier::MuxCopied => opaque::copied(Box::pin(stream)),
                        _ => Box::pin(stream),
                    },
                ));
            };
            poll_fn(|cx| driver.poll(cx, &mut accept)).await;
        }
    }
}

/// Answers on a lane until it ends: at the end of a run, by a reset.
pub async fn answer(row: &'static Row, mut lane: Lane) {
    let _reset = End::new(row).answer(row, &mut lane).await;
}
