//! The heads of requests and responses as filters and matches see them: [`RequestHead`] and
//! [`HeaderFields`], with their implementation for HTTP/2 (types of the `http` crate).
//!
//! Names and values from filters were validated when the filters were decoded. If the `http` crate
//! rejects one all the same, the head stays unchanged.

use http::header::{HOST, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Uri, request, response, uri};

/// The head of a request of any HTTP version. Two implementations: [`crate::http::http1`]'s head
/// and [`http::request::Parts`].
pub trait RequestHead: HeaderFields {
    fn method(&self) -> &str;
    /// Path with query, as sent. Empty for CONNECT, `*` for OPTIONS of the whole server.
    fn path_and_query(&self) -> &str;
    /// `Host`, `:authority`, or the authority of an absolute target.
    fn authority(&self) -> Option<&str>;
    fn set_path_and_query(&mut self, path_and_query: &str);
    fn set_authority(&mut self, authority: &str);
}

/// Header fields of a request or response. Names are case-insensitive.
pub trait HeaderFields {
    /// Calls `each` with every value under `name`, in order, until it returns false.
    fn for_each_value(&self, name: &str, each: &mut dyn FnMut(&[u8]) -> bool);
    /// Replaces all fields of that name by one.
    fn set_field(&mut self, name: &str, value: &str);
    fn add_field(&mut self, name: &str, value: &str);
    /// [`Self::add_field`], with a value that all requests of the connection share.
    fn add_shared(&mut self, name: &HeaderName, value: &HeaderValue);
    fn remove_field(&mut self, name: &str);
    /// Removes every field whose name [`is_spelling`] of `name`.
    fn remove_spellings(&mut self, name: &str);
}

/// Whether these names are indistinguishable to apps that get fields as variables, `HTTP_NAME`: `-`
/// and `_` are the same there (RFC 3875 section 4.1.18).
pub fn is_spelling(other: &[u8], name: &[u8]) -> bool {
    let same = |(other, name): (&u8, &u8)| match other {
        b'_' => matches!(name, b'_' | b'-'),
        _ => other.eq_ignore_ascii_case(name),
    };
    other.len() == name.len() && other.iter().zip(name).all(same)
}

impl HeaderFields for HeaderMap {
    fn for_each_value(&self, name: &str, each: &mut dyn FnMut(&[u8]) -> bool) {
        for value in self.get_all(name) {
            if !each(value.as_bytes()) {
                return;
            }
        }
    }

    fn set_field(&mut self, name: &str, value: &str) {
        if let Some((name, value)) = field(name, value) {
            self.insert(name, value);
        }
    }

    fn add_shared(&mut self, name: &HeaderName, value: &HeaderValue) {
        self.append(name.clone(), value.clone());
    }

    fn add_field(&mut self, name: &str, value: &str) {
        if let Some((name, value)) = field(name, value) {
            self.append(name, value);
        }
    }

    fn remove_field(&mut self, name: &str) {
        self.remove(name);
    }

    fn remove_spellings(&mut self, name: &str) {
        let is_one = |other: &&HeaderName| is_spelling(other.as_str().as_bytes(), name.as_bytes());
        while let Some(found) = self.keys().find(is_one).cloned() {
            self.remove(found);
        }
    }
}

impl HeaderFields for request::Parts {
    fn for_each_value(&self, name: &str, each: &mut dyn FnMut(&[u8]) -> bool) {
        self.headers.for_each_value(name, each);
    }

    fn set_field(&mut self, name: &str, value: &str) {
        self.headers.set_field(name, value);
    }

    fn add_shared(&mut self, name: &HeaderName, value: &HeaderValue) {
        self.headers.add_shared(name, value);
    }

    fn add_field(&mut self, name: &str, value: &str) {
        self.headers.add_field(name, value);
    }

    fn remove_field(&mut self, name: &str) {
        self.headers.remove_field(name);
    }

    fn remove_spellings(&mut self, name: &str) {
        self.headers.remove_spellings(name);
    }
}

impl HeaderFields for response::Parts {
    fn for_each_value(&self, name: &str, each: &mut dyn FnMut(&[u8]) -> bool) {
        self.headers.for_each_value(name, each);
    }

