//! A rule's filters: header modifiers, rewrites, redirects and CORS, applied to a head in their
//! order.

use super::matches::split_query;
use super::{Cors, HeaderFields, Preflight, RequestHead};

/// One filter of a rule or of a backend.
#[derive(Clone, Debug)]
pub enum Filter {
    RequestHeaders(HeaderModifier),
    ResponseHeaders(HeaderModifier),
    Redirect(Redirect),
    Rewrite(Rewrite),
    Cors(Cors),
}

/// `set`, then `add`, then `remove`.
#[derive(Clone, Debug, Default)]
pub struct HeaderModifier {
    /// Replaces the request's authority. In HTTP/2 `Host` is not a separate field.
    pub host: Option<Box<str>>,
    pub set: Vec<(Box<str>, Box<str>)>,
    pub add: Vec<(Box<str>, Box<str>)>,
    pub remove: Vec<Box<str>>,
}

/// The proxy answers with a redirect. Absent parts stay as in the request.
#[derive(Clone, Debug)]
pub struct Redirect {
    pub scheme: Option<Scheme>,
    pub hostname: Option<Box<str>>,
    pub path: Option<PathModifier>,
    /// `None`: the default port of `scheme`, or without a scheme the port that was called.
    pub port: Option<u16>,
    pub status: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    Http,
    Https,
}

#[derive(Clone, Debug)]
pub struct Rewrite {
    pub hostname: Option<Box<str>>,
    pub path: Option<PathModifier>,
}

/// A new path. The query is kept.
#[derive(Clone, Debug)]
pub enum PathModifier {
    ReplaceFull(Box<str>),
    /// Replaces the prefix that was matched.
    ReplacePrefix(Box<str>),
}

/// Data of a request that filters need in addition to its head.
#[derive(Clone, Copy, Debug)]
pub(super) struct Context {
    /// How many bytes of the path the match covered.
    pub matched_prefix: usize,
    /// The Service port that was called.
    pub port: u16,
}

/// The answer of a filter.
pub(super) enum Answer {
    /// With this status and location.
    Redirect(u16, String),
    Preflight(Preflight),
}

/// Applies request filters in order, up to the first that answers. `origin` is set to the one that
/// may read the response, by the CORS filter.
pub(super) fn apply_to_request(
    filters: &[Filter],
    context: Context,
    head: &mut impl RequestHead,
    origin: &mut Option<Box<str>>,
) -> Option<Answer> {
    for filter in filters {
        match filter {
            Filter::ResponseHeaders(_) => {}
            Filter::RequestHeaders(modifier) => {
                if let Some(host) = &modifier.host {
                    head.set_authority(host);
                }
                modifier.apply(head);
            }
            Filter::Rewrite(rewrite) => {
                if let Some(hostname) = &rewrite.hostname {
                    head.set_authority(hostname);
                }
                // CONNECT has no path to rewrite.
                if let Some(path) = &rewrite.path
                    && !head.path_and_query().is_empty()
                {
                    let target = path.apply(head.path_and_query(), context.matched_prefix);
                    head.set_path_and_query(&target);
                }
            }
            Filter::Redirect(redirect) => {
                let location = redirect.location(context, head);
                return Some(Answer::Redirect(redirect.status, location));
            }
            Filter::Cors(cors) => {
                if let Some(answer) = cors.judge(head, origin) {
                    return Some(Answer::Preflight(answer));
                }
            }
        }
    }
    None
}

pub(super) fn apply_to_response(
    filters: &[Filter],
    origin: Option<&str>,
    head: &mut impl HeaderFields,
) {
    for filter in filters {
        match filter {
            Filter::ResponseHeaders(modifier) => modifier.apply(head),
            Filter::Cors(cors) => cors.apply_to_response(origin, head),
            Filter::RequestHeaders(_) | Filter::Rewrite(_) | Filter::Redirect(_) => {}
        }
    }
}

