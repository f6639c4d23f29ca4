//! A peer that holds the keys and sends what it likes: the proxy's TLS stream delivers the same
//! data as rustls, and ends or fails where rustls does.

use std::task::Poll;

use arbitrary::Arbitrary;
use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey,
};
use aws_lc_rs::hkdf::{self, HKDF_SHA256, HKDF_SHA384, KeyType, Prk};

use crate::handshake::{SUITES, Setup, traffic_secret};
use crate::wire::poll_read;

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    ours_is_server: bool,
    suite: u8,
    records: Vec<Record<'a>>,
    /// The size of the pieces in which they arrive.
    piece: u16,
}

#[derive(Arbitrary, Debug)]
struct Record<'a> {
    content: Content<'a>,
    padding: u8,
}

#[derive(Arbitrary, Debug)]
enum Content<'a> {
    Data(&'a [u8]),
    Alert(bool, u8),
    KeyUpdate(u8),
    /// A handshake message, and its type.
    Message(u8, &'a [u8]),
    /// Part of one, or several.
    Handshake(&'a [u8]),
    /// Any other type.
    Other(u8, &'a [u8]),
}

/// At most so many records in one execution: the bounds on records without data differ.
const MAX_RECORDS: usize = 4;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const DATA: u8 = 23;
const KEY_UPDATE: u8 = 24;
const CLOSE_NOTIFY: u8 = 0;
const USER_CANCELED: u8 = 90;

impl Content<'_> {
    /// Type and content.
    fn parts(&self) -> (u8, Vec<u8>) {
        match self {
            Self::Data(bytes) => (DATA, bytes.to_vec()),
            // The proxy ignores the level, as RFC 8446 section 6 allows. rustls does not.
            Self::Alert(_, CLOSE_NOTIFY) => (ALERT, vec![1, CLOSE_NOTIFY]),
            Self::Alert(_, USER_CANCELED) => (ALERT, vec![1, USER_CANCELED]),
            Self::Alert(fatal, description) => (ALERT, vec![1 + u8::from(*fatal), *description]),
            Self::KeyUpdate(request) => (HANDSHAKE, vec![KEY_UPDATE, 0, 0, 1, request % 4]),
            Self::Message(kind, body) => {
                let length = (body.len() as u32).to_be_bytes();
                (HANDSHAKE, [&[*kind], &length[1..], body].concat())
            }
            Self::Handshake(bytes) => (HANDSHAKE, bytes.to_vec()),
            Self::Other(kind, bytes) => (*kind, bytes.to_vec()),
        }
    }
}

/// Seals as RFC 8446 section 5.2 says, without any check.
struct Sealer {
    suite: usize,
    secret: Vec<u8>,
    sequence: u64,
}

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

impl Sealer {
    fn algorithms(&self) -> (&'static Algorithm, hkdf::Algorithm) {
        [
            (&AES_128_GCM, HKDF_SHA256),
            (&AES_256_GCM, HKDF_SHA384),
            (&CHACHA20_POLY1305, HKDF_SHA256),
        ][self.suite]
    }

    /// HKDF-Expand-Label without a context (RFC 8446 section 7.1).
    fn expand(&self, label: &str, length: usize) -> Vec<u8> {
        let label = format!("tls13 {label}");
        let head = [0, length as u8, label.len() as u8];
        let prk = Prk::new_less_safe(self.algorithms().1, &self.secret);
        let info = [&head[..], label.as_bytes(), &[0]];
        let mut out = vec![0; length];
        let expanded = prk.expand(&info, Length(length)).expect("a length");
        expanded.fill(&mut out).expect("the same length");
        out
    }

    fn seal(&mut self, kind: u8, content: &[u8], padding: u8) -> Vec<u8> {
        let (algorithm, _) = self.algorithms();
        let key = self.expand("key", algorithm.key_len());
        let mut nonce = self.expand("iv", 12);
        for (byte, mask) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= mask;
        }
        self.sequence += 1;
        let mut sealed = [content, &[kind]].concat();
        sealed.resize(sealed.len() + usize::from(padding), 0);
        let [high, low] = ((sealed.len() + 16) as u16).to_be_bytes();
        let header = [23, 3, 3, high, low];
        let nonce = Nonce::try_assume_unique_for_key(&nonce).expect("twelve bytes");
        let key = LessSafeKey::new(UnboundKey::new(algorithm, &key).expect("a key"));
        key.seal_in_place_append_tag(nonce, Aad::from(header), &mut sealed)
            .expect("it fits");
        [&header[..], &sealed].concat()
    }

    /// The key after a KeyUpdate (RFC 8446 section 7.2).
    fn update(&mut self) {
        self.secret = self.expand("traffic upd", self.secret.len());
        self.sequence = 0;
    }
}

/// How a connection went.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    data: Vec<u8>,
    end: End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Open,
    InOrder,
    Failed,
}