    fn set_field(&mut self, name: &str, value: &str) {
        self.headers.set_field(name, value);
    }

    fn add_shared(&mut self, name: &HeaderName, value: &HeaderValue) {
        self.headers.add_shared(name, value);
    }

    fn add_field(&mut self, name: &str, value: &str) {
        self.headers.add_field(name, value);
    }

    fn remove_field(&mut self, name: &str) {
        self.headers.remove_field(name);
    }

    fn remove_spellings(&mut self, name: &str) {
        self.headers.remove_spellings(name);
    }
}

impl RequestHead for request::Parts {
    fn method(&self) -> &str {
        self.method.as_str()
    }

    fn path_and_query(&self) -> &str {
        self.uri.path_and_query().map_or("", PathAndQuery::as_str)
    }

    fn authority(&self) -> Option<&str> {
        match self.uri.authority() {
            Some(authority) => Some(authority.as_str()),
            None => self.headers.get(HOST)?.to_str().ok(),
        }
    }

    fn set_path_and_query(&mut self, path_and_query: &str) {
        let Ok(path_and_query) = PathAndQuery::try_from(path_and_query) else {
            return;
        };
        self.change_uri(|parts| parts.path_and_query = Some(path_and_query));
    }

    fn set_authority(&mut self, authority: &str) {
        let (Ok(value), Ok(authority)) = (
            HeaderValue::from_str(authority),
            Authority::try_from(authority),
        ) else {
            return;
        };
        if self.headers.contains_key(HOST) {
            self.headers.insert(HOST, value);
        }
        self.change_uri(|parts| {
            // A URI with an authority and a path needs a scheme.
            if parts.path_and_query.is_some() && parts.scheme.is_none() {
                parts.scheme = Some(Scheme::HTTP);
            }
            parts.authority = Some(authority);
        });
    }
}

trait ChangeUri {
    fn change_uri(&mut self, change: impl FnOnce(&mut uri::Parts));
}

impl ChangeUri for request::Parts {
    fn change_uri(&mut self, change: impl FnOnce(&mut uri::Parts)) {
        let mut parts = self.uri.clone().into_parts();
        change(&mut parts);
        if let Ok(uri) = Uri::from_parts(parts) {
            self.uri = uri;
        }
    }
}

fn field(name: &str, value: &str) -> Option<(HeaderName, HeaderValue)> {
    Some((
        HeaderName::from_bytes(name.as_bytes()).ok()?,
        HeaderValue::from_str(value).ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(uri: &str) -> request::Parts {
        http::Request::builder()
            .uri(uri)
            .header("X-A", "1")
            .header("x-a", "2")
            .body(())
            .expect("a request")
            .into_parts()
            .0
    }

    #[test]
    fn a_new_path_keeps_the_authority() {
        let mut head = parts("http://web:80/a?b");
        head.set_path_and_query("/c?d");
        assert_eq!(head.uri, "http://web:80/c?d");
        assert_eq!(head.path_and_query(), "/c?d");
    }

    #[test]
    fn a_new_authority_keeps_the_path_and_updates_the_host_header() {
        let mut head = parts("/a");
        head.headers.insert(HOST, HeaderValue::from_static("old"));
        assert_eq!(RequestHead::authority(&head), Some("old"));
        head.set_authority("new");
        assert_eq!(head.uri, "http://new/a");
        assert_eq!(head.headers[HOST], "new");
    }

    #[test]
    fn values_are_visited_in_order_until_each_returns_false() {
        let head = parts("/");
        let mut seen = Vec::new();
        head.for_each_value("X-a", &mut |value| {
            seen.push(value.to_vec());
            false
        });
        assert_eq!(seen, [b"1".to_vec()]);
    }

    #[test]
    fn an_invalid_value_changes_nothing() {
        let mut head = parts("http://web/a");
        head.set_field("x-a", "1\r\n");
        head.set_path_and_query("/ b");
        head.set_authority("a b");
        assert_eq!(head.headers.get_all("x-a").iter().count(), 2);
        assert_eq!(head.uri, "http://web/a");
    }
}
