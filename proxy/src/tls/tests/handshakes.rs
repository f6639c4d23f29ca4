//! Handshakes that fail or are aborted.

use super::*;

#[tokio::test]
async fn invalid_and_overlong_handshakes_are_rejected() {
    let peers = Peers::new();
    for (opening, kind) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], io::ErrorKind::InvalidData),
        (&[22, 3, 1, 255, 255], io::ErrorKind::InvalidData),
        (&[22, 3, 1, 0, 4, 1, 0, 0, 0], io::ErrorKind::InvalidData),
        // Rejected by rustls at the record header.
        (&[22, 5, 0, 0, 1, 0], io::ErrorKind::InvalidData),
        (&[22, 3, 1, 0, 0], io::ErrorKind::InvalidData),
        (&[20, 3, 3, 0, 1, 1].repeat(100), io::ErrorKind::InvalidData),
        (&[22, 3, 1, 0, 40, 1], io::ErrorKind::UnexpectedEof),
        (&[], io::ErrorKind::UnexpectedEof),
    ] {
        let (mut near, far) = duplex(PIPE);
        near.write_all(opening).await.unwrap();
        near.shutdown().await.unwrap();
        let error = peers.accept(far).await.map(drop).unwrap_err();
        assert_eq!(error.kind(), kind, "{opening:?}");
    }
}

#[tokio::test]
async fn a_server_without_the_protocol_is_refused() {
    let peers = Peers::new();
    let mut config = (*peers.api.server_config().unwrap()).clone();
    config.alpn_protocols = Vec::new();
    let (near, far) = duplex(PIPE);
    let server = TlsAcceptor::from(Arc::new(config)).accept(far);
    let (client, _server) = tokio::join!(peers.connect(near), server);
    assert!(client.is_err());
}

/// A ClientHello that offers early data: records after it are then tried with the wrong key, and
/// skipped (RFC 8446 section 4.2.10).
async fn early_hello(peers: &Peers) -> Vec<u8> {
    let (near, mut far) = duplex(PIPE);
    let connecting = peers.connect(near);
    let mut hello = vec![0; 5];
    let reading = async {
        far.read_exact(&mut hello).await.unwrap();
        let length = usize::from(u16::from_be_bytes([hello[3], hello[4]]));
        hello.resize(5 + length, 0);
        far.read_exact(&mut hello[5..]).await.unwrap();
        drop(far);
    };
    let (_, ()) = tokio::join!(connecting, reading);
    // Length of the session ID, then of the cipher suites, then of the compression methods, then of
    // the extensions.
    let mut at = 5 + 4 + 2 + 32;
    at += 1 + usize::from(hello[at]);
    at += 2 + usize::from(u16::from_be_bytes([hello[at], hello[at + 1]]));
    at += 1 + usize::from(hello[at]);
    let early_data = [0, 42, 0, 0];
    hello.splice(at + 2..at + 2, early_data);
    for (place, more) in [(3, 4), (7, 4), (at, 4)] {
        let length = u16::from_be_bytes([hello[place], hello[place + 1]]) + more;
        hello[place..place + 2].copy_from_slice(&length.to_be_bytes());
    }
    hello
}

#[tokio::test]
async fn undecryptable_records_are_bounded_in_a_handshake() {
    let peers = Peers::new();
    let hello = early_hello(&peers).await;
    for (record, count) in [
        (&[23, 3, 3, 0, 0][..], 10_000),
        (&[23, 3, 3, 0, 1, 0], 1_000),
    ] {
        let (mut near, far) = duplex(PIPE);
        near.write_all(&[&hello[..], &record.repeat(count)].concat())
            .await
            .unwrap();
        let error = peers.accept(far).await.map(drop).unwrap_err();
        assert!(error.to_string().contains("no handshake"), "{error}");
    }
}

#[tokio::test]
async fn a_tampered_record_in_the_handshake_is_answered_by_an_alert() {
    let peers = Peers::new();
    let (near, mut relay_near) = duplex(PIPE);
    let (mut relay_far, far) = duplex(PIPE);
    let relay = async move {
        let mut bytes = [0; 8192];
        let length = relay_near.read(&mut bytes).await.unwrap();
        drop(relay_near);
        relay_far.write_all(&bytes[..length]).await.unwrap();
        // A record of application data instead of the client's last flight.
        relay_far
            .write_all(&[&[23, 3, 3, 0, 30][..], &[7; 30]].concat())
            .await
            .unwrap();
        let mut said = Vec::new();
        relay_far.read_to_end(&mut said).await.unwrap();
        said
    };
    let accept = async { peers.accept(far).await.map(drop) };
    let connect = async { peers.connect(near).await.map(drop) };
    let (client, said, accepted) = tokio::join!(connect, relay, accept);
    assert!(client.is_err());
    let source = accepted.unwrap_err();
    let error = source.get_ref().and_then(|source| source.downcast_ref());
    assert!(
        matches!(error, Some(rustls::Error::DecryptError)),
        "{source}"
    );
    assert!(!said.is_empty());
}

#[tokio::test]
async fn application_data_is_never_logged() {
    let (mut client, mut server) = Peers::new().ours().await;
    client.write_all(b"a password").await.unwrap();
    client.flush().await.unwrap();
    assert_eq!(server.read_u8().await.unwrap(), b'a');
    let debug = format!("{server:?}");
    assert!(
        debug.contains("content: 9") && !debug.contains("password"),
        "{debug}"
    );
}
