//! The framing of ALPN `naru-tcp-frames`: carries the app's connections, one after the other, on
//! one connection.
//!
//! ```text
//! ┌──────┬────────────┬─────────┐   OPEN  an app's connection begins; only from the TLS client
//! │ kind │   length   │ payload │   DATA  its bytes, 1 to MAX_DATA of them
//! │  1   │ 3, big end │ length  │   END   this direction ends; after both, the next OPEN may come
//! └──────┴────────────┴─────────┘   RESET instead of an END: the app's connection was reset
//! ```
//!
//! The side that receives a RESET resets its own app's connection, and ends its direction with a
//! RESET or an END. The connection itself is closed if a frame is unknown or out of place, or if a
//! RESET comes after an END of the same direction.
//!
//! # Why not streams of mux
//!
//! Here bytes are passed on in one read and one write, under the flow control of the app's own
//! connection; streams of [`crate::upstream::mux`] copy them twice more. They take 37 % more user
//! and system CPU time for bulk (both ends, see `tests/bench/README.md`), and 7 % more for a new
//! connection with one exchange. For one long-lived connection there is no difference. For 16 that
//! exchange 100 bytes at once, streams take 81 % less, because they share writes and reads.
//!
//! A TLS connection for each connection of an app takes 10 % less for bulk, and 7 times as much for
//! a new one, despite the resumption of sessions.

use std::io;
use std::ops::Range;

/// Length of a frame's header, in bytes.
pub const HEADER: usize = 4;
/// The largest payload of one frame of [`Kind::Data`], in bytes. The size of one read, since a
/// frame never waits to be filled.
pub const MAX_DATA: usize = 64 * 1024;

/// The kind of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Open,
    Data { length: usize },
    End,
    Reset,
}

/// Why a peer's frames are invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of unknown kind {0}")]
    Unknown(u8),
    #[error("a frame of kind {kind} with {length} bytes")]
    Length { kind: u8, length: usize },
    #[error("a frame that is out of place: {0:?}")]
    OutOfPlace(Kind),
}

const OPEN: u8 = 1;
const DATA: u8 = 2;
const END: u8 = 3;
const RESET: u8 = 4;

impl Kind {
    /// The header as it is sent. At most [`MAX_DATA`] bytes follow.
    pub fn header(self) -> [u8; HEADER] {
        let (kind, length) = match self {
            Self::Open => (OPEN, 0),
            Self::Data { length } => (DATA, length),
            Self::End => (END, 0),
            Self::Reset => (RESET, 0),
        };
        let [.., high, middle, low] = (length as u32).to_be_bytes();
        [kind, high, middle, low]
    }

    pub fn parse([kind, high, middle, low]: [u8; HEADER]) -> Result<Self, FrameError> {
        let length = u32::from_be_bytes([0, high, middle, low]) as usize;
        match (kind, length) {
            (OPEN, 0) => Ok(Self::Open),
            (END, 0) => Ok(Self::End),
            (RESET, 0) => Ok(Self::Reset),
            (DATA, 1..=MAX_DATA) => Ok(Self::Data { length }),
            (OPEN | DATA | END | RESET, _) => Err(FrameError::Length { kind, length }),
            _ => Err(FrameError::Unknown(kind)),
        }
    }
}

impl From<FrameError> for io::Error {
    fn from(error: FrameError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// Parses the frames of one app's connection, from after its OPEN to its END or RESET, wherever
/// reads cut them.
#[derive(Clone, Debug, Default)]
pub struct Unframing {
    header: [u8; HEADER],
    /// How many bytes of `header` are known.
    known: usize,
    /// How many bytes of the payload are still missing.
    left: usize,
    end: Option<Ended>,
}

/// How the peer's direction has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    InOrder,
    Reset,
}

/// The result of one read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unframed {
    /// Where the payload is now.
    pub payload: Range<usize>,
    /// How many bytes were consumed: all, unless the END or RESET has come.
    pub used: usize,
}

impl Unframing {
    /// The END or RESET has come.
    pub fn ended(&self) -> Option<Ended> {
        self.end
    }

    /// Joins the payload in `bytes` into one piece, in place. Its first part stays where it is.
    pub fn unframe(&mut self, bytes: &mut [u8]) -> Result<Unframed, FrameError> {
        let mut payload = 0..0;
        let mut at = 0;
        while at < bytes.len() && self.end.is_none() {
            if self.left > 0 {
                let piece = at..at + self.left.min(bytes.len() - at);
                self.left -= piece.len();
                at = piece.end;
                if payload.is_empty() {
                    payload = piece;
                } else {
                    let length = piece.len();
                    bytes.copy_within(piece, payload.end);
                    payload.end += length;
                }
                continue;
            }
            self.header[self.known] = bytes[at];
            self.known += 1;
            at += 1;
            if self.known == HEADER {
                self.known = 0;
                match Kind::parse(self.header)? {
                    Kind::Data { length } => self.left = length,
                    Kind::End => self.end = Some(Ended::InOrder),
                    Kind::Reset => self.end = Some(Ended::Reset),
                    kind @ Kind::Open => return Err(FrameError::OutOfPlace(kind)),
                }
            }
        }
        Ok(Unframed { payload, used: at })
    }
}

/// Frames, one at a time.
#[cfg(test)]
pub mod testing {
    use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

    use super::{HEADER, Kind};

