//! Rotation of the certificate authority without a disruption.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, SanType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::apps::{App, Echo, Stream, try_get};
use crate::mesh::{Mesh, label, metric};
use crate::process::eventually;

/// Long enough for each step to be observed, and short enough for a test.
const QUICK: [&str; 3] = [
    "--ca-trust-for=4s",
    "--ca-renew-within=3s",
    "--ca-retire-for=12s",
];

/// The authority that issued a proxy's certificate.
async fn issuer(admin: SocketAddr) -> String {
    let issuer = label(admin, "naru_certificate_info", "issuer").await;
    issuer.expect("an issuer")
}

/// The authority that the controller issues with.
async fn authority(mesh: &Mesh) -> String {
    let issuer = label(
        mesh.controller_admin(),
        "naru_controller_authority_info",
        "issuer",
    );
    issuer.await.expect("an authority")
}

/// Continuous requests until stopped, with the number of good responses and the failures.
struct Load {
    stop: Arc<AtomicBool>,
    right: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<Vec<String>>,
}

impl Load {
    fn start(address: SocketAddr) -> Self {
        let (stop, right) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (until, count) = (stop.clone(), right.clone());
        let task = tokio::spawn(async move {
            let mut wrong = Vec::new();
            while !until.load(Ordering::Relaxed) {
                match try_get(address, "/").await {
                    Ok(answer) if answer.status == 200 => {
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    other => wrong.push(format!("{other:?}")),
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            wrong
        });
        Self { stop, right, task }
    }

    async fn assert_none_failed(self) {
        self.stop.store(true, Ordering::Relaxed);
        let wrong = self.task.await.expect("the load");
        assert_eq!(wrong, [""; 0]);
        assert!(self.right.load(Ordering::Relaxed) > 100);
    }
}

/// Echoes each byte.
async fn echo_bytes(address: SocketAddr) {
    let listener = TcpListener::bind(address).await.expect("bind");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await
            });
        }
    });
}

async fn exchange(stream: &mut TcpStream, byte: u8) {
    stream.write_all(&[byte]).await.expect("write");
    assert_eq!(stream.read_u8().await.expect("read"), byte);
}

#[tokio::test]
async fn an_authority_is_rotated_under_load_with_nothing_lost() {
    let mesh = Mesh::start_with(&QUICK).await;
    let (_app, _chat) = (
        App::named(mesh.app(1), "web").await,
        Echo::start(mesh.app(2)).await,
    );
    echo_bytes(mesh.app(3)).await;
    mesh.service("web", Some("http"), &[1]);
    mesh.service("chat", Some("kubernetes.io/h2c"), &[2]);
    mesh.service("raw", Some("tcp"), &[3]);
    let client = mesh.sidecar("client", 4, &["web", "chat", "raw"]).await;
    let mut sidecars = vec![
        mesh.sidecar("web", 1, &[]).await,
        mesh.sidecar("chat", 2, &[]).await,
        mesh.sidecar("raw", 3, &[]).await,
    ];
    let load = Load::start(client.calls("web"));
    let mut stream = Stream::open(client.calls("chat"), "/chat").await;
    let mut connection = TcpStream::connect(client.calls("raw"))
        .await
        .expect("connect");
    exchange(&mut connection, 1).await;
    sidecars.push(client);
    let old = authority(&mesh).await;
    for sidecar in &sidecars {
        assert_eq!(issuer(sidecar.admin).await, old);
    }

    std::fs::write(mesh.state("rotate"), "today").expect("write");
    let state = async |state: &str| {
        let labels = [&*format!("state=\"{state}\"")];
        let name = "naru_controller_authority_state";
        metric(mesh.controller_admin(), name, &labels).await == 1.0
    };
    eventually("the new one is trusted", async || state("trusting").await).await;
    assert_eq!(authority(&mesh).await, old);
    // A proxy that starts during the rotation joins.
    sidecars.push(mesh.sidecar("web", 5, &[]).await);
    eventually("the new one is issued with", async || {
        authority(&mesh).await != old
    })
    .await;
    let new = authority(&mesh).await;
    for sidecar in &sidecars {
        eventually("it has a certificate of the new one", async || {
            issuer(sidecar.admin).await == new
        })
        .await;
    }
    eventually("the old one is trusted no more", async || {
        state("steady").await
    })
    .await;
    let anchors = "naru_controller_trust_anchors";
    assert_eq!(metric(mesh.controller_admin(), anchors, &[]).await, 1.0);
    let behind = "naru_controller_proxies_without_trust_anchors";
    assert_eq!(metric(mesh.controller_admin(), behind, &[]).await, 0.0);
    eventually(
        "a certificate of the old authority proves nothing",
        async || {
            let file = std::fs::read_to_string(mesh.state("trust-anchors.pem")).expect("anchors");
            file.matches("BEGIN").count() == 1
        },
    )
    .await;

    // Open connections are still open.
    exchange(&mut connection, 2).await;
    stream
        .send
        .send_data(Bytes::from_static(b"still here"), false)
        .expect("send");
    assert_eq!(stream.next().await.expect("data"), "still here");
    load.assert_none_failed().await;
    for sidecar in &mut sidecars {
        assert!(sidecar.process.ended().is_none());
        let failed = ["outcome=\"failed\""];
        let renewals = sidecar.metric("naru_certificate_renewals_total", &failed);
        assert_eq!(renewals.await, 0.0);
    }
}

/// A company's authority, in PEM.
fn given() -> (String, String) {
    let mut params = CertificateParams::default();
    let name = "spiffe://cluster.local".try_into().expect("a URI");
    params.subject_alt_names.push(SanType::URI(name));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    let certificate = params.self_signed(&key).expect("a certificate");
    (certificate.pem(), key.serialize_pem())
}

#[tokio::test]
async fn a_given_authority_is_applied_even_across_a_restart() {
    let mut mesh = Mesh::start_with(&QUICK).await;
    let _app = App::named(mesh.app(1), "web").await;
    mesh.service("web", Some("http"), &[1]);
    let web = mesh.sidecar("web", 1, &[]).await;
    let client = mesh.sidecar("client", 2, &["web"]).await;
    let load = Load::start(client.calls("web"));
    let old = authority(&mesh).await;
    let (certificate, key) = given();
    // Briefly the key does not match the certificate: nothing happens.
    std::fs::write(mesh.state("ca.key"), key).expect("write");
    eventually("the mismatch is told", async || {
        mesh.controller.log().contains("do not match")
    })
    .await;
    assert_eq!(authority(&mesh).await, old);
    mesh.restart_controller().await;
    assert_eq!(authority(&mesh).await, old);
    std::fs::write(mesh.state("ca.crt"), certificate).expect("write");
    eventually("the new one is issued with", async || {
        authority(&mesh).await != old
    })
    .await;
    let new = authority(&mesh).await;
    for sidecar in [&web, &client] {
        eventually("it has a certificate of the new one", async || {
            issuer(sidecar.admin).await == new
        })
        .await;
    }
    load.assert_none_failed().await;
}
