//! The memory budget under attack: the process stays within the limit that the budget is derived
//! from, other clients are served, and the memory is returned to the system.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::apps::{App, try_get};
use crate::mesh::{Mesh, Sidecar};
use crate::process::eventually;

const MIB: usize = 1024 * 1024;

/// The memory of a proxy, in bytes.
pub fn held(proxy: &Sidecar) -> usize {
    let path = format!("/proc/{}/status", proxy.process.id());
    let status = std::fs::read_to_string(path).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<usize>().ok());
    kib.expect("VmRSS") * 1024
}

/// A proxy of the pod `web-1` whose budget fits into `limit`.
async fn proxy_within(mesh: &Mesh, limit: usize) -> Sidecar {
    let budget = format!("--memory-budget={}", naru_proxy::memory::within(limit));
    mesh.put_pod("web", 1, serde_json::json!({}));
    mesh.proxy("web", 1, &[], &[&budget]).await
}

/// A client that sends small requests continuously.
struct Good {
    task: JoinHandle<()>,
    answered: Arc<AtomicUsize>,
    failed: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
}

impl Good {
    fn start(address: SocketAddr) -> Self {
        let (answered, failed, stop) = (
            Arc::<AtomicUsize>::default(),
            Arc::<AtomicUsize>::default(),
            Arc::<AtomicBool>::default(),
        );
        let (counted, broken, stopped) = (answered.clone(), failed.clone(), stop.clone());
        let task = tokio::spawn(async move {
            while !stopped.load(Ordering::SeqCst) {
                match try_get(address, "/small").await {
                    Ok(answer) if answer.status == 200 => counted.fetch_add(1, Ordering::SeqCst),
                    other => {
                        println!("not answered: {other:?}");
                        broken.fetch_add(1, Ordering::SeqCst)
                    }
                };
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        Self {
            task,
            answered,
            failed,
            stop,
        }
    }

    /// Asserts that it has got new responses, and only good ones.
    async fn is_served(&self) {
        let before = self.answered.load(Ordering::SeqCst);
        eventually("others are served", async || {
            self.answered.load(Ordering::SeqCst) >= before + 5
        })
        .await;
        assert_eq!(self.failed.load(Ordering::SeqCst), 0);
    }

    async fn end(self) {
        self.stop.store(true, Ordering::SeqCst);
        self.task.await.expect("an end");
    }
}

async fn falls_to(proxy: &Sidecar, bound: usize) {
    eventually("the memory goes back to the system", async || {
        held(proxy) <= bound
    })
    .await;
}

#[tokio::test]
async fn half_heads_stay_within_the_budget_and_their_memory_is_returned() {
    const LIMIT: usize = 64 * MIB;
    let mesh = Mesh::start().await;
    mesh.service("web", Some("http"), &[1]);
    let _app = App::named(mesh.app(1), "web").await;
    let proxy = proxy_within(&mesh, LIMIT).await;
    let pod = mesh.pod(1);
    let good = Good::start(pod);
    good.is_served().await;
    let idle = held(&proxy);

    let mut attackers = JoinSet::new();
    for _ in 0..500 {
        attackers.spawn(async move {
            let mut stream = TcpStream::connect(pod).await.ok()?;
            let start = b"GET / HTTP/1.1\r\nHost: web\r\nCookie: ";
            stream.write_all(start).await.ok()?;
            stream.write_all(&vec![b'x'; 60_000]).await.ok()?;
            let mut answer = Vec::new();
            // Some are rejected. The others wait.
            stream.read_to_end(&mut answer).await.ok()?;
            Some(answer)
        });
    }
    eventually("some are refused", async || {
        let refused = proxy.metric("naru_memory_refusals_total", &["what=\"head\""]);
        refused.await > 100.0
    })
    .await;
    good.is_served().await;
    assert!(held(&proxy) < LIMIT, "{}", held(&proxy));
    let refused = attackers.join_next().await.expect("one").expect("an end");
    let refused = String::from_utf8(refused.expect("an answer")).expect("text");
    assert!(refused.contains("503") && refused.contains("naru-reason: overload"));

    attackers.abort_all();
    falls_to(&proxy, idle + 12 * MIB).await;
    eventually("all is given back", async || {
        proxy.metric("naru_memory_charged_bytes", &[]).await < MIB as f64
    })
    .await;
    good.is_served().await;
    good.end().await;
}

/// An HTTP/2 app that responds to `/small` with a few bytes and to everything else with a MiB.
async fn large_app(address: SocketAddr) -> JoinHandle<()> {
    let listener = TcpListener::bind(address).await.expect("bind");
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("accept");
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await?;
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let small = request.uri().path() == "/small";
                    let mut send = respond.send_response(Response::new(()), false)?;
                    let body = Bytes::from(vec![b'x'; if small { 100 } else { MIB }]);
                    send.send_data(body, true)?;
                }
                Ok::<_, h2::Error>(())
            });
        }
    })
}

/// A client over HTTP/2, whose connection lives as long as the task.
async fn client(
    address: SocketAddr,
    window: u32,
) -> (h2::client::SendRequest<Bytes>, JoinHandle<()>) {
    let stream = TcpStream::connect(address).await.expect("connect");
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(window);
    let (send, connection) = builder.handshake(stream).await.expect("a handshake");
    let task = tokio::spawn(async move {
        let _ended = connection.await;
    });
    (send, task)
}

#[tokio::test]
async fn stalled_readers_stay_within_the_budget_and_their_memory_is_returned() {
    const LIMIT: usize = 128 * MIB;
    let mesh = Mesh::start().await;
    mesh.service("web", Some("kubernetes.io/h2c"), &[1]);
    let app = large_app(mesh.app(1)).await;
    let proxy = proxy_within(&mesh, LIMIT).await;
    let small = || {
        Request::get("http://web/small")
            .body(())
            .expect("a request")
    };
    let pod = mesh.pod(1);
    let (good, good_task) = client(pod, 65_535).await;
    let served = async || {
        let mut good = good.clone().ready().await.expect("a connection");
        let (response, _) = good.send_request(small(), true).expect("a stream");
        let mut response = response.await.expect("an answer");
        assert_eq!(response.status(), 200);
        let data = response.body_mut().data().await.expect("a body");
        assert_eq!(data.expect("whole").len(), 100);
    };
    served().await;
    let idle = held(&proxy);

    let mut attackers = Vec::new();
    let mut responses = Vec::new();
    let mut highest = 0;
    for _ in 0..4 {
        let (mut send, task) = client(pod, 0).await;
        for _ in 0..250 {
            send = send.ready().await.expect("a connection");
            let large = Request::get("http://web/large")
                .body(())
                .expect("a request");
            responses.push(send.send_request(large, true).expect("a stream").0);
            highest = highest.max(held(&proxy));
        }
        served().await;
        attackers.push((send, task));
    }
    eventually("what they do not read is held", async || {
        highest = highest.max(held(&proxy));
        let charged = proxy.metric("naru_memory_charged_bytes", &[]).await;
        charged > 16.0 * MIB as f64
    })
    .await;
    for _ in 0..20 {
        served().await;
        highest = highest.max(held(&proxy));
    }
    assert!(highest < LIMIT, "{highest}");

    for (_, task) in &attackers {
        task.abort();
    }
    drop((attackers, responses));
    eventually("all is given back", async || {
        proxy.metric("naru_memory_charged_bytes", &[]).await < MIB as f64
    })
    .await;
    served().await;
    falls_to(&proxy, idle + 16 * MIB).await;
    good_task.abort();
    app.abort();
}
