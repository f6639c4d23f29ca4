//! Both ends against each other, and each against rustls' own record layer.

mod handshakes;

use std::io;
use std::sync::Arc;

use bytes::BytesMut;
use proptest::prelude::*;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, ContentType, HandshakeKind};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex, split};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::record::{MAX_CONTENT, OVERHEAD, RecordError};
use super::stream::StreamError;
use super::{Stream, accept, connect};
use crate::identity::testing::{Authority, spiffe_id};
use crate::identity::{Alpn, Identity};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const API: &str = "spiffe://cluster.local/ns/shop/sa/api";
const PIPE: usize = 256 * 1024;

/// Two identities of one mesh.
struct Peers {
    web: Identity,
    api: Identity,
}

impl Peers {
    fn new() -> Self {
        let authority = Authority::new("a");
        Self {
            web: authority.identity(WEB),
            api: authority.identity(API),
        }
    }

    async fn connect(&self, io: DuplexStream) -> io::Result<Stream<DuplexStream>> {
        let config = self.web.client_config(&spiffe_id(API), Alpn::Tcp).unwrap();
        connect(config, name(), io).await
    }

    async fn accept(&self, io: DuplexStream) -> io::Result<Stream<DuplexStream>> {
        let config = self.api.server_config().unwrap();
        let accepted = accept(config, BytesMut::new(), io).await?;
        assert_eq!(accepted.alpn.as_deref(), Some(Alpn::Tcp.as_bytes()));
        let name = self.api.peer_identity(&accepted.certificates);
        assert_eq!(name, Some(spiffe_id(WEB)));
        Ok(accepted.stream)
    }

    async fn rustls_client(&self, io: DuplexStream) -> client::TlsStream<DuplexStream> {
        let config = self.web.client_config(&spiffe_id(API), Alpn::Tcp).unwrap();
        let connecting = TlsConnector::from(config).connect(name(), io);
        connecting.await.unwrap()
    }

    async fn rustls_server(&self, io: DuplexStream) -> server::TlsStream<DuplexStream> {
        let config = self.api.server_config().unwrap();
        TlsAcceptor::from(config).accept(io).await.unwrap()
    }

    /// A client and a server, both Naru's.
    async fn ours(&self) -> (Stream<DuplexStream>, Stream<DuplexStream>) {
        let (near, far) = duplex(PIPE);
        let (client, server) = tokio::join!(self.connect(near), self.accept(far));
        (client.unwrap(), server.unwrap())
    }

    async fn ours_and_rustls_server(
        &self,
    ) -> (Stream<DuplexStream>, server::TlsStream<DuplexStream>) {
        let (near, far) = duplex(PIPE);
        let (client, server) = tokio::join!(self.connect(near), self.rustls_server(far));
        (client.unwrap(), server)
    }

    async fn rustls_client_and_ours(
        &self,
    ) -> (client::TlsStream<DuplexStream>, Stream<DuplexStream>) {
        let (near, far) = duplex(PIPE);
        let (client, server) = tokio::join!(self.rustls_client(near), self.accept(far));
        (client, server.unwrap())
    }
}

fn name() -> ServerName<'static> {
    ServerName::try_from("10.0.0.1").unwrap()
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.unwrap().block_on(test);
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8).collect()
}

/// Sends each piece by a separate write in both directions at once, reads with `room` at a time,
/// and closes both directions in order.
async fn exchange<A, B>(near: A, far: B, pieces: &[Vec<u8>], room: usize)
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let send = async |to: &mut (dyn AsyncWrite + Unpin)| {
        for piece in pieces {
            to.write_all(piece).await.unwrap();
        }
        to.flush().await.unwrap();
        to.shutdown().await.unwrap();
    };
    let receive = async |from: &mut (dyn AsyncRead + Unpin)| {
        let mut all = Vec::new();
        let mut piece = vec![0; room];
        loop {
            match from.read(&mut piece).await.unwrap() {
                0 => return all,
                length => all.extend_from_slice(&piece[..length]),
            }
        }
    };
    let (mut near_read, mut near_write) = split(near);
    let (mut far_read, mut far_write) = split(far);
    let ((), (), at_far, at_near) = tokio::join!(
        send(&mut near_write),
        send(&mut far_write),
        receive(&mut far_read),
        receive(&mut near_read),
    );
    assert!(at_far == pieces.concat() && at_near == pieces.concat());
}

/// The error that reading returns.
async fn failure(stream: &mut (impl AsyncRead + Unpin)) -> io::Error {
    stream.read_u8().await.unwrap_err()
}

fn why(error: &io::Error) -> String {
    let source = error.get_ref().and_then(|source| source.downcast_ref());
    source.map(StreamError::to_string).unwrap_or_default()
}

