//! A minimal HTTP/1.1 client: it probes containers and queries the admin port of a proxy.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// The largest response, in bytes: a proxy's metrics at its cap of series.
const MAX_ANSWER: u64 = 16 * 1024 * 1024;

/// Status and body of a response.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

/// Sends a GET on a new connection.
pub async fn get(
    stream: TcpStream,
    host: &str,
    path: &str,
    headers: &[(String, String)],
    timeout: Duration,
) -> io::Result<Answer> {
    // HTTP/1.0: the body is not chunked, and the server closes the connection after it.
    let mut request = format!("GET {path} HTTP/1.0\r\nuser-agent: kube-probe/naru\r\n");
    if !headers
        .iter()
        .any(|(name, _)| name.eq_ignore_ascii_case("host"))
    {
        request.push_str(&format!("host: {host}\r\n"));
    }
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    exchange(stream, &request, timeout).await
}

/// Posts JSON on a new connection.
pub async fn post(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    path: &str,
    body: &str,
    timeout: Duration,
) -> io::Result<Answer> {
    let length = body.len();
    let request = format!(
        "POST {path} HTTP/1.0\r\n\
         host: localhost\r\n\
         content-type: application/json\r\n\
         content-length: {length}\r\n\r\n\
         {body}"
    );
    exchange(stream, &request, timeout).await
}

async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    request: &str,
    timeout: Duration,
) -> io::Result<Answer> {
    let exchange = async {
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
        parse(&answer)
    };
    tokio::time::timeout(timeout, exchange)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no answer in time"))?
}

fn parse(answer: &[u8]) -> io::Result<Answer> {
    let wrong = || io::Error::new(io::ErrorKind::InvalidData, "the answer is not HTTP");
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(wrong)?;
    let mut words = head.split(' ');
    if !words
        .next()
        .is_some_and(|version| version.starts_with("HTTP/1."))
    {
        return Err(wrong());
    }
    let status = words
        .next()
        .and_then(|status| status.get(..3)?.parse().ok());
    Ok(Answer {
        status: status.ok_or_else(wrong)?,
        body: body.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_a_status_and_a_body() {
        let answer = parse(b"HTTP/1.1 204 No Content\r\na: b\r\n\r\nbody\r\n\r\n").unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (204, "body\r\n\r\n"));
        assert_eq!(parse(b"HTTP/1.0 503\r\n\r\n").unwrap().status, 503);
        for wrong in ["", "SSH-2.0\r\n\r\n", "HTTP/1.1 x\r\n\r\n"] {
            assert!(parse(wrong.as_bytes()).is_err(), "{wrong:?}");
        }
    }
}
