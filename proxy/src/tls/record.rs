//! One record of TLS 1.3, sealed and opened (RFC 8446 section 5.2).
//!
//! ```text
//! ┌────┬───────┬────────┬──────────────────────────────────────────┐
//! │ 23 │ 03 03 │ length │ sealed: content, its type, zeros ‖ tag   │
//! │  1 │   2   │   2    │ length                                   │
//! └────┴───────┴────────┴──────────────────────────────────────────┘
//! ```

use std::fmt;

use aws_lc_rs::aead::{self, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use rustls::{AlertDescription, ConnectionTrafficSecrets, ContentType};

/// The largest content of one record, in bytes.
pub const MAX_CONTENT: usize = 1 << 14;
pub const HEADER: usize = 5;
/// The overhead of a record without padding, in bytes: the header, the content type, and the tag.
pub const OVERHEAD: usize = HEADER + 1 + TAG;
/// The longest valid record, padded or not, in bytes.
pub const MAX_RECORD: usize = HEADER + MAX_CONTENT + 256;

const TAG: usize = 16;
const VERSION: [u8; 2] = [3, 3];
/// How many records one key seals. AES-GCM is safe for 2^24.5 of full size (RFC 8446 section 5.5).
const MAX_SEALED: u64 = 1 << 23;

/// Why a record is invalid. The connection has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("a record of type {0:?} after the handshake")]
    Type(ContentType),
    #[error("a record of {0} bytes")]
    Length(usize),
    #[error("a record that cannot be decrypted: modified or out of order")]
    Sealed,
    #[error("a record without a content type")]
    Empty,
    #[error("a record with too much content")]
    Content,
}

impl RecordError {
    /// The alert for the peer.
    pub fn alert(self) -> AlertDescription {
        match self {
            Self::Type(_) | Self::Empty => AlertDescription::UnexpectedMessage,
            Self::Length(..=TAG) => AlertDescription::DecodeError,
            Self::Length(_) | Self::Content => AlertDescription::RecordOverflow,
            Self::Sealed => AlertDescription::BadRecordMac,
        }
    }
}

/// Length of the record at the start of `bytes`, in bytes, header included. `None`: the record is
/// incomplete.
pub fn length(bytes: &[u8]) -> Result<Option<usize>, RecordError> {
    let Some([kind, _, _, high, low]) = bytes.first_chunk::<HEADER>() else {
        return Ok(None);
    };
    if *kind != u8::from(ContentType::ApplicationData) {
        return Err(RecordError::Type((*kind).into()));
    }
    let sealed = usize::from(u16::from_be_bytes([*high, *low]));
    if !(1 + TAG..=MAX_RECORD - HEADER).contains(&sealed) {
        return Err(RecordError::Length(sealed));
    }
    let length = HEADER + sealed;
    Ok((bytes.len() >= length).then_some(length))
}

/// The keys that seal one direction of a connection, or open the other.
pub struct Keys {
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    /// Sequence number of the next record.
    sequence: u64,
}

/// TLS 1.3 has no cipher with such a key.
#[derive(Debug, thiserror::Error)]
#[error("the handshake negotiated an unsupported cipher suite")]
pub struct UnknownCipher;

