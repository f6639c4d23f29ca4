//! Which messages are rejected, and how the others are passed on.

use super::*;

fn of_request(text: &str) -> Result<RequestFraming, FramingError> {
    let mut head = Request::default();
    head.parse(text.as_bytes()).unwrap();
    request(&mut head)
}

#[test]
fn an_ambiguous_request_is_rejected() {
    use FramingError::*;
    for (fields, error) in [
        (
            "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            LengthAndEncoding,
        ),
        ("Content-Length: 1\r\nContent-Length: 1\r\n", SeveralLengths),
        ("Content-Length: 1, 1\r\n", Length),
        ("Content-Length: +1\r\n", Length),
        ("Content-Length: 0x1\r\n", Length),
        ("Content-Length: \r\n", Length),
        ("Content-Length: 18446744073709551616\r\n", Length),
        ("Transfer-Encoding: gzip, chunked\r\n", Encoding),
        ("Transfer-Encoding: chunked, chunked\r\n", Encoding),
        ("Transfer-Encoding: xchunked\r\n", Encoding),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            Encoding,
        ),
        ("Transfer-Encoding: \r\n", Encoding),
        ("Host: y\r\n", Host),
        ("Connection: x-user\r\nX-User: admin\r\n", ConnectionField),
        (
            "X-Forwarded-For: 1\r\nConnection: close, X-Forwarded-For\r\n",
            ConnectionField,
        ),
        ("Connection: close, host\r\n", ConnectionField),
        (
            "Connection: content-length\r\nContent-Length: 4\r\n",
            ConnectionField,
        ),
    ] {
        let text = format!("POST / HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
        assert_eq!(of_request(&text), Err(error), "{fields}");
    }
    assert_eq!(of_request("GET / HTTP/1.1\r\n\r\n"), Err(Host));
    assert_eq!(
        of_request("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"),
        Err(EncodingInHttp10)
    );
    assert_eq!(
        of_request("GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n"),
        Err(TargetAndHost)
    );
}

#[test]
fn an_ambiguous_target_is_rejected() {
    use FramingError::*;
    for (line, error) in [
        ("GET /admin#", Target),
        ("GET /a#b", Target),
        ("GET http://web/admin#y", Target),
        ("GET http://web#/admin", Target),
        ("GET ftp://web/admin", Target),
        ("GET httpx://web/admin", Target),
        ("GET http:/admin", Target),
        ("GET http:///admin", Target),
        ("GET http://a@b@web/admin", Target),
        ("GET http://x\\web/admin", Target),
        ("GET admin", Target),
        ("GET ?q", Target),
        ("GET web:80", Target),
        ("GET *", Target),
        ("OPTIONS *x", Target),
        ("GET http://web:81/", TargetAndHost),
        ("GET http://web@other/", TargetAndHost),
        ("CONNECT web", Target),
        ("CONNECT /admin", Target),
        ("CONNECT other:80", TargetAndHost),
        ("CONNECT web:80", Connect),
    ] {
        let text = format!("{line} HTTP/1.1\r\nHost: web:80\r\n\r\n");
        assert_eq!(of_request(&text), Err(error), "{line}");
    }
    for host in ["a b", "a,b", "a/b", "a:80:90", "u@a", "ä"] {
        let text = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert_eq!(of_request(&text), Err(Host), "{host}");
        // Also in HTTP/1.0, where `Host` is optional.
        let text = text.replace("HTTP/1.1", "HTTP/1.0");
        assert_eq!(of_request(&text), Err(Host), "{host}");
    }
}

#[test]
fn a_host_may_be_empty_if_the_target_has_none() {
    for version in ["HTTP/1.0", "HTTP/1.1"] {
        for field in ["Host:", "Host: ", "host: \t"] {
            let mut head = Request::default();
            let text = format!("GET /a {version}\r\n{field}\r\n\r\n");
            head.parse(text.as_bytes()).unwrap();
            assert!(request(&mut head).is_ok(), "{text}");
            assert_eq!(head.authority(), None, "{text}");
            assert!(head.fields.get("host").is_some(), "it is passed on");
        }
        for (line, error) in [
            ("GET http://web/", FramingError::TargetAndHost),
            ("GET a", FramingError::Target),
            ("CONNECT web:80", FramingError::Connect),
        ] {
            let text = format!("{line} {version}\r\nHost:\r\n\r\n");
            assert_eq!(of_request(&text), Err(error), "{text}");
        }
        let text = format!("GET / {version}\r\nHost:\r\nHost: x\r\n\r\n");
        assert_eq!(of_request(&text), Err(FramingError::Host), "{text}");
    }
}