impl Input<'_> {
    fn setup(&self) -> Setup {
        Setup {
            suite: usize::from(self.suite) % SUITES.len(),
            // So the first record that is sealed here is the server's first.
            tickets: 0,
        }
    }

    /// The records, sealed with the keys of the last handshake.
    fn sealed(&self) -> Vec<u8> {
        let mut sealer = Sealer {
            suite: self.setup().suite,
            secret: traffic_secret(!self.ours_is_server),
            sequence: 0,
        };
        let mut sealed = Vec::new();
        for record in self.records.iter().take(MAX_RECORDS) {
            let (kind, content) = record.content.parts();
            // The proxy refuses handshake records without content, as RFC 8446 section 5.1 demands.
            // rustls does not.
            if kind == HANDSHAKE && content.is_empty() {
                continue;
            }
            sealed.extend(sealer.seal(kind, &content, record.padding));
            if matches!(record.content, Content::KeyUpdate(_)) {
                sealer.update();
            }
        }
        sealed
    }

    fn pieces<'a>(&self, sealed: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        sealed.chunks(usize::from(self.piece) + 1)
    }

    /// The proxy reads them.
    fn ours(&self) -> Outcome {
        let (mut stream, _peer) = self.setup().shake_hands(self.ours_is_server);
        let sealed = self.sealed();
        let (mut data, mut end) = (Vec::new(), End::Open);
        for piece in self.pieces(&sealed) {
            stream.get_ref().0.borrow_mut().arrived.extend(piece);
            while end == End::Open {
                match poll_read(&mut stream, 4096) {
                    Poll::Pending => break,
                    Poll::Ready(Ok(bytes)) if bytes.is_empty() => end = End::InOrder,
                    Poll::Ready(Ok(bytes)) => data.extend(bytes),
                    Poll::Ready(Err(_)) => end = End::Failed,
                }
            }
        }
        Outcome { data, end }
    }

    /// rustls reads them.
    fn theirs(&self) -> Outcome {
        // The proxy's other end, so that rustls is what the proxy was before.
        let (_stream, mut peer) = self.setup().shake_hands(!self.ours_is_server);
        let sealed = self.sealed();
        let (mut data, mut end) = (Vec::new(), End::Open);
        for piece in self.pieces(&sealed) {
            peer.io.0.borrow_mut().arrived.extend(piece);
            peer.turn();
            while end == End::Open {
                match peer.read(4096) {
                    Poll::Pending => break,
                    Poll::Ready(Ok(bytes)) if bytes.is_empty() => end = End::InOrder,
                    Poll::Ready(Ok(bytes)) => data.extend(bytes),
                    Poll::Ready(Err(_)) => end = End::Failed,
                }
                peer.turn();
            }
        }
        Outcome { data, end }
    }
}

pub fn one(bytes: &[u8]) {
    let Some(input) = crate::input::input::<Input>(bytes) else {
        return;
    };
    assert_eq!(input.ours(), input.theirs(), "{input:?}");
}
