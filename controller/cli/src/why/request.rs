//! A request or a connection, in the syntax of curl.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use http::Uri;
use serde_json::{Value, json};

use crate::sidecar::Sample;

/// The protocol that a client begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// An HTTP request.
    Http,
    /// A ClientHello, and HTTP inside TLS.
    Https,
    /// A ClientHello, and any protocol inside TLS.
    Tls,
    /// Opaque bytes.
    Tcp,
}

/// `SCHEME://HOST[:PORT][/PATH][?QUERY]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    pub scheme: Scheme,
    /// Without the brackets of an IPv6 address.
    pub host: String,
    pub port: u16,
    /// Host and port as written, for `Host`.
    authority: String,
    /// With its query; `/` if the URL has none.
    path: String,
}

/// `NAME: VALUE`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    name: String,
    value: String,
}

impl Scheme {
    fn of(text: &str) -> Option<Self> {
        Some(match text {
            "http" => Self::Http,
            "https" => Self::Https,
            "tls" => Self::Tls,
            "tcp" => Self::Tcp,
            _ => return None,
        })
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Tls => "tls",
            Self::Tcp => "tcp",
        }
    }

    const fn default_port(self) -> Option<u16> {
        match self {
            Self::Http => Some(80),
            Self::Https => Some(443),
            Self::Tls | Self::Tcp => None,
        }
    }

    pub const fn is_tls(self) -> bool {
        matches!(self, Self::Https | Self::Tls)
    }
}

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let with_scheme = match text.contains("://") {
            true => text.to_owned(),
            false => format!("http://{text}"),
        };
        let uri: Uri = with_scheme
            .parse()
            .map_err(|error| format!("{text:?} is no URL: {error}"))?;
        let scheme = uri.scheme_str().unwrap_or_default();
        let scheme = Scheme::of(scheme)
            .ok_or_else(|| format!("{scheme} is not one of the schemes http, https, tls, tcp"))?;
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let host = uri.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() || authority.contains('@') {
            return Err(format!("{text:?} names no host, or a user"));
        }
        // The colons of an IPv6 address are inside brackets.
        let port = match authority.rsplit_once(':') {
            Some((_, port)) if !port.ends_with(']') => port
                .parse()
                .map_err(|_| format!("{port:?} is not a port"))?,
            _ => (scheme.default_port())
                .ok_or_else(|| format!("{text:?} names no port, as {text}:443"))?,
        };
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let path = match path.starts_with('/') {
            true => path.to_owned(),
            false => format!("/{path}"),
        };
        if matches!(scheme, Scheme::Tls | Scheme::Tcp) && path != "/" {
            return Err(format!("{path}: a connection has no path"));
        }
        Ok(Self {
            scheme,
            host: host.to_owned(),
            port,
            authority: authority.to_owned(),
            path,
        })
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.as_str(), self.authority)?;
        match self.scheme {
            Scheme::Http | Scheme::Https => f.write_str(&self.path),
            Scheme::Tls | Scheme::Tcp => Ok(()),
        }
    }
}

impl Url {
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// The server name of a TLS client, if `given` is `None`: the host, unless that is an address
    /// (RFC 6066 section 3).
    pub fn server_name(&self, given: Option<&str>) -> Option<String> {
        let own = || self.ip().is_none().then_some(&*self.host);
        given.or_else(own).map(str::to_owned)
    }

    /// Whether the arguments describe a request inside a connection that is opaque to the sidecar.
    pub fn hides(&self, method: &str, headers: &[Header]) -> bool {
        self.scheme != Scheme::Http
            && (self.path != "/" || !headers.is_empty() || method != DEFAULT_METHOD)
    }

    /// The question for the sidecar.
    pub fn sample(&self, method: &str, headers: &[Header], server_name: Option<&str>) -> Sample {
        match self.scheme {
            Scheme::Http => Sample::Request(self.request(method, headers)),
            Scheme::Https | Scheme::Tls => {
                Sample::Connection(json!({ "tls": true, "server_name": server_name }))
            }
            Scheme::Tcp => Sample::Connection(json!({ "tls": false })),
        }
    }