/// A record of Naru's client, as it is on the wire.
async fn sealed(client: &mut Stream<DuplexStream>, kind: ContentType, content: &[u8]) -> Vec<u8> {
    let mut record = vec![0; content.len() + OVERHEAD];
    client.sealing().seal(kind, content, &mut record).unwrap();
    record
}

/// The errors at both ends after Naru's server has received a record of Naru's client.
async fn verdict(kind: ContentType, content: &[u8]) -> (io::Error, io::Error) {
    let (mut client, mut server) = Peers::new().ours().await;
    let record = sealed(&mut client, kind, content).await;
    client.io().write_all(&record).await.unwrap();
    let verdict = failure(&mut server).await;
    // The end of the handshake may come first: none of it is application data.
    let told = failure(&mut client).await;
    (verdict, told)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn data_arrives_whichever_end_is_narus(
        lengths in prop::collection::vec(
            prop_oneof![1..300_usize, 16_000..17_000_usize, 60_000..70_000_usize],
            0..12,
        ),
        room in prop_oneof![1..200_usize, 16_380..16_400_usize, 60_000..140_000_usize],
    ) {
        let pieces: Vec<_> = lengths.into_iter().map(bytes).collect();
        let pieces = pieces.as_slice();
        run(async {
            let peers = Peers::new();
            let (near, far) = peers.ours().await;
            exchange(near, far, pieces, room).await;
            let (near, far) = peers.ours_and_rustls_server().await;
            exchange(near, far, pieces, room).await;
            let (near, far) = peers.rustls_client_and_ours().await;
            exchange(near, far, pieces, room).await;
        });
    }
}

#[tokio::test]
async fn pieces_of_one_write_share_records() {
    let (mut client, mut server) = Peers::new().ours_and_rustls_server().await;
    let pieces = [
        bytes(9),
        Vec::new(),
        bytes(MAX_CONTENT - 9),
        bytes(7),
        bytes(1),
    ];
    let slices: Vec<_> = pieces.iter().map(|piece| io::IoSlice::new(piece)).collect();
    assert!(client.is_write_vectored());
    let written = client.write_vectored(&slices).await.unwrap();
    assert_eq!(written, MAX_CONTENT + 8);
    client.flush().await.unwrap();
    let mut read = vec![0; written];
    server.read_exact(&mut read).await.unwrap();
    assert_eq!(read, pieces.concat());
    // Two records, by the lengths in their headers.
    let (mut client, mut server) = Peers::new().ours().await;
    assert_eq!(client.write_vectored(&slices).await.unwrap(), written);
    client.flush().await.unwrap();
    let mut wire = vec![0; written + 2 * OVERHEAD];
    server.io().read_exact(&mut wire).await.unwrap();
    let lengths = [&wire[3..5], &wire[MAX_CONTENT + OVERHEAD..][3..5]];
    let lengths = lengths.map(|length| usize::from(u16::from_be_bytes([length[0], length[1]])));
    assert_eq!(lengths, [MAX_CONTENT + OVERHEAD - 5, 8 + OVERHEAD - 5]);
}

#[tokio::test]
async fn data_with_the_last_flight_of_the_handshake_is_read() {
    let peers = Peers::new();
    let (near, far) = duplex(PIPE);
    let accept = async {
        // The server accepts only after the client's last flight is complete.
        tokio::task::yield_now().await;
        peers.accept(far).await.unwrap()
    };
    let client = async {
        let mut client = peers.rustls_client(near).await;
        client.write_all(&bytes(100_000)).await.unwrap();
        client.shutdown().await.unwrap();
        client
    };
    let (_client, mut server) = tokio::join!(client, accept);
    let mut read = Vec::new();
    server.read_to_end(&mut read).await.unwrap();
    assert_eq!(read, bytes(100_000));
}

#[tokio::test]
async fn connections_resume_with_tickets_received_after_the_handshake() {
    let peers = Peers::new();
    for expected in [HandshakeKind::Full, HandshakeKind::Resumed] {
        let (mut client, mut server) = peers.ours_and_rustls_server().await;
        assert_eq!(server.get_ref().1.handshake_kind(), Some(expected));
        // Carries the ticket.
        server.write_u8(1).await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), 1);
    }
    let peers = Peers::new();
    for expected in [HandshakeKind::Full, HandshakeKind::Resumed] {
        let (mut client, mut server) = peers.rustls_client_and_ours().await;
        assert_eq!(client.get_ref().1.handshake_kind(), Some(expected));
        server.write_u8(1).await.unwrap();
        server.flush().await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), 1);
    }
}

