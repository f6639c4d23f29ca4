//! A port of a pod, forwarded by the API server: kubectl port-forward for one request.
//!
//! A WebSocket carries two channels for the port. The first byte of each message is the channel: 0
//! is the connection, 1 an error. Each channel begins with the port in two bytes (subprotocol
//! `v4.channel.k8s.io`).

use std::io;
use std::time::Duration;

use anyhow::{Context, bail};
use http::header::{
    CONNECTION, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use k8s_openapi::ByteString;
use kube::Client;
use kube::client::Body;
use kube::core::Status;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::from::Pod;
use super::websocket::{Opcode, decode, encode};
use crate::quiet_http::{self, Answer};

const PROTOCOL: &str = "v4.channel.k8s.io";
/// Buffered bytes in either direction.
const BUFFER: usize = 64 * 1024;
/// Bytes of an error response of the API server that are read.
const MAX_REFUSAL: usize = 64 * 1024;
/// Bytes of an error in place of the connection that are read.
const MAX_ERROR: usize = 4 * 1024;
const DATA: u8 = 0;
const ERROR: u8 = 1;
/// Each channel begins with this many bytes, which are the port.
const PORT: usize = 2;

/// Posts JSON to the pod's admin port.
pub async fn post(
    client: &Client,
    pod: &Pod,
    path: &str,
    body: &str,
    timeout: Duration,
) -> anyhow::Result<Answer> {
    let opening = tokio::time::timeout(timeout, open(client, pod));
    let upgraded = opening
        .await
        .context("the API server opens no connection to the pod in time")??;
    let (near, far) = tokio::io::duplex(BUFFER);
    let asking = quiet_http::post(near, path, body, timeout);
    tokio::pin!(asking);
    tokio::select! {
        answer = &mut asking => Ok(answer?),
        carried = carry(TokioIo::new(upgraded), far) => {
            carried.context("the forwarded port")?;
            // All of the response has been received by now.
            Ok(asking.await?)
        }
    }
}

async fn open(client: &Client, pod: &Pod) -> anyhow::Result<Upgraded> {
    let Pod {
        namespace,
        name,
        admin_port,
        ..
    } = pod;
    let key = serde_json::to_value(ByteString(rand::random::<[u8; 16]>().to_vec()))?;
    let request = Request::get(format!(
        "/api/v1/namespaces/{namespace}/pods/{name}/portforward?ports={admin_port}"
    ))
    .header(CONNECTION, "Upgrade")
    .header(UPGRADE, "websocket")
    .header(SEC_WEBSOCKET_VERSION, "13")
    .header(SEC_WEBSOCKET_KEY, key.as_str().unwrap_or_default())
    .header(SEC_WEBSOCKET_PROTOCOL, PROTOCOL)
    .body(Body::empty())?;
    let response = client.send(request).await?;
    let (status, spoken) = (
        response.status(),
        response.headers().get(SEC_WEBSOCKET_PROTOCOL),
    );
    if status == StatusCode::SWITCHING_PROTOCOLS {
        if spoken.is_none_or(|spoken| spoken != PROTOCOL) {
            bail!("the API server does not speak {PROTOCOL}");
        }
        return Ok(hyper::upgrade::on(response).await?);
    }
    let body = Limited::new(response.into_body(), MAX_REFUSAL).collect();
    let body = body.await.map(|body| body.to_bytes()).unwrap_or_default();
    let said = match serde_json::from_slice::<Status>(&body) {
        Ok(status) => status.message,
        Err(_) => String::from_utf8_lossy(&body).trim().to_owned(),
    };
    match status {
        StatusCode::FORBIDDEN => bail!(
            "{said}\n\
             A sidecar is asked over a forwarded port: have get and create of pods/portforward in \
             {namespace} permitted to you, \
             or forward the port as a user who may (kubectl -n {namespace} port-forward {name} \
             {admin_port}) and ask --from http://127.0.0.1:{admin_port}"
        ),
        status => bail!("the API server answers {status}: {said}"),
    }
}

/// Copies between `local` and the pod, until either side ends.
async fn carry<S>(remote: S, local: DuplexStream) -> io::Result<()>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite,
{
    let (mut from_pod, mut to_pod) = tokio::io::split(remote);
    let (mut from_here, mut to_here) = tokio::io::split(local);
    let mut received = Vec::new();
    let mut channels = Channels::default();
    let mut chunk = vec![0; BUFFER];
    let mut said = vec![0; BUFFER];
    loop {
        tokio::select! {
            read = from_pod.read(&mut chunk) => {
                let read = read?;
                received.extend_from_slice(&chunk[..read]);
                while let Some(frame) = decode(&mut received)? {
                    match frame.opcode {
                        Opcode::Close => return channels.end(),
                        Opcode::Ping => {
                            let pong = encode(Opcode::Pong, &frame.payload, rand::random());
                            to_pod.write_all(&pong).await?;
                        }
                        Opcode::Pong => {}
                        Opcode::Binary | Opcode::Text => {
                            to_here.write_all(channels.message(&frame.payload)?).await?;
                        }
                        Opcode::Continuation => {
                            to_here.write_all(channels.more(&frame.payload)?).await?;
                        }
                    }
                }
                if read == 0 {
                    return channels.end();
                }
            }
            read = from_here.read(&mut said[1..]) => match read? {
                // The client has closed.
                0 => return Ok(()),
                read => {
                    said[0] = DATA;
                    let frame = encode(Opcode::Binary, &said[..=read], rand::random());
                    to_pod.write_all(&frame).await?;
                }
            },
        }
    }
}

/// The state of both channels.
#[derive(Default)]
struct Channels {
    /// The channel of the current message.
    current: u8,
    /// Bytes of the port received so far, by channel.
    begun: [usize; 2],
    error: Vec<u8>,
}

impl Channels {
    /// The part of a message that belongs to the connection.
    fn message<'m>(&mut self, message: &'m [u8]) -> io::Result<&'m [u8]> {
        let Some((channel, content)) = message.split_first() else {
            return Ok(&[]);
        };
        self.current = *channel;
        self.more(content)
    }

    /// The same, for a further part of a message.
    fn more<'m>(&mut self, content: &'m [u8]) -> io::Result<&'m [u8]> {
        let Some(begun) = self.begun.get_mut(usize::from(self.current)) else {
            return Err(io::Error::other(format!("no channel {}", self.current)));
        };
        let port = content.len().min(PORT - *begun);
        *begun += port;
        let content = &content[port..];
        if self.current != ERROR {
            return Ok(content);
        }
        let room = MAX_ERROR - self.error.len().min(MAX_ERROR);
        self.error
            .extend_from_slice(&content[..content.len().min(room)]);
        Ok(&[])
    }

    /// The WebSocket has ended.
    fn end(&self) -> io::Result<()> {
        match self.error.is_empty() {
            true => Ok(()),
            false => Err(io::Error::other(
                String::from_utf8_lossy(&self.error).trim().to_owned(),
            )),
        }
    }
}