    fn request(&self, method: &str, headers: &[Header]) -> Value {
        let is_host = |header: &&Header| header.name.eq_ignore_ascii_case("host");
        let authority = headers.iter().find(is_host).map(|host| &host.value);
        let others = headers.iter().filter(|header| !is_host(header));
        json!({
            "method": method,
            "path": self.path,
            "authority": authority.unwrap_or(&self.authority),
            "headers": others.map(|Header { name, value }| [name, value]).collect::<Vec<_>>(),
        })
    }
}

/// The default method.
pub const DEFAULT_METHOD: &str = "GET";

impl FromStr for Header {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some((name, value)) if !name.trim().is_empty() => Ok(Self {
                name: name.trim().to_owned(),
                value: value.trim().to_owned(),
            }),
            _ => Err(format!("{text:?} is not NAME: VALUE, as 'x-version: 2'")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_parsed_as_by_curl() {
        for (text, host, port, shown) in [
            ("http://catalog", "catalog", 80, "http://catalog/"),
            ("catalog/a?b=c#d", "catalog", 80, "http://catalog/a?b=c"),
            ("http://catalog?b", "catalog", 80, "http://catalog/?b"),
            (
                "catalog.shop:8080/a",
                "catalog.shop",
                8080,
                "http://catalog.shop:8080/a",
            ),
            (
                "http://[fd00::1]:81/",
                "fd00::1",
                81,
                "http://[fd00::1]:81/",
            ),
            ("https://catalog/a", "catalog", 443, "https://catalog/a"),
            ("tls://catalog:8883", "catalog", 8883, "tls://catalog:8883"),
            (
                "tcp://10.0.0.1:5432/",
                "10.0.0.1",
                5432,
                "tcp://10.0.0.1:5432",
            ),
        ] {
            let url: Url = text.parse().expect(text);
            assert_eq!((url.host.as_str(), url.port), (host, port), "{text}");
            assert_eq!(url.to_string(), shown);
        }
        let url: Url = "http://[fd00::1]".parse().unwrap();
        assert_eq!(url.ip(), "fd00::1".parse().ok());
        for wrong in [
            "",
            "http://",
            "tls://catalog",
            "tcp://catalog:1/a",
            "tcp://catalog:1?a",
            "ftp://a",
            "http://a:99999/",
            "http://u@a/",
            "a b",
        ] {
            assert!(wrong.parse::<Url>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_host_header_overrides_the_url_s() {
        let url: Url = "http://catalog:81/a".parse().unwrap();
        let headers = ["X-Version: 2", "host:other", "empty:"].map(|h| h.parse().unwrap());
        assert_eq!(
            url.request("PUT", &headers),
            json!({
                "method": "PUT", "path": "/a", "authority": "other",
                "headers": [["X-Version", "2"], ["empty", ""]],
            })
        );
        assert_eq!(url.request("GET", &[])["authority"], "catalog:81");
        assert!("x-version".parse::<Header>().is_err());
        assert!(": 2".parse::<Header>().is_err());
    }

    #[test]
    fn the_server_name_is_the_host_unless_given_and_never_an_address() {
        for (url, given, expected) in [
            ("https://broker.shop/a", None, json!("broker.shop")),
            ("tls://broker:1", Some("eu.example"), json!("eu.example")),
            ("tls://[fd00::1]:1", None, json!(null)),
            ("tls://10.0.0.1:1", Some("eu.example"), json!("eu.example")),
        ] {
            let url: Url = url.parse().unwrap();
            let name = url.server_name(given);
            let sample = url.sample("GET", &[], name.as_deref());
            let connection = json!({ "tls": true, "server_name": expected });
            assert_eq!(sample, Sample::Connection(connection), "{url}");
        }
        let url: Url = "tcp://db:5432".parse().unwrap();
        let bytes = Sample::Connection(json!({ "tls": false }));
        assert_eq!(url.sample("GET", &[], None), bytes);
        for (url, method, hides) in [
            ("https://a", "GET", false),
            ("https://a/b", "GET", true),
            ("https://a", "PUT", true),
            ("http://a/b", "PUT", false),
        ] {
            let url: Url = url.parse().unwrap();
            assert_eq!(url.hides(method, &[]), hides, "{url}");
        }
    }
}
