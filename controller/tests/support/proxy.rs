//! A proxy's side of the protocol.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use naru_contract::{
    Answer, CERTIFY_PATH, CONTRACT_VERSION, CertifyRequest, CertifyResponse, FromProxy, Held,
    Hello, Push, Rejection, Resource, SYNC_PATH, Subscribe, ToProxy, Unsubscribe, from_proxy,
    to_proxy,
};
use rcgen::{CertificateParams, KeyPair};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;

use super::Controller;

/// Timeout for an expected message.
const SOON: Duration = Duration::from_secs(30);
/// How long to wait for an unexpected message.
const QUIET: Duration = Duration::from_millis(300);

/// A certificate and its key.
pub struct Credentials {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: KeyPair,
}

/// One Sync stream.
pub struct Proxy {
    messages: mpsc::Sender<FromProxy>,
    stream: Streaming<ToProxy>,
}

/// Requests a certificate.
pub async fn certify(controller: &Controller, token: &str) -> Result<Credentials, Status> {
    let key = KeyPair::generate().unwrap();
    let csr = CertificateParams::default()
        .serialize_request(&key)
        .unwrap();
    let request = CertifyRequest {
        csr_der: csr.der().to_vec().into(),
        token: token.to_owned(),
    };
    let mut grpc = Grpc::new(channel(controller, None).await);
    grpc.ready().await.unwrap();
    let codec = ProstCodec::<CertifyRequest, CertifyResponse>::default();
    let path = http::uri::PathAndQuery::from_static(CERTIFY_PATH);
    let response = grpc.unary(Request::new(request), path, codec).await?;
    let response = response.into_inner();
    assert_eq!(response.trust_anchors_der.len(), 1);
    let chain = response.chain_der.iter();
    Ok(Credentials {
        chain: chain
            .map(|der| CertificateDer::from(der.to_vec()))
            .collect(),
        key,
    })
}

/// The hello of `pod` in the namespace `shop`.
pub fn hello(pod: &str, destinations: &[&str]) -> Hello {
    Hello {
        contract_version: CONTRACT_VERSION,
        proxy_version: "test".to_owned(),
        namespace: "shop".to_owned(),
        pod: pod.to_owned(),
        destinations: destinations.iter().map(|d| d.to_string()).collect(),
        held: Vec::new(),
    }
}

/// The resources that a proxy holds after a push.
pub fn held(push: &Push) -> Vec<Held> {
    let held = |resource: &Resource| Held {
        name: resource.name.clone(),
        version: resource.version,
    };
    push.updates.iter().map(held).collect()
}

/// A resource in a push.
pub fn resource<'a>(push: &'a Push, name: &str) -> &'a Resource {
    let found = push.updates.iter().find(|resource| resource.name == name);
    found.unwrap_or_else(|| panic!("no {name} in {push:?}"))
}

impl Proxy {
    /// Opens a stream with a certificate for the pod's service account (its name up to the dash).
    pub async fn connect(controller: &Controller, hello: Hello) -> Self {
        let account = hello.pod.split('-').next().unwrap();
        let token = controller.token("shop", account, &hello.pod);
        let credentials = certify(controller, &token).await.unwrap();
        Self::open(controller, Some(&credentials), hello)
            .await
            .unwrap()
    }

    pub async fn open(
        controller: &Controller,
        credentials: Option<&Credentials>,
        hello: Hello,
    ) -> Result<Self, Status> {
        let mut grpc = Grpc::new(channel(controller, credentials).await);
        grpc.ready().await.unwrap();
        let (messages, receiver) = mpsc::channel(16);
        let hello = FromProxy {
            message: Some(from_proxy::Message::Hello(hello)),
        };
        messages.send(hello).await.unwrap();
        let codec = ProstCodec::<FromProxy, ToProxy>::default();
        let path = http::uri::PathAndQuery::from_static(SYNC_PATH);
        let request = Request::new(ReceiverStream::new(receiver));
        let stream = grpc.streaming(request, path, codec).await?.into_inner();
        Ok(Self { messages, stream })
    }

    /// The next push.
    pub async fn push(&mut self) -> Push {
        self.next().await.unwrap().expect("a push")
    }

    /// The next push, accepted.
    pub async fn accepted_push(&mut self) -> Push {
        let push = self.push().await;
        self.accept(&push).await;
        push
    }

