//! Checks of request and response heads that h2 does not make, against ambiguity for the next
//! reader.

use http::header::{CONTENT_LENGTH, HOST, HeaderMap, HeaderName};
use http::{Method, request, response};

use crate::http::strict::{self, Authority, MAX_FIELDS};
use crate::observe::reason::Reason;

/// How many times the limit a head may have for h2 to deliver it, so that the response has a reason
/// and is counted. h2 answers larger ones itself, and closes the connection for those that are four
/// times as large again.
pub(super) const HEAD_ROOM: usize = 4;
/// The size that each field counts in addition to its name and value (RFC 9113 section 6.5.2).
const FIELD_OVERHEAD: usize = 32;

/// Why a request is rejected. `max_bytes`: the limit of its head.
pub(super) fn refusal(
    head: &request::Parts,
    is_extended_connect: bool,
    max_bytes: usize,
) -> Option<Reason> {
    if head.headers.len() > MAX_FIELDS || size(head) > max_bytes {
        return Some(Reason::HeaderTooLarge);
    }
    let lengths = head.headers.get_all(CONTENT_LENGTH).iter();
    if lengths.count() > 1 || !names_one_host(head) || !is_web(head) {
        return Some(Reason::BadRequest);
    }
    if head.method == Method::CONNECT && !is_extended_connect {
        return Some(Reason::ConnectMethod);
    }
    let path = head.uri.path_and_query().map_or("", |path| path.as_str());
    match strict::is_path(path, head.method.as_str()) {
        true => None,
        false => Some(Reason::BadRequest),
    }
}

/// As `SETTINGS_MAX_HEADER_LIST_SIZE` counts it.
fn size(head: &request::Parts) -> usize {
    let fields = head.headers.iter();
    let fields = fields.map(|(name, value)| name.as_str().len() + value.len() + FIELD_OVERHEAD);
    let path = head
        .uri
        .path_and_query()
        .map_or(0, |path| path.as_str().len());
    let authority = head
        .uri
        .authority()
        .map_or(0, |authority| authority.as_str().len());
    fields.sum::<usize>() + path + authority
}

/// Whether `:authority` and `Host` are valid, and name the same host.
fn names_one_host(head: &request::Parts) -> bool {
    let authority = head.uri.authority().map(|authority| authority.as_str());
    if authority.is_some_and(|authority| !strict::is_authority_or_list(authority)) {
        return false;
    }
    let mut hosts = head.headers.get_all(HOST).iter();
    let Some(host) = hosts.next() else {
        return true;
    };
    if hosts.next().is_some() {
        return false;
    }
    if authority.is_some_and(|authority| authority.as_bytes() == host.as_bytes()) {
        return true;
    }
    let Some(host) = host.to_str().ok().and_then(Authority::of_host) else {
        return false;
    };
    authority.is_none_or(|authority| {
        Authority::of_host(authority).is_some_and(|authority| authority.agrees_with(&host))
    })
}

/// Whether the scheme is an HTTP one. It is unknown without an authority.
fn is_web(head: &request::Parts) -> bool {
    head.uri
        .scheme_str()
        .is_none_or(|scheme| matches!(scheme, "http" | "https"))
}

/// Removes fields of a response that its status forbids (RFC 9110 section 8.6), and duplicates.
pub(super) fn tidy(head: &mut response::Parts) {
    if head.status.is_informational() || head.status == http::StatusCode::NO_CONTENT {
        head.headers.remove(CONTENT_LENGTH);
        return;
    }
    let mut lengths = head.headers.get_all(CONTENT_LENGTH).iter();
    if let (Some(length), Some(_)) = (lengths.next().cloned(), lengths.next()) {
        head.headers.insert(CONTENT_LENGTH, length);
    }
}

/// Whether all of these fields may be trailers. A proxy's reason is allowed: if the sender may not
/// send one, it is removed.
pub(super) fn are_trailers(trailers: &HeaderMap, of_request: bool) -> bool {
    let names = trailers.keys().map(HeaderName::as_str);
    names
        .into_iter()
        .all(|name| strict::is_trailer(name.as_bytes(), of_request))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(method: &str, uri: &str, fields: &[(&str, &str)]) -> request::Parts {
        let mut request = http::Request::builder().method(method).uri(uri);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).expect("a request").into_parts().0
    }

    #[test]
    fn ambiguous_requests_are_rejected() {
        use Reason::*;
        let uri = "http://web:80/";
        for (method, uri, fields, reason) in [
            ("GET", uri, &[("host", "WEB")][..], None),
            ("GET", "http://web/*?a", &[], None),
            ("GET", "http://a,b/", &[], None),
            ("GET", "/", &[("host", "web")], None),
            ("GET", uri, &[("host", "other")], Some(BadRequest)),
            (
                "GET",
                uri,
                &[("host", "web"), ("host", "web")],
                Some(BadRequest),
            ),
            ("GET", "/", &[("host", "a b")], Some(BadRequest)),
            ("GET", "/", &[("host", "")], Some(BadRequest)),
            ("GET", uri, &[("host", "")], Some(BadRequest)),
            ("GET", "/", &[("host", "a,b")], Some(BadRequest)),
            ("GET", "http://u@web/", &[], Some(BadRequest)),
            ("GET", "ftp://web/", &[], Some(BadRequest)),
            ("GET", "*", &[], Some(BadRequest)),
            ("OPTIONS", "*", &[], None),
            (
                "POST",
                uri,
                &[("content-length", "1"), ("content-length", "1")],
                Some(BadRequest),
            ),
            ("CONNECT", "web:80", &[], Some(ConnectMethod)),
        ] {
            let head = head(method, uri, fields);
            assert_eq!(
                refusal(&head, false, 1_000),
                reason,
                "{method} {uri} {fields:?}"
            );
        }
        let websocket = head("CONNECT", uri, &[]);
        assert_eq!(refusal(&websocket, true, 1_000), None);
        assert_eq!(refusal(&websocket, true, 2), Some(HeaderTooLarge));
    }

    #[test]
    fn a_response_has_at_most_one_length_and_only_with_content() {
        for (status, length) in [(200, Some("5")), (304, Some("5")), (204, None), (103, None)] {
            let response = http::Response::builder().status(status);
            let response = response
                .header("content-length", "5")
                .header("content-length", "5");
            let (mut head, ()) = response.body(()).expect("a response").into_parts();
            tidy(&mut head);
            let lengths: Vec<_> = head.headers.get_all(CONTENT_LENGTH).iter().collect();
            assert_eq!(lengths, Vec::from_iter(length), "{status}");
        }
    }
}