impl Keys {
    pub fn new(
        (sequence, secrets): (u64, ConnectionTrafficSecrets),
    ) -> Result<Self, UnknownCipher> {
        let (algorithm, key, iv) = match &secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&aead::AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&aead::AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => {
                (&aead::CHACHA20_POLY1305, key, iv)
            }
            _ => return Err(UnknownCipher),
        };
        let key = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| UnknownCipher)?;
        Ok(Self {
            key: LessSafeKey::new(key),
            iv: iv.as_ref().try_into().map_err(|_| UnknownCipher)?,
            sequence,
        })
    }

    /// Whether these sealing keys must be updated.
    pub fn are_exhausted(&self) -> bool {
        self.sequence >= MAX_SEALED
    }

    /// Lets tests reach the limit.
    #[cfg(test)]
    pub fn exhaust(&mut self) {
        self.sequence = MAX_SEALED;
    }

    /// The nonce of the next record (RFC 8446 section 5.3). `None` takes 2^64 records, which no
    /// peer can cause.
    fn next_nonce(&mut self) -> Option<Nonce> {
        let sequence = self.sequence.to_be_bytes();
        self.sequence = self.sequence.checked_add(1)?;
        let mut nonce = self.iv;
        let (_, low) = nonce.split_at_mut(NONCE_LEN - sequence.len());
        for (byte, mask) in low.iter_mut().zip(sequence) {
            *byte ^= mask;
        }
        Some(Nonce::assume_unique_for_key(nonce))
    }

    /// Seals `content`, at most [`MAX_CONTENT`] bytes, to the start of `out`. Returns the record's
    /// length: [`OVERHEAD`] more than the content's.
    pub fn seal(
        &mut self,
        kind: ContentType,
        content: &[u8],
        out: &mut [u8],
    ) -> Result<usize, RecordError> {
        let nonce = self.next_nonce().ok_or(RecordError::Sealed)?;
        let parts = Parts::of(out, content.len())?;
        let sealed = self.key.seal_out_of_place_scatter(
            nonce,
            Aad::from(parts.header),
            content,
            parts.content,
            &[kind.into()],
            parts.rest,
        );
        sealed.map_err(|_| RecordError::Sealed)?;
        Ok(content.len() + OVERHEAD)
    }

    /// As [`Self::seal`], with the content already in place: `length` bytes of `out`, after the
    /// first [`HEADER`].
    pub fn seal_in_place(
        &mut self,
        kind: ContentType,
        length: usize,
        out: &mut [u8],
    ) -> Result<usize, RecordError> {
        let nonce = self.next_nonce().ok_or(RecordError::Sealed)?;
        let parts = Parts::of(out, length)?;
        let sealed = self.key.seal_in_place_scatter(
            nonce,
            Aad::from(parts.header),
            parts.content,
            &[kind.into()],
            parts.rest,
        );
        sealed.map_err(|_| RecordError::Sealed)?;
        Ok(length + OVERHEAD)
    }

    /// Opens a complete `record` to the start of `out`, which must have room for its content, its
    /// type and its padding: see [`inner_length`]. Returns the type and length of the content.
    pub fn open(
        &mut self,
        record: &[u8],
        out: &mut [u8],
    ) -> Result<(ContentType, usize), RecordError> {
        let (header, sealed) = record
            .split_first_chunk::<HEADER>()
            .ok_or(RecordError::Length(record.len()))?;
        let (sealed, tag) = sealed
            .split_last_chunk::<TAG>()
            .ok_or(RecordError::Length(record.len()))?;
        let inner = out
            .get_mut(..sealed.len())
            .ok_or(RecordError::Length(record.len()))?;
        let nonce = self.next_nonce().ok_or(RecordError::Sealed)?;
        self.key
            .open_separate_gather(nonce, Aad::from(header), sealed, tag, inner)
            .map_err(|_| RecordError::Sealed)?;
        content(inner)
    }
}

/// The room that opening a record of `length` bytes needs, in bytes.
pub fn inner_length(length: usize) -> usize {
    length.saturating_sub(HEADER + TAG)
}

/// A record that is being sealed.
struct Parts<'a> {
    header: [u8; HEADER],
    content: &'a mut [u8],
    /// The content type, and the tag.
    rest: &'a mut [u8],
}

impl<'a> Parts<'a> {
    /// The parts of a record with `length` bytes of content, at the start of `out`. Writes its
    /// header.
    fn of(out: &'a mut [u8], length: usize) -> Result<Self, RecordError> {
        if length > MAX_CONTENT || out.len() < length + OVERHEAD {
            return Err(RecordError::Content);
        }
        let [high, low] = ((length + OVERHEAD - HEADER) as u16).to_be_bytes();
        let [major, minor] = VERSION;
        let header = [ContentType::ApplicationData.into(), major, minor, high, low];
        let (head, sealed) = out[..length + OVERHEAD].split_at_mut(HEADER);
        head.copy_from_slice(&header);
        let (content, rest) = sealed.split_at_mut(length);
        Ok(Self {
            header,
            content,
            rest,
        })
    }
}

/// Type and length of the content. Its type follows it, and then any number of zeros.
fn content(inner: &[u8]) -> Result<(ContentType, usize), RecordError> {
    // The limit includes the padding (RFC 8446 section 5.4).
    if inner.len() > MAX_CONTENT + 1 {
        return Err(RecordError::Content);
    }
    let length = inner
        .iter()
        .rposition(|byte| *byte != 0)
        .ok_or(RecordError::Empty)?;
    Ok((inner[length].into(), length))
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys")
            .field("sequence", &self.sequence)
            .finish_non_exhaustive()
    }
}
