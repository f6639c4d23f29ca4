//! Records of TLS 1.3 against rustls' own: what one side seals the other one opens, and both accept
//! or refuse the same records, whatever is sealed in them and whichever bit is changed.

use arbitrary::Arbitrary;
use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use naru_proxy::tls::fuzzing::{HEADER, Keys, MAX_CONTENT, OVERHEAD, inner_length, length};
use rustls::crypto::aws_lc_rs::cipher_suite::{
    TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
};
use rustls::crypto::cipher::{
    AeadKey, InboundOpaqueMessage, Iv, MessageDecrypter, MessageEncrypter, OutboundPlainMessage,
};
use rustls::{ConnectionTrafficSecrets, ContentType, ProtocolVersion, Tls13CipherSuite};

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    chacha: bool,
    /// The number of the first record.
    sequence: u32,
    records: Vec<Record<'a>>,
}

#[derive(Arbitrary, Debug)]
struct Record<'a> {
    kind: u8,
    content: &'a [u8],
    /// The content is repeated up to this length.
    length: Option<u16>,
    /// Zeros behind the content's type.
    padding: u16,
    /// A bit to change in the record.
    change: Option<(u16, u8)>,
}

/// At most so many records in one execution.
const MAX_RECORDS: usize = 4;
const KEY: [u8; 32] = [7; 32];
const IV: [u8; 12] = [9; 12];

fn suite(chacha: bool) -> &'static Tls13CipherSuite {
    let suite = match chacha {
        true => TLS13_CHACHA20_POLY1305_SHA256,
        false => TLS13_AES_256_GCM_SHA384,
    };
    suite.tls13().expect("a suite of TLS 1.3")
}

fn keys(chacha: bool, sequence: u64) -> Keys {
    let (key, iv) = (AeadKey::from(KEY), Iv::from(IV));
    let secrets = match chacha {
        true => ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv },
        false => ConnectionTrafficSecrets::Aes256Gcm { key, iv },
    };
    Keys::new((sequence, secrets)).expect("a known suite")
}

fn decrypter(chacha: bool) -> Box<dyn MessageDecrypter> {
    let algorithm = suite(chacha).aead_alg;
    algorithm.decrypter(KEY.into(), IV.into())
}

fn encrypter(chacha: bool) -> Box<dyn MessageEncrypter> {
    let algorithm = suite(chacha).aead_alg;
    algorithm.encrypter(KEY.into(), IV.into())
}

/// Seals `inner`, the content with type and padding, without any check.
fn seal(chacha: bool, sequence: u64, inner: &[u8]) -> Vec<u8> {
    let algorithm = match chacha {
        true => &CHACHA20_POLY1305,
        false => &AES_256_GCM,
    };
    let key = LessSafeKey::new(UnboundKey::new(algorithm, &KEY).expect("a key"));
    let mut nonce = IV;
    for (byte, mask) in nonce[4..].iter_mut().zip(sequence.to_be_bytes()) {
        *byte ^= mask;
    }
    let [high, low] = ((inner.len() + 16) as u16).to_be_bytes();
    let header = [23, 3, 3, high, low];
    let mut sealed = inner.to_vec();
    let nonce = Nonce::assume_unique_for_key(nonce);
    key.seal_in_place_append_tag(nonce, Aad::from(header), &mut sealed)
        .expect("it fits");
    [&header[..], &sealed].concat()
}

type Opened = Option<(ContentType, Vec<u8>)>;

fn open(keys: &mut Keys, record: &[u8]) -> Opened {
    assert_eq!(length(record).ok()??, record.len());
    let mut out = vec![0; inner_length(record.len())];
    let (kind, length) = keys.open(record, &mut out).ok()?;
    out.truncate(length);
    // rustls' record layer refuses a type that the proxy's stream refuses later.
    (kind != ContentType::ChangeCipherSpec).then_some((kind, out))
}