#[tokio::test]
async fn exhausted_keys_are_updated_and_the_peer_follows() {
    let (mut client, mut server) = Peers::new().ours().await;
    for round in 0..3_u8 {
        client.sealing().exhaust();
        server.opening().exhaust();
        client.write_all(&[round]).await.unwrap();
        client.flush().await.unwrap();
        assert_eq!(server.read_u8().await.unwrap(), round);
        assert!(!client.sealing().are_exhausted());
        server.write_all(&[round]).await.unwrap();
        server.flush().await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), round);
    }
}

#[tokio::test]
async fn a_peers_key_update_with_a_request_is_answered() {
    let (mut client, mut server) = Peers::new().ours_and_rustls_server().await;
    for round in 0..3_u8 {
        // Each requests a key update of the other side, too.
        for _ in 0..=round {
            server.get_mut().1.refresh_traffic_keys().unwrap();
        }
        server.write_all(&bytes(50_000)).await.unwrap();
        let mut read = vec![0; 50_000];
        client.read_exact(&mut read).await.unwrap();
        assert_eq!(read, bytes(50_000));
        client.write_all(&bytes(50_000)).await.unwrap();
        client.flush().await.unwrap();
        server.read_exact(&mut read).await.unwrap();
        assert_eq!(read, bytes(50_000));
    }
    let (mut client, mut server) = Peers::new().rustls_client_and_ours().await;
    client.get_mut().1.refresh_traffic_keys().unwrap();
    client.write_all(b"new").await.unwrap();
    let mut read = [0; 3];
    server.read_exact(&mut read).await.unwrap();
    server.write_all(&read).await.unwrap();
    server.flush().await.unwrap();
    client.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"new");
}

#[tokio::test]
async fn a_tampered_or_repeated_record_ends_the_connection() {
    for change in [0, 1, 3, 5, 20] {
        let (mut client, mut server) = Peers::new().ours().await;
        let mut record = sealed(&mut client, ContentType::ApplicationData, b"a secret").await;
        record[change] ^= 1;
        // A record whose length is now greater must be completed first.
        record.resize(MAX_CONTENT, 0);
        client.io().write_all(&record).await.unwrap();
        let error = failure(&mut server).await;
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{change}");
        let told = failure(&mut client).await;
        assert!(why(&told).contains("sent the alert"), "{told}");
        assert!(server.write_all(b"more").await.is_err());
        assert!(server.read_u8().await.is_err());
    }
    let (mut client, mut server) = Peers::new().ours().await;
    let record = sealed(&mut client, ContentType::ApplicationData, b"1").await;
    client
        .io()
        .write_all(&[&record[..], &record[..]].concat())
        .await
        .unwrap();
    assert_eq!(server.read_u8().await.unwrap(), b'1');
    let error = failure(&mut server).await;
    assert_eq!(why(&error), RecordError::Sealed.to_string());
    let told = failure(&mut client).await;
    let alert = StreamError::Alert(AlertDescription::BadRecordMac);
    assert_eq!(why(&told), alert.to_string());
}

#[tokio::test]
async fn unexpected_messages_end_the_connection_with_an_alert() {
    let ticket = [4, 0, 0, 1, 0];
    let hello = [1, 0, 0, 1, 0];
    let cases: [(ContentType, &[u8], AlertDescription); 9] = [
        (
            ContentType::Handshake,
            &ticket,
            AlertDescription::UnexpectedMessage,
        ),
        (
            ContentType::Handshake,
            &hello,
            AlertDescription::UnexpectedMessage,
        ),
        (
            ContentType::Handshake,
            &[],
            AlertDescription::UnexpectedMessage,
        ),
        (
            ContentType::Handshake,
            &[24, 0, 0, 1, 2],
            AlertDescription::IllegalParameter,
        ),
        (
            ContentType::Handshake,
            &[24, 0, 0, 1, 0, 4],
            AlertDescription::UnexpectedMessage,
        ),
        (
            ContentType::Handshake,
            &[4, 255, 0, 0],
            AlertDescription::DecodeError,
        ),
        (
            ContentType::ChangeCipherSpec,
            &[1],
            AlertDescription::UnexpectedMessage,
        ),
        (ContentType::Alert, &[1], AlertDescription::DecodeError),
        (
            ContentType::Unknown(0),
            &[],
            AlertDescription::UnexpectedMessage,
        ),
    ];
    for (kind, content, alert) in cases {
        let (verdict, told) = verdict(kind, content).await;
        assert_eq!(
            verdict.kind(),
            io::ErrorKind::InvalidData,
            "{kind:?} {content:?}"
        );
        let expected = StreamError::Alert(alert).to_string();
        assert_eq!(why(&told), expected, "{kind:?} {content:?}");
    }
}

