//! The webhook over real sockets, with a client that has the trust anchors of an API server.

use super::*;
use crate::inject::Certificate;
use crate::inject::tests::options;
use crate::issuer::{Ca, InForce, Issuer, PublicKey, TokenCheck};
use rcgen::KeyPair;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::SystemTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;

const NAME: &str = "naru-controller.naru-system.svc";

struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Fixture {
    address: SocketAddr,
    issuer: Arc<Issuer>,
    metrics: Metrics,
    injected: Arc<Mutex<Vec<String>>>,
    directory: Directory,
}

fn in_force() -> InForce {
    let now = SystemTime::now();
    let pair = Ca::make("cluster.local", now).expect("an authority");
    let (certificates, key) = (pair.certificates.as_bytes(), pair.key.as_bytes());
    let ca = Ca::from_pem(certificates, &[], key, "cluster.local", now).expect("an authority");
    InForce::new(Arc::new(ca), [])
}

fn issuer() -> Arc<Issuer> {
    let key = KeyPair::generate().expect("a key").public_key_pem();
    let key = PublicKey::from_pem(key.as_bytes(), "issuer").expect("a key");
    Arc::new(Issuer::new(
        in_force(),
        "cluster.local",
        TokenCheck::PublicKey(key),
    ))
}

impl Fixture {
    async fn new() -> Self {
        let name = format!(
            "naru-webhook-{}-{:x}",
            std::process::id(),
            rand::random::<u64>()
        );
        let directory = Directory(std::env::temp_dir().join(name));
        std::fs::create_dir_all(&directory.0).expect("a directory");
        let issuer = issuer();
        let certificate = Certificate::Issued {
            issuer: issuer.clone(),
            name: NAME.to_owned(),
        };
        let (tls, refresh) = certificate.serve().expect("a certificate");
        tokio::spawn(refresh);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("an address");
        let metrics = Metrics::new();
        let injected = Arc::<Mutex<Vec<String>>>::default();
        let told = injected.clone();
        let tell: Injected = Box::new(move |namespace| {
            told.lock().expect("a list").push(namespace.to_owned());
        });
        tokio::spawn(serve(listener, tls, options(), metrics.clone(), tell));
        Self {
            address,
            issuer,
            metrics,
            injected,
            directory,
        }
    }

    /// Status and body.
    async fn ask(&self, request: &str) -> (u16, String) {
        let stream = TcpStream::connect(self.address).await.expect("connect");
        let connector = connector(self.issuer.in_force().ca.root());
        let name = ServerName::try_from(NAME).expect("a name");
        let mut stream = connector.connect(name, stream).await.expect("TLS");
        stream.write_all(request.as_bytes()).await.expect("write");
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        let status = answer.get(9..12).and_then(|status| status.parse().ok());
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        (status.unwrap_or(0), body.to_owned())
    }

    async fn post(&self, path: &str, body: &str) -> (u16, String) {
        let length = body.len();
        let head = format!(
            "POST {path} HTTP/1.1\r\n\
             host: a\r\n\
             connection: close\r\n\
             content-length: {length}\r\n\r\n"
        );
        self.ask(&(head + body)).await
    }
}

fn connector(root: &CertificateDer<'static>) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(root.clone()).expect("a root");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("a version")
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

fn review(annotations: &str, more: &str) -> String {
    format!(
        r#"{{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview",
        "request":{{"uid":"7","operation":"CREATE","namespace":"shop",{more}
        "kind":{{"group":"","version":"v1","kind":"Pod"}},
        "object":{{"metadata":{{"name":"web","annotations":{annotations}}},
        "spec":{{"containers":[{{"name":"web"}}]}}}}}}}}"#
    )
}

