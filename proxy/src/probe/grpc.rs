//! A gRPC probe: `Check` of the service `grpc.health.v1.Health`, over HTTP/2 with prior knowledge.

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, TE, USER_AGENT};
use http::{HeaderMap, Method, Request, Version};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};

use super::app::Failure;

const CHECK: &str = "http://naru-probe/grpc.health.v1.Health/Check";
/// Length of the prefix of each message, in bytes: the compression flag, and the message's length.
const PREFIX: usize = 5;
/// Bound on the answer, in bytes. A valid one has two.
const MAX_ANSWER: usize = 1024;
/// `ServingStatus.SERVING`.
const SERVING: i32 = 1;

#[derive(Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// Succeeds if the app reports SERVING.
pub async fn check<S>(app: S, service: &str, user_agent: &str) -> Result<(), Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (client, connection) = h2::client::handshake(app).await?;
    let context = ask(client, service, user_agent);
    tokio::select! {
        biased;
        answer = context => answer,
        // Completes only with an error or after the answer: the request ends with the connection.
        ended = connection => match ended {
            Err(error) => Err(error.into()),
            Ok(()) => Err(Failure::NotServing("the connection was closed".to_owned())),
        },
    }
}

async fn ask(
    client: h2::client::SendRequest<Bytes>,
    service: &str,
    user_agent: &str,
) -> Result<(), Failure> {
    let request = Request::builder()
        .method(Method::POST)
        .version(Version::HTTP_2)
        .uri(CHECK)
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .header(USER_AGENT, user_agent)
        .body(())
        .map_err(|_| Failure::Request("request"))?;
    let message = HealthCheckRequest {
        service: service.to_owned(),
    }
    .encode_to_vec();
    let mut body = BytesMut::with_capacity(PREFIX + message.len());
    body.put_u8(0);
    body.put_u32(u32::try_from(message.len()).map_err(|_| Failure::Request("service"))?);
    body.put_slice(&message);

    let mut client = client.ready().await?;
    let (response, mut stream) = client.send_request(request, false)?;
    stream.send_data(body.freeze(), true)?;
    let response = response.await?;
    if !response.status().is_success() {
        return Err(Failure::NotServing(response.status().to_string()));
    }
    refused(response.headers())?;
    let mut body = response.into_body();
    let mut answer = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        answer.extend_from_slice(&data);
        if answer.len() > MAX_ANSWER {
            return Err(Failure::NotServing("its answer is too long".to_owned()));
        }
    }
    if let Some(trailers) = body.trailers().await? {
        refused(&trailers)?;
    }
    let message = answer.get(PREFIX..).unwrap_or_default();
    match HealthCheckResponse::decode(message) {
        Ok(HealthCheckResponse { status: SERVING }) => Ok(()),
        Ok(HealthCheckResponse { status }) => Err(Failure::NotServing(format!("status {status}"))),
        Err(error) => Err(Failure::NotServing(error.to_string())),
    }
}

/// Fails if the response's gRPC status is not 0.
fn refused(headers: &HeaderMap) -> Result<(), Failure> {
    let status = headers.get("grpc-status").map(|status| status.as_bytes());
    match status {
        None | Some(b"0") => Ok(()),
        Some(status) => Err(Failure::NotServing(format!(
            "gRPC status {}",
            String::from_utf8_lossy(status)
        ))),
    }
}
