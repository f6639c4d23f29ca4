//! Handshakes between two identities, over a pipe.

use std::io;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{HandshakeKind, NamedGroup, ProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::testing::{Authority, Leaf, TRUST_DOMAIN, spiffe_id};
use super::*;

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const API: &str = "spiffe://cluster.local/ns/shop/sa/api";
const ROGUE: &str = "spiffe://cluster.local/ns/shop/sa/rogue";

type Ends = (
    io::Result<client::TlsStream<DuplexStream>>,
    io::Result<server::TlsStream<DuplexStream>>,
);

/// The result of a handshake at both ends. The server sends a byte to the client, so that tickets
/// arrive and a refusal of the client's certificate shows.
async fn shake(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Ends {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let name = ServerName::try_from("10.0.0.1").unwrap();
    let connect = async {
        let mut stream = TlsConnector::from(client).connect(name, near).await?;
        stream.read_u8().await?;
        Ok(stream)
    };
    let accept = async {
        let mut stream = TlsAcceptor::from(server).accept(far).await?;
        stream.write_u8(1).await?;
        Ok(stream)
    };
    tokio::join!(connect, accept)
}

async fn call(caller: &Identity, expected: &str, callee: &Identity) -> Ends {
    let client = caller.client_config(&spiffe_id(expected), Alpn::Http2);
    shake(client.unwrap(), callee.server_config().unwrap()).await
}

/// A client that expects the server's identity and has no certificate, or another one.
fn odd_client(
    authority: &Authority,
    expected: &str,
    certificate: Option<(&Authority, &Leaf)>,
) -> Arc<ClientConfig> {
    let provider = Arc::new(provider());
    let trust = Trust::new(&TRUST_DOMAIN.into(), vec![authority.anchor()], &provider).unwrap();
    let verifier = PinnedServer::new(expected.parse().unwrap(), trust.roots, &provider);
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    Arc::new(match certificate {
        Some((issuer, leaf)) => {
            let (chain, key) = issuer.issue(leaf);
            builder.with_client_auth_cert(chain, key).unwrap()
        }
        None => builder.with_no_client_auth(),
    })
}

/// A server that presents an arbitrary certificate.
fn odd_server(authority: &Authority, issuer: &Authority, leaf: &Leaf) -> Arc<ServerConfig> {
    let provider = Arc::new(provider());
    let trust = Trust::new(&TRUST_DOMAIN.into(), vec![authority.anchor()], &provider).unwrap();
    let (chain, key) = issuer.issue(leaf);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(trust.client_verifier)
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![Alpn::Http2.as_bytes().to_vec()];
    Arc::new(config)
}

fn certificate_error(
    result: io::Result<client::TlsStream<DuplexStream>>,
) -> rustls::CertificateError {
    let error = result.map(|_| ()).unwrap_err();
    match error.get_ref().and_then(|source| source.downcast_ref()) {
        Some(rustls::Error::InvalidCertificate(error)) => error.clone(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn peers_prove_their_identities_with_post_quantum_keys() {
    let authority = Authority::new("a");
    let (web, api) = (authority.identity(WEB), authority.identity(API));
    let (client, server) = call(&web, API, &api).await;
    let (client, server) = (client.unwrap(), server.unwrap());
    let (_, connection) = server.get_ref();
    assert_eq!(
        connection.protocol_version(),
        Some(ProtocolVersion::TLSv1_3)
    );
    assert_eq!(connection.alpn_protocol(), Some(Alpn::Http2.as_bytes()));
    let group = connection.negotiated_key_exchange_group().unwrap();
    assert_eq!(group.name(), NamedGroup::X25519MLKEM768);
    let peer = api
        .peer_identity(connection.peer_certificates().unwrap())
        .unwrap();
    assert_eq!(peer.as_str(), WEB);
    let again = api
        .peer_identity(connection.peer_certificates().unwrap())
        .unwrap();
    assert!(Arc::ptr_eq(&peer.text(), &again.text()));
    let (_, connection) = client.get_ref();
    let peer = web.peer_identity(connection.peer_certificates().unwrap());
    assert_eq!(peer, Some(spiffe_id(API)));
}

#[tokio::test]
async fn a_server_with_another_identity_is_rejected_as_a_mismatch() {
    let authority = Authority::new("a");
    let (web, rogue) = (authority.identity(WEB), authority.identity(ROGUE));
    let (client, server) = call(&web, API, &rogue).await;
    let error = client.map(|_| ()).unwrap_err();
    assert!(is_identity_mismatch(&error), "{error:?}");
    assert!(error.to_string().contains(ROGUE), "{error}");
    assert!(server.is_err());
}

#[tokio::test]
async fn a_server_with_two_names_or_no_name_is_rejected() {
    let authority = Authority::new("a");
    let web = authority.identity(WEB);
    for uris in [
        vec![],
        vec![API.to_owned(), ROGUE.to_owned()],
        vec!["spiffe://x".to_owned()],
    ] {
        let leaf = Leaf {
            uris: uris.clone(),
            ..Leaf::new(API)
        };
        let server = odd_server(&authority, &authority, &leaf);
        let client = web.client_config(&spiffe_id(API), Alpn::Http2).unwrap();
        let (client, _) = shake(client, server).await;
        let error = client.map(|_| ()).unwrap_err();
        assert!(is_identity_mismatch(&error), "{uris:?}: {error:?}");
    }
}

#[tokio::test]
async fn a_server_with_an_expired_certificate_or_another_authority_is_rejected() {
    let (authority, foreign) = (Authority::new("a"), Authority::new("b"));
    let web = authority.identity(WEB);
    let expired = Leaf {
        not_before: -1_000,
        not_after: -10,
        ..Leaf::new(API)
    };
    let early = Leaf {
        not_before: 1_000,
        ..Leaf::new(API)
    };
    let client = || web.client_config(&spiffe_id(API), Alpn::Http2).unwrap();
    let (result, _) = shake(client(), odd_server(&authority, &authority, &expired)).await;
    let error = certificate_error(result);
    assert!(
        matches!(error, rustls::CertificateError::ExpiredContext { .. }),
        "{error:?}"
    );
    let (result, _) = shake(client(), odd_server(&authority, &authority, &early)).await;
    let error = certificate_error(result);
    assert!(
        matches!(error, rustls::CertificateError::NotValidYetContext { .. }),
        "{error:?}"
    );
    let (result, _) = shake(client(), odd_server(&authority, &foreign, &Leaf::new(API))).await;
    let error = certificate_error(result);
    assert!(
        matches!(
            error,
            rustls::CertificateError::UnknownIssuer | rustls::CertificateError::BadSignature
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_client_without_a_certificate_of_the_mesh_is_rejected() {
    let (authority, foreign) = (Authority::new("a"), Authority::new("b"));
    let server = authority.identity(API).server_config().unwrap();
    let good = Leaf::new(WEB);
    let (client, accepted) = shake(
        odd_client(&authority, API, Some((&authority, &good))),
        server.clone(),
    )
    .await;
    assert!(client.is_ok() && accepted.is_ok());
    let expired = Leaf {
        not_before: -1_000,
        not_after: -10,
        ..good.clone()
    };
    let outside = Leaf::new("spiffe://elsewhere/ns/shop/sa/web");
    let nameless = Leaf {
        uris: vec![],
        ..good.clone()
    };
    for (what, certificate) in [
        ("none", None),
        ("a foreign authority's", Some((&foreign, &good))),
        ("an expired one", Some((&authority, &expired))),
        ("another trust domain's", Some((&authority, &outside))),
        ("a nameless one", Some((&authority, &nameless))),
    ] {
        let (client, accepted) =
            shake(odd_client(&authority, API, certificate), server.clone()).await;
        assert!(client.is_err() && accepted.is_err(), "{what}");
    }
}

#[tokio::test]
async fn tls_1_2_is_rejected() {
    let server = Authority::new("a").identity(API).server_config().unwrap();
    let (mut near, far) = tokio::io::duplex(4_096);
    // A ClientHello of TLS 1.2 with one suite, as OpenSSL would send it.
    let mut hello = vec![3, 3];
    hello.extend([7; 32]);
    hello.push(0);
    hello.extend([0, 2, 0xc0, 0x2b]);
    hello.extend([1, 0]);
    let extensions = [
        &[0, 10, 0, 4, 0, 2, 0, 29][..],
        &[0, 11, 0, 2, 1, 0],
        &[0, 13, 0, 4, 0, 2, 4, 3],
    ]
    .concat();
    hello.extend((extensions.len() as u16).to_be_bytes());
    hello.extend(extensions);
    let mut record = vec![22, 3, 1];
    record.extend((hello.len() as u16 + 4).to_be_bytes());
    record.extend([1, 0]);
    record.extend((hello.len() as u16).to_be_bytes());
    record.extend(hello);
    near.write_all(&record).await.unwrap();
    let accepted = TlsAcceptor::from(server).accept(far).await;
    assert!(accepted.is_err());
    let mut alert = Vec::new();
    near.read_to_end(&mut alert).await.unwrap();
    // A fatal alert: protocol_version (70), or handshake_failure.
    assert_eq!((alert[0], alert[5], alert[6]), (21, 2, 70), "{alert:?}");
}

#[tokio::test]
async fn sessions_are_resumed_with_the_same_identity_only() {
    let authority = Authority::new("a");
    let (web, api, rogue) = (
        authority.identity(WEB),
        authority.identity(API),
        authority.identity(ROGUE),
    );
    let kind = |ends: Ends| ends.0.unwrap().get_ref().1.handshake_kind().unwrap();
    assert_eq!(kind(call(&web, API, &api).await), HandshakeKind::Full);
    let (client, server) = call(&web, API, &api).await;
    assert_eq!(
        client.unwrap().get_ref().1.handshake_kind(),
        Some(HandshakeKind::Resumed)
    );
    // The server has the client's identity all the same.
    let server = server.unwrap();
    let peer = api.peer_identity(server.get_ref().1.peer_certificates().unwrap());
    assert_eq!(peer, Some(spiffe_id(WEB)));
    // Another server at the same address cannot use the ticket, and its certificate is verified.
    let (client, _) = call(&web, API, &rogue).await;
    assert!(is_identity_mismatch(&client.map(|_| ()).unwrap_err()));
    // A ticket issued by API is not presented where ROGUE is expected.
    assert_eq!(kind(call(&web, ROGUE, &rogue).await), HandshakeKind::Full);
}

#[tokio::test]
async fn a_renewed_certificate_or_new_anchors_end_resumption() {
    let authority = Authority::new("a");
    let (web, api) = (authority.identity(WEB), authority.identity(API));
    let kind = |ends: Ends| ends.0.unwrap().get_ref().1.handshake_kind().unwrap();
    kind(call(&web, API, &api).await);
    let (chain, key) = authority.issue(&Leaf::new(WEB));
    web.set_certificate(chain, key).unwrap();
    assert_eq!(kind(call(&web, API, &api).await), HandshakeKind::Full);
    assert_eq!(kind(call(&web, API, &api).await), HandshakeKind::Resumed);
    let anchors = vec![authority.anchor(), Authority::new("b").anchor()];
    assert!(api.set_trust_anchors(anchors).unwrap());
    assert_eq!(kind(call(&web, API, &api).await), HandshakeKind::Full);
}

#[tokio::test]
async fn anchors_rotate_while_old_and_new_overlap() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let (web, api) = (old.identity(WEB), old.identity(API));
    let both = vec![old.anchor(), new.anchor()];
    for identity in [&web, &api] {
        assert!(identity.set_trust_anchors(both.clone()).unwrap());
        let turned = both.iter().rev().cloned().collect();
        assert!(!identity.set_trust_anchors(turned).unwrap());
    }
    let (chain, key) = new.issue(&Leaf::new(API));
    api.set_certificate(chain, key).unwrap();
    let (client, server) = call(&web, API, &api).await;
    assert!(client.is_ok() && server.is_ok());
    // The old anchor is removed: its certificates are no longer trusted.
    api.set_trust_anchors(vec![new.anchor()]).unwrap();
    let (client, server) = call(&web, API, &api).await;
    assert!(client.is_err() && server.is_err());
}

#[test]
fn without_a_valid_certificate_there_is_no_configuration() {
    let authority = Authority::new("a");
    let identity = Identity::new(TRUST_DOMAIN, vec![authority.anchor()]).unwrap();
    assert!(identity.server_config().is_none());
    assert!(identity.client_config(&spiffe_id(API), Alpn::Tcp).is_none());
    for (leaf, problem) in [
        (
            Leaf {
                not_after: -1,
                ..Leaf::new(WEB)
            },
            "clock",
        ),
        (
            Leaf {
                not_before: 100,
                ..Leaf::new(WEB)
            },
            "clock",
        ),
        (
            Leaf::new("spiffe://elsewhere/ns/shop/sa/web"),
            "trust domain",
        ),
        (
            Leaf {
                uris: vec![],
                ..Leaf::new(WEB)
            },
            "0 URI names",
        ),
    ] {
        let (chain, key) = authority.issue(&leaf);
        let error = identity.set_certificate(chain, key).unwrap_err();
        assert!(error.to_string().contains(problem), "{error}");
    }
    let (chain, _) = authority.issue(&Leaf::new(WEB));
    let (_, other_key) = authority.issue(&Leaf::new(WEB));
    assert!(identity.set_certificate(chain, other_key).is_err());
    assert!(!identity.is_valid());
}

#[test]
fn an_empty_set_of_anchors_is_rejected() {
    assert!(matches!(
        Identity::new(TRUST_DOMAIN, vec![]),
        Err(TrustError::Empty)
    ));
    let identity = Authority::new("a").identity(WEB);
    assert!(identity.set_trust_anchors(vec![]).is_err());
    assert!(
        identity
            .set_trust_anchors(vec![CertificateDer::from(vec![1, 2, 3])])
            .is_err()
    );
    assert!(identity.is_valid());
}

#[test]
fn configurations_are_made_once_for_each_identity_and_protocol() {
    let identity = Authority::new("a").identity(WEB);
    let get = |alpn| identity.client_config(&spiffe_id(API), alpn).unwrap();
    assert!(Arc::ptr_eq(&get(Alpn::Tcp), &get(Alpn::Tcp)));
    assert_eq!(get(Alpn::Tcp).alpn_protocols, [Alpn::Tcp.as_bytes()]);
    assert_eq!(get(Alpn::Http1).alpn_protocols, [Alpn::Http1.as_bytes()]);
    assert!("not an id".parse::<SpiffeId>().is_err());
}
