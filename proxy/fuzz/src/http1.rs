//! Any bytes as an HTTP/1 message: the parsed head and body are independent of the size of the
//! reads, and the next parser reads the forwarded message as it was parsed here.

use bytes::BytesMut;
use naru_proxy::http::http1::fuzzing::{
    ChunkError, Chunked, Framing, HeadError, Request, Response, Segment, Version, find_end,
    request_framing, response_framing,
};

/// The result of reading a body.
#[derive(Debug, PartialEq, Eq)]
struct Body {
    /// Bytes consumed, those of the coding included.
    taken: usize,
    content: Vec<u8>,
    done: bool,
}

/// The end of the head, found with reads of at most `step` bytes.
fn end_by_reads(bytes: &[u8], step: usize, strict: bool) -> Result<Option<usize>, HeadError> {
    let mut read = 0;
    let mut looked_at = 0;
    while read < bytes.len() {
        read = (read + step).min(bytes.len());
        if let Some(end) = find_end(&bytes[..read], looked_at, strict)? {
            return Ok(Some(end));
        }
        looked_at = read;
    }
    Ok(None)
}

/// A chunked body from reads of at most `step` bytes.
fn body_by_reads(bytes: &[u8], step: usize) -> Result<Body, ChunkError> {
    let mut chunked = Chunked::default();
    let mut body = Body {
        taken: 0,
        content: Vec::new(),
        done: false,
    };
    for read in bytes.chunks(step) {
        let mut at = 0;
        while let Some(segment) = chunked.next(&read[at..])? {
            let (length, is_content) = match segment {
                Segment::Coding(length) => (length, false),
                Segment::Content(length) => (length, true),
            };
            assert!(length > 0 && at + length <= read.len());
            if is_content {
                body.content.extend_from_slice(&read[at..at + length]);
            }
            at += length;
        }
        body.taken += at;
        assert!(chunked.is_done() || at == read.len());
    }
    body.done = chunked.is_done();
    Ok(body)
}

fn request(bytes: &[u8], step: usize) {
    let end = find_end(bytes, 0, true);
    assert_eq!(end, end_by_reads(bytes, step, true));
    let Ok(Some(end)) = end else { return };
    let mut head = Request::default();
    if head.parse(&bytes[..end]).is_err() {
        return;
    }
    let Ok(framing) = request_framing(&mut head) else {
        return;
    };
    assert_ne!(framing.body, Framing::UntilClose);
    if framing.body == Framing::Chunked {
        assert_eq!(
            body_by_reads(&bytes[end..], step),
            body_by_reads(&bytes[end..], usize::MAX)
        );
    }
    let mut out = BytesMut::new();
    head.write(&mut out);
    out.extend_from_slice(b"\r\n");
    // A head cannot smuggle a second one for another parser.
    assert_eq!(find_end(&out, 0, true), Ok(Some(out.len())));
    let mut again = Request::default();
    again.parse(&out).expect("what is sent is a head");
    let same: Vec<_> = head.fields.iter().collect();
    assert_eq!(again.fields.iter().collect::<Vec<_>>(), same);
    assert_eq!(again.target(), head.target());
    let framed = request_framing(&mut again).expect("a head that is passed on is not ambiguous");
    assert_eq!(framed.body, framing.body);
}

fn response(bytes: &[u8], step: usize, to_head: bool) {
    let end = find_end(bytes, 0, false);
    assert_eq!(end, end_by_reads(bytes, step, false));
    let Ok(Some(end)) = end else { return };
    let mut head = Response::default();
    if head.parse(&bytes[..end]).is_err() {
        return;
    }
    let Ok(framing) = response_framing(&mut head, to_head) else {
        return;
    };
    let mut out = BytesMut::new();
    head.write(Version::Http11, &mut out);
    out.extend_from_slice(b"\r\n");
    assert_eq!(find_end(&out, 0, true), Ok(Some(out.len())));
    let mut again = Response::default();
    again.parse(&out).expect("what is sent is a head");
    assert_eq!(again.status, head.status);
    let framed = response_framing(&mut again, to_head);
    let framed = framed.expect("a head that is passed on is not ambiguous");
    assert_eq!(framed.body, framing.body);
}

pub fn one(bytes: &[u8]) {
    let Some(input) = crate::input::input::<(u8, bool, &[u8])>(bytes) else {
        return;
    };
    let (step, to_head, bytes) = input;
    let step = usize::from(step).max(1);
    request(bytes, step);
    response(bytes, step, to_head);
}
