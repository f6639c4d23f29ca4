//! Apps and clients without any support for a mesh.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::process::SOON;

/// An HTTP/1.1 app. It stops on drop.
pub struct App {
    requests: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl App {
    /// Responds with `name`.
    pub async fn named(address: SocketAddr, name: &str) -> Self {
        let name = name.to_owned();
        Self::start(address, move |_| {
            let name = name.clone();
            async move { (StatusCode::OK, name) }
        })
        .await
    }

    /// Responds with the result of `answer` for the request's number, from 1.
    pub async fn start<F, A>(address: SocketAddr, answer: F) -> Self
    where
        F: Fn(usize) -> A + Clone + Send + Sync + 'static,
        A: Future<Output = (StatusCode, String)> + Send + 'static,
    {
        let listener = TcpListener::bind(address).await.expect("bind");
        let requests = Arc::new(AtomicUsize::new(0));
        let counted = requests.clone();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.expect("accept");
                let (counted, answer) = (counted.clone(), answer.clone());
                let service = service_fn(move |_: Request<Incoming>| {
                    let number = counted.fetch_add(1, Ordering::SeqCst) + 1;
                    let answer = answer(number);
                    async move {
                        let (status, body) = answer.await;
                        let mut response = Response::new(Full::new(Bytes::from(body)));
                        *response.status_mut() = status;
                        Ok::<_, Infallible>(response)
                    }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self { requests, task }
    }

    /// The number of requests received.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A response as the client sees it.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: String,
}

impl Answer {
    /// The reason of the proxy's own response; empty if an app responded.
    pub fn reason(&self) -> &str {
        let reason = self.headers.get("naru-reason");
        reason.map_or("", |reason| reason.to_str().expect("text"))
    }
}

/// One request on a connection of its own.
pub async fn ask(address: SocketAddr, request: Request<String>) -> anyhow::Result<Answer> {
    let asking = async {
        let stream = TcpStream::connect(address).await.context("connecting")?;
        let (mut client, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let response = client
            .send_request(request.map(Full::<Bytes>::from))
            .await?;
        let (head, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        connection.abort();
        Ok(Answer {
            status: head.status.as_u16(),
            headers: head.headers,
            body: String::from_utf8(body.to_vec())?,
        })
    };
    timeout(SOON, asking).await.context("no answer")?
}

/// GET, which must get a response.
pub async fn get(address: SocketAddr, path: &str) -> Answer {
    try_get(address, path)
        .await
        .unwrap_or_else(|error| panic!("GET {path} of {address}: {error:#}"))
}

pub async fn try_get(address: SocketAddr, path: &str) -> anyhow::Result<Answer> {
    let request = Request::get(path).header("host", "app");
    ask(address, request.body(String::new())?).await
}

/// An HTTP/2 app that echoes each message as it arrives, and then sends trailers. It stops on drop.
pub struct Echo(JoinHandle<()>);

impl Echo {
    pub async fn start(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.expect("bind");
        Self(tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.expect("accept");
                tokio::spawn(async move {
                    let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        tokio::spawn(echo(request, respond));
                    }
                });
            }
        }))
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn echo(
    request: Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
) -> Result<(), h2::Error> {
    let head = Response::builder()
        .header("content-type", "application/grpc")
        .body(())
        .expect("a head");
    let mut send = respond.send_response(head, false)?;
    let mut body = request.into_body();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        send.send_data(data, false)?;
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
    send.send_trailers(trailers)
}

/// A stream on an HTTP/2 connection of its own.
pub struct Stream {
    pub send: h2::SendStream<Bytes>,
    pub receive: h2::RecvStream,
    _connection: JoinHandle<Result<(), h2::Error>>,
}

impl Stream {
    pub async fn open(address: SocketAddr, path: &str) -> Self {
        let opening = async {
            let stream = TcpStream::connect(address).await.expect("connect");
            let (client, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
            let connection = tokio::spawn(connection);
            let mut client = client.ready().await.expect("a stream");
            let request = Request::post(format!("http://echo{path}"))
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(())
                .expect("a head");
            let (response, send) = client.send_request(request, false).expect("a stream");
            let response = response.await.expect("a response");
            assert_eq!(response.status(), 200, "{response:?}");
            Self {
                send,
                receive: response.into_body(),
                _connection: connection,
            }
        };
        timeout(SOON, opening).await.expect("no response")
    }

    /// The next piece of the body.
    pub async fn next(&mut self) -> Option<Bytes> {
        let data = timeout(SOON, self.receive.data()).await.expect("no data");
        let data = data.map(|data| data.expect("data"));
        if let Some(data) = &data {
            let flow = self.receive.flow_control();
            flow.release_capacity(data.len()).expect("capacity");
        }
        data
    }
}
