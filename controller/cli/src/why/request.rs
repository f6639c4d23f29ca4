//! A request as curl is told it.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use http::Uri;
use serde_json::{Value, json};

const DEFAULT_PORT: u16 = 80;

/// `http://HOST[:PORT][/PATH][?QUERY]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// Without the brackets of an IPv6 address.
    pub host: String,
    pub port: u16,
    /// Host and port as written, for `Host`.
    authority: String,
    /// With its query.
    path: String,
}

/// `NAME: VALUE`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    name: String,
    value: String,
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
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => {
                return Err(
                    "https: what an app has encrypted itself is bytes to its sidecar, and no HTTP route has a part in it; ask with \
                     http:// what would become of the request in plaintext"
                        .to_owned(),
                );
            }
            other => {
                return Err(format!(
                    "{} is no scheme of a request",
                    other.unwrap_or_default()
                ));
            }
        }
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let host = uri.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() || authority.contains('@') {
            return Err(format!("{text:?} names no host, or a user"));
        }
        // The colons of an IPv6 address are inside of brackets.
        let port = match authority.rsplit_once(':') {
            Some((_, port)) if !port.ends_with(']') => {
                port.parse().map_err(|_| format!("{port:?} is no port"))?
            }
            _ => DEFAULT_PORT,
        };
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Ok(Self {
            host: host.to_owned(),
            port,
            authority: authority.to_owned(),
            path: match path.starts_with('/') {
                true => path.to_owned(),
                false => format!("/{path}"),
            },
        })
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority, self.path)
    }
}

impl Url {
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// The request as a sidecar is asked about it.
    pub fn request(&self, method: &str, headers: &[Header]) -> Value {
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
    fn a_url_is_taken_apart_as_curl_does() {
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
            "https://catalog",
            "ftp://a",
            "http://a:99999/",
            "http://u@a/",
            "a b",
        ] {
            assert!(wrong.parse::<Url>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_host_header_takes_the_place_of_the_url_s() {
        let url: Url = "http://catalog:81/a".parse().unwrap();
        let headers = ["X-Version: 2", "host:other", "empty:"].map(|h| h.parse().unwrap());
        assert_eq!(
            url.request("PUT", &headers),
            json!({
                "method": "PUT", "path": "/a", "authority": "other", "headers": [["X-Version", "2"], ["empty", ""]],
            })
        );
        assert_eq!(url.request("GET", &[])["authority"], "catalog:81");
        assert!("x-version".parse::<Header>().is_err());
        assert!(": 2".parse::<Header>().is_err());
    }
}
