//! Any bytes as the start of a connection: a detected protocol stays the same with more bytes, and
//! every request that the HTTP/1 parser accepts is detected as HTTP/1.

use naru_proxy::http::http1::fuzzing::{Request, find_end};
use naru_proxy::route::RequestHead;
use naru_proxy::wire::detect::{Detected, HTTP2_PREFACE, detect, detect_tls};

/// A longer word is not detected as a method.
const MAX_METHOD: usize = 32;
/// Length of the prefixes tried: detection decides long before.
const MAX_PREFIX: usize = 256;

pub fn one(bytes: &[u8]) {
    for classify in [detect, detect_tls] {
        let mut said = None;
        for length in 0..=bytes.len().min(MAX_PREFIX) {
            let now = classify(&bytes[..length]);
            assert!(said.is_none() || said == now, "{said:?}, then {now:?}");
            said = now;
        }
        assert!(said.is_none() || said == classify(bytes));
    }
    // Empty lines are accepted between requests, but not at the start of a connection.
    if bytes.starts_with(b"\r\n") {
        return;
    }
    let Ok(Some(end)) = find_end(bytes, 0, true) else {
        return;
    };
    let mut head = Request::default();
    if head.parse(&bytes[..end]).is_ok()
        && head.method().len() <= MAX_METHOD
        && !bytes.starts_with(HTTP2_PREFACE)
    {
        assert_eq!(detect(bytes), Some(Detected::Http1));
    }
}