#[test]
fn target_and_host_field_may_spell_the_host_differently() {
    for line in [
        "GET http://WEB/a",
        "GET http://web:80/a",
        "GET http://u:p@web/a",
        "GET HTTPS://web/a",
    ] {
        for host in ["web", "web:80", "Web"] {
            let mut head = Request::default();
            let text = format!("{line} HTTP/1.1\r\nHost: {host}\r\n\r\n");
            head.parse(text.as_bytes()).unwrap();
            assert!(request(&mut head).is_ok(), "{line} {host}");
            assert_eq!(head.path_and_query(), "/a");
            assert!(
                head.authority()
                    .unwrap()
                    .to_ascii_lowercase()
                    .starts_with("web")
            );
            assert!(line.ends_with(head.target()), "as it came");
        }
    }
    let mut head = Request::default();
    head.parse(b"GET http://web?q HTTP/1.1\r\nHost: web\r\n\r\n")
        .unwrap();
    request(&mut head).unwrap();
    assert_eq!(head.target(), "http://web/?q");
}

#[test]
fn an_upgrade_keeps_its_fields() {
    let fields_of = |text: &str| {
        let mut head = Request::default();
        let text = format!("GET / HTTP/1.1\r\nHost: x\r\n{text}\r\n");
        head.parse(text.as_bytes()).unwrap();
        let upgrade = request(&mut head).unwrap().upgrade;
        let mut out = bytes::BytesMut::new();
        head.write(&mut out);
        let out = String::from_utf8(out.to_vec()).unwrap();
        (upgrade, out.split_once("Host: x\r\n").unwrap().1.to_owned())
    };
    let same = "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n";
    assert_eq!(fields_of(same), (true, same.to_owned()));
    let more = "Connection: TE, upgrade\r\nTE: trailers\r\nUpgrade: websocket\r\n";
    let (upgrade, fields) = fields_of(more);
    assert_eq!(
        (upgrade, &*fields),
        (true, "Connection: Upgrade\r\nUpgrade: websocket\r\n")
    );
    for protocol in ["h2c", "\"h2c\"", "websocket, H2C", "h2c-14", "\" h2"] {
        let text = format!("Connection: Upgrade\r\nUpgrade: {protocol}\r\n");
        assert_eq!(fields_of(&text), (false, String::new()), "{protocol}");
    }
}