#[tokio::test]
async fn empty_records_and_endless_messages_are_bounded() {
    let (mut client, mut server) = Peers::new().ours().await;
    let mut records = Vec::new();
    for _ in 0..40 {
        records.extend(sealed(&mut client, ContentType::ApplicationData, b"").await);
    }
    client.io().write_all(&records).await.unwrap();
    assert!(why(&failure(&mut server).await).contains("without data"));
    // A few are ignored.
    let (mut client, mut server) = Peers::new().ours().await;
    let mut records = Vec::new();
    for _ in 0..20 {
        records.extend(sealed(&mut client, ContentType::ApplicationData, b"").await);
    }
    records.extend(sealed(&mut client, ContentType::ApplicationData, b"1").await);
    client.io().write_all(&records).await.unwrap();
    assert_eq!(server.read_u8().await.unwrap(), b'1');
}

#[tokio::test]
async fn padding_is_removed() {
    let (mut client, mut server) = Peers::new().ours().await;
    // The content type is sealed after the content, and zeros may follow it: sealed here as content
    // of type 0.
    let padded = [b"data", &[23][..], &[0; 40]].concat();
    let record = sealed(&mut client, ContentType::Unknown(0), &padded).await;
    client.io().write_all(&record).await.unwrap();
    let mut read = [0; 4];
    server.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"data");
}

#[tokio::test]
async fn handshake_messages_may_be_fragmented_but_not_interleaved_with_data() {
    let (mut client, mut server) = Peers::new().ours().await;
    let mut records = Vec::new();
    for part in [&[24, 0][..], &[0, 1], &[0]] {
        records.extend(sealed(&mut client, ContentType::Handshake, part).await);
    }
    client.io().write_all(&records).await.unwrap();
    client.update_key().unwrap();
    client.write_all(b"1").await.unwrap();
    client.flush().await.unwrap();
    assert_eq!(server.read_u8().await.unwrap(), b'1');
    let (mut client, mut server) = Peers::new().ours().await;
    let mut records = sealed(&mut client, ContentType::Handshake, &[24, 0]).await;
    records.extend(sealed(&mut client, ContentType::ApplicationData, b"1").await);
    client.io().write_all(&records).await.unwrap();
    assert!(why(&failure(&mut server).await).contains("within a message"));
}

#[tokio::test]
async fn an_end_without_close_notify_is_an_error() {
    let (client, mut server) = Peers::new().ours().await;
    drop(client);
    let error = failure(&mut server).await;
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    let mut nothing = [0; 1];
    let (mut client, mut server) = Peers::new().ours().await;
    client.write_all(b"1").await.unwrap();
    client.shutdown().await.unwrap();
    assert!(client.write_all(b"more").await.is_err());
    assert_eq!(server.read_u8().await.unwrap(), b'1');
    assert_eq!(server.read(&mut nothing).await.unwrap(), 0);
    // The other direction is still open.
    server.write_all(b"2").await.unwrap();
    server.shutdown().await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'2');
    assert_eq!(client.read(&mut nothing).await.unwrap(), 0);
}

#[tokio::test]
async fn data_before_a_failure_is_read_first() {
    let (mut client, mut server) = Peers::new().ours().await;
    let mut records = sealed(&mut client, ContentType::ApplicationData, b"1").await;
    records.extend(sealed(&mut client, ContentType::Alert, &[2, 80]).await);
    client.io().write_all(&records).await.unwrap();
    assert_eq!(server.read_u8().await.unwrap(), b'1');
    let expected = StreamError::Alert(AlertDescription::InternalError);
    assert_eq!(why(&failure(&mut server).await), expected.to_string());
}

#[tokio::test]
async fn a_transport_with_short_writes_gets_everything() {
    let peers = Peers::new();
    let (near, far) = duplex(1_000);
    let (client, server) = tokio::join!(peers.connect(near), peers.accept(far));
    exchange(client.unwrap(), server.unwrap(), &[bytes(200_000)], 70_000).await;
}

#[tokio::test]
async fn an_idle_connection_holds_no_buffer() {
    let (mut client, mut server) = Peers::new().ours().await;
    for _ in 0..2 {
        client.write_all(&bytes(100_000)).await.unwrap();
        client.flush().await.unwrap();
        let mut read = vec![0; 100_000];
        server.read_exact(&mut read).await.unwrap();
        server.write_all(b"1").await.unwrap();
        server.flush().await.unwrap();
        client.read_u8().await.unwrap();
        assert_eq!((client.held(), server.held()), (0, 0));
    }
}
