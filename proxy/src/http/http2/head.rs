//! What h2 lets pass in the head of a request or a response, and the next reader could take for
//! something else.

use http::header::{CONTENT_LENGTH, HOST, HeaderMap, HeaderName};
use http::{Method, request, response};

use crate::http::strict::{self, Authority, MAX_FIELDS};
use crate::observe::reason::Reason;

/// How much larger than the limit a head may be for h2 to hand it out, so that the answer has a
/// reason and is counted. h2 answers larger ones itself, and ends the connection for those that are
/// four times as large again.
pub(super) const HEAD_ROOM: usize = 4;
/// What a field counts beside its name and value (RFC 9113 section 6.5.2).
const FIELD_OVERHEAD: usize = 32;

/// Why a request is refused. `max_bytes`: the limit of its head.
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

/// Whether `:authority` and `Host` are fit to be such, and name the same host.
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

/// Whether the scheme is one of HTTP. It is not known where there is no authority.
fn is_web(head: &request::Parts) -> bool {
    head.uri
        .scheme_str()
        .is_none_or(|scheme| matches!(scheme, "http" | "https"))
}

/// Takes out of a response what its status has none of (RFC 9110 section 8.6), and what it says
/// twice.
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

/// Whether all of these fields may be trailers. A proxy's reason may: who may not send one has it
/// removed.
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
    fn what_can_be_read_in_two_ways_is_refused() {
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
    fn a_response_says_its_length_once_and_only_where_it_has_one() {
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