#[test]
fn a_clients_te_trailers_is_passed_on() {
    for (fields, left) in [
        (
            "TE: trailers\r\nConnection: TE, close\r\n",
            "TE: trailers\r\nConnection: TE\r\n",
        ),
        (
            "Connection: te\r\nA: b\r\nte: Trailers\r\n",
            "Connection: TE\r\nA: b\r\nte: trailers\r\n",
        ),
        (
            "TE: gzip;q=0.5, trailers\r\nConnection: TE\r\n",
            "TE: trailers\r\nConnection: TE\r\n",
        ),
        (
            "TE: gzip\r\nTE: trailers\r\nConnection: keep-alive\r\nConnection: TE\r\n",
            "TE: trailers\r\nConnection: TE\r\n",
        ),
        ("TE: gzip\r\nConnection: TE\r\n", ""),
        ("TE: trailersx\r\nConnection: TE\r\n", ""),
        ("Connection: TE\r\n", ""),
        ("TE: trailers\r\n", "TE: trailers\r\n"),
    ] {
        let mut head = Request::default();
        let text = format!("GET / HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
        head.parse(text.as_bytes()).unwrap();
        request(&mut head).unwrap();
        let mut out = bytes::BytesMut::new();
        head.write(&mut out);
        let out = String::from_utf8(out.to_vec()).unwrap();
        assert_eq!(out.split_once("Host: x\r\n").unwrap().1, left, "{fields}");
    }
}

#[test]
fn connection_fields_are_removed_and_others_stay() {
    let mut head = Request::default();
    head.parse(
        b"GET / HTTP/1.1\r\nHost: x\r\nKeep-Alive: 3\r\n\
          Connection: close, X-Hop, http2-settings\r\nHTTP2-Settings: 1\r\nUpgrade: y\r\n\
          Naru-Reason: z\r\nTE: trailers\r\n\r\n",
    )
    .unwrap();
    let framing = request(&mut head).unwrap();
    assert!(!framing.keep_alive && !framing.upgrade);
    let names: Vec<_> = head.fields.iter().map(|(name, _)| name.to_vec()).collect();
    assert_eq!(names, [&b"Host"[..], b"TE"]);
}

#[test]
fn http10_keeps_a_connection_only_when_asked() {
    assert!(!of_request("GET / HTTP/1.0\r\n\r\n").unwrap().keep_alive);
    assert!(
        of_request("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n")
            .unwrap()
            .keep_alive
    );
    assert!(
        of_request("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            .unwrap()
            .keep_alive
    );
}

fn of_response(text: &str, method: &str) -> Result<ResponseFraming, FramingError> {
    let mut head = Response::default();
    head.parse(text.as_bytes()).unwrap();
    response(&mut head, method == "HEAD")
}

#[test]
fn a_response_without_content_has_no_length() {
    for (status, field, keep_alive) in [
        ("204 No Content", "Content-Length: 0", true),
        ("204 No Content", "Content-Length: 5", false),
        ("204 No Content", "Transfer-Encoding: chunked", false),
        ("103 Early Hints", "Content-Length: 5", false),
        (
            "101 Switching Protocols",
            "Transfer-Encoding: chunked",
            false,
        ),
    ] {
        let mut head = Response::default();
        let text = format!("HTTP/1.1 {status}\r\n{field}\r\nA: b\r\n\r\n");
        head.parse(text.as_bytes()).unwrap();
        let framing = response(&mut head, false).unwrap();
        assert_eq!(
            (framing.body, framing.keep_alive),
            (Framing::None, keep_alive),
            "{text}"
        );
        let names: Vec<_> = head.fields.iter().map(|(name, _)| name.to_vec()).collect();
        assert_eq!(names, [b"A"], "{text}");
    }
}

#[test]
fn a_coding_in_http10_ends_the_connection() {
    for (version, keep_alive) in [("HTTP/1.0", false), ("HTTP/1.1", true)] {
        for field in [
            "Connection: keep-alive\r\n",
            "Connection: keep-alive\r\nA: b\r\n",
        ] {
            let text = format!("{version} 200 OK\r\nTransfer-Encoding: chunked\r\n{field}\r\n");
            let framing = of_response(&text, "GET").unwrap();
            assert_eq!(
                (framing.body, framing.keep_alive),
                (Framing::Chunked, keep_alive)
            );
        }
    }
}

#[test]
fn a_response_body_ends_where_rfc_9112_says() {
    for (head, method, body) in [
        ("200 OK\r\nContent-Length: 5\r\n", "GET", Framing::Length(5)),
        ("200 OK\r\nContent-Length: 5\r\n", "HEAD", Framing::None),
        ("204 No\r\nContent-Length: 5\r\n", "GET", Framing::None),
        ("304 Same\r\nContent-Length: 5\r\n", "GET", Framing::None),
        (
            "200 OK\r\nTransfer-Encoding: chunked\r\n",
            "GET",
            Framing::Chunked,
        ),
        (
            "200 OK\r\nTransfer-Encoding: gzip, chunked\r\n",
            "GET",
            Framing::Chunked,
        ),
        (
            "200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 5\r\n",
            "GET",
            Framing::Length(5),
        ),
        (
            "200 OK\r\nTransfer-Encoding: gzip\r\n",
            "GET",
            Framing::UntilClose,
        ),
        (
            "200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n",
            "GET",
            Framing::Chunked,
        ),
        ("200 OK\r\n", "GET", Framing::UntilClose),
        (
            "200 OK\r\nContent-Length: 5, 5\r\n",
            "GET",
            Framing::Length(5),
        ),
    ] {
        let framing = of_response(&format!("HTTP/1.1 {head}\r\n"), method).unwrap();
        assert_eq!(framing.body, body, "{method} {head}");
    }
    assert_eq!(
        of_response(
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            "GET"
        ),
        Err(FramingError::SeveralLengths)
    );
}