impl HeaderModifier {
    fn apply(&self, head: &mut impl HeaderFields) {
        for (name, value) in &self.set {
            head.set_field(name, value);
        }
        for (name, value) in &self.add {
            head.add_field(name, value);
        }
        for name in &self.remove {
            head.remove_field(name);
        }
    }
}

impl Redirect {
    /// The whole location. Where neither the filter nor the request has a host, only the path,
    /// which is relative to the client's URL.
    fn location(&self, context: Context, head: &impl RequestHead) -> String {
        let target = match (&self.path, head.path_and_query()) {
            (Some(path), target) => path.apply(target, context.matched_prefix),
            (None, target) => target.to_owned(),
        };
        let Some(hostname) = self
            .hostname
            .as_deref()
            .or_else(|| head.authority().map(host_of))
        else {
            return target;
        };
        // Calls within the mesh are plain HTTP to the app.
        let scheme = self.scheme.unwrap_or(Scheme::Http);
        let port = self.port.unwrap_or(match self.scheme {
            Some(scheme) => scheme.port(),
            None => context.port,
        });
        let scheme_text = scheme.as_str();
        if port == scheme.port() {
            format!("{scheme_text}://{hostname}{target}")
        } else {
            format!("{scheme_text}://{hostname}:{port}{target}")
        }
    }
}

impl Scheme {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    const fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

impl PathModifier {
    /// The new target for a request for `target`, `covered` bytes of whose path were matched.
    fn apply(&self, target: &str, covered: usize) -> String {
        let (path, query) = split_query(target);
        let mut new = match self {
            Self::ReplaceFull(full) => full.to_string(),
            Self::ReplacePrefix(prefix) => match path.get(covered..).unwrap_or("") {
                "" => prefix.to_string(),
                // Begins with a slash, since prefixes are whole segments.
                rest => format!("{}{rest}", prefix.strip_suffix('/').unwrap_or(prefix)),
            },
        };
        if !new.starts_with('/') {
            new.insert(0, '/');
        }
        if let Some(query) = query {
            new.push('?');
            new.push_str(query);
        }
        new
    }
}

/// An authority without its port.
fn host_of(authority: &str) -> &str {
    // The colons of an IPv6 address are inside of brackets.
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replaced(path: &str, prefix: &str, replacement: &str) -> String {
        let covered = prefix.strip_suffix('/').unwrap_or(prefix).len();
        PathModifier::ReplacePrefix(replacement.into()).apply(path, covered)
    }

    #[test]
    fn a_prefix_is_replaced_as_in_the_table_of_the_specification() {
        for (path, prefix, replacement, modified) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            // Cases beyond the table.
            ("/bar", "/", "/xyz", "/xyz/bar"),
            ("/", "/", "/xyz", "/xyz/"),
            ("/foo//bar", "/foo", "/", "//bar"),
            ("/foo?a=/foo", "/foo", "/xyz", "/xyz?a=/foo"),
            ("/foo/%2Fbar?", "/foo", "/xyz", "/xyz/%2Fbar?"),
        ] {
            assert_eq!(
                replaced(path, prefix, replacement),
                modified,
                "{path} {prefix} {replacement}"
            );
        }
    }

    #[test]
    fn a_full_path_is_replaced_and_the_query_is_kept() {
        let full = |value: &str| PathModifier::ReplaceFull(value.into());
        assert_eq!(full("/new").apply("/a/b?c=d", 2), "/new?c=d");
        assert_eq!(full("").apply("/a", 0), "/");
        assert_eq!(full("new").apply("/a", 0), "/new");
    }

    #[test]
    fn host_of_removes_the_port() {
        assert_eq!(host_of("web"), "web");
        assert_eq!(host_of("web:8080"), "web");
        assert_eq!(host_of("[::1]"), "[::1]");
        assert_eq!(host_of("[::1]:80"), "[::1]");
    }
}