    async fn next(&mut self) -> Result<Option<Push>, Status> {
        loop {
            let message = timeout(SOON, self.stream.message()).await;
            match message.expect("nothing comes")? {
                None => return Ok(None),
                Some(message) => {
                    // Skip heartbeats.
                    if let Some(to_proxy::Message::Push(push)) = message.message {
                        return Ok(Some(push));
                    }
                }
            }
        }
    }

    /// Expects no message.
    pub async fn expect_quiet(&mut self) {
        if let Ok(push) = timeout(QUIET, self.next()).await {
            panic!("{push:?}");
        }
    }

    /// Expects a heartbeat, and no other message.
    pub async fn expect_heartbeat(&mut self) {
        let message = timeout(SOON, self.stream.message()).await;
        let message = message.expect("nothing comes").unwrap().expect("no end");
        match message.message {
            Some(to_proxy::Message::Heartbeat(_)) => {}
            other => panic!("{other:?}"),
        }
    }

    /// The final status of the stream.
    pub async fn end(&mut self) -> Status {
        loop {
            match self.next().await {
                Ok(Some(_)) => {}
                Ok(None) => return Status::ok(""),
                Err(status) => return status,
            }
        }
    }

    pub async fn accept(&mut self, push: &Push) {
        self.answer(push.sequence, &[]).await;
    }

    pub async fn answer(&mut self, sequence: u64, rejected: &[&str]) {
        let rejection = |name: &&str| Rejection {
            name: name.to_string(),
            reason: "for the test".to_owned(),
        };
        let rejected = rejected.iter().map(rejection).collect();
        self.send(from_proxy::Message::Answer(Answer { sequence, rejected }))
            .await;
    }

    pub async fn subscribe(&mut self, destination: &str) {
        let destinations = vec![destination.to_owned()];
        self.send(from_proxy::Message::Subscribe(Subscribe { destinations }))
            .await;
    }

    pub async fn unsubscribe(&mut self, destination: &str) {
        let destinations = vec![destination.to_owned()];
        self.send(from_proxy::Message::Unsubscribe(Unsubscribe {
            destinations,
        }))
        .await;
    }

    pub async fn send(&mut self, message: from_proxy::Message) {
        let message = FromProxy {
            message: Some(message),
        };
        self.messages.send(message).await.unwrap();
    }
}

async fn channel(controller: &Controller, credentials: Option<&Credentials>) -> Channel {
    let address = controller.address;
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::IpAddress(address.ip().into());
    let tls = TlsConnector::from(Arc::new(client_config(controller, credentials)));
    let stream = TokioIo::new(tls.connect(name, stream).await.unwrap());
    let stream = Mutex::new(Some(stream));
    let connector = tower::service_fn(move |_: http::Uri| {
        let stream = stream.lock().unwrap().take();
        std::future::ready(stream.ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionReset)))
    });
    let endpoint = Endpoint::from_shared(format!("https://{address}")).unwrap();
    endpoint.connect_with_connector(connector).await.unwrap()
}

fn client_config(controller: &Controller, credentials: Option<&Credentials>) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let anchors = controller.directory.0.join("state/trust-anchors.pem");
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(anchors).unwrap())
        .unwrap();
    let roots = Arc::new(roots);
    let chain = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone());
    let verifier = IsController {
        chain: chain.build().unwrap(),
        roots,
    };
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match credentials {
        None => config.with_no_client_auth(),
        Some(credentials) => {
            let key = PrivatePkcs8KeyDer::from(credentials.key.serialize_der());
            config
                .with_client_auth_cert(credentials.chain.clone(), PrivateKeyDer::Pkcs8(key))
                .unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// Verifies the chain, and the SPIFFE ID instead of a name.
#[derive(Debug)]
struct IsController {
    chain: Arc<WebPkiServerVerifier>,
    roots: Arc<RootCertStore>,
}

impl ServerCertVerifier for IsController {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &rustls::server::ParsedCertificate::try_from(end_entity)?,
            &self.roots,
            intermediates,
            now,
            provider.signature_verification_algorithms.all,
        )?;
        let (id, _) = naru_controller::issuer::SpiffeId::of(end_entity).unwrap();
        assert_eq!(
            id.to_string(),
            "spiffe://cluster.local/ns/naru-system/sa/naru-controller"
        );
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