/// As rustls opens it. Its caller checks the header.
fn reference(decrypter: &mut dyn MessageDecrypter, sequence: u64, record: &[u8]) -> Opened {
    length(record).ok()??;
    let mut payload = record[HEADER..].to_vec();
    let kind = ContentType::ApplicationData;
    let message = InboundOpaqueMessage::new(kind, ProtocolVersion::TLSv1_2, &mut payload);
    let opened = decrypter.decrypt(message, sequence).ok()?;
    Some((opened.typ, opened.payload.to_vec()))
}

impl Record<'_> {
    /// The type, except for the one that is refused.
    fn kind(&self) -> u8 {
        match ContentType::from(self.kind) {
            ContentType::ChangeCipherSpec => ContentType::ApplicationData.into(),
            _ => self.kind,
        }
    }

    fn content(&self) -> Vec<u8> {
        match self.length {
            Some(length) if !self.content.is_empty() => {
                let repeated = self.content.iter().cycle().copied();
                repeated
                    .take(usize::from(length) % (MAX_CONTENT + 1))
                    .collect()
            }
            _ => self.content[..self.content.len().min(MAX_CONTENT)].to_vec(),
        }
    }

    /// What a hostile peer may seal: any type, and any padding.
    fn inner(&self) -> Vec<u8> {
        let mut inner = self.content();
        inner.push(self.kind());
        let padding = usize::from(self.padding) % 512;
        inner.resize(inner.len() + padding, 0);
        inner
    }

    /// What each side seals is what the other one opens.
    fn exchange(&self, chacha: bool, sequence: u64) {
        let content = self.content();
        let kind = ContentType::from(self.kind().max(1));
        let mut record = vec![0; content.len() + OVERHEAD];
        let sealed = keys(chacha, sequence).seal(kind, &content, &mut record);
        assert_eq!(sealed, Ok(record.len()));
        let mut in_place = vec![0; content.len() + OVERHEAD];
        in_place[HEADER..HEADER + content.len()].copy_from_slice(&content);
        let sealed = keys(chacha, sequence).seal_in_place(kind, content.len(), &mut in_place);
        assert_eq!(sealed, Ok(record.len()));
        assert!(record == in_place);
        let expected = Some((kind, content.clone()));
        assert_eq!(
            reference(&mut *decrypter(chacha), sequence, &record),
            expected
        );
        let message = OutboundPlainMessage {
            typ: kind,
            version: ProtocolVersion::TLSv1_2,
            payload: content.as_slice().into(),
        };
        let theirs = encrypter(chacha)
            .encrypt(message, sequence)
            .expect("rustls seals it");
        assert!(theirs.encode() == record);
        assert_eq!(open(&mut keys(chacha, sequence), &record), expected);
    }
}

pub fn one(bytes: &[u8]) {
    let Some(input) = crate::input::input::<Input>(bytes) else {
        return;
    };
    let chacha = input.chacha;
    let first = u64::from(input.sequence);
    let (mut ours, mut theirs) = (keys(chacha, first), decrypter(chacha));
    for (record, sequence) in input.records.iter().take(MAX_RECORDS).zip(first..) {
        record.exchange(chacha, sequence);
        let mut sealed = seal(chacha, sequence, &record.inner());
        let Some((at, bit)) = record.change else {
            let expected = reference(&mut *theirs, sequence, &sealed);
            assert_eq!(open(&mut ours, &sealed), expected);
            if expected.is_none() {
                return;
            }
            continue;
        };
        let at = usize::from(at) % sealed.len();
        sealed[at] ^= 1 << (bit % 8);
        // A length of another record.
        if !matches!(length(&sealed), Ok(Some(length)) if length == sealed.len()) {
            return;
        }
        assert_eq!(open(&mut ours, &sealed), None);
        // rustls does not look at the version, which the record layer of the sender may have
        // changed; here it is sealed.
        if !(1..=2).contains(&at) {
            assert_eq!(reference(&mut *theirs, sequence, &sealed), None);
        }
        return;
    }
}