    pub async fn send(peer: &mut (impl AsyncWrite + Unpin), kind: Kind, payload: &[u8]) {
        let frame = [&kind.header(), payload].concat();
        peer.write_all(&frame).await.expect("a connection");
        peer.flush().await.expect("a connection");
    }

    pub async fn send_data(peer: &mut (impl AsyncWrite + Unpin), payload: &[u8]) {
        send(peer, data(payload).0, payload).await;
    }

    /// The next complete frame.
    pub async fn receive(peer: &mut (impl AsyncRead + Unpin)) -> (Kind, Vec<u8>) {
        let mut header = [0; HEADER];
        peer.read_exact(&mut header).await.expect("a frame");
        let kind = Kind::parse(header).expect("a frame");
        let mut payload = match kind {
            Kind::Data { length } => vec![0; length],
            Kind::Open | Kind::End | Kind::Reset => Vec::new(),
        };
        peer.read_exact(&mut payload).await.expect("a payload");
        (kind, payload)
    }

    pub fn data(payload: &[u8]) -> (Kind, Vec<u8>) {
        let length = payload.len();
        (Kind::Data { length }, payload.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn framed(pieces: &[&[u8]]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for piece in pieces {
            let length = piece.len();
            bytes.extend_from_slice(&Kind::Data { length }.header());
            bytes.extend_from_slice(piece);
        }
        bytes.extend_from_slice(&Kind::End.header());
        bytes
    }

    /// The payload of these reads, and the bytes left after the END.
    fn unframed<'a>(
        pieces: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<(Vec<u8>, Vec<u8>), FrameError> {
        let mut unframing = Unframing::default();
        let (mut payload, mut rest) = (Vec::new(), Vec::new());
        for piece in pieces {
            let mut piece = piece.to_vec();
            let unframed = unframing.unframe(&mut piece)?;
            payload.extend_from_slice(&piece[unframed.payload]);
            rest.extend_from_slice(&piece[unframed.used..]);
        }
        assert_eq!(unframing.ended(), Some(Ended::InOrder));
        Ok((payload, rest))
    }

    #[test]
    fn every_kind_is_read_as_it_was_written() {
        let data = |length| Kind::Data { length };
        for kind in [
            Kind::Open,
            Kind::End,
            Kind::Reset,
            data(1),
            data(0x1234),
            data(MAX_DATA),
        ] {
            assert_eq!(Kind::parse(kind.header()), Ok(kind));
        }
        assert_eq!(data(0x0102).header(), [2, 0, 1, 2]);
    }

    #[test]
    fn frames_may_be_cut_anywhere() {
        let mut bytes = framed(&[b"one", b"2", b"a third one"]);
        bytes.extend_from_slice(&Kind::Open.header());
        let expected = (b"one2a third one".to_vec(), Kind::Open.header().to_vec());
        for cut in 0..=bytes.len() {
            let (first, second) = bytes.split_at(cut);
            assert_eq!(unframed([first, second]), Ok(expected.clone()), "{cut}");
        }
        assert_eq!(unframed(bytes.chunks(1)), Ok(expected));
    }

    #[test]
    fn frames_too_long_unknown_or_out_of_place_are_rejected() {
        let oversized = [&[DATA][..], &(MAX_DATA as u32 + 1).to_be_bytes()[1..]].concat();
        let length = MAX_DATA + 1;
        let cases: [(&[u8], FrameError); 6] = [
            (&oversized, FrameError::Length { kind: DATA, length }),
            (
                &[DATA, 0, 0, 0],
                FrameError::Length {
                    kind: DATA,
                    length: 0,
                },
            ),
            (
                &[END, 0, 0, 1],
                FrameError::Length {
                    kind: END,
                    length: 1,
                },
            ),
            (
                &[OPEN, 1, 0, 0],
                FrameError::Length {
                    kind: OPEN,
                    length: 0x1_0000,
                },
            ),
            (&[OPEN, 0, 0, 0], FrameError::OutOfPlace(Kind::Open)),
            (&[9, 0, 0, 1], FrameError::Unknown(9)),
        ];
        for (bytes, error) in cases {
            assert_eq!(unframed([bytes]), Err(error));
            assert_eq!(unframed(bytes.chunks(1)), Err(error));
        }
    }

    proptest! {
        #[test]
        fn payload_arrives_as_it_was_sent(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..50), 0..10),
            cuts in prop::collection::vec(1..40_usize, 1..100),
        ) {
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            let bytes = framed(&pieces);
            let mut reads = Vec::new();
            let mut rest = bytes.as_slice();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (read, after) = rest.split_at((*cut).min(rest.len()));
                reads.push(read);
                rest = after;
            }
            prop_assert_eq!(unframed(reads), Ok((pieces.concat(), Vec::new())));
        }

        #[test]
        fn the_result_does_not_depend_on_where_reads_cut(
            bytes in prop::collection::vec(any::<u8>(), 0..100),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut whole = Unframing::default();
            let mut all = bytes.clone();
            let expected = whole.unframe(&mut all).map(|unframed| all[unframed.payload].to_vec());
            let mut cutting = Unframing::default();
            let cut = cut.index(bytes.len() + 1);
            let mut got = Ok(Vec::new());
            for piece in [&bytes[..cut], &bytes[cut..]] {
                let mut piece = piece.to_vec();
                got = got.and_then(|mut got: Vec<u8>| {
                    let unframed = cutting.unframe(&mut piece)?;
                    got.extend_from_slice(&piece[unframed.payload]);
                    Ok(got)
                });
            }
            prop_assert_eq!(got, expected);
        }
    }
}