#[tokio::test]
async fn an_api_server_that_trusts_the_meshs_authority_is_answered() {
    let webhook = Fixture::new().await;
    let (status, body) = webhook.post("/inject", &review("{}", "")).await;
    assert_eq!(status, 200, "{body}");
    assert!(
        body.contains("\"patch\":") && body.contains("\"uid\":\"7\""),
        "{body}"
    );
    let (status, body) = webhook.post("/inject/pod", &review("{}", "")).await;
    assert_eq!(status, 200);
    assert!(!body.contains("\"patch\":"), "{body}");
    let dry = "\"dryRun\":true,";
    let annotated = r#"{"naru.dev/inject":"enabled"}"#;
    let (_, body) = webhook.post("/inject/pod", &review(annotated, dry)).await;
    assert!(body.contains("\"patch\":"), "{body}");
    // A dry run does not report its namespace.
    assert_eq!(*webhook.injected.lock().expect("a list"), ["shop"]);
    let metrics = String::from_utf8(webhook.metrics.render().expect("metrics")).expect("text");
    assert!(
        metrics.contains("naru_controller_injections_total{outcome=\"injected\"} 2"),
        "{metrics}"
    );
    assert!(metrics.contains("naru_controller_injections_total{outcome=\"unchanged\"} 1"));
}

#[tokio::test]
async fn after_a_rotation_the_certificate_is_from_the_new_authority() {
    let webhook = Fixture::new().await;
    webhook.issuer.take_over(in_force());
    // Only the new root verifies the certificate.
    let connector = connector(webhook.issuer.in_force().ca.root());
    loop {
        let stream = TcpStream::connect(webhook.address).await.expect("connect");
        let name = ServerName::try_from(NAME).expect("a name");
        match connector.connect(name, stream).await {
            Ok(_) => break,
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

#[tokio::test]
async fn a_malformed_review_is_rejected_with_the_reason() {
    let webhook = Fixture::new().await;
    let (status, body) = webhook.post("/inject", "{}").await;
    assert_eq!(status, 400);
    assert!(body.contains("apiVersion"), "{body}");
    assert_eq!(webhook.post("/other", "{}").await.0, 404);
    let get = "GET /inject HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    assert_eq!(webhook.ask(get).await.0, 405);
    let long = format!(
        "POST /inject HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        MAX_BODY + 1
    );
    assert_eq!(webhook.ask(&long).await.0, 413);
    let chunked = "POST /inject HTTP/1.1\r\n\
        host: a\r\n\
        connection: close\r\n\
        transfer-encoding: chunked\r\n\r\n\
        0\r\n\r\n";
    assert_eq!(webhook.ask(chunked).await.0, 411);
    assert_eq!(webhook.post("/inject", &review("{}", "")).await.0, 200);
}

#[tokio::test]
async fn idle_connections_do_not_block_others() {
    let webhook = Fixture::new().await;
    let mut idle = Vec::new();
    for _ in 0..BOUNDS.waiting_of_source + 10 {
        idle.push(TcpStream::connect(webhook.address).await.expect("connect"));
    }
    assert_eq!(webhook.post("/inject", &review("{}", "")).await.0, 200);
}

#[tokio::test]
async fn a_renewed_certificate_file_is_served_without_a_restart() {
    let webhook = Fixture::new().await;
    let chain = webhook.directory.0.join("tls.crt");
    let key = webhook.directory.0.join("tls.key");
    let put = || {
        let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).expect("a certificate");
        std::fs::write(&chain, made.cert.pem()).expect("write");
        std::fs::write(&key, made.signing_key.serialize_pem()).expect("write");
        made.cert.der().clone()
    };
    let first = put();
    let files = Certificate::Files {
        chain: chain.clone(),
        key: key.clone(),
    };
    let (config, refresh) = files
        .serve_looking(Duration::from_millis(10))
        .expect("a certificate");
    // Whether a client that trusts only this certificate connects.
    let shows = |root: CertificateDer<'static>| {
        let config = config.clone();
        async move {
            let (ours, theirs) = tokio::io::duplex(64 * 1024);
            tokio::spawn(async move { TlsAcceptor::from(config).accept(theirs).await.map(drop) });
            let name = ServerName::try_from(NAME).expect("a name");
            connector(&root).connect(name, ours).await.is_ok()
        }
    };
    assert!(shows(first.clone()).await);
    let refresh = tokio::spawn(refresh);
    // Files are compared by their modification time.
    tokio::time::sleep(Duration::from_millis(20)).await;
    let second = put();
    while !shows(second.clone()).await {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!shows(first).await);
    refresh.abort();
}
