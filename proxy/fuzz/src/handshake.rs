//! A connection between the proxy's TLS and rustls' own, after its handshake.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::pin::pin;
use std::sync::{Arc, LazyLock};
use std::task::Poll;

use bytes::BytesMut;
use naru_proxy::tls::{Stream, accept, connect};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, Connection, KeyLog, RootCertStore, ServerConfig,
    ServerConnection, SupportedCipherSuite,
};

use crate::wire::{End, context};

/// The suites of TLS 1.3.
pub const SUITES: [SupportedCipherSuite; 3] = [
    cipher_suite::TLS13_AES_128_GCM_SHA256,
    cipher_suite::TLS13_AES_256_GCM_SHA384,
    cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
];
/// More turns than a handshake needs.
const MAX_TURNS: usize = 16;
/// Room of the connection, each way, in bytes.
const ROOM: usize = 48 * 1024;

/// rustls' end.
pub struct Peer {
    pub connection: Connection,
    pub io: End,
    pub failed: bool,
}

/// What a handshake is made with.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub suite: usize,
    /// Tickets that the server sends.
    pub tickets: usize,
}

static CERTIFIED: LazyLock<(CertificateDer<'static>, Vec<u8>)> = LazyLock::new(|| {
    let params = rcgen::CertificateParams::new(["localhost".to_owned()]).expect("a name");
    let key = rcgen::KeyPair::generate().expect("a key");
    let certificate = params.self_signed(&key).expect("a certificate");
    (certificate.der().clone(), key.serialize_der())
});

thread_local! {
    /// Secrets of the last handshake, by their labels.
    static SECRETS: RefCell<Vec<(String, Vec<u8>)>> = const { RefCell::new(Vec::new()) };
}

#[derive(Debug)]
struct Log;

impl KeyLog for Log {
    fn log(&self, label: &str, _: &[u8], secret: &[u8]) {
        SECRETS.with_borrow_mut(|secrets| secrets.push((label.to_owned(), secret.to_vec())));
    }
}

/// The traffic secret of this side after the last handshake of this thread.
pub fn traffic_secret(of_server: bool) -> Vec<u8> {
    let label = match of_server {
        true => "SERVER_TRAFFIC_SECRET_0",
        false => "CLIENT_TRAFFIC_SECRET_0",
    };
    SECRETS.with_borrow(|secrets| {
        let found = secrets.iter().rfind(|(other, _)| other == label);
        found.expect("a secret").1.clone()
    })
}

impl Setup {
    fn provider(self) -> Arc<CryptoProvider> {
        Arc::new(CryptoProvider {
            cipher_suites: vec![SUITES[self.suite]],
            kx_groups: vec![kx_group::X25519],
            ..default_provider()
        })
    }

    pub fn server(self) -> Arc<ServerConfig> {
        let (certificate, key) = &*CERTIFIED;
        let key = PrivateKeyDer::Pkcs8(key.clone().into());
        let builder = ServerConfig::builder_with_provider(self.provider());
        let mut config = builder
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)
            .expect("a certificate");
        config.enable_secret_extraction = true;
        config.send_tls13_tickets = self.tickets;
        config.key_log = Arc::new(Log);
        Arc::new(config)
    }

    pub fn client(self) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CERTIFIED.0.clone()).expect("an anchor");
        let builder = ClientConfig::builder_with_provider(self.provider());
        let mut config = builder
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.enable_secret_extraction = true;
        // Every execution is on its own.
        config.resumption = rustls::client::Resumption::disabled();
        config.key_log = Arc::new(Log);
        Arc::new(config)
    }

    /// The proxy's end, and rustls' own.
    pub fn shake_hands(self, ours_is_server: bool) -> (Stream<End>, Peer) {
        SECRETS.with_borrow_mut(Vec::clear);
        let io = End::new(ROOM);
        let mut peer = Peer {
            connection: match ours_is_server {
                true => rustls_client(self.client()).into(),
                false => rustls_server(self.server()).into(),
            },
            io: End::new(ROOM),
            failed: false,
        };
        let ours = io.clone();
        let shaking = async {
            match ours_is_server {
                true => {
                    let accepted = accept(self.server(), BytesMut::new(), ours).await;
                    accepted.map(|accepted| accepted.stream)
                }
                false => connect(self.client(), name(), ours).await,
            }
        };
        let mut shaking = pin!(shaking);
        for _ in 0..MAX_TURNS {
            if let Poll::Ready(stream) = shaking.as_mut().poll(&mut context()) {
                io.deliver(&peer.io, usize::MAX);
                peer.turn();
                return (stream.expect("a handshake"), peer);
            }
            io.deliver(&peer.io, usize::MAX);
            peer.turn();
            peer.io.deliver(&io, usize::MAX);
        }
        panic!("a handshake that does not end");
    }
}

fn name() -> ServerName<'static> {
    ServerName::try_from("localhost").expect("a name")
}

pub fn rustls_client(config: Arc<ClientConfig>) -> ClientConnection {
    ClientConnection::new(config, name()).expect("a client")
}

pub fn rustls_server(config: Arc<ServerConfig>) -> ServerConnection {
    ServerConnection::new(config).expect("a server")
}

impl Peer {
    /// Processes what has arrived, as far as there is room for it, and sends what is due.
    pub fn turn(&mut self) {
        let mut lane = self.io.0.borrow_mut();
        while !self.failed && (!lane.arrived.is_empty() || lane.ended) {
            match self.connection.read_tls(&mut lane.arrived) {
                Ok(0) | Err(_) => break,
                Ok(_) => self.failed = self.connection.process_new_packets().is_err(),
            }
        }
        while self.connection.wants_write() && lane.sent.len() < lane.room {
            let written = self.connection.write_tls(&mut lane.sent);
            written.expect("memory has room");
        }
    }

    /// One read of at most `room` bytes.
    pub fn read(&mut self, room: usize) -> Poll<io::Result<Vec<u8>>> {
        let mut bytes = vec![0; room];
        match self.connection.reader().read(&mut bytes) {
            Ok(length) => {
                bytes.truncate(length);
                Poll::Ready(Ok(bytes))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => match self.failed {
                true => Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
                false => Poll::Pending,
            },
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    /// How many of `bytes` are to be sent.
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        let written = self.connection.writer().write(bytes);
        written.expect("a full buffer is no error")
    }
}
