//! An HTTP probe: one GET, of whose response only the head counts. Redirects within the app are
//! followed, as the kubelet does.

use std::fmt::Write;

use bytes::Bytes;
use http::header::{ACCEPT, HOST, LOCATION, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Version};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::app::{Failure, ProbeContext, connect};
use super::tls;

/// Redirects that are followed (the kubelet's own number).
const MAX_REDIRECTS: usize = 10;
/// Bound on the head of a response, in bytes.
const MAX_HEAD: usize = 64 * 1024;
/// Bound on the header fields of a response.
const MAX_HEADERS: usize = 128;

/// A GET request.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Get {
    port: u16,
    path: String,
    #[serde(default)]
    tls: bool,
    /// HTTP/2 with prior knowledge.
    #[serde(default)]
    http2: bool,
    #[serde(default)]
    headers: Vec<(String, String)>,
}

/// The relevant part of a response's head.
struct Head {
    status: u16,
    location: Option<String>,
}

impl Get {
    pub fn new(port: u16, path: &str) -> Self {
        Self {
            port,
            path: path.to_owned(),
            tls: false,
            http2: false,
            headers: Vec::new(),
        }
    }

    /// The status of the last response.
    pub async fn status(&self, context: ProbeContext<'_>) -> Result<u16, Failure> {
        let mut path = self.path.clone();
        let mut redirects = 0;
        loop {
            let head = self.once(&path, context).await?;
            let elsewhere = head.location.and_then(|at| self.within(&at, context));
            match elsewhere {
                Some(next) if redirects < MAX_REDIRECTS => path = next,
                // A redirect to another host passes like any other response.
                _ => return Ok(head.status),
            }
            redirects += 1;
        }
    }

    async fn once(&self, path: &str, context: ProbeContext<'_>) -> Result<Head, Failure> {
        let headers = self.headers(context)?;
        let app = connect(context, self.port).await?;
        if self.http2 {
            http2(app, self.authority(context), path, headers).await
        } else if self.tls {
            let app = tls::connect(app, context.here, None).await?;
            http1(app, path, headers).await
        } else {
            http1(app, path, headers).await
        }
    }

    fn authority(&self, context: ProbeContext<'_>) -> String {
        std::net::SocketAddr::new(context.here, self.port).to_string()
    }

    /// The path of a redirect that stays with the app.
    fn within(&self, location: &str, context: ProbeContext<'_>) -> Option<String> {
        if location.starts_with('/') && !location.starts_with("//") {
            return Some(location.to_owned());
        }
        let scheme = if self.tls { "https://" } else { "http://" };
        let rest = location.strip_prefix(scheme)?;
        let path = rest.strip_prefix(self.authority(context).as_str())?;
        match path {
            "" => Some("/".to_owned()),
            path if path.starts_with('/') => Some(path.to_owned()),
            _ => None,
        }
    }

    /// The kubelet's own headers, and the probe's, which replace or extend them.
    fn headers(&self, context: ProbeContext<'_>) -> Result<HeaderMap, Failure> {
        let wrong = || Failure::Request("header");
        let mut headers = HeaderMap::new();
        let authority = self.authority(context);
        let defaults = [
            (HOST, &*authority),
            (USER_AGENT, context.user_agent),
            (ACCEPT, "*/*"),
        ];
        for (name, value) in &self.headers {
            let name = HeaderName::try_from(name).map_err(|_| wrong())?;
            headers.append(name, HeaderValue::try_from(value).map_err(|_| wrong())?);
        }
        for (name, value) in defaults {
            if !headers.contains_key(&name) {
                headers.insert(name, HeaderValue::try_from(value).map_err(|_| wrong())?);
            }
        }
        Ok(headers)
    }
}

/// A path as a valid request target: other characters are escaped.
fn target(path: &str) -> String {
    let mut target = String::with_capacity(path.len() + 1);
    if !path.starts_with('/') {
        target.push('/');
    }
    let path = path.split('#').next().unwrap_or_default();
    for byte in path.bytes() {
        match byte {
            b'!'..=b'~' => target.push(byte.into()),
            _ => {
                let _ = write!(target, "%{byte:02X}");
            }
        }
    }
    target
}

async fn http1<S>(mut app: S, path: &str, headers: HeaderMap) -> Result<Head, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut request = format!("GET {} HTTP/1.1\r\n", target(path)).into_bytes();
    for (name, value) in &headers {
        request.extend_from_slice(name.as_str().as_bytes());
        request.extend_from_slice(b": ");
        request.extend_from_slice(value.as_bytes());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"connection: close\r\n\r\n");
    app.write_all(&request).await.map_err(Failure::Talk)?;
    let mut read = Vec::new();
    loop {
        while let Some((head, length)) = parse(&read)? {
            // An interim response is followed by another one.
            match head.status {
                100..=199 if head.status != 101 => read.drain(..length),
                _ => return Ok(head),
            };
        }
        if read.len() >= MAX_HEAD {
            return Err(Failure::Answer(httparse::Error::TooManyHeaders));
        }
        let length = app.read_buf(&mut read).await.map_err(Failure::Talk)?;
        if length == 0 {
            return Err(Failure::Talk(std::io::ErrorKind::UnexpectedEof.into()));
        }
    }
}

async fn http2<S>(
    app: S,
    authority: String,
    path: &str,
    mut headers: HeaderMap,
) -> Result<Head, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (client, connection) = h2::client::handshake(app).await?;
    // In HTTP/2, the probe's Host becomes `:authority`.
    let authority = match headers.remove(HOST) {
        Some(host) => host.to_str().unwrap_or(&authority).to_owned(),
        None => authority,
    };
    let ask = async {
        let mut request = Request::new(());
        *request.uri_mut() = format!("http://{authority}{}", target(path))
            .parse()
            .map_err(|_| Failure::Request("path"))?;
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = headers;
        let mut client: h2::client::SendRequest<Bytes> = client.ready().await?;
        let (response, _) = client.send_request(request, true)?;
        let response = response.await?;
        let location = response.headers().get(LOCATION);
        let location = location.filter(|_| response.status().is_redirection());
        Ok(Head {
            status: response.status().as_u16(),
            location: location.and_then(|at| at.to_str().ok()).map(str::to_owned),
        })
    };
    tokio::select! {
        biased;
        head = ask => head,
        ended = connection => match ended {
            Err(error) => Err(error.into()),
            Ok(()) => Err(Failure::Talk(std::io::ErrorKind::UnexpectedEof.into())),
        },
    }
}

/// The head at the start, and its length. `None`: incomplete.
fn parse(bytes: &[u8]) -> Result<Option<(Head, usize)>, Failure> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(length) = response.parse(bytes)? else {
        return Ok(None);
    };
    let status = response.code.unwrap_or_default();
    let location = response
        .headers
        .iter()
        .find(|header| (300..400).contains(&status) && header.name.eq_ignore_ascii_case("location"))
        .and_then(|header| std::str::from_utf8(header.value).ok())
        .map(str::to_owned);
    Ok(Some((Head { status, location }, length)))
}
