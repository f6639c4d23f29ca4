use super::*;

fn request(text: &str) -> Request {
    let mut request = Request::default();
    request.parse(text.as_bytes()).unwrap();
    request
}

fn written(request: &Request) -> String {
    let mut out = BytesMut::new();
    request.write(&mut out);
    String::from_utf8(out.to_vec()).unwrap()
}

#[test]
fn case_and_order_are_preserved() {
    let text = "GET /a?b=c HTTP/1.1\r\nhOST: x\r\nSet-Cookie: 1\r\nX-B: 2\r\nset-cookie: 3\r\n";
    assert_eq!(written(&request(&format!("{text}\r\n"))), text);
}

#[test]
fn a_field_keeps_the_space_after_its_colon() {
    let text = "GET / HTTP/1.1\r\nHost: x\r\nA:b\r\nB:\r\nC: \r\nD:\tc\r\nE:  d \r\n";
    let mut request = request(&format!("{text}\r\n"));
    request.set_field("F", "f");
    request.set_field("G", "");
    let tidy = text.replace("\t", " ").replace(":  d ", ": d");
    assert_eq!(written(&request), format!("{tidy}F: f\r\nG: \r\n"));
    request.set_field("A", "c");
    assert!(written(&request).contains("\r\nA: c\r\n"));
}

#[test]
fn a_later_minor_version_is_read_and_written_as_1_1() {
    for version in ["HTTP/1.2", "HTTP/1.9"] {
        let text = format!("GET /HTTP/1.2 {version}\r\nHost: HTTP/1.2\r\n");
        let request = request(&format!("{text}\r\n"));
        assert_eq!(request.version(), Version::Http11);
        let as_written = "GET /HTTP/1.2 HTTP/1.1\r\nHost: HTTP/1.2\r\n";
        assert_eq!(written(&request), as_written);
        let mut response = Response::default();
        let head = format!("{version} 200 OK\r\nA: HTTP/1.2\r\n\r\n");
        response.parse(head.as_bytes()).unwrap();
        assert_eq!(
            (response.version(), response.status),
            (Version::Http11, 200)
        );
        assert_eq!(response.fields.get("a"), Some(&b"HTTP/1.2"[..]));
    }
    for version in [
        "HTTP/2.0",
        "HTTP/2.2",
        "HTTP/1.10",
        "HTTP/1.",
        "HTTP/1.x",
        "http/1.2",
    ] {
        let head = format!("GET / {version}\r\nHost: x\r\n\r\n");
        assert!(
            Request::default().parse(head.as_bytes()).is_err(),
            "{version}"
        );
        let head = format!("{version} 200 OK\r\n\r\n");
        assert!(
            Response::default().parse(head.as_bytes()).is_err(),
            "{version}"
        );
    }
}

#[test]
fn a_field_is_set_in_its_place() {
    let mut request = request("GET / HTTP/1.1\r\nHost: x\r\nA: 1\r\nB: 2\r\na: 3\r\n\r\n");
    request.set_field("a", "9");
    request.add_field("C", "4");
    request.remove_field("b");
    assert_eq!(
        written(&request),
        "GET / HTTP/1.1\r\nHost: x\r\nA: 9\r\nC: 4\r\n"
    );
}

#[test]
fn a_path_is_rewritten_in_either_form_of_target() {
    let mut origin = request("GET /a?q HTTP/1.1\r\nHost: x\r\n\r\n");
    origin.set_path_and_query("/b");
    assert_eq!(origin.path_and_query(), "/b");
    let mut absolute = request("GET http://x:80/a?q HTTP/1.1\r\nHost: x:80\r\n\r\n");
    assert_eq!(absolute.authority(), Some("x:80"));
    assert_eq!(absolute.path_and_query(), "/a?q");
    absolute.set_path_and_query("/b");
    assert_eq!(absolute.target(), "http://x:80/b");
    absolute.set_authority("y");
    assert_eq!(written(&absolute), "GET http://y/b HTTP/1.1\r\nHost: y\r\n");
}

#[test]
fn the_end_of_a_head_is_found_wherever_reads_split_it() {
    let head = b"GET / HTTP/1.1\r\nHost: x\r\n\r\nbody";
    for cut in 0..head.len() {
        let first = find_end(&head[..cut], 0, true).unwrap();
        assert_eq!(first.is_some(), cut >= 27, "{cut}");
        assert_eq!(find_end(head, cut, true).unwrap().is_some(), cut <= 27);
        if first.is_none() {
            assert_eq!(find_end(head, cut, true).unwrap(), Some(27));
        }
    }
}

#[test]
fn line_ends_must_be_uniform_in_requests_only() {
    for head in [
        &b"GET / HTTP/1.1\nHost: x\r\n\r\n"[..],
        b"GET / HTTP/1.1\nHost: x\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n\n",
    ] {
        for from in 0..head.len() {
            assert_eq!(find_end(head, from, true), Err(HeadError::LineEnds));
        }
        assert!(find_end(head, 0, false).unwrap().is_some());
    }
    let head = b"GET / HTTP/1.1\nHost: x\n\nbody\r\n";
    for from in 0..24 {
        assert_eq!(find_end(&head[..from], 0, true), Ok(None));
        assert_eq!(find_end(head, from, true), Ok(Some(24)), "{from}");
    }
    assert_eq!(
        find_end(b"HTTP/1.1 200 OK\nA: b\n\n", 0, false),
        Ok(Some(22))
    );
}

#[test]
fn folded_lines_and_spaces_before_a_colon_in_responses_are_normalized() {
    for (text, line) in [
        ("A: b;\r\n  c\r\n\td", "A: b;    c  \td"),
        ("A : b", "A: b"),
        ("A:\r\n b", "A: b"),
        ("A: b\n c", "A: b  c"),
        (
            "Transfer-Encoding:\r\n chunked",
            "Transfer-Encoding: chunked",
        ),
    ] {
        let mut response = Response::default();
        let head = format!("HTTP/1.1 200 OK\r\n{text}\r\nB: c\r\n\r\n");
        response.parse(head.as_bytes()).unwrap();
        let mut out = BytesMut::new();
        response.write(response.version(), &mut out);
        let out = String::from_utf8(out.to_vec()).unwrap();
        assert_eq!(out, format!("HTTP/1.1 200 OK\r\n{line}\r\nB: c\r\n"));
        let request = format!("GET / HTTP/1.1\r\nHost: x\r\n{text}\r\n\r\n");
        assert!(
            Request::default().parse(request.as_bytes()).is_err(),
            "{text}"
        );
    }
    for text in [" A: b", "A b: c", "no colon", ": b", "A: b\rc"] {
        let head = format!("HTTP/1.1 200 OK\r\n{text}\r\n\r\n");
        assert!(
            Response::default().parse(head.as_bytes()).is_err(),
            "{text}"
        );
    }
}

#[test]
fn a_response_keeps_its_reason() {
    let mut response = Response::default();
    let text = "HTTP/1.1 299 Quite Fine\r\nA: b\r\n";
    response.parse(format!("{text}\r\n").as_bytes()).unwrap();
    let mut out = BytesMut::new();
    response.write(response.version(), &mut out);
    assert_eq!(String::from_utf8(out.to_vec()).unwrap(), text);
}
