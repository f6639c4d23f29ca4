//! Any bytes as the frames of an app's connection: the result is independent of the size of the
//! reads, and a payload survives framing unchanged.

use naru_proxy::opaque::frame::{FrameError, HEADER, Kind, MAX_DATA, Unframing};

/// The result of reading a connection.
#[derive(Debug, Default, PartialEq, Eq)]
struct Read {
    payload: Vec<u8>,
    /// Bytes consumed, headers included.
    used: usize,
    ended: bool,
}

/// Reads at most `step` bytes at a time.
fn read(bytes: &[u8], step: usize) -> Result<Read, FrameError> {
    let mut unframing = Unframing::default();
    let mut read = Read::default();
    for piece in bytes.chunks(step) {
        let mut piece = piece.to_vec();
        let unframed = unframing.unframe(&mut piece)?;
        assert!(unframed.payload.end <= unframed.used && unframed.used <= piece.len());
        assert!(unframing.ended().is_some() || unframed.used == piece.len());
        read.payload.extend_from_slice(&piece[unframed.payload]);
        read.used += unframed.used;
    }
    read.ended = unframing.ended().is_some();
    Ok(read)
}

/// Frames of at most `step` bytes.
fn framed(payload: &[u8], step: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in payload.chunks(step.min(MAX_DATA)) {
        let length = piece.len();
        bytes.extend_from_slice(&Kind::Data { length }.header());
        bytes.extend_from_slice(piece);
    }
    bytes.extend_from_slice(&Kind::End.header());
    bytes
}

pub fn one(bytes: &[u8]) {
    let Some(input) = crate::input::input::<(u16, u16, &[u8])>(bytes) else {
        return;
    };
    let (step, other, bytes) = input;
    let (step, other) = (usize::from(step) + 1, usize::from(other) + 1);
    let whole = read(bytes, usize::MAX);
    assert_eq!(read(bytes, step), whole);
    if let Ok(whole) = whole {
        assert!(whole.payload.len() <= whole.used);
    }
    if let Some(header) = bytes.first_chunk::<HEADER>()
        && let Ok(kind) = Kind::parse(*header)
    {
        assert_eq!(kind.header(), *header);
    }
    let sent = framed(bytes, step);
    let received = Read {
        payload: bytes.to_vec(),
        used: sent.len(),
        ended: true,
    };
    assert_eq!(read(&sent, other), Ok(received));
}
