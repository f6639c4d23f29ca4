//! The question, as JSON.

use std::net::SocketAddr;

use http::header::{HOST, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Request};
use serde::Deserialize;

use crate::wire::client_hello::{ClientHello, Hello, normal};

/// Fields in the head of a request.
const MAX_HEADERS: usize = 100;
/// Bytes in the server name of a TLS client: as many as DNS allows.
const MAX_NAME: usize = 255;

/// A question to `/why`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// `10.96.0.10:80`, or `NAME.NAMESPACE:PORT` of a Service that the app has called before.
    destination: String,
    request: Option<RequestSample>,
    /// With neither a request nor a connection, the answer lists the routes.
    connection: Option<ConnectionSample>,
}

/// The head of a request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestSample {
    method: String,
    /// With its query.
    path: String,
    /// `Host` or `:authority`.
    authority: String,
    #[serde(default)]
    headers: Vec<(String, String)>,
}

/// The beginning of a connection.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConnectionSample {
    /// Whether it begins with a ClientHello.
    tls: bool,
    /// The server name (SNI) of the ClientHello. `None`: it has no server name.
    server_name: Option<String>,
}

/// What the client would send.
#[derive(Debug)]
pub enum Sample {
    /// The head of a request.
    Request(Parts),
    /// The first bytes of another connection.
    Connection(Hello),
}

/// The destination of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Address(SocketAddr),
    /// A port of a Service. Without a namespace: in the proxy's own.
    Service {
        name: String,
        namespace: Option<String>,
        port: u16,
    },
}

impl Question {
    /// Parses JSON.
    pub fn parse(body: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(body).map_err(|error| error.to_string())
    }

    pub fn target(&self) -> Result<Target, String> {
        if let Ok(address) = self.destination.parse() {
            return Ok(Target::Address(address));
        }
        let wrong = || {
            format!(
                "destination: {:?} is neither IP:PORT nor NAME.NAMESPACE:PORT",
                self.destination
            )
        };
        let (name, port) = self.destination.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().map_err(|_| wrong())?;
        let (name, namespace) = match name.split_once('.') {
            Some((name, namespace)) => (name, Some(namespace)),
            None => (name, None),
        };
        let label = |text: &str| {
            let fit = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
            !text.is_empty() && text.bytes().all(fit)
        };
        if !label(name) || !namespace.is_none_or(label) {
            return Err(wrong());
        }
        Ok(Target::Service {
            name: name.to_owned(),
            namespace: namespace.map(str::to_owned),
            port,
        })
    }

    /// What the client would send, if the question has it. `Err`: it is invalid.
    pub fn sample(&self) -> Result<Option<Sample>, String> {
        Ok(match (&self.request, &self.connection) {
            (None, None) => None,
            (Some(request), None) => Some(Sample::Request(request.head()?)),
            (None, Some(connection)) => Some(Sample::Connection(connection.hello()?)),
            (Some(_), Some(_)) => return Err("connection: there is a request as well".to_owned()),
        })
    }
}

impl RequestSample {
    fn head(&self) -> Result<Parts, String> {
        let method = Method::from_bytes(self.method.as_bytes())
            .ok()
            .filter(|method| *method != Method::CONNECT)
            .ok_or_else(|| format!("method: {:?} is not an HTTP method", self.method))?;
        let fit = self.path.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
        if !self.path.starts_with('/') || !fit {
            return Err(format!("path: {:?} is not a path", self.path));
        }
        if self.headers.len() > MAX_HEADERS {
            return Err(format!("headers: more than {MAX_HEADERS}"));
        }
        let mut request = Request::builder().method(method).uri(&self.path);
        let authority = [(HOST.as_str(), self.authority.as_str())];
        let headers = self.headers.iter().map(|(n, v)| (n.as_str(), v.as_str()));
        for (name, value) in authority.into_iter().chain(headers) {
            let wrong = || format!("headers: {name:?} can't have the value {value:?}");
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?;
            let value = HeaderValue::from_str(value.trim()).map_err(|_| wrong())?;
            request = request.header(name, value);
        }
        let request = request.body(()).map_err(|error| error.to_string())?;
        Ok(request.into_parts().0)
    }
}

impl ConnectionSample {
    fn hello(&self) -> Result<Hello, String> {
        let name = match &self.server_name {
            Some(name) if !self.tls => {
                return Err(format!("server_name: {name:?} is only asked for in TLS"));
            }
            Some(name) => {
                let fit = name.len() <= MAX_NAME && name.bytes().all(|b| b.is_ascii_graphic());
                let normal = normal(name).filter(|_| fit);
                Some(normal.ok_or_else(|| format!("server_name: {name:?} is not a host name"))?)
            }
            None => None,
        };
        Ok(match self.tls {
            true => Hello::Complete(ClientHello::naming(name)),
            false => Hello::Other,
        })
    }
}
